//! Sums of products: rows by constant matrices, which are packed here, and pairs of values that both change.
//!
//! A product of rows that are put together from the user's part and the candidate's is taken apart: the user's part
//! of the sum is computed once per request, and the rows' sums start from it.

use tract_onnx::{
    prelude::*,
    tract_core::{
        axes::Axis as Letter,
        ops::{binary::TypedBinOp, einsum::EinSum},
    },
};

use super::{
    Uncovered,
    lower::{Lowering, Value},
    step::{Call, Product, Start, Work},
    view::{Axis, Dim, MAX_TABLE, Space, View, collapse},
};
use crate::cpu::{Packed, Small};

/// The most elements of all packed weights of a product: 1 GiB.
const MAX_WEIGHTS: usize = 1 << 28;

/// What the axes of two operands and their result do, as positions in each.
#[derive(Debug, Default)]
struct Roles {
    /// Of the left side and the result.
    m: Vec<(usize, usize)>,
    /// Of the right side and the result.
    n: Vec<(usize, usize)>,
    /// Of all three.
    group: Vec<(usize, usize, usize)>,
    /// Of both sides: what is summed over.
    k: Vec<(usize, usize)>,
}

/// A left side, taken apart.
struct Apart {
    /// What has one record per request, and which elements of the summed axis it has.
    users: View,
    of_users: Vec<usize>,
    /// The same of what has one record per row.
    candidates: View,
    of_candidates: Vec<usize>,
}

/// The weights of a product.
pub(crate) struct Matrix {
    pub(crate) numbers: Vec<f32>,
    pub(crate) shape: Vec<usize>,
}

impl Matrix {
    /// The stride of an axis; 0 where one element stands for all.
    pub(crate) fn stride(&self, axis: usize) -> usize {
        if self.shape[axis] == 1 { 0 } else { self.shape[axis + 1..].iter().product() }
    }
}

impl Lowering<'_> {
    /// A sum of products of two operands.
    pub(crate) fn einsum(&mut self, node: usize, op: &EinSum, dims: &[Dim]) -> Result<Value, Uncovered> {
        if self.graph.nodes()[node].inputs.len() != 2 || op.q_params.is_some() {
            return Err(self.uncovered(node, "a product of other than two f32 operands"));
        }
        let letters: Vec<&Letter> = op.axes.iter_all_axes().collect();
        match (self.constant(node, 0), self.constant(node, 1)) {
            (None, Some(weights)) => self.by_weights(node, (0, 1), &letters, &weights, dims),
            (Some(weights), None) => self.by_weights(node, (1, 0), &letters, &weights, dims),
            _ => self.pair(node, &letters, dims),
        }
    }

    /// What each axis does, batch included.
    fn roles(&self, node: usize, letters: &[&Letter], (a, b): (usize, usize)) -> Result<Roles, Uncovered> {
        let mut roles = Roles::default();
        for letter in letters {
            let single =
                |places: &[usize]| if places.len() > 1 { None } else { Some(places.first().copied()) };
            let places = (single(&letter.inputs[a]), single(&letter.inputs[b]), single(&letter.outputs[0]));
            match places {
                (Some(Some(a)), Some(Some(b)), Some(Some(out))) => roles.group.push((a, b, out)),
                (Some(Some(a)), Some(Some(b)), Some(None)) => roles.k.push((a, b)),
                (Some(Some(a)), Some(None), Some(Some(out))) => roles.m.push((a, out)),
                (Some(None), Some(Some(b)), Some(Some(out))) => roles.n.push((b, out)),
                // An axis of one element that ends here, or begins.
                (Some(Some(place)), Some(None), Some(None)) if self.is_one(node, a, place)? => {}
                (Some(None), Some(Some(place)), Some(None)) if self.is_one(node, b, place)? => {}
                (Some(None), Some(None), Some(Some(_))) => {}
                _ => {
                    let problem =
                        format!("axis {:?} is summed in one operand alone, or stands twice", letter.repr);
                    return Err(self.uncovered(node, problem));
                }
            }
        }
        roles.m.sort_by_key(|&(_, out)| out);
        roles.n.sort_by_key(|&(_, out)| out);
        roles.group.sort_by_key(|&(_, _, out)| out);
        Ok(roles)
    }

    /// Whether an axis of an operand has one element.
    fn is_one(&self, node: usize, side: usize, axis: usize) -> Result<bool, Uncovered> {
        let source = self.source(node, side)?;
        Ok(self.dims(source)?.get(axis) == Some(&Dim::Fixed(1)))
    }

    /// Rows by a constant.
    fn by_weights(
        &mut self,
        node: usize,
        sides: (usize, usize),
        letters: &[&Letter],
        weights: &Tensor,
        dims: &[Dim],
    ) -> Result<Value, Uncovered> {
        let roles = self.roles(node, letters, sides)?;
        let matrix = Matrix { numbers: self.numbers(node, weights)?, shape: weights.shape().to_vec() };
        let (bias, named) = self.bias(node, &roles, dims)?;
        let start = bias.map_or(Start::Zero, Start::Bias);
        let view = match self.apart(node, sides.0, &roles)? {
            Some(Apart { users, candidates, of_users, of_candidates }) => {
                let first = self.product(node, &users, &roles, (&matrix, &of_users), start, dims)?;
                let start = Start::Buffer(first.buffer);
                self.product(node, &candidates, &roles, (&matrix, &of_candidates), start, dims)?
            }
            None => {
                let whole = self.view_of(node, sides.0)?;
                let k: usize = roles.k.iter().map(|&(a, b)| len_of(&whole, a).max(matrix.shape[b])).product();
                let all: Vec<usize> = (0..k).collect();
                self.product(node, &whole, &roles, (&matrix, &all), start, dims)?
            }
        };
        let made = named.unwrap_or(node);
        self.sums[made] = Some(view.buffer);
        if let Some(add) = named {
            self.values[add] = Some(Value::View(view.clone()));
        }
        Ok(Value::View(view))
    }

    /// The bias that the only taker of a product adds: the record that sums start from, and the node that adds it.
    fn bias(
        &self,
        node: usize,
        roles: &Roles,
        dims: &[Dim],
    ) -> Result<(Option<Vec<f32>>, Option<usize>), Uncovered> {
        if self.takers[node] != 1 {
            return Ok((None, None));
        }
        let graph = self.graph;
        let taker = graph.nodes()[node].outputs.first().and_then(|outlet| outlet.successors.first());
        let Some(add) = taker.map(|inlet| &graph.nodes()[inlet.node]) else { return Ok((None, None)) };
        let adds = add.op_as::<TypedBinOp>().is_some_and(|op| op.0.name() == "Add");
        if !adds || add.inputs.len() != 2 || self.dims(add.id)? != dims {
            return Ok((None, None));
        }
        let other = if add.inputs[0].node == node { add.inputs[1] } else { add.inputs[0] };
        let Some(bias) = graph.nodes()[other.node].op_as::<tract_onnx::tract_core::ops::konst::Const>()
        else {
            return Ok((None, None));
        };
        let tensor = bias.val();
        if tensor.rank() != dims.len() || tensor.datum_type() != DatumType::F32 {
            return Ok((None, None));
        }
        let bias = Matrix { numbers: self.numbers(node, tensor)?, shape: tensor.shape().to_vec() };
        // In the order of the result's record; a bias of the batch itself has one element for all.
        let order = record_order(roles, dims);
        let mut record = vec![0usize];
        for &axis in &order {
            let (len, stride) = (dims[axis].per_record(), bias.stride(axis));
            record = record.iter().flat_map(|&at| (0..len).map(move |i| at + i * stride)).collect();
        }
        let numbers: Option<Vec<f32>> = record.iter().map(|&at| bias.numbers.get(at).copied()).collect();
        Ok(numbers.map_or((None, None), |numbers| (Some(numbers), Some(add.id))))
    }

    /// The parts of requests and of rows of a left side that is put together of both along the axis that is summed.
    fn apart(&mut self, node: usize, side: usize, roles: &Roles) -> Result<Option<Apart>, Uncovered> {
        let source = self.source(node, side)?;
        let Some(Value::Concat(mut concat)) = self.values[source].clone() else { return Ok(None) };
        if !matches!(&roles.k[..], [(a, _)] if *a == concat.axis) || !roles.group.is_empty() {
            return Ok(None);
        }
        let mut parts = [Vec::new(), Vec::new()];
        let mut places = [Vec::new(), Vec::new()];
        let mut first = 0;
        for part in &concat.parts {
            let which = usize::from(self.buffers[part.buffer].space == Space::Row);
            let len = len_of(part, concat.axis);
            parts[which].push(part.clone());
            places[which].extend(first..first + len);
            first += len;
        }
        let [of_requests, of_rows] = &parts;
        if of_requests.is_empty() || of_rows.is_empty() {
            return Ok(None);
        }
        let users = match concat.of_requests.take() {
            Some(view) => view,
            None => self.side_by_side(source, of_requests, concat.axis)?,
        };
        let candidates = match concat.of_rows.take() {
            Some(view) => view,
            None => self.side_by_side(source, of_rows, concat.axis)?,
        };
        (concat.of_requests, concat.of_rows) = (Some(users.clone()), Some(candidates.clone()));
        self.values[source] = Some(Value::Concat(concat));
        let [of_users, of_candidates] = places;
        Ok(Some(Apart { users, candidates, of_users, of_candidates }))
    }

    /// The step that multiplies `a` by the rows `chosen` of the weights' summed axis.
    fn product(
        &mut self,
        node: usize,
        a: &View,
        roles: &Roles,
        (matrix, chosen): (&Matrix, &[usize]),
        start: Start,
        dims: &[Dim],
    ) -> Result<View, Uncovered> {
        let fits = |&(left, right): &(usize, usize)| len_of(a, left) == matrix.shape[right];
        let all_there = match &roles.k[..] {
            [(left, _)] => [1, chosen.len()].contains(&len_of(a, *left)),
            several => several.iter().all(fits),
        };
        if !all_there {
            return Err(self.uncovered(node, "a summed axis is repeated on one side"));
        }
        let k_axes: Vec<usize> = roles.k.iter().map(|&(a, _)| a).collect();
        // One element may stand for all that are summed.
        let repeated = matches!(&roles.k[..], [(left, _)] if len_of(a, *left) == 1);
        let (a, k_stride) = self.evenly(node, a, &k_axes)?;
        let k_stride = if repeated { 0 } else { k_stride };
        let order = record_order(roles, dims);
        let width = order.iter().map(|&axis| dims[axis].per_record()).product();
        let space = self.space(std::slice::from_ref(&a)).max(match start {
            Start::Buffer(_) => Space::Row,
            Start::Zero | Start::Bias(_) | Start::Here => Space::Request,
        });
        let out = self.buffer(node, space, width)?;
        let result = ordered(out, dims, &order);
        let out_stride = |axis: usize| stride_of(&result, axis);
        // The last axis of rows beside the batch goes with each product, the others are loops.
        let fixed = |&&(axis, _): &&(usize, usize)| a.axes[axis] != Axis::Batch;
        let mut m: Vec<(usize, usize)> = roles.m.iter().filter(fixed).copied().collect();
        let inner = m.pop();
        let mut loops = vec![(a.offset, 0usize, 0usize)];
        let spread =
            |loops: Vec<(usize, usize, usize)>, len: usize, by: [usize; 3]| -> Vec<(usize, usize, usize)> {
                let each = |&(a, b, c): &(usize, usize, usize)| {
                    (0..len).map(move |i| (a + i * by[0], b + i * by[1], c + i * by[2]))
                };
                loops.iter().flat_map(each).collect()
            };
        let mut products = 1usize;
        for (len, by) in m
            .iter()
            .map(|&(axis, to)| (dims[to].per_record(), [along(&a, axis), 0, out_stride(to)]))
            .chain(roles.group.iter().map(|&(left, right, to)| {
                (dims[to].per_record(), [along(&a, left), matrix.stride(right), out_stride(to)])
            }))
        {
            products = products.saturating_mul(len);
            if products > MAX_TABLE {
                return Err(self.uncovered(node, "it has too many products per row"));
            }
            loops = spread(loops, len, by);
        }
        let places = |axes: Vec<(usize, usize)>| -> Vec<usize> {
            axes.iter().fold(vec![0], |at: Vec<usize>, &(len, stride)| {
                at.iter().flat_map(|&at| (0..len).map(move |i| at + i * stride)).collect()
            })
        };
        let k_lens = |&(left, right): &(usize, usize)| {
            (len_of(&a, left).max(matrix.shape[right]), matrix.stride(right))
        };
        let rows: Vec<usize> = match &roles.k[..] {
            [(_, right)] => chosen.iter().map(|&k| k * matrix.stride(*right)).collect(),
            several => places(several.iter().map(k_lens).collect()),
        };
        let columns = places(
            roles.n.iter().map(|&(right, to)| (dims[to].per_record(), matrix.stride(right))).collect(),
        );
        let mut starts: Vec<usize> = loops.iter().map(|&(_, b, _)| b).collect();
        starts.sort_unstable();
        starts.dedup();
        let elements = rows
            .len()
            .checked_mul(columns.len().next_multiple_of(16))
            .and_then(|n| n.checked_mul(starts.len()));
        if elements.is_none_or(|n| n > MAX_WEIGHTS) {
            return Err(self.uncovered(node, format!("more than {MAX_WEIGHTS} weights")));
        }
        let packed = starts.iter().map(|&start| {
            Packed::new(rows.len(), columns.len(), |k, n| matrix.numbers[start + rows[k] + columns[n]])
        });
        let weights = packed.collect();
        let calls = loops.iter().map(|&(a, b, out)| {
            let weights = starts.binary_search(&b).unwrap_or_default();
            Call { a, weights, out }
        });
        let calls = calls.collect();
        let (m, m_stride, m_out) = match inner {
            Some((axis, to)) => (dims[to].per_record(), along(&a, axis), out_stride(to)),
            None => (1, 0, 0),
        };
        let product =
            Product { a: a.buffer, m, m_stride, m_out, k_stride, start, relu: false, weights, calls };
        self.step(node, out, Work::Product(product));
        Ok(result)
    }

    /// A view in which these axes together have one stride, and that stride.
    fn evenly(&mut self, node: usize, view: &View, axes: &[usize]) -> Result<(View, usize), Uncovered> {
        let mut steps = Vec::new();
        for &axis in axes {
            match view.axes[axis] {
                Axis::Fixed { len, stride } => steps.push((len, stride)),
                Axis::Batch => return Err(self.uncovered(node, "it sums over rows")),
            }
        }
        if let Some((_, stride)) = collapse(&steps) {
            return Ok((view.clone(), stride));
        }
        let others = (0..view.axes.len()).filter(|axis| !axes.contains(axis));
        let order: Vec<usize> = others.chain(axes.iter().copied()).collect();
        Ok((self.relaid(node, view, &order)?, 1))
    }

    /// Two values that both change from record to record.
    fn pair(&mut self, node: usize, letters: &[&Letter], dims: &[Dim]) -> Result<Value, Uncovered> {
        let mut roles = self.roles(node, letters, (0, 1))?;
        let (mut a, mut b) = (self.view_of(node, 0)?, self.view_of(node, 1)?);
        let elements =
            |axes: &[(usize, usize)]| axes.iter().map(|&(_, to)| dims[to].per_record()).product::<usize>();
        // Columns are what is worked on side by side: the side that has more of them is the right one.
        if elements(&roles.n) == 1 && elements(&roles.m) > 1 {
            (a, b) = (b, a);
            roles = self.roles(node, letters, (1, 0))?;
        }
        let (left, right): (Vec<usize>, Vec<usize>) = roles.k.iter().copied().unzip();
        let k: usize = roles.k.iter().map(|&(l, r)| len_of(&a, l).max(len_of(&b, r))).product();
        let one_for_all = roles.k.iter().any(|&(l, r)| len_of(&a, l) != len_of(&b, r));
        if one_for_all && roles.k.len() > 1 {
            return Err(self.uncovered(node, "several summed axes, of which one is repeated"));
        }
        let (a, a_k) = self.evenly(node, &a, &left)?;
        let (b, b_k) = self.evenly(node, &b, &right)?;
        let step = |view: &View, axes: &[usize], step: usize| {
            if one_for_all && axes.iter().all(|&axis| len_of(view, axis) == 1) { 0 } else { step }
        };
        let (a_k, b_k) = (step(&a, &left, a_k), step(&b, &right, b_k));
        let order = record_order(&roles, dims);
        let width = order.iter().map(|&axis| dims[axis].per_record()).product();
        let space = self.space(&[a.clone(), b.clone()]);
        let out = self.buffer(node, space, width)?;
        let result = ordered(out, dims, &order);
        let is_fixed = |&(_, to): &(usize, usize)| dims[to] != Dim::Batch;
        let mut m: Vec<_> = roles.m.iter().copied().filter(is_fixed).collect();
        let mut n: Vec<_> = roles.n.iter().copied().filter(is_fixed).collect();
        let rows = m.pop().map(|(axis, to)| (dims[to].per_record(), along(&a, axis), stride_of(&result, to)));
        let columns = n.pop().map(|(axis, to)| (dims[to].per_record(), along(&b, axis)));
        let mut loops: Vec<(usize, [usize; 3])> = Vec::new();
        loops.extend(roles.group.iter().filter(|&&(_, _, to)| dims[to] != Dim::Batch).map(|&(l, r, to)| {
            (dims[to].per_record(), [along(&a, l), along(&b, r), stride_of(&result, to)])
        }));
        loops.extend(
            m.iter().map(|&(l, to)| (dims[to].per_record(), [along(&a, l), 0, stride_of(&result, to)])),
        );
        loops.extend(
            n.iter().map(|&(r, to)| (dims[to].per_record(), [0, along(&b, r), stride_of(&result, to)])),
        );
        if loops.iter().try_fold(1usize, |n, (len, _)| n.checked_mul(*len)).is_none_or(|n| n > MAX_TABLE) {
            return Err(self.uncovered(node, "it has too many products per row"));
        }
        let mut places = vec![[a.offset as u32, b.offset as u32, 0u32]];
        for (len, by) in loops {
            let each = |&[a, b, c]: &[u32; 3]| {
                (0..len)
                    .map(move |i| [a + (i * by[0]) as u32, b + (i * by[1]) as u32, c + (i * by[2]) as u32])
            };
            places = places.iter().flat_map(each).collect();
        }
        let (m, a_row, out_row) = rows.unwrap_or((1, 0, 0));
        let (n, b_column) = columns.unwrap_or((1, 1));
        let shape = Small { m, a_row, n, b_column, k, a_k, b_k, out_row };
        self.step(node, out, Work::Pair { a: a.buffer, b: b.buffer, shape, places });
        Ok(Value::View(result))
    }
}

/// The axes of a result in the order in which they lie in memory: rows, groups, columns; columns lie side by side.
fn record_order(roles: &Roles, dims: &[Dim]) -> Vec<usize> {
    let rows = roles.m.iter().map(|&(_, to)| to);
    let groups = roles.group.iter().map(|&(_, _, to)| to);
    let columns = roles.n.iter().map(|&(_, to)| to);
    rows.chain(groups).chain(columns).filter(|&axis| dims[axis] != Dim::Batch).collect()
}

/// A view of a whole record whose axes lie in this order.
fn ordered(buffer: usize, dims: &[Dim], order: &[usize]) -> View {
    let mut view = View::natural(buffer, dims);
    let mut step = 1;
    for &axis in order.iter().rev() {
        let len = dims[axis].per_record();
        view.axes[axis] = Axis::Fixed { len, stride: step };
        step *= len;
    }
    view
}

fn len_of(view: &View, axis: usize) -> usize {
    view.axes[axis].len()
}

fn stride_of(view: &View, axis: usize) -> usize {
    match view.axes[axis] {
        Axis::Fixed { stride, .. } => stride,
        Axis::Batch => 0,
    }
}

/// The stride of an axis; 0 where it has one element, which is repeated.
fn along(view: &View, axis: usize) -> usize {
    if len_of(view, axis) == 1 { 0 } else { stride_of(view, axis) }
}
