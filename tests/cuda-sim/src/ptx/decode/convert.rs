//! `cvt`: every conversion between integers and floating-point formats.
//!
//! A conversion is one function chosen by source, destination, rounding, flushing and saturation. A
//! signed integer result is extended with its sign to 64 bits; the instruction cuts it to its register.

use super::{
    super::{
        code::{Code, One, Two},
        round::{self, BF16, F16, F32, Format, Mode, TF32},
        types::{Kind, Type, keep, sign_extend},
    },
    form::{Form, ty},
};

/// What stands between `cvt` and its types.
#[derive(Debug, Default, Clone, Copy)]
struct Modifiers {
    round: Option<Mode>,
    /// Round to an integral value.
    integral: bool,
    flush: bool,
    saturate: bool,
    relu: bool,
}

impl Modifiers {
    fn parse(parts: &[&str]) -> Option<Self> {
        let mut all = Self::default();
        for part in parts {
            let (mode, integral) = match *part {
                "rn" => (Mode::Nearest, false),
                "rna" => (Mode::Away, false),
                "rz" => (Mode::Zero, false),
                "rm" => (Mode::Down, false),
                "rp" => (Mode::Up, false),
                "rni" => (Mode::Nearest, true),
                "rzi" => (Mode::Zero, true),
                "rmi" => (Mode::Down, true),
                "rpi" => (Mode::Up, true),
                "ftz" => {
                    all.flush = true;
                    continue;
                }
                "sat" => {
                    all.saturate = true;
                    continue;
                }
                "relu" => {
                    all.relu = true;
                    continue;
                }
                _ => return None,
            };
            if all.round.replace(mode).is_some() {
                return None;
            }
            all.integral = integral;
        }
        Some(all)
    }
}

/// Rounding modes and flags as numbers, because constants of functions have to be.
const fn mode(number: u8) -> Mode {
    match number {
        0 => Mode::Nearest,
        1 => Mode::Zero,
        2 => Mode::Down,
        3 => Mode::Up,
        _ => Mode::Away,
    }
}

const fn number(mode: Mode) -> u8 {
    match mode {
        Mode::Nearest => 0,
        Mode::Zero => 1,
        Mode::Down => 2,
        Mode::Up => 3,
        Mode::Away => 4,
    }
}

/// The conversion whose opcode and modifiers are `parts`.
pub(super) fn form(parts: &[&str]) -> Option<Form> {
    let ["cvt", middle @ .., to, from] = parts else { return None };
    let m = Modifiers::parse(middle)?;
    if matches!((*to, *from), ("f16x2" | "bf16x2", "f32")) {
        return pair(to, m);
    }
    if (*to, *from) == ("tf32", "f32") {
        let tf32 = ty("b32")?;
        return match (m.round?, m.relu || m.saturate || m.flush) {
            (Mode::Away, false) => Some(Form::one(|a| to_tf32(a, Mode::Away), tf32, ty("f32")?)),
            (Mode::Nearest, false) => Some(Form::one(|a| to_tf32(a, Mode::Nearest), tf32, ty("f32")?)),
            _ => None,
        };
    }
    let (to_type, from_type) = (ty(to)?, ty(from)?);
    let float = |t: Type| matches!(t.kind, Kind::Float | Kind::Brain) && !t_is_pair(t);
    let integer = |t: Type| matches!(t.kind, Kind::Signed | Kind::Unsigned);
    let f = match (integer(from_type), integer(to_type)) {
        (true, true) if m.round.is_none() && !m.flush && !m.relu => {
            between_integers(from_type, to_type, m.saturate)?
        }
        (true, false) if float(to_type) && !m.integral && !m.relu && !m.flush => {
            from_integer(from_type, to, m.round?, m.saturate)?
        }
        (false, true) if float(from_type) && m.integral && !m.relu => to_integer(from, to_type, m)?,
        (false, false) if float(from_type) && float(to_type) => between_floats(from, to, m)?,
        _ => return None,
    };
    let mut form = Form::new(Code::One(f), to_type, &[from_type]);
    form.wider = true;
    Some(form)
}

fn t_is_pair(t: Type) -> bool {
    t.kind == Kind::Brain && t.bits == 32
}

/// Two f32 into the halves of one register; the first operand becomes the upper half.
fn pair(to: &str, m: Modifiers) -> Option<Form> {
    fn halves(a: u64, b: u64, format: Format, mode: Mode, relu: bool) -> u64 {
        let half = |bits: u64| {
            let value = f64::from(f32::from_bits(bits as u32));
            if relu && value <= 0.0 { 0 } else { round::round(value, 0.0, format, mode) }
        };
        half(a) << 16 | half(b)
    }
    if m.saturate || m.flush || m.integral {
        return None;
    }
    let f: Two = match (to, m.round?, m.relu) {
        ("f16x2", Mode::Nearest, false) => |a, b| halves(a, b, F16, Mode::Nearest, false),
        ("f16x2", Mode::Nearest, true) => |a, b| halves(a, b, F16, Mode::Nearest, true),
        ("f16x2", Mode::Zero, false) => |a, b| halves(a, b, F16, Mode::Zero, false),
        ("f16x2", Mode::Zero, true) => |a, b| halves(a, b, F16, Mode::Zero, true),
        ("bf16x2", Mode::Nearest, false) => |a, b| halves(a, b, BF16, Mode::Nearest, false),
        ("bf16x2", Mode::Nearest, true) => |a, b| halves(a, b, BF16, Mode::Nearest, true),
        ("bf16x2", Mode::Zero, false) => |a, b| halves(a, b, BF16, Mode::Zero, false),
        ("bf16x2", Mode::Zero, true) => |a, b| halves(a, b, BF16, Mode::Zero, true),
        _ => return None,
    };
    Some(Form::two(f, ty("b32")?, [ty("f32")?; 2]))
}

fn to_tf32(a: u64, mode: Mode) -> u64 {
    round::round(f64::from(f32::from_bits(a as u32)), 0.0, TF32, mode) << 13
}

fn between_integers(from: Type, to: Type, saturate: bool) -> Option<One> {
    macro_rules! from {
        ($($name:literal $signed:literal $from:ident),+; $to:ident $wide:ident) => {
            match (from.bits, from.signed()) {
                $(($name, $signed) => {
                    if saturate {
                        |a| (i128::from(a as $from)).clamp($to::MIN.into(), $to::MAX.into()) as $wide as u64
                    } else {
                        |a| a as $from as $to as $wide as u64
                    }
                })+
                _ => return None,
            }
        };
    }
    macro_rules! to {
        ($($bits:literal $signed:literal $to:ident $wide:ident),+) => {
            match (to.bits, to.signed()) {
                $(($bits, $signed) => from!(8 false u8, 8 true i8, 16 false u16, 16 true i16, 32 false u32,
                    32 true i32, 64 false u64, 64 true i64; $to $wide),)+
                _ => return None,
            }
        };
    }
    let f: One = to!(8 false u8 u64, 8 true i8 i64, 16 false u16 u64, 16 true i16 i64, 32 false u32 u64,
        32 true i32 i64, 64 false u64 u64, 64 true i64 i64);
    Some(f)
}

/// A whole number as the sum of two f64: 64 bits do not fit one.
fn parts(value: i128) -> (f64, f64) {
    let high = value as f64;
    (high, (value - high as i128) as f64)
}

fn from_integer(from: Type, to: &str, mode_: Mode, saturate: bool) -> Option<One> {
    if saturate || (mode_ == Mode::Away) {
        return None;
    }
    fn of<const TO: u8, const SIGNED: bool, const BITS: u8, const M: u8>(a: u64) -> u64 {
        let a = keep(a, BITS);
        let value = if SIGNED { i128::from(sign_extend(a, BITS) as i64) } else { i128::from(a) };
        let (high, low) = parts(value);
        match TO {
            64 => round::direct(high, low, mode(M)).to_bits(),
            32 => round::round(high, low, F32, mode(M)),
            16 => round::round(high, low, F16, mode(M)),
            _ => round::round(high, low, BF16, mode(M)),
        }
    }
    macro_rules! table {
        ($($to_name:literal $to:literal),+) => {
            match to {
                $($to_name => table!(@sign $to),)+
                _ => return None,
            }
        };
        (@sign $to:literal) => {
            match (from.signed(), from.bits) {
                (false, 8) => table!(@mode $to, false, 8),
                (false, 16) => table!(@mode $to, false, 16),
                (false, 32) => table!(@mode $to, false, 32),
                (false, _) => table!(@mode $to, false, 64),
                (true, 8) => table!(@mode $to, true, 8),
                (true, 16) => table!(@mode $to, true, 16),
                (true, 32) => table!(@mode $to, true, 32),
                (true, _) => table!(@mode $to, true, 64),
            }
        };
        (@mode $to:literal, $signed:literal, $bits:literal) => {
            match number(mode_) {
                0 => of::<$to, $signed, $bits, 0>,
                1 => of::<$to, $signed, $bits, 1>,
                2 => of::<$to, $signed, $bits, 2>,
                _ => of::<$to, $signed, $bits, 3>,
            }
        };
    }
    let f: One = table!("f64" 64, "f32" 32, "f16" 16, "bf16" 8);
    Some(f)
}

/// The value of a floating-point register of `from` (64, 32, 16, or 8 for bfloat16).
fn value<const FROM: u8, const FTZ: bool>(a: u64) -> f64 {
    match FROM {
        64 => f64::from_bits(a),
        32 => f64::from(f32::from_bits(super::float::flush::<FTZ>(a as u32) as u32)),
        16 => round::from_f16(a),
        _ => round::from_bf16(a),
    }
}

fn integral(value: f64, mode: Mode) -> f64 {
    match mode {
        Mode::Nearest => value.round_ties_even(),
        Mode::Away => value.round(),
        Mode::Zero => value.trunc(),
        Mode::Down => value.floor(),
        Mode::Up => value.ceil(),
    }
}

/// Values outside the integer's range become its nearest end. NaN becomes zero, except where one of the
/// types has 64 bits: there it becomes the top bit alone.
fn to_integer(from: &str, to: Type, m: Modifiers) -> Option<One> {
    fn of<const FROM: u8, const SIGNED: bool, const BITS: u8, const M: u8, const FTZ: bool>(a: u64) -> u64 {
        let value = value::<FROM, FTZ>(a);
        if value.is_nan() {
            return if FROM == 64 || BITS == 64 { sign_extend(1 << (BITS - 1), BITS) } else { 0 };
        }
        let whole = integral(value, mode(M));
        if SIGNED {
            let end = 1_i128 << (BITS - 1);
            (whole as i128).clamp(-end, end - 1) as i64 as u64
        } else {
            (whole as i128).clamp(0, (1_i128 << BITS) - 1) as u64
        }
    }
    macro_rules! table {
        ($($name:literal $from:literal),+) => {
            match from {
                $($name => table!(@to $from),)+
                _ => return None,
            }
        };
        (@to $from:literal) => {
            match (to.signed(), to.bits) {
                (false, 8) => table!(@mode $from, false, 8),
                (false, 16) => table!(@mode $from, false, 16),
                (false, 32) => table!(@mode $from, false, 32),
                (false, _) => table!(@mode $from, false, 64),
                (true, 8) => table!(@mode $from, true, 8),
                (true, 16) => table!(@mode $from, true, 16),
                (true, 32) => table!(@mode $from, true, 32),
                (true, _) => table!(@mode $from, true, 64),
            }
        };
        (@mode $from:literal, $signed:literal, $bits:literal) => {
            match (number(m.round?), m.flush) {
                (0, false) => of::<$from, $signed, $bits, 0, false>,
                (1, false) => of::<$from, $signed, $bits, 1, false>,
                (2, false) => of::<$from, $signed, $bits, 2, false>,
                (3, false) => of::<$from, $signed, $bits, 3, false>,
                (0, true) => of::<$from, $signed, $bits, 0, true>,
                (1, true) => of::<$from, $signed, $bits, 1, true>,
                (2, true) => of::<$from, $signed, $bits, 2, true>,
                _ => of::<$from, $signed, $bits, 3, true>,
            }
        };
    }
    if m.flush && from != "f32" {
        return None;
    }
    let f: One = table!("f64" 64, "f32" 32, "f16" 16, "bf16" 8);
    Some(f)
}

/// Between floating-point formats, or to an integral value in the same one.
fn between_floats(from: &str, to: &str, m: Modifiers) -> Option<One> {
    /// Flags: 1 flush, 2 saturate, 4 relu, 8 integral.
    fn of<const FROM: u8, const TO: u8, const M: u8, const FLAGS: u8>(a: u64) -> u64 {
        let mut value = match FLAGS & 1 {
            0 => value::<FROM, false>(a),
            _ => value::<FROM, true>(a),
        };
        if FLAGS & 8 != 0 {
            value = integral(value, mode(M));
        }
        if FLAGS & 2 != 0 {
            value = if value > 0.0 { value.min(1.0) } else { 0.0 };
        }
        if FLAGS & 4 != 0 && value <= 0.0 {
            value = 0.0;
        }
        match TO {
            64 if value.is_nan() => 0x7ff8_0000_0000_0000,
            64 => value.to_bits(),
            32 if FLAGS & 1 != 0 => {
                super::float::flush::<true>(round::round(value, 0.0, F32, mode(M)) as u32)
            }
            32 => round::round(value, 0.0, F32, mode(M)),
            16 => round::round(value, 0.0, F16, mode(M)),
            _ => round::round(value, 0.0, BF16, mode(M)),
        }
    }
    let (wide_from, wide_to) = (width(from)?, width(to)?);
    let narrows = wide_to < wide_from || (from, to) == ("f16", "bf16") || (from, to) == ("bf16", "f16");
    let same = from == to;
    // Narrowing must say how it rounds, widening must not; only within one format is `.rni` allowed.
    let fits = match (m.round, m.integral) {
        (Some(_), true) => same,
        (Some(Mode::Away), false) => false,
        (Some(_), false) => narrows,
        (None, _) => !narrows,
    };
    if !fits || (m.relu && (wide_to > 16 || m.saturate)) || (m.flush && from != "f32" && to != "f32") {
        return None;
    }
    let flags =
        u8::from(m.flush) | u8::from(m.saturate) << 1 | u8::from(m.relu) << 2 | u8::from(m.integral) << 3;
    macro_rules! flags {
        ($from:literal, $to:literal, $m:literal; $($flags:literal)+) => {
            match flags {
                $($flags => of::<$from, $to, $m, $flags>,)+
                _ => return None,
            }
        };
    }
    macro_rules! modes {
        ($from:literal, $to:literal) => {
            match number(m.round.unwrap_or(Mode::Nearest)) {
                0 => flags!($from, $to, 0; 0 1 2 3 4 5 8 9 10 11),
                1 => flags!($from, $to, 1; 0 1 2 3 4 5 8 9 10 11),
                2 => flags!($from, $to, 2; 0 1 2 3 4 5 8 9 10 11),
                _ => flags!($from, $to, 3; 0 1 2 3 4 5 8 9 10 11),
            }
        };
    }
    let f: One = match (from, to) {
        ("f64", "f64") => modes!(64, 64),
        ("f64", "f32") => modes!(64, 32),
        ("f64", "f16") => modes!(64, 16),
        ("f64", "bf16") => modes!(64, 8),
        ("f32", "f64") => modes!(32, 64),
        ("f32", "f32") => modes!(32, 32),
        ("f32", "f16") => modes!(32, 16),
        ("f32", "bf16") => modes!(32, 8),
        ("f16", "f64") => modes!(16, 64),
        ("f16", "f32") => modes!(16, 32),
        ("f16", "f16") => modes!(16, 16),
        ("bf16", "f64") => modes!(8, 64),
        ("bf16", "f32") => modes!(8, 32),
        ("bf16", "bf16") => modes!(8, 8),
        _ => return None,
    };
    Some(f)
}

fn width(name: &str) -> Option<u8> {
    ty(name).filter(|t| matches!(t.kind, Kind::Float | Kind::Brain)).map(|t| t.bits)
}
