//! The shape that most instructions share: one destination, one to four sources, one operation on bits.

use super::super::{
    code::{Code, Four, One, Three, Two},
    types::Type,
};

/// What an opcode with its modifiers means: its operation and the types of its operands.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Form {
    pub(in super::super) code: Code,
    pub(in super::super) to: Type,
    pub(in super::super) from: [Option<Type>; 4],
    /// Registers may be wider than their types, as those of `cvt` may.
    pub(in super::super) wider: bool,
}

impl Form {
    pub(super) fn new(code: Code, to: Type, from: &[Type]) -> Self {
        let mut all = [None; 4];
        for (slot, ty) in all.iter_mut().zip(from) {
            *slot = Some(*ty);
        }
        Self { code, to, from: all, wider: false }
    }

    pub(super) fn one(f: One, to: Type, from: Type) -> Self {
        Self::new(Code::One(f), to, &[from])
    }

    pub(super) fn two(f: Two, to: Type, from: [Type; 2]) -> Self {
        Self::new(Code::Two(f), to, &from)
    }

    pub(super) fn three(f: Three, to: Type, from: [Type; 3]) -> Self {
        Self::new(Code::Three(f), to, &from)
    }

    pub(super) fn four(f: Four, to: Type, from: [Type; 4]) -> Self {
        Self::new(Code::Four(f), to, &from)
    }
}

/// The type of a suffix that the caller has matched already.
pub(super) fn ty(suffix: &str) -> Option<Type> {
    Type::parse(suffix)
}
