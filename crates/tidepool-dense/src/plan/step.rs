//! The steps of a plan: what is read, what is made, and everything that the model fixes about it.

use crate::{
    cpu::{Instruction, LineOp, Packed, Small},
    plan::view::{BufferId, Walk},
};

/// One step, for a block of rows or requests.
pub(crate) struct Step {
    /// The node of the graph that asked for it.
    pub(crate) node: String,
    /// What it makes.
    pub(crate) out: BufferId,
    pub(crate) work: Work,
}

/// What a step does.
pub(crate) enum Work {
    /// A chain of element-wise operations, also a plain copy. Operand 0 of the walk is the result.
    Map {
        walk: Walk,
        /// The operands that instructions load, by number.
        loads: Vec<BufferId>,
        instructions: Vec<Instruction>,
    },
    /// Rows by constant matrices.
    Product(Product),
    /// Two values that both change from record to record.
    Pair {
        a: BufferId,
        b: BufferId,
        shape: Small,
        /// Where `a`, `b` and the result of each product begin.
        places: Vec<[u32; 3]>,
    },
    /// An operation on lines.
    Line {
        source: BufferId,
        op: LineOp,
        /// Where each line begins.
        starts: Vec<u32>,
        /// Where its elements are, from there.
        elements: Elements,
    },
    /// Chosen elements of a record, one after the other.
    Pick { source: BufferId, elements: Vec<u32> },
}

/// Where the elements of a line are.
pub(crate) enum Elements {
    /// Evenly apart.
    Even { len: usize, stride: usize },
    /// At these places.
    At(Vec<u32>),
}

impl Elements {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Even { len, .. } => *len,
            Self::At(places) => places.len(),
        }
    }
}

/// A matrix product: for each record, `m` rows of the left side, `m_stride` apart, by each matrix in turn.
pub(crate) struct Product {
    pub(crate) a: BufferId,
    /// Rows per record, their stride on the left side and in the result.
    pub(crate) m: usize,
    pub(crate) m_stride: usize,
    pub(crate) m_out: usize,
    /// Stride between the columns of the left side.
    pub(crate) k_stride: usize,
    pub(crate) start: Start,
    /// Whether sums below 0 become 0.
    pub(crate) relu: bool,
    pub(crate) weights: Vec<Packed>,
    pub(crate) calls: Vec<Call>,
}

/// One product of a step.
pub(crate) struct Call {
    /// Where the left side begins in its record.
    pub(crate) a: usize,
    /// Which matrix.
    pub(crate) weights: usize,
    /// Where the result begins in its record.
    pub(crate) out: usize,
}

/// What the sums of a product start from.
pub(crate) enum Start {
    Zero,
    /// The same record for all.
    Bias(Vec<f32>),
    /// Records of the same width: the part that was computed once per request.
    Buffer(BufferId),
    /// What an earlier product has put in the result's place: the other terms of the same sum.
    Here,
}

impl Step {
    /// The buffers that it reads.
    pub(crate) fn reads(&self) -> Vec<BufferId> {
        match &self.work {
            Work::Map { loads, .. } => loads.clone(),
            Work::Product(product) => match product.start {
                Start::Buffer(start) => vec![product.a, start],
                Start::Here => vec![product.a, self.out],
                Start::Zero | Start::Bias(_) => vec![product.a],
            },
            Work::Pair { a, b, .. } => vec![*a, *b],
            Work::Line { source, .. } | Work::Pick { source, .. } => vec![*source],
        }
    }
}
