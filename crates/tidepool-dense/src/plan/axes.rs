//! Operators that move no numbers, or few: other views of the same buffer where it goes.

use tract_onnx::{
    prelude::*,
    tract_core::internal::DimLike,
    tract_core::ops::{Downsample, array::Slice, change_axes::AxisOp},
};

use super::{
    Uncovered,
    lower::{Concat, Lowering, Value, slice},
    ops::places,
    step::Work,
    view::{Axis, Dim, MAX_TABLE, View, collapse},
};

impl Lowering<'_> {
    /// Adds, removes, moves or reshapes axes.
    pub(crate) fn axis_op(&mut self, node: usize, op: &AxisOp) -> Result<Value, Uncovered> {
        let mut view = self.view_of(node, 0)?;
        let rank = view.axes.len();
        match op {
            AxisOp::Add(at) if *at <= rank => view.axes.insert(*at, Axis::Fixed { len: 1, stride: 1 }),
            AxisOp::Rm(at) if *at < rank && view.axes[*at] != Axis::Batch => {
                view.axes.remove(*at);
            }
            AxisOp::Move(from, to) if *from < rank && *to < rank => {
                let axis = view.axes.remove(*from);
                view.axes.insert(*to, axis);
            }
            AxisOp::Reshape(at, from, to) => return self.reshape(node, view, *at, from, to),
            _ => return Err(self.uncovered(node, "it takes the batch, or an axis that is not there, away")),
        }
        Ok(Value::View(view))
    }

    fn reshape(
        &mut self,
        node: usize,
        view: View,
        at: usize,
        from: &[TDim],
        to: &[TDim],
    ) -> Result<Value, Uncovered> {
        let dims = |dims: &[TDim]| dims.iter().map(|dim| self.dim(node, dim)).collect::<Result<Vec<_>, _>>();
        let (mut from, mut to, mut at) = (dims(from)?, dims(to)?, at);
        // What stays at either end may be the batch; in between, rows are not mixed.
        while !from.is_empty() && from.first() == to.first() {
            (at, from, to) = (at + 1, from.split_off(1), to.split_off(1));
        }
        while !from.is_empty() && from.last() == to.last() {
            from.pop();
            to.pop();
        }
        // One element more or less changes nothing but the rank.
        let batches = |dims: &[Dim]| dims.iter().filter(|dim| **dim == Dim::Batch).count();
        let elements = |dims: &[Dim]| dims.iter().map(|dim| dim.per_record()).product::<usize>();
        if batches(&from) != batches(&to)
            || elements(&from) != elements(&to)
            || at + from.len() > view.axes.len()
        {
            return Err(self.uncovered(node, "it mixes the batch with another axis"));
        }
        // The batch may stand among the others: its place among elements is not changed by it.
        let fixed = |axes: &[Axis]| -> Vec<(usize, usize)> {
            let fixed = axes.iter().filter_map(|axis| match *axis {
                Axis::Fixed { len, stride } => Some((len, stride)),
                Axis::Batch => None,
            });
            fixed.collect()
        };
        let before =
            |dims: &[Dim]| elements(&dims[..dims.iter().position(|d| *d == Dim::Batch).unwrap_or(0)]);
        if before(&from) != before(&to) {
            return Err(self.uncovered(node, "it moves elements from one row to another"));
        }
        let window = at..at + from.len();
        let (view, stride) = match collapse(&fixed(&view.axes[window.clone()])) {
            Some((_, stride)) => (view, stride),
            None => {
                // The window's axes innermost, in their order, lie evenly.
                let order: Vec<usize> = (0..view.axes.len())
                    .filter(|axis| !window.contains(axis))
                    .chain(window.clone())
                    .collect();
                (self.relaid(node, &view, &order)?, 1)
            }
        };
        let mut step = stride;
        let mut axes: Vec<Axis> = Vec::new();
        for dim in to.iter().rev() {
            axes.push(match *dim {
                Dim::Batch => Axis::Batch,
                Dim::Fixed(len) => Axis::Fixed { len, stride: step },
            });
            step *= dim.per_record();
        }
        axes.reverse();
        let mut view = view;
        view.axes.splice(window, axes);
        Ok(Value::View(view))
    }

    /// A part of an axis.
    pub(crate) fn slice(&mut self, node: usize, op: &Slice) -> Result<Value, Uncovered> {
        let ends = op.start.to_usize().ok().zip(op.end.to_usize().ok());
        // Of one part of a concatenation it is a slice of that part: of users alone, maybe.
        if let (Value::Concat(concat), Some((from, to))) = (self.operand(node, 0)?, ends)
            && concat.axis == op.axis
            && let Some(part) = part_of(concat, from, to)
        {
            return Ok(Value::View(part));
        }
        let view = self.view_of(node, 0)?;
        match (view.axes.get(op.axis), ends) {
            (Some(&Axis::Fixed { len, .. }), Some((from, to))) if from < to && to <= len => {
                Ok(Value::View(slice(&view, op.axis, from, to)))
            }
            (Some(Axis::Batch), _) => Err(self.uncovered(node, "it takes some of the rows only")),
            _ => Err(self.uncovered(node, "its ends are not constants within the axis")),
        }
    }

    /// Every so-manieth element of an axis.
    pub(crate) fn thin(&mut self, node: usize, op: &Downsample) -> Result<Value, Uncovered> {
        let mut view = self.view_of(node, 0)?;
        let step = usize::try_from(op.stride).unwrap_or(0);
        match view.axes.get_mut(op.axis) {
            Some(Axis::Fixed { len, stride }) if step > 0 && op.modulo < *len => {
                view.offset += op.modulo * *stride;
                *len = (*len - op.modulo).div_ceil(step);
                *stride *= step;
                Ok(Value::View(view))
            }
            Some(Axis::Batch) => Err(self.uncovered(node, "it takes some of the rows only")),
            _ => Err(self.uncovered(node, "its steps go backwards or beyond the axis")),
        }
    }

    /// Repeats what has one element along an axis.
    pub(crate) fn broadcast(&mut self, node: usize, dims: &[Dim]) -> Result<Value, Uncovered> {
        let mut view = self.view_of(node, 0)?;
        if view.axes.len() > dims.len() {
            return Err(self.uncovered(node, "it has more axes than its result"));
        }
        while view.axes.len() < dims.len() {
            view.axes.insert(0, Axis::Fixed { len: 1, stride: 1 });
        }
        for (axis, dim) in view.axes.iter_mut().zip(dims) {
            match (*axis, *dim) {
                (Axis::Batch, Dim::Batch) => {}
                (Axis::Fixed { len: 1, .. }, Dim::Batch) => *axis = Axis::Batch,
                (Axis::Fixed { len, .. }, Dim::Fixed(wanted)) if len == wanted => {}
                (Axis::Fixed { len: 1, .. }, Dim::Fixed(len)) => *axis = Axis::Fixed { len, stride: 0 },
                _ => return Err(self.uncovered(node, "shapes do not fit each other")),
            }
        }
        Ok(Value::View(view))
    }

    /// Chosen elements of an axis, or the requests of rows.
    pub(crate) fn gather(&mut self, node: usize, axis: usize) -> Result<Value, Uncovered> {
        if matches!(self.operand(node, 1)?, Value::RequestIndex) {
            let view = self.view_of(node, 0)?;
            // Rows find a value of requests through their request wherever they read it: this is where it says so.
            return match view.axes.get(axis) {
                Some(Axis::Batch) => Ok(Value::View(view)),
                _ => Err(self.uncovered(node, "request_index must be taken along the batch of requests")),
            };
        }
        let Some(indices) = self.constant(node, 1) else {
            return Err(
                self.uncovered(node, "its indices are computed; constants and request_index are covered")
            );
        };
        let chosen = self.indices(node, &indices)?;
        let view = self.view_of(node, 0)?;
        let Some(&Axis::Fixed { len, stride }) = view.axes.get(axis) else {
            return Err(self.uncovered(node, "it chooses among rows"));
        };
        let chosen = self.within(node, &chosen, len)?;
        let new: Vec<Axis> = match &chosen[..] {
            // One, or evenly spaced ones, are a slice.
            [first, rest @ ..] => {
                let step = rest.first().map_or(1, |second| second.wrapping_sub(*first));
                let even = chosen.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == step);
                if even && step > 0 && step < len.max(2) && indices.rank() < 2 {
                    let mut view = view;
                    view.offset += first * stride;
                    let axes = indices.shape().iter().map(|&len| Axis::Fixed { len, stride: stride * step });
                    view.axes.splice(axis..=axis, axes.collect::<Vec<_>>());
                    return Ok(Value::View(view));
                }
                indices.shape().iter().map(|&len| Axis::Fixed { len, stride: 0 }).collect()
            }
            [] => return Err(self.uncovered(node, "it chooses no elements")),
        };
        // The axis alone is chosen from; the others, batch left out, are walked before and behind it.
        let fixed = |axes: &[Axis]| -> Vec<(usize, usize)> {
            let fixed = axes.iter().filter_map(|a| match *a {
                Axis::Fixed { len, stride } => Some((len, stride)),
                Axis::Batch => None,
            });
            fixed.collect()
        };
        let (outer, inner) = (fixed(&view.axes[..axis]), fixed(&view.axes[axis + 1..]));
        let mut elements = Vec::new();
        self.table(node, &[&outer, &inner], chosen.len())?;
        for before in places(view.offset, &outer) {
            for index in &chosen {
                elements.extend(places(before as usize + index * stride, &inner));
            }
        }
        let mut axes = view.axes.clone();
        axes.splice(axis..=axis, new);
        self.pick(node, &view, elements, axes)
    }

    /// Chosen elements by their coordinates along the first axes.
    pub(crate) fn gather_nd(&mut self, node: usize, batch_dims: usize) -> Result<Value, Uncovered> {
        let Some(indices) = self.constant(node, 1).filter(|_| batch_dims == 0) else {
            return Err(self.uncovered(node, "its indices are not constants of all batch dimensions"));
        };
        let view = self.view_of(node, 0)?;
        let along = indices.shape().last().copied().unwrap_or(0);
        let chosen = self.indices(node, &indices)?;
        if along == 0 || along > view.axes.len() {
            return Err(self.uncovered(node, format!("coordinates along {along} axes do not fit its data")));
        }
        let mut starts = Vec::new();
        for coordinates in chosen.chunks(along) {
            let mut start = view.offset;
            for (&index, axis) in coordinates.iter().zip(&view.axes) {
                let Axis::Fixed { len, stride } = *axis else {
                    return Err(self.uncovered(node, "it chooses among rows"));
                };
                start += self.within(node, &[index], len)?[0] * stride;
            }
            starts.push(start);
        }
        let rest: Vec<(usize, usize)> = view.axes[along..]
            .iter()
            .filter_map(|a| match *a {
                Axis::Fixed { len, stride } => Some((len, stride)),
                Axis::Batch => None,
            })
            .collect();
        self.table(node, &[&rest], starts.len())?;
        let elements = starts.iter().flat_map(|&start| places(start, &rest)).collect();
        let first = indices.shape()[..indices.rank() - 1].iter().map(|&len| Axis::Fixed { len, stride: 0 });
        let axes = first.chain(view.axes[along..].iter().copied()).collect();
        self.pick(node, &view, elements, axes)
    }

    /// A step that puts chosen elements one after the other, in the order of `axes`.
    fn pick(
        &mut self,
        node: usize,
        view: &View,
        elements: Vec<u32>,
        axes: Vec<Axis>,
    ) -> Result<Value, Uncovered> {
        let out = self.buffer(node, self.space(std::slice::from_ref(view)), elements.len())?;
        let dims = View { buffer: out, offset: 0, axes }.dims();
        self.step(node, out, Work::Pick { source: view.buffer, elements });
        Ok(Value::View(View::natural(out, &dims)))
    }

    /// Whether a table of so many elements is bounded.
    fn table(&self, node: usize, axes: &[&[(usize, usize)]], chosen: usize) -> Result<(), Uncovered> {
        let lens = axes.iter().flat_map(|axes| axes.iter().map(|&(len, _)| len));
        match lens.chain([chosen]).try_fold(1usize, usize::checked_mul) {
            Some(1..=MAX_TABLE) => Ok(()),
            _ => Err(self.uncovered(node, "it chooses no elements or too many")),
        }
    }

    fn indices(&self, node: usize, tensor: &Tensor) -> Result<Vec<i64>, Uncovered> {
        let unreadable = |e: TractError| self.uncovered(node, format!("its indices cannot be read: {e:#}"));
        let cast = tensor.cast_to::<i64>().map_err(unreadable)?;
        let plain = cast.try_as_plain_ram().map_err(unreadable)?;
        Ok(plain.as_slice::<i64>().map_err(unreadable)?.to_vec())
    }

    /// Indices from the end are negative.
    fn within(&self, node: usize, indices: &[i64], len: usize) -> Result<Vec<usize>, Uncovered> {
        let place = |&index: &i64| {
            let index = if index < 0 { index.checked_add_unsigned(len as u64)? } else { index };
            usize::try_from(index).ok().filter(|&index| index < len)
        };
        let found: Option<Vec<usize>> = indices.iter().map(place).collect();
        found.ok_or_else(|| self.uncovered(node, format!("an index is beyond an axis of {len}")))
    }
}

/// Elements `from..to` of the axis that a concatenation is along, when one part has them all.
fn part_of(concat: &Concat, from: usize, to: usize) -> Option<View> {
    let mut first = 0;
    for part in &concat.parts {
        let end = first + part.axes[concat.axis].len();
        if first <= from && from < to && to <= end {
            return Some(slice(part, concat.axis, from - first, to - first));
        }
        first = end;
    }
    None
}
