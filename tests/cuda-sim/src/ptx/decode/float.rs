//! Arithmetic in f32 and f64.
//!
//! Sums, products, quotients and square roots are exact to the rounding mode. What PTX calls `.approx`
//! (and `.full`) is computed in f64 and rounded once, so it is at least as near as any device's: a
//! device may differ from it by the error that the PTX manual allows (2 ulp for most, 2^-20.9 absolute
//! for sine and cosine, 2^-11 relative for tanh).

use super::{
    super::{
        code::{One, Three, Two},
        round::{self, F32, Mode},
        types::Type,
    },
    form::{Form, ty},
};

/// The NaN that f32 arithmetic gives on a device.
const NAN32: u64 = 0x7fff_ffff;
const NAN64: u64 = 0x7ff8_0000_0000_0000;

/// Rounding modes as numbers, because constants of functions have to be.
const RN: u8 = 0;
const RZ: u8 = 1;
const RM: u8 = 2;
const RP: u8 = 3;

const fn mode(number: u8) -> Mode {
    match number {
        RN => Mode::Nearest,
        RZ => Mode::Zero,
        RM => Mode::Down,
        _ => Mode::Up,
    }
}

/// What stands between an opcode and its type.
#[derive(Debug, Default, Clone, Copy)]
struct Modifiers {
    round: Option<u8>,
    flush: bool,
    saturate: bool,
    approx: bool,
    full: bool,
    nan: bool,
    xorsign: bool,
}

impl Modifiers {
    fn parse(parts: &[&str]) -> Option<Self> {
        let mut all = Self::default();
        for part in parts {
            match *part {
                "rn" => all.round = Some(RN),
                "rz" => all.round = Some(RZ),
                "rm" => all.round = Some(RM),
                "rp" => all.round = Some(RP),
                "ftz" => all.flush = true,
                "sat" => all.saturate = true,
                "approx" => all.approx = true,
                "full" => all.full = true,
                "NaN" => all.nan = true,
                "xorsign" => all.xorsign = true,
                "abs" if all.xorsign => {}
                _ => return None,
            }
        }
        Some(all)
    }
}

/// The function for a rounding mode, flushing and saturation that are known only now.
macro_rules! choose {
    ($as:ty, $f:ident, $m:expr) => {{
        let m = $m;
        let f: $as = match (m.round.unwrap_or(RN), m.flush, m.saturate) {
            (RN, false, false) => $f::<RN, false, false>,
            (RN, true, false) => $f::<RN, true, false>,
            (RN, false, true) => $f::<RN, false, true>,
            (RN, true, true) => $f::<RN, true, true>,
            (RZ, false, false) => $f::<RZ, false, false>,
            (RZ, true, false) => $f::<RZ, true, false>,
            (RZ, false, true) => $f::<RZ, false, true>,
            (RZ, true, true) => $f::<RZ, true, true>,
            (RM, false, false) => $f::<RM, false, false>,
            (RM, true, false) => $f::<RM, true, false>,
            (RM, false, true) => $f::<RM, false, true>,
            (RM, true, true) => $f::<RM, true, true>,
            (_, false, false) => $f::<RP, false, false>,
            (_, true, false) => $f::<RP, true, false>,
            (_, false, true) => $f::<RP, false, true>,
            (_, true, true) => $f::<RP, true, true>,
        };
        f
    }};
}

/// Arithmetic in f32 or f64 whose opcode and modifiers are `parts`.
pub(super) fn form(parts: &[&str]) -> Option<Form> {
    let (opcode, last) = (*parts.first()?, *parts.last()?);
    let m = Modifiers::parse(parts.get(1..parts.len() - 1)?)?;
    match last {
        "f32" => single(opcode, m, ty("f32")?),
        "f64" if !m.flush || m.approx => double(opcode, m, ty("f64")?),
        _ => None,
    }
}

fn single(opcode: &str, m: Modifiers, t: Type) -> Option<Form> {
    let plain = !m.approx && !m.full && !m.nan && !m.xorsign;
    let one = |f: One| Some(Form::one(f, t, t));
    let two = |f: Two| Some(Form::two(f, t, [t; 2]));
    match opcode {
        "add" if plain => two(choose!(Two, add, m)),
        "sub" if plain => two(choose!(Two, sub, m)),
        "mul" if plain => two(choose!(Two, mul, m)),
        "fma" | "mad" if plain && m.round.is_some() => Some(Form::three(choose!(Three, fma, m), t, [t; 3])),
        "div" if plain && m.round.is_some() && !m.saturate => two(choose!(Two, div, m)),
        "div" if (m.approx || m.full) && m.round.is_none() && !m.saturate => two(choose!(Two, div, m)),
        "rcp" if rounds_or_approximates(m) => one(choose!(One, rcp, m)),
        "sqrt" if rounds_or_approximates(m) => one(choose!(One, sqrt, m)),
        "rsqrt" if approximates(m) => one(by_flush(
            m,
            |a| approximate::<false>(a, |x| 1.0 / x.sqrt()),
            |a| approximate::<true>(a, |x| 1.0 / x.sqrt()),
        )),
        "ex2" if approximates(m) => {
            one(by_flush(m, |a| approximate::<false>(a, f64::exp2), |a| approximate::<true>(a, f64::exp2)))
        }
        "lg2" if approximates(m) => {
            one(by_flush(m, |a| approximate::<false>(a, f64::log2), |a| approximate::<true>(a, f64::log2)))
        }
        "sin" if approximates(m) => {
            one(by_flush(m, |a| approximate::<false>(a, f64::sin), |a| approximate::<true>(a, f64::sin)))
        }
        "cos" if approximates(m) => {
            one(by_flush(m, |a| approximate::<false>(a, f64::cos), |a| approximate::<true>(a, f64::cos)))
        }
        "tanh" if approximates(m) && !m.flush => one(|a| approximate::<false>(a, f64::tanh)),
        "abs" if plain && m.round.is_none() && !m.saturate => {
            one(by_flush(m, |a| a & 0x7fff_ffff, |a| flush::<true>(a as u32) & 0x7fff_ffff))
        }
        "neg" if plain && m.round.is_none() && !m.saturate => {
            one(by_flush(m, |a| a ^ 0x8000_0000, |a| flush::<true>(a as u32) ^ 0x8000_0000))
        }
        "copysign" if plain && m.round.is_none() && !m.flush && !m.saturate => {
            two(|sign, a| sign & 0x8000_0000 | a & 0x7fff_ffff)
        }
        "min" | "max" if !m.approx && !m.full && !m.saturate && m.round.is_none() => {
            two(extreme(opcode == "max", m))
        }
        _ => None,
    }
}

fn approximates(m: Modifiers) -> bool {
    m.approx && m.round.is_none() && !m.full && !m.nan && !m.saturate && !m.xorsign
}

fn rounds_or_approximates(m: Modifiers) -> bool {
    m.approx != m.round.is_some() && !m.full && !m.nan && !m.saturate && !m.xorsign
}

fn by_flush(m: Modifiers, keeps: One, flushes: One) -> One {
    if m.flush { flushes } else { keeps }
}

/// The bits of an f32, with a subnormal turned into a zero of its sign where `.ftz` asks for it.
pub(super) fn flush<const FTZ: bool>(bits: u32) -> u64 {
    u64::from(if FTZ && f32::from_bits(bits).is_subnormal() { bits & 0x8000_0000 } else { bits })
}

fn read<const FTZ: bool>(bits: u64) -> f32 {
    f32::from_bits(flush::<FTZ>(bits as u32) as u32)
}

fn finish<const FTZ: bool, const SAT: bool>(value: f32) -> u64 {
    if SAT {
        // NaN becomes zero, and so does minus zero.
        return u64::from(if value > 0.0 { value.min(1.0) } else { 0.0 }.to_bits())
            .min(u64::from(1.0_f32.to_bits()));
    }
    if value.is_nan() { NAN32 } else { flush::<FTZ>(value.to_bits()) }
}

fn exact<const M: u8, const FTZ: bool, const SAT: bool>(value: f64, rest: f64) -> u64 {
    finish::<FTZ, SAT>(f32::from_bits(round::round(value, rest, F32, mode(M)) as u32))
}

/// A sum in a directed mode: an exact zero of two different signs is negative when rounding down.
fn directed_sum<const M: u8, const FTZ: bool, const SAT: bool>(a: f64, b: f64) -> u64 {
    let (value, rest) = round::sum(a, b);
    if value == 0.0 && M == RM && a.is_sign_negative() != b.is_sign_negative() {
        return finish::<FTZ, SAT>(-0.0);
    }
    exact::<M, FTZ, SAT>(value, rest)
}

fn add<const M: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64) -> u64 {
    let (a, b) = (read::<FTZ>(a), read::<FTZ>(b));
    if M == RN { finish::<FTZ, SAT>(a + b) } else { directed_sum::<M, FTZ, SAT>(a.into(), b.into()) }
}

fn sub<const M: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64) -> u64 {
    add::<M, FTZ, SAT>(a, b ^ 0x8000_0000)
}

fn mul<const M: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64) -> u64 {
    let (a, b) = (read::<FTZ>(a), read::<FTZ>(b));
    if M == RN {
        return finish::<FTZ, SAT>(a * b);
    }
    exact::<M, FTZ, SAT>(f64::from(a) * f64::from(b), 0.0)
}

fn fma<const M: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64, c: u64) -> u64 {
    let (a, b, c) = (read::<FTZ>(a), read::<FTZ>(b), read::<FTZ>(c));
    if M == RN {
        return finish::<FTZ, SAT>(a.mul_add(b, c));
    }
    directed_sum::<M, FTZ, SAT>(f64::from(a) * f64::from(b), c.into())
}

fn div<const M: u8, const FTZ: bool, const SAT: bool>(a: u64, b: u64) -> u64 {
    let (a, b) = (read::<FTZ>(a), read::<FTZ>(b));
    if M == RN {
        return finish::<FTZ, SAT>(a / b);
    }
    let (a, b) = (f64::from(a), f64::from(b));
    let quotient = a / b;
    let rest = if quotient.is_finite() { (-quotient).mul_add(b, a) / b } else { 0.0 };
    exact::<M, FTZ, SAT>(quotient, rest)
}

fn rcp<const M: u8, const FTZ: bool, const SAT: bool>(a: u64) -> u64 {
    div::<M, FTZ, SAT>(u64::from(1.0_f32.to_bits()), a)
}

fn sqrt<const M: u8, const FTZ: bool, const SAT: bool>(a: u64) -> u64 {
    let a = read::<FTZ>(a);
    if M == RN {
        return finish::<FTZ, SAT>(a.sqrt());
    }
    let root = f64::from(a).sqrt();
    let rest = if root.is_finite() { (-root).mul_add(root, a.into()) } else { 0.0 };
    exact::<M, FTZ, SAT>(root, rest)
}

fn approximate<const FTZ: bool>(a: u64, f: fn(f64) -> f64) -> u64 {
    finish::<FTZ, false>(f(read::<FTZ>(a).into()) as f32)
}

/// The smaller or larger of two numbers. A NaN loses against a number, unless `.NaN` is asked for; minus
/// zero is smaller than zero. `.xorsign.abs` compares magnitudes and signs the result by both.
fn extreme(max: bool, m: Modifiers) -> Two {
    fn of<const MAX: bool, const FTZ: bool, const NAN: bool, const XORSIGN: bool>(a: u64, b: u64) -> u64 {
        let sign = if XORSIGN { (a ^ b) & 0x8000_0000 } else { 0 };
        let magnitude = if XORSIGN { 0x7fff_ffff } else { !0 };
        let (x, y) = (read::<FTZ>(a & magnitude), read::<FTZ>(b & magnitude));
        let chosen = match (x.is_nan(), y.is_nan()) {
            (true, true) => return NAN32,
            (true, false) | (false, true) if NAN => return NAN32,
            (true, false) => y,
            (false, true) => x,
            _ if (x.total_cmp(&y).is_gt()) == MAX => x,
            _ => y,
        };
        u64::from(chosen.to_bits()) | sign
    }
    match (max, m.flush, m.nan, m.xorsign) {
        (false, false, false, false) => of::<false, false, false, false>,
        (false, false, false, true) => of::<false, false, false, true>,
        (false, false, true, false) => of::<false, false, true, false>,
        (false, false, true, true) => of::<false, false, true, true>,
        (false, true, false, false) => of::<false, true, false, false>,
        (false, true, false, true) => of::<false, true, false, true>,
        (false, true, true, false) => of::<false, true, true, false>,
        (false, true, true, true) => of::<false, true, true, true>,
        (true, false, false, false) => of::<true, false, false, false>,
        (true, false, false, true) => of::<true, false, false, true>,
        (true, false, true, false) => of::<true, false, true, false>,
        (true, false, true, true) => of::<true, false, true, true>,
        (true, true, false, false) => of::<true, true, false, false>,
        (true, true, false, true) => of::<true, true, false, true>,
        (true, true, true, false) => of::<true, true, true, false>,
        (true, true, true, true) => of::<true, true, true, true>,
    }
}

fn double(opcode: &str, m: Modifiers, t: Type) -> Option<Form> {
    if m.saturate || m.full || m.nan || m.xorsign {
        return None;
    }
    let one = |f: One| Some(Form::one(f, t, t));
    let two = |f: Two| Some(Form::two(f, t, [t; 2]));
    macro_rules! choose64 {
        ($as:ty, $f:ident) => {{
            let f: $as = match m.round.unwrap_or(RN) {
                RN => $f::<RN>,
                RZ => $f::<RZ>,
                RM => $f::<RM>,
                _ => $f::<RP>,
            };
            f
        }};
    }
    if m.approx {
        return match opcode {
            // On a device only the upper 32 bits of operand and result count; the compiler refines them.
            "rcp" if m.flush && m.round.is_none() => one(|a| upper(a, |x| 1.0 / x)),
            "rsqrt" if m.round.is_none() => one(|a| upper(a, |x| 1.0 / x.sqrt())),
            _ => None,
        };
    }
    match opcode {
        "add" => two(choose64!(Two, add64)),
        "sub" => two(choose64!(Two, sub64)),
        "mul" => two(choose64!(Two, mul64)),
        "div" if m.round.is_some() => two(choose64!(Two, div64)),
        "rcp" if m.round.is_some() => one(choose64!(One, rcp64)),
        "sqrt" if m.round.is_some() => one(choose64!(One, sqrt64)),
        "fma" | "mad" if m.round == Some(RN) => {
            Some(Form::three(|a, b, c| bits64(f64_of(a).mul_add(f64_of(b), f64_of(c))), t, [t; 3]))
        }
        "abs" if m.round.is_none() => one(|a| a & !(1 << 63)),
        "neg" if m.round.is_none() => one(|a| a ^ 1 << 63),
        "copysign" if m.round.is_none() => two(|sign, a| sign & 1 << 63 | a & !(1 << 63)),
        "min" if m.round.is_none() => two(|a, b| extreme64(a, b, false)),
        "max" if m.round.is_none() => two(|a, b| extreme64(a, b, true)),
        _ => None,
    }
}

fn f64_of(bits: u64) -> f64 {
    f64::from_bits(bits)
}

fn bits64(value: f64) -> u64 {
    if value.is_nan() { NAN64 } else { value.to_bits() }
}

fn upper(a: u64, f: fn(f64) -> f64) -> u64 {
    let x = f64_of(a & !0xffff_ffff);
    let x = if x.is_subnormal() { 0.0_f64.copysign(x) } else { x };
    let result = f(x);
    if result.is_nan() {
        return NAN64;
    }
    let result = if result.is_subnormal() { 0.0_f64.copysign(result) } else { result };
    result.to_bits() & !0xffff_ffff
}

fn add64<const M: u8>(a: u64, b: u64) -> u64 {
    let (a, b) = (f64_of(a), f64_of(b));
    if M == RN {
        return bits64(a + b);
    }
    let (value, rest) = round::sum(a, b);
    if value == 0.0 && M == RM && a.is_sign_negative() != b.is_sign_negative() {
        return (-0.0_f64).to_bits();
    }
    bits64(round::direct(value, rest, mode(M)))
}

fn sub64<const M: u8>(a: u64, b: u64) -> u64 {
    add64::<M>(a, b ^ 1 << 63)
}

fn mul64<const M: u8>(a: u64, b: u64) -> u64 {
    let (a, b) = (f64_of(a), f64_of(b));
    let product = a * b;
    if M == RN {
        return bits64(product);
    }
    bits64(round::direct(product, a.mul_add(b, -product), mode(M)))
}

fn div64<const M: u8>(a: u64, b: u64) -> u64 {
    let (a, b) = (f64_of(a), f64_of(b));
    let quotient = a / b;
    if M == RN {
        return bits64(quotient);
    }
    bits64(round::direct(quotient, (-quotient).mul_add(b, a) / b, mode(M)))
}

fn rcp64<const M: u8>(a: u64) -> u64 {
    div64::<M>(1.0_f64.to_bits(), a)
}

fn sqrt64<const M: u8>(a: u64) -> u64 {
    let a = f64_of(a);
    let root = a.sqrt();
    if M == RN {
        return bits64(root);
    }
    bits64(round::direct(root, (-root).mul_add(root, a), mode(M)))
}

fn extreme64(a: u64, b: u64, max: bool) -> u64 {
    let (x, y) = (f64_of(a), f64_of(b));
    match (x.is_nan(), y.is_nan()) {
        (true, true) => NAN64,
        (true, false) => b,
        (false, true) => a,
        _ if x.total_cmp(&y).is_gt() == max => a,
        _ => b,
    }
}
