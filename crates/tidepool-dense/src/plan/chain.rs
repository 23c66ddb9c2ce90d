//! Element-wise operations that have not become a step yet: as long as only one other takes what they make, they grow.

use crate::{
    cpu::{Binary, Instruction, MAX_REGISTERS, Unary},
    plan::view::{Dim, View},
};

/// Operands and instructions; the last instruction makes the value.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) dims: Vec<Dim>,
    /// What `Load` instructions take; each can be spread to `dims`.
    pub(crate) loads: Vec<View>,
    pub(crate) instructions: Vec<Instruction>,
}

impl Chain {
    /// A value as it is.
    pub(crate) fn of(view: View) -> Self {
        Self { dims: view.dims(), loads: vec![view], instructions: vec![Instruction::Load(0)] }
    }

    /// One number throughout.
    pub(crate) fn fill(value: f32, rank: usize) -> Self {
        let dims = vec![Dim::Fixed(1); rank];
        Self { dims, loads: Vec::new(), instructions: vec![Instruction::Fill(value)] }
    }

    /// Whether nothing is computed.
    pub(crate) fn is_plain(&self) -> bool {
        self.instructions.len() == 1
    }

    /// Whether one more instruction fits behind all of these together.
    pub(crate) fn fit(chains: &[Self]) -> bool {
        chains.iter().map(|chain| chain.instructions.len()).sum::<usize>() < MAX_REGISTERS
    }

    /// Applies an operation on one number.
    pub(crate) fn unary(mut self, op: Unary) -> Self {
        self.instructions.push(Instruction::Unary(op, self.instructions.len() - 1));
        self
    }

    /// Applies an operation on two, of shape `dims`.
    pub(crate) fn binary(a: Self, op: Binary, b: Self, dims: Vec<Dim>) -> Self {
        Self::join(vec![a, b], dims, |at| Instruction::Binary(op, at[0], at[1]))
    }

    /// Chooses between two.
    pub(crate) fn select(chains: Vec<Self>, dims: Vec<Dim>) -> Self {
        Self::join(chains, dims, |at| Instruction::Select(at[0], at[1], at[2]))
    }

    fn join(chains: Vec<Self>, dims: Vec<Dim>, with: impl Fn(&[usize]) -> Instruction) -> Self {
        let mut joined = Self { dims, loads: Vec::new(), instructions: Vec::new() };
        let mut results = Vec::new();
        for chain in chains {
            let (registers, loads) = (joined.instructions.len(), joined.loads.len());
            joined.loads.extend(chain.loads);
            joined.instructions.extend(chain.instructions.into_iter().map(|instruction| match instruction {
                Instruction::Load(load) => Instruction::Load(load + loads),
                Instruction::Fill(value) => Instruction::Fill(value),
                Instruction::Unary(op, a) => Instruction::Unary(op, a + registers),
                Instruction::Binary(op, a, b) => Instruction::Binary(op, a + registers, b + registers),
                Instruction::Select(c, t, f) => {
                    Instruction::Select(c + registers, t + registers, f + registers)
                }
            }));
            results.push(joined.instructions.len() - 1);
        }
        joined.instructions.push(with(&results));
        joined
    }
}
