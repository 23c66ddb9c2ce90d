//! Arithmetic in f16 and bfloat16, alone and in pairs: every result is the exact one, rounded once.

use super::{
    super::{
        code::{One, Three, Two},
        round::{self, BF16, F16, Mode},
        types::Kind,
    },
    form::{Form, ty},
};

/// Flags of an operation, as one constant of its function.
const BRAIN: u8 = 1;
const FLUSH: u8 = 2;
/// Saturation; for minimum and maximum, that a NaN wins.
const SAT: u8 = 4;
const RELU: u8 = 8;
const PAIR: u8 = 16;

/// The function for flags that are known only now.
macro_rules! choose {
    ($as:ty, $f:ident, $flags:expr) => {
        choose!(@ $as, $f, $flags, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    (@ $as:ty, $f:ident, $flags:expr, $($n:literal)+) => {{
        let f: $as = match $flags {
            $($n => $f::<$n>,)+
            _ => return None,
        };
        f
    }};
}

/// Arithmetic in a 16-bit format whose opcode and modifiers are `parts`.
pub(super) fn form(parts: &[&str]) -> Option<Form> {
    let (opcode, last) = (*parts.first()?, *parts.last()?);
    let t = ty(last).filter(|_| matches!(last, "f16" | "f16x2" | "bf16" | "bf16x2"))?;
    let mut flags = if t.kind == Kind::Brain { BRAIN } else { 0 } | if t.bits == 32 { PAIR } else { 0 };
    let (mut approx, mut saturate, mut nan) = (false, false, false);
    for modifier in parts.get(1..parts.len() - 1)? {
        match *modifier {
            // Rounding to nearest is the only mode there is.
            "rn" => {}
            "ftz" => flags |= FLUSH,
            "relu" => flags |= RELU,
            "sat" => saturate = true,
            "NaN" => nan = true,
            "approx" => approx = true,
            _ => return None,
        }
    }
    if saturate || nan {
        flags |= SAT;
    }
    let simple = flags & !(BRAIN | PAIR) == 0;
    let (one, two) = (|f: One| Some(Form::one(f, t, t)), |f: Two| Some(Form::two(f, t, [t; 2])));
    match opcode {
        "tanh" if approx && simple => one(choose!(One, tanh, flags)),
        "ex2" if approx && (simple || (flags & !PAIR) == BRAIN | FLUSH) => one(choose!(One, ex2, flags)),
        _ if approx => None,
        "add" if !nan && flags & RELU == 0 => two(choose!(Two, add, flags)),
        "sub" if !nan && flags & RELU == 0 => two(choose!(Two, sub, flags)),
        "mul" if !nan && flags & RELU == 0 => two(choose!(Two, mul, flags)),
        "fma" if !nan && (!saturate || flags & RELU == 0) => {
            Some(Form::three(choose!(Three, fma, flags), t, [t; 3]))
        }
        "min" if !saturate && flags & RELU == 0 => two(choose!(Two, min, flags)),
        "max" if !saturate && flags & RELU == 0 => two(choose!(Two, max, flags)),
        "abs" if simple => one(choose!(One, abs, flags)),
        "neg" if simple => one(choose!(One, neg, flags)),
        _ => None,
    }
}

fn lanes<const FLAGS: u8>(f: impl Fn(u32) -> u64) -> u64 {
    if FLAGS & PAIR == 0 { f(0) } else { f(0) | f(16) << 16 }
}

/// The value of the lane at bit `at`.
fn read<const FLAGS: u8>(bits: u64, at: u32) -> f64 {
    let bits = bits >> at & 0xffff;
    let value = if FLAGS & BRAIN == 0 { round::from_f16(bits) } else { round::from_bf16(bits) };
    let fraction = if FLAGS & BRAIN == 0 { 0x3ff } else { 0x7f };
    let subnormal = bits & 0x7fff <= fraction && bits & 0x7fff != 0;
    if FLAGS & FLUSH != 0 && subnormal { 0.0_f64.copysign(value) } else { value }
}

fn write<const FLAGS: u8>(value: f64, rest: f64) -> u64 {
    if FLAGS & SAT != 0 && value.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
        return 0;
    }
    if FLAGS & RELU != 0 && value < 0.0 {
        return 0;
    }
    let format = if FLAGS & BRAIN == 0 { F16 } else { BF16 };
    let value = if FLAGS & SAT != 0 { value.min(1.0) } else { value };
    let bits = round::round(value, rest, format, Mode::Nearest);
    let least = if FLAGS & BRAIN == 0 { 0x400 } else { 0x80 };
    if FLAGS & FLUSH != 0 && bits & 0x7fff < least { bits & 0x8000 } else { bits }
}

fn sum<const FLAGS: u8>(a: f64, b: f64) -> u64 {
    let (value, rest) = round::sum(a, b);
    write::<FLAGS>(value, rest)
}

fn add<const FLAGS: u8>(a: u64, b: u64) -> u64 {
    lanes::<FLAGS>(|at| sum::<FLAGS>(read::<FLAGS>(a, at), read::<FLAGS>(b, at)))
}

fn sub<const FLAGS: u8>(a: u64, b: u64) -> u64 {
    lanes::<FLAGS>(|at| sum::<FLAGS>(read::<FLAGS>(a, at), -read::<FLAGS>(b, at)))
}

fn mul<const FLAGS: u8>(a: u64, b: u64) -> u64 {
    lanes::<FLAGS>(|at| write::<FLAGS>(read::<FLAGS>(a, at) * read::<FLAGS>(b, at), 0.0))
}

fn fma<const FLAGS: u8>(a: u64, b: u64, c: u64) -> u64 {
    lanes::<FLAGS>(|at| sum::<FLAGS>(read::<FLAGS>(a, at) * read::<FLAGS>(b, at), read::<FLAGS>(c, at)))
}

fn extreme<const FLAGS: u8>(a: u64, b: u64, max: bool) -> u64 {
    lanes::<FLAGS>(|at| {
        let (x, y) = (read::<FLAGS>(a, at), read::<FLAGS>(b, at));
        let chosen = match (x.is_nan(), y.is_nan()) {
            (false, false) if x.total_cmp(&y).is_gt() == max => x,
            (false, false) => y,
            (true, false) if FLAGS & SAT == 0 => y,
            (false, true) if FLAGS & SAT == 0 => x,
            _ => return 0x7fff,
        };
        // The flag for NaN is the one for saturation elsewhere, and must not reach the rounding.
        if FLAGS & BRAIN == 0 { write::<0>(chosen, 0.0) } else { write::<BRAIN>(chosen, 0.0) }
    })
}

fn min<const FLAGS: u8>(a: u64, b: u64) -> u64 {
    extreme::<FLAGS>(a, b, false)
}

fn max<const FLAGS: u8>(a: u64, b: u64) -> u64 {
    extreme::<FLAGS>(a, b, true)
}

fn tanh<const FLAGS: u8>(a: u64) -> u64 {
    lanes::<FLAGS>(|at| write::<FLAGS>(read::<FLAGS>(a, at).tanh(), 0.0))
}

fn ex2<const FLAGS: u8>(a: u64) -> u64 {
    lanes::<FLAGS>(|at| write::<FLAGS>(read::<FLAGS>(a, at).exp2(), 0.0))
}

fn abs<const FLAGS: u8>(a: u64) -> u64 {
    lanes::<FLAGS>(|at| a >> at & 0x7fff)
}

fn neg<const FLAGS: u8>(a: u64) -> u64 {
    lanes::<FLAGS>(|at| a >> at & 0xffff ^ 0x8000)
}
