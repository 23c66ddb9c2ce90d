//! From a graph to a plan: nodes become views where they can and steps where they must, in the graph's order.
//!
//! Where a value is computed follows from what it depends on: of user inputs alone, once per request; of a
//! candidate's, once per row. A value of requests that meets rows is read through the row's request, so nothing is
//! ever copied beside every candidate unless a step needs it there.

use tidepool_types::Side;
use tract_onnx::{prelude::*, tract_core::internal::DimLike};

use super::{
    Plan, Uncovered,
    chain::Chain,
    step::{Step, Work},
    view::{Axis, Buffer, BufferId, Dim, Home, Space, View, Walk},
};
use crate::contract::{Fed, Interface};

/// The most elements of a record, and of all constants.
const MAX_RECORD: usize = 1 << 24;
const MAX_CONSTANTS: usize = 1 << 28;
/// The most elements that a record takes in the arena.
const MAX_WIDTH: usize = 1 << 26;

/// What a node of the graph has become.
#[derive(Clone)]
pub(crate) enum Value {
    /// Known when the model is loaded.
    Constant(Arc<Tensor>),
    /// For each row, the number of its request.
    RequestIndex,
    /// Numbers in a buffer.
    View(View),
    /// Element-wise operations to come.
    Chain(Chain),
    /// Parts side by side along an axis. Products take the parts of users and of candidates apart.
    Concat(Box<Concat>),
}

/// A concatenation that may never be written as a whole.
#[derive(Clone)]
pub(crate) struct Concat {
    pub(crate) axis: usize,
    pub(crate) parts: Vec<View>,
    /// Written, once somebody asked.
    pub(crate) whole: Option<View>,
    pub(crate) of_requests: Option<View>,
    pub(crate) of_rows: Option<View>,
}

/// A plan under construction.
pub(crate) struct Lowering<'a> {
    pub(crate) graph: &'a TypedModel,
    /// The symbols of the batch: of rows and of requests.
    batch: [Symbol; 2],
    pub(crate) constants: Vec<f32>,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) request_steps: Vec<Step>,
    pub(crate) row_steps: Vec<Step>,
    /// Per node.
    pub(crate) values: Vec<Option<Value>>,
    /// Per node, how many take what it makes.
    pub(crate) takers: Vec<usize>,
    /// Per node, the buffer in which products leave it, when they do and nothing has been done with it since.
    pub(crate) sums: Vec<Option<BufferId>>,
}

/// Makes the plan of a simplified graph whose inputs and outputs are those of `interface`.
pub(crate) fn lower(
    graph: &TypedModel,
    batch: [Symbol; 2],
    interface: &Interface,
) -> Result<Plan, Uncovered> {
    let nodes = graph.nodes().len();
    let mut takers = vec![0; nodes];
    for outlet in graph.nodes().iter().flat_map(|node| &node.inputs).chain(&graph.outputs) {
        takers[outlet.node] += 1;
    }
    let mut lowering = Lowering {
        graph,
        batch,
        constants: Vec::new(),
        buffers: Vec::new(),
        request_steps: Vec::new(),
        row_steps: Vec::new(),
        values: vec![None; nodes],
        takers,
        sums: vec![None; nodes],
    };
    for (at, outlet) in graph.inputs.iter().enumerate() {
        let value = match interface.inputs.get(at) {
            Some(Fed::Input(input)) => lowering.input(*input, interface, outlet.node)?,
            _ => Value::RequestIndex,
        };
        lowering.values[outlet.node] = Some(value);
    }
    let whole = |problem: String| Uncovered { node: "graph".into(), op: "order".into(), problem };
    for node in graph.eval_order().map_err(|e| whole(format!("{e:#}")))? {
        if lowering.values[node].is_none() {
            let value = lowering.node(node)?;
            lowering.values[node] = Some(value);
        }
        // What several take is computed once.
        if lowering.takers[node] > 1 && matches!(lowering.values[node], Some(Value::Chain(_))) {
            lowering.view(node, node)?;
        }
    }
    let mut outputs = Vec::new();
    for &at in &interface.outputs {
        let outlet = graph.outputs[at];
        outputs.push(lowering.view(outlet.node, outlet.node)?);
    }
    let steps = (lowering.request_steps, lowering.row_steps);
    let plan = Plan::new(lowering.constants, lowering.buffers, steps, outputs);
    if plan.per_record() > MAX_WIDTH {
        let problem = format!("it needs {} numbers at once for a row or a request", plan.per_record());
        return Err(Uncovered { node: "graph".into(), op: "all".into(), problem });
    }
    Ok(plan)
}

impl Lowering<'_> {
    fn input(&mut self, input: usize, interface: &Interface, node: usize) -> Result<Value, Uncovered> {
        let given = &interface.given[input];
        let space = match given.side {
            Side::User => Space::Request,
            Side::Candidate => Space::Row,
        };
        let width = given.width();
        let dims = self.dims(node)?;
        self.buffers.push(Buffer { space, home: Home::Input(input), width });
        Ok(Value::View(View::natural(self.buffers.len() - 1, &dims)))
    }

    /// What is wrong with a node, in words that name it.
    pub(crate) fn uncovered(&self, node: usize, problem: impl Into<String>) -> Uncovered {
        let node = &self.graph.nodes()[node];
        Uncovered { node: node.name.clone(), op: node.op.name().to_string(), problem: problem.into() }
    }

    /// The shape of what a node makes.
    pub(crate) fn dims(&self, node: usize) -> Result<Vec<Dim>, Uncovered> {
        let known = &self.graph.nodes()[node];
        let [outlet] = &known.outputs[..] else {
            return Err(self.uncovered(node, format!("it has {} outputs, 1 is covered", known.outputs.len())));
        };
        let mut dims = Vec::new();
        for dim in outlet.fact.shape.dims() {
            dims.push(self.dim(node, dim)?);
        }
        if dims.iter().filter(|dim| **dim == Dim::Batch).count() > 1 {
            return Err(self.uncovered(node, "it brings each row together with each other row"));
        }
        let elements = dims.iter().try_fold(1usize, |n, dim| n.checked_mul(dim.per_record()));
        match elements {
            Some(1..=MAX_RECORD) => Ok(dims),
            Some(0) => Err(self.uncovered(node, "it makes a value of no elements")),
            _ => Err(self.uncovered(node, format!("it makes more than {MAX_RECORD} elements per row"))),
        }
    }

    /// One dimension.
    pub(crate) fn dim(&self, node: usize, dim: &TDim) -> Result<Dim, Uncovered> {
        if let Ok(fixed) = dim.to_usize() {
            return Ok(Dim::Fixed(fixed));
        }
        if self.batch.iter().any(|symbol| *dim == TDim::from(symbol.clone())) {
            return Ok(Dim::Batch);
        }
        let shown = dim.to_string().replace("tidepool_", "");
        Err(self
            .uncovered(node, format!("a dimension of {shown} elements mixes the batch with another axis")))
    }

    /// The node that makes input `at` of `node`.
    pub(crate) fn source(&self, node: usize, at: usize) -> Result<usize, Uncovered> {
        match self.graph.nodes()[node].inputs.get(at) {
            Some(outlet) if outlet.slot == 0 => Ok(outlet.node),
            Some(_) => Err(self.uncovered(node, "it takes a second output of another node")),
            None => Err(self.uncovered(node, format!("it has no input {at}"))),
        }
    }

    /// What input `at` of `node` has become.
    pub(crate) fn operand(&self, node: usize, at: usize) -> Result<&Value, Uncovered> {
        let source = self.source(node, at)?;
        self.values[source].as_ref().ok_or_else(|| self.uncovered(node, "an input comes after it"))
    }

    /// The constant that input `at` of `node` is, if it is one.
    pub(crate) fn constant(&self, node: usize, at: usize) -> Option<Arc<Tensor>> {
        match self.operand(node, at) {
            Ok(Value::Constant(tensor)) => Some(tensor.clone()),
            _ => None,
        }
    }

    /// The view of input `at` of `node`, written if it has to be.
    pub(crate) fn view_of(&mut self, node: usize, at: usize) -> Result<View, Uncovered> {
        let source = self.source(node, at)?;
        self.view(source, node)
    }

    /// What `source` made as numbers in a buffer, for `node`.
    pub(crate) fn view(&mut self, source: usize, node: usize) -> Result<View, Uncovered> {
        let value = self.values[source].clone();
        let view = match value {
            None => return Err(self.uncovered(node, "an input comes after it")),
            Some(Value::View(view)) => return Ok(view),
            Some(Value::RequestIndex) => {
                let problem = "request_index may only be the indices of a Gather along the batch";
                return Err(self.uncovered(node, problem));
            }
            Some(Value::Constant(tensor)) => self.constant_view(node, &tensor)?,
            Some(Value::Chain(chain)) => self.write(source, chain)?,
            Some(Value::Concat(mut concat)) => {
                if let Some(whole) = concat.whole {
                    return Ok(whole);
                }
                let parts = concat.parts.clone();
                let whole = self.side_by_side(source, &parts, concat.axis)?;
                concat.whole = Some(whole.clone());
                self.values[source] = Some(Value::Concat(concat));
                return Ok(whole);
            }
        };
        self.values[source] = Some(Value::View(view.clone()));
        Ok(view)
    }

    /// The numbers of a constant; yes and no become 1 and 0.
    pub(crate) fn numbers(&self, node: usize, tensor: &Tensor) -> Result<Vec<f32>, Uncovered> {
        let unreadable = |e: TractError| self.uncovered(node, format!("a constant cannot be read: {e:#}"));
        if !matches!(tensor.datum_type(), DatumType::F32 | DatumType::Bool | DatumType::I64 | DatumType::I32)
        {
            let found = tensor.datum_type();
            return Err(self.uncovered(node, format!("a constant is of {found:?}, f32 is covered")));
        }
        let cast = tensor.cast_to::<f32>().map_err(unreadable)?;
        let plain = cast.try_as_plain_ram().map_err(unreadable)?;
        Ok(plain.as_slice::<f32>().map_err(unreadable)?.to_vec())
    }

    fn constant_view(&mut self, node: usize, tensor: &Tensor) -> Result<View, Uncovered> {
        let numbers = self.numbers(node, tensor)?;
        if numbers.is_empty() || self.constants.len() + numbers.len() > MAX_CONSTANTS {
            let found = numbers.len();
            return Err(self.uncovered(node, format!("a constant of {found} elements is none or too many")));
        }
        let home = Home::Constant(self.constants.len());
        self.constants.extend(numbers);
        self.buffers.push(Buffer { space: Space::Request, home, width: 0 });
        let dims: Vec<Dim> = tensor.shape().iter().map(|&len| Dim::Fixed(len)).collect();
        Ok(View::natural(self.buffers.len() - 1, &dims))
    }

    /// The space in which a step that reads these runs.
    pub(crate) fn space(&self, views: &[View]) -> Space {
        let spaces = views.iter().map(|view| self.buffers[view.buffer].space);
        spaces.max().unwrap_or(Space::Request)
    }

    /// A buffer for what a step will make.
    pub(crate) fn buffer(&mut self, node: usize, space: Space, width: usize) -> Result<BufferId, Uncovered> {
        if width == 0 || width > MAX_RECORD {
            return Err(self.uncovered(node, format!("{width} elements per row are none or too many")));
        }
        self.buffers.push(Buffer { space, home: Home::Scratch(0), width });
        Ok(self.buffers.len() - 1)
    }

    /// Appends a step that makes `out`.
    pub(crate) fn step(&mut self, node: usize, out: BufferId, work: Work) {
        let step = Step { node: self.graph.nodes()[node].name.clone(), out, work };
        match self.buffers[out].space {
            Space::Request => self.request_steps.push(step),
            Space::Row => self.row_steps.push(step),
        }
    }

    /// Makes a step of a chain.
    pub(crate) fn write(&mut self, node: usize, chain: Chain) -> Result<View, Uncovered> {
        let space = self.space(&chain.loads);
        let width = chain.dims.iter().map(|dim| dim.per_record()).product();
        let out = self.buffer(node, space, width)?;
        let view = View::natural(out, &chain.dims);
        self.write_into(node, chain, &view)?;
        Ok(view)
    }

    /// Makes a step of a chain whose result lies in a part of a buffer.
    fn write_into(&mut self, node: usize, chain: Chain, out: &View) -> Result<(), Uncovered> {
        let Chain { dims, loads, instructions } = chain;
        let lens: Vec<usize> =
            dims.iter().filter(|dim| **dim != Dim::Batch).map(|dim| dim.per_record()).collect();
        let mut strides = Vec::new();
        let mut offsets = Vec::new();
        for view in std::iter::once(out).chain(&loads) {
            let spread = view.spread(&dims);
            strides.push(spread.ok_or_else(|| self.uncovered(node, "shapes do not fit each other"))?);
            offsets.push(view.offset);
        }
        let walk = Walk::new(&lens, &offsets, &strides);
        let walk = walk.ok_or_else(|| self.uncovered(node, "its operands lie too unevenly"))?;
        let loads = loads.iter().map(|view| view.buffer).collect();
        self.step(node, out.buffer, Work::Map { walk, loads, instructions });
        Ok(())
    }

    /// The parts side by side in a buffer of their own.
    pub(crate) fn side_by_side(
        &mut self,
        node: usize,
        parts: &[View],
        axis: usize,
    ) -> Result<View, Uncovered> {
        if let [part] = parts {
            return Ok(part.clone());
        }
        let mut dims = parts[0].dims();
        // One part may not depend on the batch; the whole does when any does.
        for part in parts {
            for (dim, other) in dims.iter_mut().zip(part.dims()) {
                if other == Dim::Batch {
                    *dim = Dim::Batch;
                }
            }
        }
        let len_of = |view: &View| view.dims().get(axis).map_or(0, |dim| dim.per_record());
        dims[axis] = Dim::Fixed(parts.iter().map(len_of).sum());
        let width = dims.iter().map(|dim| dim.per_record()).product();
        let out = self.buffer(node, self.space(parts), width)?;
        let whole = View::natural(out, &dims);
        let mut first = 0;
        for part in parts {
            let place = slice(&whole, axis, first, first + len_of(part));
            let mut chain = Chain::of(part.clone());
            chain.dims = place.dims();
            self.write_into(node, chain, &place)?;
            first += len_of(part);
        }
        Ok(whole)
    }

    /// A copy whose axes lie in this order in memory, batch left out.
    pub(crate) fn relaid(&mut self, node: usize, view: &View, order: &[usize]) -> Result<View, Uncovered> {
        let dims = view.dims();
        let width = dims.iter().map(|dim| dim.per_record()).product();
        let out = self.buffer(node, self.space(std::slice::from_ref(view)), width)?;
        let mut copy = View { buffer: out, offset: 0, axes: view.axes.clone() };
        let mut step = 1;
        for &axis in order.iter().rev() {
            if let Dim::Fixed(len) = dims[axis] {
                copy.axes[axis] = Axis::Fixed { len, stride: step };
                step *= len;
            }
        }
        let chain = Chain::of(view.clone());
        self.write_into(node, chain, &copy)?;
        Ok(copy)
    }
}

/// Elements `from..to` of a fixed axis.
pub(crate) fn slice(view: &View, axis: usize, from: usize, to: usize) -> View {
    let mut view = view.clone();
    if let Some(Axis::Fixed { len, stride }) = view.axes.get_mut(axis) {
        view.offset += from * *stride;
        *len = to - from;
    }
    view
}
