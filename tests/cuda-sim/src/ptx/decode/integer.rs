//! Arithmetic on integers. Division by zero gives all ones and a remainder equal to the dividend, as
//! the sequences that ptxas makes do.

use super::{
    super::{
        code::{Carry, Code, One, Three, Two},
        types::{Kind, Type},
    },
    form::{Form, ty},
};

const B32: Type = Type { kind: Kind::Bits, bits: 32 };

/// One function per integer type. `T` is the type, and the result is cut to its width.
macro_rules! by_type {
    ($suffix:expr, $as:ty, |$($arg:ident),+| $body:expr) => {
        by_type!(@ $suffix, $as, ($($arg),+), $body,
            "u16" u16 u16, "s16" i16 u16, "u32" u32 u32, "s32" i32 u32, "u64" u64 u64, "s64" i64 u64)
    };
    (@ $suffix:expr, $as:ty, $args:tt, $body:expr, $($name:literal $t:ident $u:ident),+) => {
        match $suffix {
            $($name => by_type!(@fn $as, $t, $u, $args, $body),)+
            _ => return None,
        }
    };
    (@fn $as:ty, $t:ident, $u:ident, ($($arg:ident),+), $body:expr) => {{
        #[allow(dead_code, reason = "not every operation names its type")]
        type T = $t;
        let f: $as = |$($arg),+| {
            $(let $arg = $arg as $t;)+
            ($body) as $u as u64
        };
        f
    }};
}

/// The high half of a product, for each integer type, plus `c` when one is named.
macro_rules! high {
    ($suffix:expr, $as:ty $(, $c:ident)?) => {
        high!(@ $suffix, $as, ($($c)?), "u16" u16 u16 u32 16, "s16" i16 u16 i32 16, "u32" u32 u32 u64 32,
            "s32" i32 u32 i64 32, "u64" u64 u64 u128 64, "s64" i64 u64 i128 64)
    };
    (@ $suffix:expr, $as:ty, $c:tt, $($name:literal $t:ident $u:ident $w:ident $bits:literal),+) => {
        match $suffix {
            $($name => {
                let f: $as = high!(@fn $t, $u, $w, $bits, $c);
                f
            })+
            _ => return None,
        }
    };
    (@fn $t:ident, $u:ident, $w:ident, $bits:literal, ()) => {
        |a, b| ((a as $t as $w * b as $t as $w) >> $bits) as $u as u64
    };
    (@fn $t:ident, $u:ident, $w:ident, $bits:literal, ($c:ident)) => {
        |a, b, $c| (((a as $t as $w * b as $t as $w) >> $bits) as $u).wrapping_add($c as $u) as u64
    };
}

/// Arithmetic whose opcode and modifiers are `parts`.
pub(super) fn form(parts: &[&str]) -> Option<Form> {
    let t = ty(parts.last()?)?;
    let two = |f: Two| Some(Form::two(f, t, [t, t]));
    match *parts {
        ["add", s] => two(by_type!(s, Two, |a, b| a.wrapping_add(b))),
        ["sub", s] => two(by_type!(s, Two, |a, b| a.wrapping_sub(b))),
        ["add", "sat", "s32"] => two(|a, b| (a as i32).saturating_add(b as i32) as u32 as u64),
        ["sub", "sat", "s32"] => two(|a, b| (a as i32).saturating_sub(b as i32) as u32 as u64),
        ["mul", "lo", s] => two(by_type!(s, Two, |a, b| a.wrapping_mul(b))),
        ["mul", "hi", s] => two(high!(s, Two)),
        ["mul", "wide", s] => Some(Form::two(wide(s)?, double(t), [t, t])),
        ["mad", "lo", s] => {
            let f = by_type!(s, Three, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
            Some(Form::three(f, t, [t; 3]))
        }
        ["mad", "hi", s] => {
            let f = high!(s, Three, c);
            Some(Form::three(f, t, [t; 3]))
        }
        ["mad", "hi", "sat", "s32"] => Some(Form::three(
            |a, b, c| {
                let high = ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as i32;
                u64::from(high.saturating_add(c as i32) as u32)
            },
            t,
            [t; 3],
        )),
        ["mad", "wide", s] => Some(Form::three(wide_add(s)?, double(t), [t, t, double(t)])),
        ["mul24" | "mad24", half, s] => twenty_four(parts[0], half, s, t),
        ["div", s] => two(by_type!(s, Two, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) })),
        ["rem", s] => two(by_type!(s, Two, |a, b| if b == 0 { a } else { a.wrapping_rem(b) })),
        ["min", s] if t.kind != Kind::Float => two(by_type!(s, Two, |a, b| a.min(b))),
        ["max", s] if t.kind != Kind::Float => two(by_type!(s, Two, |a, b| a.max(b))),
        ["min", "relu", "s32"] => two(|a, b| (a as i32).min(b as i32).max(0) as u64),
        ["max", "relu", "s32"] => two(|a, b| (a as i32).max(b as i32).max(0) as u64),
        ["abs", s] if t.signed() => Some(Form::one(
            by_type!(s, One, |a| if (a as i64) < 0 { (0 as T).wrapping_sub(a) } else { a }),
            t,
            t,
        )),
        ["neg", s] if t.signed() => Some(Form::one(by_type!(s, One, |a| (0 as T).wrapping_sub(a)), t, t)),
        ["sad", s] => {
            let f = by_type!(s, Three, |a, b, c| (a.max(b)).wrapping_sub(a.min(b)).wrapping_add(c));
            Some(Form::three(f, t, [t; 3]))
        }
        ["dp4a", a, b] => dot(a, b, t),
        _ => None,
    }
}

/// Operations on two 16-bit halves of a register.
pub(super) fn pairs(parts: &[&str]) -> Option<Form> {
    let f: Two = match *parts {
        ["add", "u16x2" | "s16x2"] => |a, b| halves(a, b, u16::wrapping_add),
        ["sub", "u16x2" | "s16x2"] => |a, b| halves(a, b, u16::wrapping_sub),
        ["min", "u16x2"] => |a, b| halves(a, b, u16::min),
        ["max", "u16x2"] => |a, b| halves(a, b, u16::max),
        ["min", "s16x2"] => |a, b| halves(a, b, |x, y| (x as i16).min(y as i16) as u16),
        ["max", "s16x2"] => |a, b| halves(a, b, |x, y| (x as i16).max(y as i16) as u16),
        _ => return None,
    };
    Some(Form::two(f, B32, [B32; 2]))
}

fn halves(a: u64, b: u64, f: fn(u16, u16) -> u16) -> u64 {
    u64::from(f(a as u16, b as u16)) | u64::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

fn double(t: Type) -> Type {
    Type { kind: t.kind, bits: t.bits * 2 }
}

fn wide(suffix: &str) -> Option<Two> {
    Some(match suffix {
        "u16" => |a, b| u64::from(a as u16) * u64::from(b as u16),
        "s16" => |a, b| (i32::from(a as i16) * i32::from(b as i16)) as u32 as u64,
        "u32" => |a, b| u64::from(a as u32) * u64::from(b as u32),
        "s32" => |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64,
        _ => return None,
    })
}

fn wide_add(suffix: &str) -> Option<Three> {
    Some(match suffix {
        "u16" => |a, b, c| u64::from((u32::from(a as u16) * u32::from(b as u16)).wrapping_add(c as u32)),
        "s16" => |a, b, c| (i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c as i32) as u32 as u64,
        "u32" => |a, b, c| (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c),
        "s32" => |a, b, c| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64,
        _ => return None,
    })
}

/// The product of the low 24 bits of two numbers: its low 32 bits, or the bits from 16 to 47.
fn twenty_four(opcode: &str, half: &str, suffix: &str, t: Type) -> Option<Form> {
    fn signed(a: u64) -> i64 {
        i64::from((a as i32) << 8 >> 8)
    }
    fn unsigned(a: u64) -> u64 {
        a & 0xff_ffff
    }
    let f: Three = match (half, suffix) {
        ("lo", "u32") => |a, b, c| u64::from(((unsigned(a) * unsigned(b)) as u32).wrapping_add(c as u32)),
        ("lo", "s32") => |a, b, c| u64::from(((signed(a) * signed(b)) as u32).wrapping_add(c as u32)),
        ("hi", "u32") => {
            |a, b, c| u64::from((((unsigned(a) * unsigned(b)) >> 16) as u32).wrapping_add(c as u32))
        }
        ("hi", "s32") => |a, b, c| u64::from((((signed(a) * signed(b)) >> 16) as u32).wrapping_add(c as u32)),
        _ => return None,
    };
    if opcode == "mad24" {
        return Some(Form::three(f, t, [t; 3]));
    }
    let f: Two = match (half, suffix) {
        ("lo", "u32") => |a, b| u64::from((unsigned(a) * unsigned(b)) as u32),
        ("lo", "s32") => |a, b| u64::from((signed(a) * signed(b)) as u32),
        ("hi", "u32") => |a, b| u64::from(((unsigned(a) * unsigned(b)) >> 16) as u32),
        _ => |a, b| u64::from(((signed(a) * signed(b)) >> 16) as u32),
    };
    Some(Form::two(f, t, [t; 2]))
}

/// Four products of bytes, added to a third operand.
fn dot(a: &str, b: &str, t: Type) -> Option<Form> {
    fn of(a: u64, b: u64, c: u64, left: fn(u8) -> i32, right: fn(u8) -> i32) -> u64 {
        let products = (0..4).map(|i| left((a >> (8 * i)) as u8) * right((b >> (8 * i)) as u8));
        u64::from(products.fold(c as u32, |sum, product| sum.wrapping_add(product as u32)))
    }
    fn signed(x: u8) -> i32 {
        i32::from(x as i8)
    }
    let f: Three = match (a, b) {
        ("u32", "u32") => |a, b, c| of(a, b, c, i32::from, i32::from),
        ("u32", "s32") => |a, b, c| of(a, b, c, i32::from, signed),
        ("s32", "u32") => |a, b, c| of(a, b, c, signed, i32::from),
        ("s32", "s32") => |a, b, c| of(a, b, c, signed, signed),
        _ => return None,
    };
    Some(Form::three(f, t, [t; 3]))
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.lo.cc`, `madc.hi` and their like: arithmetic that writes or
/// reads the carry flag. A subtraction's flag is its borrow.
pub(super) fn carry(parts: &[&str]) -> Option<Form> {
    let t = ty(parts.last()?)?;
    if !matches!(t.kind, Kind::Unsigned | Kind::Signed) || t.bits < 32 {
        return None;
    }
    let narrow = t.bits == 32;
    let (parts, sets) = match *parts {
        [opcode, "cc", _] => ([opcode, ""], true),
        [opcode, half, "cc", _] => ([opcode, half], true),
        [opcode @ ("addc" | "subc"), _] => ([opcode, ""], false),
        [opcode @ "madc", half, _] => ([opcode, half], false),
        _ => return None,
    };
    let f: Carry = match (parts, narrow, sets) {
        (["add", ""], true, true) => |a, b, _, flag| add32(a, b, false, flag),
        (["add", ""], false, true) => |a, b, _, flag| add64(a, b, false, flag),
        (["addc", ""], true, true) => |a, b, _, flag| add32(a, b, *flag, flag),
        (["addc", ""], false, true) => |a, b, _, flag| add64(a, b, *flag, flag),
        (["addc", ""], true, false) => |a, b, _, flag| add32(a, b, *flag, &mut false),
        (["addc", ""], false, false) => |a, b, _, flag| add64(a, b, *flag, &mut false),
        (["sub", ""], true, true) => |a, b, _, flag| sub32(a, b, false, flag),
        (["sub", ""], false, true) => |a, b, _, flag| sub64(a, b, false, flag),
        (["subc", ""], true, true) => |a, b, _, flag| sub32(a, b, *flag, flag),
        (["subc", ""], false, true) => |a, b, _, flag| sub64(a, b, *flag, flag),
        (["subc", ""], true, false) => |a, b, _, flag| sub32(a, b, *flag, &mut false),
        (["subc", ""], false, false) => |a, b, _, flag| sub64(a, b, *flag, &mut false),
        (["mad", half], _, true) => return product(half, t, true, false),
        (["madc", half], _, sets) => return product(half, t, sets, true),
        _ => return None,
    };
    Some(Form::new(Code::Carry(f), t, &[t, t]))
}

fn product(half: &str, t: Type, sets: bool, takes: bool) -> Option<Form> {
    fn high(a: u64, b: u64, t: Type) -> u64 {
        match (t.kind, t.bits) {
            (Kind::Signed, 32) => ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32 as u64,
            (_, 32) => (u64::from(a as u32) * u64::from(b as u32)) >> 32,
            (Kind::Signed, _) => ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64,
            _ => ((u128::from(a) * u128::from(b)) >> 64) as u64,
        }
    }
    const S32: Type = Type { kind: Kind::Signed, bits: 32 };
    const U32: Type = Type { kind: Kind::Unsigned, bits: 32 };
    const S64: Type = Type { kind: Kind::Signed, bits: 64 };
    const U64: Type = Type { kind: Kind::Unsigned, bits: 64 };
    macro_rules! flags {
        ($add:ident, |$a:ident, $b:ident| $product:expr) => {
            match (sets, takes) {
                (true, false) => |$a, $b, c, flag| $add($product, c, false, flag),
                (true, true) => |$a, $b, c, flag| $add($product, c, *flag, flag),
                (false, _) => |$a, $b, c, flag| $add($product, c, *flag, &mut false),
            }
        };
    }
    let f: Carry = match (half, t.kind, t.bits) {
        ("lo", _, 32) => flags!(add32, |a, b| u64::from((a as u32).wrapping_mul(b as u32))),
        ("lo", _, 64) => flags!(add64, |a, b| a.wrapping_mul(b)),
        ("hi", Kind::Signed, 32) => flags!(add32, |a, b| high(a, b, S32)),
        ("hi", _, 32) => flags!(add32, |a, b| high(a, b, U32)),
        ("hi", Kind::Signed, 64) => flags!(add64, |a, b| high(a, b, S64)),
        ("hi", _, 64) => flags!(add64, |a, b| high(a, b, U64)),
        _ => return None,
    };
    Some(Form::new(Code::Carry(f), t, &[t, t, t]))
}

fn add32(a: u64, b: u64, carry: bool, flag: &mut bool) -> u64 {
    let sum = u64::from(a as u32) + u64::from(b as u32) + u64::from(carry);
    *flag = sum >> 32 != 0;
    u64::from(sum as u32)
}

fn add64(a: u64, b: u64, carry: bool, flag: &mut bool) -> u64 {
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    *flag = sum >> 64 != 0;
    sum as u64
}

fn sub32(a: u64, b: u64, borrow: bool, flag: &mut bool) -> u64 {
    *flag = u64::from(a as u32) < u64::from(b as u32) + u64::from(borrow);
    u64::from((a as u32).wrapping_sub(b as u32).wrapping_sub(u32::from(borrow)))
}

fn sub64(a: u64, b: u64, borrow: bool, flag: &mut bool) -> u64 {
    *flag = u128::from(a) < u128::from(b) + u128::from(borrow);
    a.wrapping_sub(b).wrapping_sub(u64::from(borrow))
}
