//! What becomes of the sums of products, where the products can do it themselves: other products that are added, a
//! constant record, and a ReLU at the end. Tract takes the product of a concatenation apart into one for each part;
//! here they become one sum again.

use super::{
    Uncovered,
    lower::{Lowering, Value},
    product::Matrix,
    step::{Product, Start, Step, Work},
    view::{Axis, BufferId, Dim, Space, View},
};
use crate::cpu::Binary;

/// Where a step is: of requests or of rows, and its number.
type At = (Space, usize);

impl Lowering<'_> {
    /// An operation of two operands that the products of one of them can do: what comes out is where its sums are.
    pub(crate) fn folded(
        &mut self,
        node: usize,
        op: Binary,
        dims: &[Dim],
    ) -> Result<Option<View>, Uncovered> {
        let sums = [self.sum_of(node, 0, dims)?, self.sum_of(node, 1, dims)?];
        match (op, sums) {
            (Binary::Add, [Some(a), Some(b)]) if a.buffer != b.buffer && a.axes == b.axes => {
                let Some(buffer) = self.join(a.buffer, b.buffer) else { return Ok(None) };
                self.sums[node] = Some(buffer);
                Ok(Some(View { buffer, ..a }))
            }
            (Binary::Add, [Some(sum), None]) => self.start_from(node, 1, sum),
            (Binary::Add, [None, Some(sum)]) => self.start_from(node, 0, sum),
            (Binary::Max, [Some(sum), None]) => self.relu(node, 1, sum),
            (Binary::Max, [None, Some(sum)]) => self.relu(node, 0, sum),
            _ => Ok(None),
        }
    }

    /// The view of an operand of this shape that products made, for this node alone.
    fn sum_of(&self, node: usize, at: usize, dims: &[Dim]) -> Result<Option<View>, Uncovered> {
        let source = self.source(node, at)?;
        let Some(Value::View(view)) = &self.values[source] else { return Ok(None) };
        let alone = self.takers[source] == 1 && self.sums[source] == Some(view.buffer);
        Ok((alone && view.dims() == dims).then(|| view.clone()))
    }

    fn steps(&mut self, space: Space) -> &mut Vec<Step> {
        match space {
            Space::Request => &mut self.request_steps,
            Space::Row => &mut self.row_steps,
        }
    }

    /// The products that make a buffer; the first of them starts its sums.
    fn products(&mut self, buffer: BufferId) -> Option<(At, &mut Product)> {
        let space = self.buffers[buffer].space;
        let mut steps = self.steps(space).iter_mut().enumerate();
        steps.find(|(_, step)| step.out == buffer).and_then(|(at, step)| match &mut step.work {
            Work::Product(product) => Some(((space, at), product)),
            _ => None,
        })
    }

    /// Makes one sum of two, and says where it will be. `None` when both start from something.
    fn join(&mut self, a: BufferId, b: BufferId) -> Option<BufferId> {
        let (first, _) = self.products(a)?;
        let (second, _) = self.products(b)?;
        let (a, b) = if first <= second { (a, b) } else { (b, a) };
        let across = self.buffers[a].space != self.buffers[b].space;
        // What the second starts from, the first starts from instead: only one is free to.
        let (_, later) = self.products(b)?;
        let start = match later.start {
            Start::Zero => None,
            Start::Bias(_) => Some(std::mem::replace(&mut later.start, Start::Zero)),
            Start::Buffer(_) if !across => Some(std::mem::replace(&mut later.start, Start::Zero)),
            // Two parts of requests are one sum, from which the rows' sums start.
            Start::Buffer(other) => {
                let both = self.join(other, a)?;
                let (_, later) = self.products(b)?;
                later.start = Start::Buffer(both);
                return Some(b);
            }
            Start::Here => return None,
        };
        if let Some(start) = start {
            let (_, earlier) = self.products(a)?;
            if !matches!(earlier.start, Start::Zero) {
                let (_, later) = self.products(b)?;
                later.start = start;
                return None;
            }
            earlier.start = start;
        }
        let (_, later) = self.products(b)?;
        if across {
            later.start = Start::Buffer(a);
            return Some(b);
        }
        later.start = Start::Here;
        let space = self.buffers[a].space;
        self.steps(space).iter_mut().filter(|step| step.out == b).for_each(|step| step.out = a);
        Some(a)
    }

    /// Lets sums start from the constant that operand `at` is.
    fn start_from(&mut self, node: usize, at: usize, sum: View) -> Result<Option<View>, Uncovered> {
        let Some(constant) = self.constant(node, at).filter(|c| c.rank() == sum.axes.len()) else {
            return Ok(None);
        };
        let matrix = Matrix { numbers: self.numbers(node, &constant)?, shape: constant.shape().to_vec() };
        // Where each element of the record is, there and in the constant.
        let mut places = vec![(sum.offset, 0)];
        for (at, axis) in sum.axes.iter().enumerate() {
            let Axis::Fixed { len, stride } = *axis else { continue };
            let by = matrix.stride(at);
            let along =
                |&(to, from): &(usize, usize)| (0..len).map(move |i| (to + i * stride, from + i * by));
            places = places.iter().flat_map(along).collect();
        }
        let width = self.buffers[sum.buffer].width;
        let mut record = vec![0.0; width];
        for &(to, from) in &places {
            match (record.get_mut(to), matrix.numbers.get(from)) {
                (Some(place), Some(&number)) => *place = number,
                _ => return Ok(None),
            }
        }
        // The first of the products, of requests maybe.
        let mut buffer = sum.buffer;
        while let Some((_, Product { start: Start::Buffer(earlier), .. })) = self.products(buffer) {
            buffer = *earlier;
        }
        match self.products(buffer) {
            Some((_, product)) if places.len() == width && matches!(product.start, Start::Zero) => {
                product.start = Start::Bias(record);
                self.sums[node] = Some(sum.buffer);
                Ok(Some(sum))
            }
            _ => Ok(None),
        }
    }

    /// Lets the last of the products take the maximum of its sums and 0, if operand `at` is 0.
    fn relu(&mut self, node: usize, at: usize, sum: View) -> Result<Option<View>, Uncovered> {
        let Some(zero) = self.constant(node, at) else { return Ok(None) };
        if !self.numbers(node, &zero)?.iter().all(|&x| x == 0.0) {
            return Ok(None);
        }
        let space = self.buffers[sum.buffer].space;
        let last = self.steps(space).iter_mut().rev().find(|step| step.out == sum.buffer);
        match last.map(|step| &mut step.work) {
            Some(Work::Product(product)) => {
                product.relu = true;
                Ok(Some(sum))
            }
            _ => Ok(None),
        }
    }
}
