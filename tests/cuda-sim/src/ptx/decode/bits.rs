//! Logic, shifts, bit fields, selection and moves.

use super::{
    super::{
        code::{Code, Four, One, Three, Two},
        types::{Kind, Type, keep},
    },
    form::{Form, ty},
};

const PREDICATE: Type = Type { kind: Kind::Predicate, bits: 1 };
const B32: Type = Type { kind: Kind::Bits, bits: 32 };

/// Bit operations whose opcode and modifiers are `parts`.
pub(super) fn form(parts: &[&str]) -> Option<Form> {
    let t = ty(parts.last()?)?;
    let amount = Type { kind: Kind::Unsigned, bits: 32 };
    match *parts {
        ["mov", _] if t.bits != 8 => Some(Form::new(Code::Move, t, &[t])),
        ["and" | "or" | "xor" | "not" | "cnot", _]
            if !matches!(t.kind, Kind::Bits | Kind::Predicate) || t.bits == 8 =>
        {
            None
        }
        ["and", _] => Some(Form::two(|a, b| a & b, t, [t; 2])),
        ["or", _] => Some(Form::two(|a, b| a | b, t, [t; 2])),
        ["xor", _] => Some(Form::two(|a, b| a ^ b, t, [t; 2])),
        ["not", _] => {
            let f: One = match t.bits {
                1 => |a| a ^ 1,
                16 => |a| a ^ 0xffff,
                32 => |a| a ^ 0xffff_ffff,
                _ => |a| !a,
            };
            Some(Form::one(f, t, t))
        }
        ["cnot", _] if t.bits > 1 => Some(Form::one(|a| u64::from(a == 0), t, t)),
        ["shl", _] if t.kind == Kind::Bits => {
            let f: Two = match t.bits {
                16 => |a, n| if n > 15 { 0 } else { keep(a << n, 16) },
                32 => |a, n| if n > 31 { 0 } else { keep(a << n, 32) },
                64 => |a, n| if n > 63 { 0 } else { a << n },
                _ => return None,
            };
            Some(Form::two(f, t, [t, amount]))
        }
        ["shr", _] => {
            let f: Two = match (t.kind, t.bits) {
                (Kind::Signed, 16) => |a, n| u64::from((a as i16 >> n.min(15)) as u16),
                (Kind::Signed, 32) => |a, n| u64::from((a as i32 >> n.min(31)) as u32),
                (Kind::Signed, 64) => |a, n| (a as i64 >> n.min(63)) as u64,
                (Kind::Bits | Kind::Unsigned, 16 | 32 | 64) => |a, n| if n > 63 { 0 } else { a >> n },
                _ => return None,
            };
            Some(Form::two(f, t, [t, amount]))
        }
        ["shf", direction, clamp, "b32"] => Some(Form::three(funnel(direction, clamp)?, t, [t, t, amount])),
        ["popc", "b32" | "b64"] => Some(Form::one(|a| u64::from(a.count_ones()), B32, t)),
        ["clz", "b32"] => Some(Form::one(|a| u64::from((a as u32).leading_zeros()), B32, t)),
        ["clz", "b64"] => Some(Form::one(|a| u64::from(a.leading_zeros()), B32, t)),
        ["brev", "b32"] => Some(Form::one(|a| u64::from((a as u32).reverse_bits()), t, t)),
        ["brev", "b64"] => Some(Form::one(u64::reverse_bits, t, t)),
        ["bfind", _] => Some(Form::one(find(t, false)?, B32, t)),
        ["bfind", "shiftamt", _] => Some(Form::one(find(t, true)?, B32, t)),
        ["bfe", _] => {
            let f: Three = match (t.kind, t.bits) {
                (Kind::Unsigned, 32 | 64) => extract,
                (Kind::Signed, 32) => |a, at, n| extract_signed(a, at, n, 32),
                (Kind::Signed, 64) => |a, at, n| extract_signed(a, at, n, 64),
                _ => return None,
            };
            Some(Form::three(f, t, [t, amount, amount]))
        }
        ["bfi", "b32" | "b64"] => {
            let f: Four = if t.bits == 32 {
                |field, into, at, n| keep(insert(field, into, at & 255, n & 255), 32)
            } else {
                |field, into, at, n| insert(field, into, at & 255, n & 255)
            };
            Some(Form::four(f, t, [t, t, amount, amount]))
        }
        ["prmt", "b32"] => Some(Form::three(permute, t, [t; 3])),
        ["prmt", "b32", mode] => Some(Form::three(permute_mode(mode)?, t, [t; 3])),
        ["lop3", "b32"] => Some(Form::new(Code::Four(lookup), t, &[t, t, t, amount])),
        ["selp", _] if t.bits >= 16 => {
            Some(Form::three(|a, b, p| if p != 0 { a } else { b }, t, [t, t, PREDICATE]))
        }
        _ => slct(parts),
    }
}

fn slct(parts: &[&str]) -> Option<Form> {
    let f32_type = ty("f32")?;
    let (t, by): (_, (Three, _)) = match *parts {
        ["slct", t, "s32"] => (ty(t)?, (|a, b, c| if c as i32 >= 0 { a } else { b }, ty("s32")?)),
        ["slct", t, "f32"] => {
            (ty(t)?, (|a, b, c| if f32::from_bits(c as u32) >= 0.0 { a } else { b }, f32_type))
        }
        ["slct", "ftz", t, "f32"] => {
            // A negative subnormal counts as a zero, which is not below zero.
            let f: Three = |a, b, c| {
                let c = f32::from_bits(c as u32);
                if c >= 0.0 || c.is_subnormal() { a } else { b }
            };
            (ty(t)?, (f, f32_type))
        }
        _ => return None,
    };
    (t.bits >= 16).then(|| Form::three(by.0, t, [t, t, by.1]))
}

/// The middle of two registers seen as one of 64 bits; `a` is the lower.
fn funnel(direction: &str, clamp: &str) -> Option<Three> {
    Some(match (direction, clamp) {
        ("l", "wrap") => |a, b, n| keep((b << 32 | a) << (n & 31) >> 32, 32),
        ("r", "wrap") => |a, b, n| keep((b << 32 | a) >> (n & 31), 32),
        ("l", "clamp") => |a, b, n| keep((b << 32 | a) << n.min(32) >> 32, 32),
        ("r", "clamp") => |a, b, n| keep((b << 32 | a) >> n.min(32), 32),
        _ => return None,
    })
}

/// The highest bit that differs from the sign, or all ones when there is none.
fn find(t: Type, shift: bool) -> Option<One> {
    fn of(a: u64, bits: u32, shift: bool) -> u64 {
        let zeros = a.leading_zeros();
        match 63_u32.checked_sub(zeros) {
            None => 0xffff_ffff,
            Some(at) => u64::from(if shift { bits - 1 - at } else { at }),
        }
    }
    fn flip(a: u64, bits: u8) -> u64 {
        if a >> (bits - 1) & 1 == 1 { keep(!a, bits) } else { a }
    }
    Some(match (t.kind, t.bits, shift) {
        (Kind::Unsigned, 32, false) => |a| of(a, 32, false),
        (Kind::Unsigned, 32, true) => |a| of(a, 32, true),
        (Kind::Unsigned, 64, false) => |a| of(a, 64, false),
        (Kind::Unsigned, 64, true) => |a| of(a, 64, true),
        (Kind::Signed, 32, false) => |a| of(flip(a, 32), 32, false),
        (Kind::Signed, 32, true) => |a| of(flip(a, 32), 32, true),
        (Kind::Signed, 64, false) => |a| of(flip(a, 64), 64, false),
        (Kind::Signed, 64, true) => |a| of(flip(a, 64), 64, true),
        _ => return None,
    })
}

/// `n` bits of `a` from bit `at`; of both numbers only eight bits count.
fn extract(a: u64, at: u64, n: u64) -> u64 {
    let (at, n) = (at & 255, n & 255);
    let shifted = if at > 63 { 0 } else { a >> at };
    keep(shifted, n.min(64) as u8)
}

/// As `extract`, with the field's top bit (or the register's, where the field passes it) copied upwards.
fn extract_signed(a: u64, at: u64, n: u64, bits: u64) -> u64 {
    let (at, n) = (at & 255, n & 255);
    if n == 0 {
        return 0;
    }
    let sign = a >> (at + n - 1).min(bits - 1) & 1;
    let (field, taken) = if at >= bits { (0, 0) } else { (extract(a, at, n), n.min(bits - at)) };
    let above = if taken >= 64 { 0 } else { !0 << taken };
    keep(if sign == 1 { field | above } else { field }, bits as u8)
}

fn insert(field: u64, into: u64, at: u64, n: u64) -> u64 {
    if at > 63 {
        return into;
    }
    let mask = keep(!0, n.min(64) as u8) << at;
    into & !mask | (field << at) & mask
}

/// Any byte of eight, four times; bit 3 of a selector copies the byte's sign over it.
fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let all = keep(b, 32) << 32 | keep(a, 32);
    (0..4).fold(0, |result, i| {
        let select = selector >> (4 * i) & 15;
        let byte = all >> (8 * (select & 7)) & 255;
        let byte = if select & 8 == 0 { byte } else { (byte >> 7) * 255 };
        result | byte << (8 * i)
    })
}

fn permute_mode(mode: &str) -> Option<Three> {
    /// Byte numbers for each of the four values of the selector's lowest bits.
    fn by(a: u64, b: u64, selector: u64, table: [u64; 4]) -> u64 {
        permute(a, b, table[(selector & 3) as usize])
    }
    Some(match mode {
        "f4e" => |a, b, s| by(a, b, s, [0x3210, 0x4321, 0x5432, 0x6543]),
        "b4e" => |a, b, s| by(a, b, s, [0x5670, 0x6701, 0x7012, 0x0123]),
        "rc8" => |a, b, s| by(a, b, s, [0x0000, 0x1111, 0x2222, 0x3333]),
        "ecl" => |a, b, s| by(a, b, s, [0x3210, 0x3211, 0x3222, 0x3333]),
        "ecr" => |a, b, s| by(a, b, s, [0x0000, 0x1110, 0x2210, 0x3210]),
        "rc16" => |a, b, s| by(a, b, s, [0x1010, 0x3232, 0x1010, 0x3232]),
        _ => return None,
    })
}

/// Any logical function of three operands, by its truth table of eight bits.
fn lookup(a: u64, b: u64, c: u64, table: u64) -> u64 {
    (0..8).filter(|row| table >> row & 1 == 1).fold(0, |result, row| {
        let pick = |x: u64, bit: u64| if row >> bit & 1 == 1 { x } else { keep(!x, 32) };
        result | pick(a, 2) & pick(b, 1) & pick(c, 0)
    })
}
