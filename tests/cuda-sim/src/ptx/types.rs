//! Types of PTX: what a suffix like `.s32` means for width, sign and kind.

/// Kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Predicate,
    Bits,
    Unsigned,
    Signed,
    Float,
    /// bfloat16, alone or (32 bits wide) as a pair.
    Brain,
    /// Two f16 in 32 bits.
    Halves,
}

/// A fundamental type: its kind and its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) kind: Kind,
    /// Width in bits; a predicate has 1.
    pub(super) bits: u8,
}

impl Type {
    /// The type that a suffix without its dot names.
    pub(super) fn parse(suffix: &str) -> Option<Self> {
        let of = |kind, bits| Some(Self { kind, bits });
        match suffix {
            "pred" => of(Kind::Predicate, 1),
            "b8" => of(Kind::Bits, 8),
            "b16" => of(Kind::Bits, 16),
            "b32" => of(Kind::Bits, 32),
            "b64" => of(Kind::Bits, 64),
            "u8" => of(Kind::Unsigned, 8),
            "u16" => of(Kind::Unsigned, 16),
            "u32" => of(Kind::Unsigned, 32),
            "u64" => of(Kind::Unsigned, 64),
            "s8" => of(Kind::Signed, 8),
            "s16" => of(Kind::Signed, 16),
            "s32" => of(Kind::Signed, 32),
            "s64" => of(Kind::Signed, 64),
            "f16" => of(Kind::Float, 16),
            "f32" => of(Kind::Float, 32),
            "f64" => of(Kind::Float, 64),
            "bf16" => of(Kind::Brain, 16),
            "bf16x2" => of(Kind::Brain, 32),
            "f16x2" => of(Kind::Halves, 32),
            _ => None,
        }
    }

    pub(super) fn bytes(self) -> u32 {
        u32::from(self.bits).div_ceil(8)
    }

    pub(super) fn signed(self) -> bool {
        self.kind == Kind::Signed
    }
}

/// The bits of `value` that a register of `bits` keeps.
pub(super) fn keep(value: u64, bits: u8) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

/// `value`'s lowest `bits`, with the top one of them copied upwards.
pub(super) fn sign_extend(value: u64, bits: u8) -> u64 {
    let unused = 64 - u32::from(bits);
    (((value << unused) as i64) >> unused) as u64
}
