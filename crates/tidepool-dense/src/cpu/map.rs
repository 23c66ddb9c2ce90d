//! Chains of element-wise operations, run on a chunk of numbers at a time: what one operation leaves is in the first
//! level cache when the next one takes it.

use super::{LANES, math, on_cpu};

/// Numbers in a chunk.
pub(crate) const CHUNK: usize = 128;
/// The most instructions of one chain; a longer one is cut in two by the plan.
pub(crate) const MAX_REGISTERS: usize = 32;

/// One chunk, as blocks that become vector registers.
type Register = [[f32; LANES]; CHUNK / LANES];

/// What the instructions of a chain have made, one register each.
pub(crate) type Registers = [Register; MAX_REGISTERS];

/// An operation on one number. Those that answer yes or no answer 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unary {
    Abs,
    Ceil,
    Cos,
    Erf,
    Exp,
    Floor,
    Gelu,
    GeluTanh,
    HardSwish,
    LeakyRelu(f32),
    Ln,
    Neg,
    Not,
    /// A whole exponent, by multiplication.
    Powi(i32),
    Powf(f32),
    Recip,
    Round,
    RoundEven,
    Rsqrt,
    Sigmoid,
    Sign,
    Silu,
    Sin,
    Sqrt,
    Square,
    Tanh,
    /// 1 for whatever is not 0.
    Truth,
}

/// An operation on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    And,
    Div,
    Equal,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    Max,
    Min,
    Mul,
    NotEqual,
    Or,
    Pow,
    Sub,
    Xor,
}

/// One step of a chain; the n-th writes register n and reads earlier ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Instruction {
    /// A chunk of the operand of this number.
    Load(usize),
    /// The same number throughout.
    Fill(f32),
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    /// Where the first is not 0 the second, else the third.
    Select(usize, usize, usize),
}

on_cpu! {
    /// Runs the instructions that compute, on the first `blocks` blocks of the registers; what they load is there.
    evaluate(instructions: &[Instruction], registers: &mut Registers, blocks: usize) = evaluate_body
}

#[inline(always)]
fn evaluate_body(instructions: &[Instruction], registers: &mut Registers, blocks: usize) {
    for (at, &instruction) in instructions.iter().enumerate() {
        let (made, rest) = registers.split_at_mut(at);
        let out = &mut rest[0];
        match instruction {
            Instruction::Load(_) => {}
            Instruction::Fill(value) => out[..blocks].fill([value; LANES]),
            Instruction::Unary(op, a) => unary(op, out, &made[a], blocks),
            Instruction::Binary(op, a, b) => binary(op, out, &made[a], &made[b], blocks),
            Instruction::Select(c, t, f) => {
                let chosen = made[c].iter().zip(&made[t]).zip(&made[f]);
                for (out, ((c, t), f)) in out[..blocks].iter_mut().zip(chosen) {
                    for (out, ((c, t), f)) in out.iter_mut().zip(c.iter().zip(t).zip(f)) {
                        *out = if *c != 0.0 { *t } else { *f };
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn each(out: &mut Register, a: &Register, blocks: usize, f: impl Fn(f32) -> f32) {
    for (out, a) in out[..blocks].iter_mut().zip(&a[..blocks]) {
        for (out, a) in out.iter_mut().zip(a) {
            *out = f(*a);
        }
    }
}

#[inline(always)]
fn unary(op: Unary, out: &mut Register, a: &Register, blocks: usize) {
    use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};
    match op {
        Unary::Abs => each(out, a, blocks, f32::abs),
        Unary::Ceil => each(out, a, blocks, f32::ceil),
        Unary::Cos => each(out, a, blocks, f32::cos),
        Unary::Erf => each(out, a, blocks, math::erf),
        Unary::Exp => each(out, a, blocks, math::exp),
        Unary::Floor => each(out, a, blocks, f32::floor),
        Unary::Gelu => each(out, a, blocks, |x| 0.5 * x * (1.0 + math::erf(x * FRAC_1_SQRT_2))),
        Unary::GeluTanh => each(out, a, blocks, |x| {
            let inner = FRAC_2_SQRT_PI / SQRT_2 * (0.044_715 * x * x).mul_add(x, x);
            0.5 * x * (1.0 + math::tanh(inner))
        }),
        Unary::HardSwish => {
            each(out, a, blocks, |x| x * math::max(math::min(x * (1.0 / 6.0) + 0.5, 1.0), 0.0));
        }
        Unary::LeakyRelu(alpha) => each(out, a, blocks, |x| if x < 0.0 { alpha * x } else { x }),
        Unary::Ln => each(out, a, blocks, math::ln),
        Unary::Neg => each(out, a, blocks, |x| -x),
        Unary::Not => each(out, a, blocks, |x| f32::from(x == 0.0)),
        Unary::Powi(n) => each(out, a, blocks, |x| power(x, n)),
        Unary::Powf(n) => each(out, a, blocks, |x| x.powf(n)),
        Unary::Recip => each(out, a, blocks, |x| 1.0 / x),
        Unary::Round => each(out, a, blocks, f32::round),
        Unary::RoundEven => each(out, a, blocks, f32::round_ties_even),
        Unary::Rsqrt => each(out, a, blocks, |x| 1.0 / x.sqrt()),
        Unary::Sigmoid => each(out, a, blocks, math::sigmoid),
        Unary::Sign => {
            each(out, a, blocks, |x| {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x * 0.0
                }
            });
        }
        Unary::Silu => each(out, a, blocks, |x| x * math::sigmoid(x)),
        Unary::Sin => each(out, a, blocks, f32::sin),
        Unary::Sqrt => each(out, a, blocks, f32::sqrt),
        Unary::Square => each(out, a, blocks, |x| x * x),
        Unary::Tanh => each(out, a, blocks, math::tanh),
        Unary::Truth => each(out, a, blocks, |x| f32::from(x != 0.0)),
    }
}

/// A whole power from 2 to 8, of either sign, by squaring.
#[inline(always)]
fn power(x: f32, n: i32) -> f32 {
    let (mut result, mut base, mut left) = (1.0, x, n.unsigned_abs());
    while left > 0 {
        if left & 1 == 1 {
            result *= base;
        }
        base *= base;
        left >>= 1;
    }
    if n < 0 { 1.0 / result } else { result }
}

#[inline(always)]
fn pairs(out: &mut Register, a: &Register, b: &Register, blocks: usize, f: impl Fn(f32, f32) -> f32) {
    for ((out, a), b) in out[..blocks].iter_mut().zip(&a[..blocks]).zip(&b[..blocks]) {
        for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
            *out = f(*a, *b);
        }
    }
}

#[inline(always)]
fn binary(op: Binary, out: &mut Register, a: &Register, b: &Register, blocks: usize) {
    match op {
        Binary::Add => pairs(out, a, b, blocks, |a, b| a + b),
        Binary::And => pairs(out, a, b, blocks, |a, b| f32::from(a != 0.0 && b != 0.0)),
        Binary::Div => pairs(out, a, b, blocks, |a, b| a / b),
        Binary::Equal => pairs(out, a, b, blocks, |a, b| f32::from(a == b)),
        Binary::Greater => pairs(out, a, b, blocks, |a, b| f32::from(a > b)),
        Binary::GreaterEqual => pairs(out, a, b, blocks, |a, b| f32::from(a >= b)),
        Binary::Less => pairs(out, a, b, blocks, |a, b| f32::from(a < b)),
        Binary::LessEqual => pairs(out, a, b, blocks, |a, b| f32::from(a <= b)),
        Binary::Max => pairs(out, a, b, blocks, math::max),
        Binary::Min => pairs(out, a, b, blocks, math::min),
        Binary::Mul => pairs(out, a, b, blocks, |a, b| a * b),
        Binary::NotEqual => pairs(out, a, b, blocks, |a, b| f32::from(a != b)),
        Binary::Or => pairs(out, a, b, blocks, |a, b| f32::from(a != 0.0 || b != 0.0)),
        Binary::Pow => pairs(out, a, b, blocks, f32::powf),
        Binary::Sub => pairs(out, a, b, blocks, |a, b| a - b),
        Binary::Xor => pairs(out, a, b, blocks, |a, b| f32::from((a != 0.0) != (b != 0.0))),
    }
}
