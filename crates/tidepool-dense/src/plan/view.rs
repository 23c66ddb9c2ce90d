//! Where a value lies: a buffer with one record per row or request, and how the value's axes step through it.
//!
//! Records lie one after the other whatever the size of the batch, so all strides but the one from record to record
//! are known when the model is loaded. Slices, transpositions, broadcasts and most reshapes are other views of the
//! same numbers: they cost nothing in a run.

/// What a value has one record of. A value of requests that meets one of rows is found through the row's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    /// One record per request: what depends on the user alone, or on nothing.
    Request,
    /// One record per row.
    Row,
}

/// Which memory a buffer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// The plan's constants, from this element on; there is one record, for all rows.
    Constant(usize),
    /// What the caller gave for this input of the contract.
    Input(usize),
    /// The arena, for one block of rows or requests: a multiple of the block's rows from the arena's start.
    Scratch(usize),
    /// The arena, for all requests of the run, since rows read it: a multiple of the requests.
    Kept(usize),
}

/// A number of a buffer of the plan.
pub(crate) type BufferId = usize;

/// Records of the same width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) space: Space,
    pub(crate) home: Home,
    /// Elements from one record to the next; 0 for constants.
    pub(crate) width: usize,
}

/// One axis of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Rows or requests.
    Batch,
    /// So many elements, so far from each other.
    Fixed { len: usize, stride: usize },
}

impl Axis {
    /// Elements along it in one record.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Batch => 1,
            Self::Fixed { len, .. } => len,
        }
    }
}

/// One dimension of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dim {
    /// Rows or requests.
    Batch,
    /// So many elements.
    Fixed(usize),
}

impl Dim {
    /// Elements per record.
    pub(crate) fn per_record(self) -> usize {
        match self {
            Self::Batch => 1,
            Self::Fixed(len) => len,
        }
    }
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) buffer: BufferId,
    /// Of its first element, from the beginning of a record.
    pub(crate) offset: usize,
    pub(crate) axes: Vec<Axis>,
}

impl View {
    /// The axes of a record whose elements lie in the order of `dims`.
    pub(crate) fn natural(buffer: BufferId, dims: &[Dim]) -> Self {
        let mut stride = 1;
        let mut axes: Vec<Axis> = Vec::with_capacity(dims.len());
        for dim in dims.iter().rev() {
            axes.push(match *dim {
                Dim::Batch => Axis::Batch,
                Dim::Fixed(len) => Axis::Fixed { len, stride },
            });
            stride *= dim.per_record();
        }
        axes.reverse();
        Self { buffer, offset: 0, axes }
    }

    /// The shape.
    pub(crate) fn dims(&self) -> Vec<Dim> {
        let dim = |axis: &Axis| match *axis {
            Axis::Batch => Dim::Batch,
            Axis::Fixed { len, .. } => Dim::Fixed(len),
        };
        self.axes.iter().map(dim).collect()
    }

    /// Strides for walking over `dims`, batch left out: an axis of one element is repeated. `None` when the value
    /// cannot be spread to that shape.
    pub(crate) fn spread(&self, dims: &[Dim]) -> Option<Vec<usize>> {
        if self.axes.len() != dims.len() {
            return None;
        }
        let mut strides = Vec::new();
        for (axis, dim) in self.axes.iter().zip(dims) {
            match (*axis, *dim) {
                (Axis::Batch, Dim::Batch) | (Axis::Fixed { len: 1, .. }, Dim::Batch) => {}
                (Axis::Fixed { len, stride }, Dim::Fixed(wanted)) if len == wanted => strides.push(stride),
                (Axis::Fixed { len: 1, .. }, Dim::Fixed(_)) => strides.push(0),
                _ => return None,
            }
        }
        Some(strides)
    }
}

/// One stride for several axes, when their elements lie evenly: `(elements, stride)`.
pub(crate) fn collapse(axes: &[(usize, usize)]) -> Option<(usize, usize)> {
    if axes.iter().any(|&(len, _)| len == 0) {
        return Some((0, 1));
    }
    let mut result: Option<(usize, usize)> = None;
    for &(len, stride) in axes.iter().filter(|&&(len, _)| len != 1) {
        result = Some(match result {
            None => (len, stride),
            Some((outer, step)) if step == stride * len => (outer * len, stride),
            Some(_) => return None,
        });
    }
    Some(result.unwrap_or((1, 1)))
}

/// How a step walks over the elements of a record, several operands at a time.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    operands: usize,
    /// For each inner loop, where each operand begins in its record.
    starts: Vec<u32>,
    /// Elements of an inner loop.
    pub(crate) inner: usize,
    /// Of each operand, in the inner loop.
    pub(crate) strides: Vec<usize>,
}

/// The most numbers in a table of a step.
pub(crate) const MAX_TABLE: usize = 1 << 22;

impl Walk {
    /// Over `lens`, where `strides[operand]` has a stride for each; neighbouring axes that all operands step through
    /// evenly become one. `None` when the table would be too large.
    pub(crate) fn new(lens: &[usize], offsets: &[usize], strides: &[Vec<usize>]) -> Option<Self> {
        let operands = offsets.len();
        let mut axes: Vec<(usize, Vec<usize>)> = Vec::new();
        for (axis, &len) in lens.iter().enumerate().filter(|&(_, &len)| len != 1) {
            let steps: Vec<usize> = strides.iter().map(|s| s[axis]).collect();
            match axes.last_mut() {
                Some((outer, outer_steps))
                    if outer_steps.iter().zip(&steps).all(|(&o, &s)| s.checked_mul(len) == Some(o)) =>
                {
                    *outer = outer.checked_mul(len)?;
                    *outer_steps = steps;
                }
                _ => axes.push((len, steps)),
            }
        }
        let (inner, steps) = axes.pop().unwrap_or((1, vec![1; operands]));
        let loops = axes.iter().try_fold(1usize, |n, (len, _)| n.checked_mul(*len))?;
        if loops.checked_mul(operands.max(1))? > MAX_TABLE {
            return None;
        }
        let mut starts = Vec::with_capacity(loops * operands);
        for at in 0..loops {
            let mut place = offsets.to_vec();
            let mut left = at;
            for (len, steps) in axes.iter().rev() {
                let index = left % len;
                left /= len;
                place.iter_mut().zip(steps).for_each(|(place, step)| *place += index * step);
            }
            for place in place {
                starts.push(u32::try_from(place).ok()?);
            }
        }
        Some(Self { operands, starts, inner, strides: steps })
    }

    /// The inner loops: where each operand begins.
    pub(crate) fn loops(&self) -> impl Iterator<Item = &[u32]> {
        self.starts.chunks_exact(self.operands.max(1))
    }

    /// Whether there is one loop alone, and it begins where records do.
    pub(crate) fn is_flat(&self) -> bool {
        self.starts.len() == self.operands && self.starts.iter().all(|&start| start == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_axes_become_one() {
        assert_eq!(collapse(&[(3, 8), (1, 99), (4, 2)]), Some((12, 2)));
        assert_eq!(collapse(&[(3, 9), (4, 2)]), None);
        assert_eq!(collapse(&[]), Some((1, 1)));
        let walk = Walk::new(&[2, 3, 4], &[0, 5], &[vec![12, 4, 1], vec![12, 4, 1]]).unwrap();
        assert_eq!((walk.inner, walk.loops().count(), walk.is_flat()), (24, 1, false));
    }

    #[test]
    fn an_uneven_axis_is_a_loop() {
        let walk = Walk::new(&[2, 3], &[0, 7], &[vec![3, 1], vec![1, 2]]).unwrap();
        assert_eq!((walk.inner, &walk.strides[..]), (3, &[1, 2][..]));
        assert_eq!(walk.loops().collect::<Vec<_>>(), [&[0, 7], &[3, 8]]);
    }

    #[test]
    fn a_table_without_end_is_refused() {
        assert!(Walk::new(&[1 << 40, 2], &[0], &[vec![5, 1]]).is_none());
    }
}
