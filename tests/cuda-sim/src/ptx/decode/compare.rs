//! Comparisons: the tests of `setp` and `set`. With a NaN an ordered test is false, also `ne`; an
//! unordered one (`equ`, `neu`, `ltu` ...) is true.

use super::super::{
    code::Test,
    round,
    types::{Kind, Type},
};

macro_rules! floats {
    ($operator:expr, $read:expr) => {{
        let f: Test = match $operator {
            "eq" => |a, b| $read(a) == $read(b),
            "ne" => |a, b| $read(a) < $read(b) || $read(a) > $read(b),
            "lt" => |a, b| $read(a) < $read(b),
            "le" => |a, b| $read(a) <= $read(b),
            "gt" => |a, b| $read(a) > $read(b),
            "ge" => |a, b| $read(a) >= $read(b),
            "equ" => |a, b| !($read(a) < $read(b) || $read(a) > $read(b)),
            "neu" => |a, b| $read(a) != $read(b),
            "ltu" => |a, b| !($read(a) >= $read(b)),
            "leu" => |a, b| !($read(a) > $read(b)),
            "gtu" => |a, b| !($read(a) <= $read(b)),
            "geu" => |a, b| !($read(a) < $read(b)),
            "num" => |a, b| !$read(a).is_nan() && !$read(b).is_nan(),
            "nan" => |a, b| $read(a).is_nan() || $read(b).is_nan(),
            _ => return None,
        };
        Some(f)
    }};
}

macro_rules! integers {
    ($operator:expr, $t:ident) => {{
        let f: Test = match $operator {
            "eq" => |a, b| a as $t == b as $t,
            "ne" => |a, b| a as $t != b as $t,
            "lt" | "lo" => |a, b| (a as $t) < b as $t,
            "le" | "ls" => |a, b| a as $t <= b as $t,
            "gt" | "hi" => |a, b| a as $t > b as $t,
            "ge" | "hs" => |a, b| a as $t >= b as $t,
            _ => return None,
        };
        Some(f)
    }};
}

/// The test of an operator on a type, with subnormals flushed where asked.
#[expect(clippy::neg_cmp_op_on_partial_ord, reason = "an unordered test is true for NaN")]
pub(super) fn test(operator: &str, t: Type, flush: bool) -> Option<Test> {
    let only_equality = matches!(operator, "eq" | "ne");
    let for_unsigned = matches!(operator, "lo" | "ls" | "hi" | "hs");
    match (t.kind, t.bits) {
        (Kind::Float, 32) if flush => floats!(operator, flushed),
        (Kind::Float, 32) => floats!(operator, single),
        (Kind::Float, 64) if !flush => floats!(operator, f64::from_bits),
        (Kind::Float, 16) => floats!(operator, round::from_f16),
        (Kind::Brain, 16) => floats!(operator, round::from_bf16),
        _ if flush => None,
        (Kind::Bits, 16 | 32 | 64) if only_equality => integers!(operator, u64),
        (Kind::Unsigned, 16 | 32 | 64) => integers!(operator, u64),
        (Kind::Signed, 16) if !for_unsigned => integers!(operator, i16),
        (Kind::Signed, 32) if !for_unsigned => integers!(operator, i32),
        (Kind::Signed, 64) if !for_unsigned => integers!(operator, i64),
        _ => None,
    }
}

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn flushed(bits: u64) -> f32 {
    f32::from_bits(super::float::flush::<true>(bits as u32) as u32)
}
