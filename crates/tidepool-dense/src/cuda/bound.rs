//! How far a batch's outputs may be from what the model says: the plan once more, in f64, with a bound of the error beside
//! every number. Tests ask a device for no more and no less.
//!
//! Every step bounds what its rounding adds and what becomes of the errors that its inputs have. A product of `k` terms
//! adds `k * u * sum |a * w|` for its sums in f32 (`u` is 2^-24, in whatever order they are taken), and what rounding its
//! factors adds; it multiplies errors of its inputs by `|w|`. Functions that only rise or fall are taken at both ends of
//! their argument's error; others pass it on by their Lipschitz constant.
//!
//! In f32 errors are added up: to first order, that is but for products of two errors where a step multiplies them, the bound
//! holds always. With factors of 8 or 11 bits such sums are too large to say anything
//! after some layers, though errors have either sign. There errors that meet in a sum are taken for independent and of mean
//! zero: the bound is [`CONFIDENCE`] times the root of the sum of their squares, which by Hoeffding's inequality fewer
//! than one output in thirty million exceeds. That is of first order, and errors that part and meet again, as by a
//! residual connection, are not quite independent.

use std::collections::BTreeMap;

use super::{CudaModel, Precision};
use crate::{
    DenseBatch, DenseError, DenseModel,
    cpu::{Binary, Instruction, LineOp, Unary},
    model::{check, given_of, plan_of},
    plan::{
        Plan,
        step::{Elements, Product, Start, Step, Work},
        view::{BufferId, Home, Space},
    },
};

/// The most that a sum, a product or a quotient in f32 is off by, of itself.
const UNIT: f64 = 1.0 / (1 << 24) as f64;
/// The same of a function that is a polynomial in f32; [`slack`] has what comes beside it.
const FUNCTION: f64 = 16.0 * UNIT;
/// How many times the root of the sum of squares errors may reach: `2 * exp(-CONFIDENCE^2 / 2)` is 3e-8.
const CONFIDENCE: f64 = 6.0;

/// A number, and how far what is computed in its place may be from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bound {
    /// What it is, without any rounding but that of the model's own numbers.
    pub value: f64,
    /// How far from it a computed one may be.
    pub off: f64,
}

impl CudaModel {
    /// What a batch's outputs are, and how far from that those of a run may be whose products have this precision: for each
    /// output of the contract `[rows]`. A run on the CPU is one in [`Precision::F32`]. It takes some hundred times as long as a run: it is for tests
    /// and comparisons.
    ///
    /// # Errors
    /// [`DenseError::Input`] as [`DenseModel::run`].
    pub fn bounds(
        model: &DenseModel,
        precision: Precision,
        batch: &DenseBatch<'_>,
    ) -> Result<Vec<Vec<Bound>>, DenseError> {
        check(given_of(model), batch)?;
        let plan = plan_of(model);
        let factor = match precision {
            Precision::F32 => 0.0,
            // A device may cut what it does not round.
            Precision::Tf32 => 1.0 / 1024.0,
            Precision::Bf16 => 1.0 / 256.0,
        };
        let mut outputs = vec![Vec::with_capacity(batch.rows); plan.outputs.len()];
        for row in 0..batch.rows {
            let mut of = Row { plan, batch, row, factor, made: BTreeMap::new() };
            plan.request_steps.iter().chain(&plan.row_steps).for_each(|step| of.step(step));
            for (output, view) in outputs.iter_mut().zip(&plan.outputs) {
                output.push(of.at(view.buffer, view.offset));
            }
        }
        Ok(outputs)
    }
}

/// The plan for one row and its request.
struct Row<'a> {
    plan: &'a Plan,
    batch: &'a DenseBatch<'a>,
    row: usize,
    /// The most that rounding a factor of a product takes it off by, of itself; 0: factors are as they are.
    factor: f64,
    made: BTreeMap<BufferId, Vec<Bound>>,
}

/// Errors that meet.
struct Errors {
    by_chance: bool,
    sum: f64,
}

impl Errors {
    fn add(&mut self, off: f64) {
        self.sum += if self.by_chance { off * off } else { off };
    }

    fn bound(&self) -> f64 {
        if self.by_chance { self.sum.sqrt() } else { self.sum }
    }
}

impl Row<'_> {
    fn errors(&self) -> Errors {
        Errors { by_chance: self.factor > 0.0, sum: 0.0 }
    }

    /// An element of a buffer's record.
    fn at(&self, buffer: BufferId, at: usize) -> Bound {
        let known = &self.plan.buffers[buffer];
        let exact = |value: f32| Bound { value: value.into(), off: 0.0 };
        match known.home {
            Home::Constant(first) => exact(self.plan.constants[first + at]),
            Home::Input(input) => {
                let request = self.batch.request_of[self.row] as usize;
                let record = if known.space == Space::Request { request } else { self.row };
                exact(self.batch.inputs[input][record * known.width + at])
            }
            Home::Scratch(_) | Home::Kept(_) => {
                self.made.get(&buffer).and_then(|made| made.get(at)).copied().unwrap_or_default()
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let width = self.plan.buffers[step.out].width;
        let mut out = self.made.remove(&step.out).unwrap_or_else(|| vec![Bound::default(); width]);
        match &step.work {
            Work::Map { walk, loads, instructions } => {
                for place in walk.loops() {
                    for at in 0..walk.inner {
                        let load = |load: usize| {
                            let at = place[load + 1] as usize + at * walk.strides[load + 1];
                            if loads[load] == step.out { out[at] } else { self.at(loads[load], at) }
                        };
                        let made = chain(instructions, load);
                        out[place[0] as usize + at * walk.strides[0]] = made;
                    }
                }
            }
            Work::Product(product) => self.product(product, &mut out),
            Work::Pair { a, b, shape, places } => {
                for place in places {
                    let [a_at, b_at, out_at] = place.map(|at| at as usize);
                    for (i, j) in (0..shape.m).flat_map(|i| (0..shape.n).map(move |j| (i, j))) {
                        let terms = (0..shape.k).map(|k| {
                            let a = self.at(*a, a_at + i * shape.a_row + k * shape.a_k);
                            (a, self.at(*b, b_at + j * shape.b_column + k * shape.b_k))
                        });
                        // Pairs are summed in f32 whatever the precision of products.
                        let made = self.dot(Bound::default(), terms, 0.0);
                        out[out_at + i * shape.out_row + j] = made;
                    }
                }
            }
            Work::Line { source, op, starts, elements } => {
                let made = if op.keeps_length() { elements.len() } else { 1 };
                for (start, out) in starts.iter().zip(out.chunks_exact_mut(made)) {
                    let element = |at: usize| match elements {
                        Elements::Even { stride, .. } => at * stride,
                        Elements::At(places) => places[at] as usize,
                    };
                    let line: Vec<Bound> = (0..elements.len())
                        .map(|at| self.at(*source, *start as usize + element(at)))
                        .collect();
                    out.copy_from_slice(&self.line(*op, &line)[..made]);
                }
            }
            Work::Pick { source, elements } => {
                let picked = elements.iter().map(|element| self.at(*source, *element as usize));
                out.iter_mut().zip(picked).for_each(|(out, picked)| *out = picked);
            }
        }
        self.made.insert(step.out, out);
    }

    fn product(&self, product: &Product, out: &mut [Bound]) {
        for call in &product.calls {
            let weights = &product.weights[call.weights];
            for (i, j) in (0..product.m).flat_map(|i| (0..weights.columns()).map(move |j| (i, j))) {
                let to = call.out + i * product.m_out + j;
                let start = match &product.start {
                    Start::Zero => Bound::default(),
                    Start::Bias(bias) => Bound { value: bias[to].into(), off: 0.0 },
                    Start::Buffer(buffer) => self.at(*buffer, to),
                    Start::Here => out[to],
                };
                let terms = (0..weights.depth()).map(|k| {
                    let a = self.at(product.a, call.a + i * product.m_stride + k * product.k_stride);
                    (a, Bound { value: weights.at(k, j).into(), off: 0.0 })
                });
                let sum = self.dot(start, terms, self.factor);
                out[to] = if product.relu { Bound { value: sum.value.max(0.0), ..sum } } else { sum };
            }
        }
    }

    /// A sum of products whose factors are rounded by so much.
    fn dot(&self, start: Bound, terms: impl Iterator<Item = (Bound, Bound)>, factor: f64) -> Bound {
        let (mut value, mut size, mut count) = (start.value, start.value.abs() + start.off, 1.0);
        let mut errors = self.errors();
        errors.add(start.off);
        for (a, b) in terms {
            value += a.value * b.value;
            let most = (a.value.abs() + a.off) * (b.value.abs() + b.off);
            size += most;
            count += 1.0;
            errors.add(a.off * b.value.abs());
            errors.add(b.off * (a.value.abs() + a.off));
            let rounded = if self.factor > 0.0 { CONFIDENCE * factor * most } else { 0.0 };
            errors.add(rounded);
            errors.add(rounded);
        }
        // However a sum in f32 is ordered, none of its terms goes through more roundings than there are terms.
        Bound { value, off: errors.bound() + count * UNIT * size }
    }

    fn sum(&self, terms: &[Bound]) -> Bound {
        let one = Bound { value: 1.0, off: 0.0 };
        self.dot(Bound::default(), terms.iter().map(|term| (*term, one)), 0.0)
    }

    /// What an operation makes of a line: as long as the line, or one number.
    fn line(&self, op: LineOp, line: &[Bound]) -> Vec<Bound> {
        let most = line.iter().fold(0.0f64, |most, x| most.max(x.off));
        let top = line.iter().fold(f64::NEG_INFINITY, |top, x| top.max(x.value));
        let exps = || line.iter().map(|x| (x.value - top).exp()).sum::<f64>();
        let rounding = (line.len() as f64 + 2.0) * UNIT + 2.0 * FUNCTION;
        let mean_of_squares = || {
            // Both factors of a square are off by the same, so a square is one term with all of its error.
            let one = Bound { value: 1.0, off: 0.0 };
            let squares = line.iter().map(|x| (times(*x, *x), one));
            let squares = self.dot(Bound::default(), squares, 0.0);
            divided(squares, Bound { value: line.len() as f64, off: 0.0 })
        };
        match op {
            LineOp::Sum => vec![self.sum(line)],
            LineOp::Max => vec![Bound { value: top, off: most }],
            LineOp::Min => {
                let least = line.iter().fold(f64::INFINITY, |least, x| least.min(x.value));
                vec![Bound { value: least, off: most }]
            }
            LineOp::Prod => vec![line.iter().fold(Bound { value: 1.0, off: 0.0 }, |p, x| times(p, *x))],
            LineOp::MeanOfSquares => vec![mean_of_squares()],
            LineOp::RmsNorm(epsilon) => {
                let sum = plus(mean_of_squares(), Bound { value: epsilon.into(), off: 0.0 });
                let root = unary(Unary::Sqrt, sum);
                line.iter().map(|x| divided(*x, root)).collect()
            }
            LineOp::Softmax => {
                let share = |x: &Bound| {
                    let value = (x.value - top).exp() / exps();
                    // Its logarithm is off by its own error, by that of the sum's, and by the rounding of the difference.
                    let rounding = rounding + UNIT * (top - x.value);
                    Bound { value, off: value * ((x.off + most).exp_m1() + rounding) }
                };
                line.iter().map(share).collect()
            }
            LineOp::LogSoftmax => {
                let log = top + exps().ln();
                let one = |x: &Bound| {
                    let value = x.value - log;
                    Bound { value, off: x.off + most + rounding * (value.abs() + log.abs() + 1.0) }
                };
                line.iter().map(one).collect()
            }
        }
    }
}

/// Rounded once.
fn rounded(value: f64, off: f64) -> Bound {
    Bound { value, off: off + UNIT * (value.abs() + off) }
}

fn plus(a: Bound, b: Bound) -> Bound {
    rounded(a.value + b.value, a.off + b.off)
}

fn times(a: Bound, b: Bound) -> Bound {
    rounded(a.value * b.value, a.off * (b.value.abs() + b.off) + b.off * a.value.abs())
}

fn divided(a: Bound, b: Bound) -> Bound {
    let value = a.value / b.value;
    let left = b.value.abs() - b.off;
    let off = if left > 0.0 { (a.off + value.abs() * b.off) / left } else { f64::INFINITY };
    rounded(value, off)
}

/// The last number of a chain.
fn chain(instructions: &[Instruction], load: impl Fn(usize) -> Bound) -> Bound {
    let mut made: Vec<Bound> = Vec::with_capacity(instructions.len());
    for instruction in instructions {
        made.push(match *instruction {
            Instruction::Load(from) => load(from),
            Instruction::Fill(value) => Bound { value: value.into(), off: 0.0 },
            Instruction::Unary(op, a) => unary(op, made[a]),
            Instruction::Binary(op, a, b) => binary(op, made[a], made[b]),
            Instruction::Select(c, t, f) => {
                let (c, t, f) = (made[c], made[t], made[f]);
                let chosen = if c.value != 0.0 { t } else { f };
                match c.off > 0.0 {
                    // Either may be taken.
                    true => Bound { off: t.off.max(f.off) + (t.value - f.value).abs(), ..chosen },
                    false => chosen,
                }
            }
        });
    }
    made.last().copied().unwrap_or_default()
}

/// Yes or no: either, where the two come so near to each other that errors decide.
fn answer(value: bool, sure: bool) -> Bound {
    Bound { value: f64::from(u8::from(value)), off: if sure { 0.0 } else { 1.0 } }
}

fn binary(op: Binary, a: Bound, b: Bound) -> Bound {
    let (x, y, apart) = (a.value, b.value, (a.value - b.value).abs() > a.off + b.off);
    let exact = a.off + b.off == 0.0;
    match op {
        Binary::Add => plus(a, b),
        Binary::Sub => rounded(x - y, a.off + b.off),
        Binary::Mul => times(a, b),
        Binary::Div => divided(a, b),
        Binary::Max => Bound { value: x.max(y), off: a.off.max(b.off) },
        Binary::Min => Bound { value: x.min(y), off: a.off.max(b.off) },
        Binary::Equal => answer(x == y, apart || exact),
        Binary::NotEqual => answer(x != y, apart || exact),
        Binary::Greater => answer(x > y, apart || exact),
        Binary::GreaterEqual => answer(x >= y, apart || exact),
        Binary::Less => answer(x < y, apart || exact),
        Binary::LessEqual => answer(x <= y, apart || exact),
        Binary::And => answer(x != 0.0 && y != 0.0, exact),
        Binary::Or => answer(x != 0.0 || y != 0.0, exact),
        Binary::Xor => answer((x != 0.0) != (y != 0.0), exact),
        Binary::Pow => {
            // As e^(y ln x), at all corners; of numbers that may not be above 0 nothing is said.
            let least = x - a.off;
            let corner = |x: f64, y: f64| x.powf(y);
            let value = corner(x, y);
            let ends =
                [least, x + a.off].map(|x| [y - b.off, y + b.off].map(|y| (corner(x, y) - value).abs()));
            let off = ends.as_flattened().iter().fold(0.0f64, |most, off| most.max(*off));
            let off = if least > 0.0 || exact { off } else { f64::INFINITY };
            Bound { value, off: off + FUNCTION * (value.abs() + off) }
        }
    }
}

/// The function in f64, and its Lipschitz constant where it does not only rise or only fall.
fn function(op: Unary, x: f64) -> (f64, Option<f64>) {
    match op {
        Unary::Abs => (x.abs(), Some(1.0)),
        Unary::Ceil => (x.ceil(), None),
        Unary::Cos => (x.cos(), Some(1.0)),
        Unary::Erf => (erf(x), None),
        Unary::Exp => (x.exp(), None),
        Unary::Floor => (x.floor(), None),
        // Their slopes are 1.13, 1.13, 1.5 and 1.1 at most.
        Unary::Gelu => (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)), Some(1.13)),
        Unary::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            (0.5 * x * (1.0 + inner.tanh()), Some(1.13))
        }
        Unary::HardSwish => (x * (x / 6.0 + 0.5).clamp(0.0, 1.0), Some(1.5)),
        Unary::Silu => (x / (1.0 + (-x).exp()), Some(1.1)),
        Unary::LeakyRelu(alpha) => {
            let alpha = f64::from(alpha);
            (if x < 0.0 { alpha * x } else { x }, Some(alpha.abs().max(1.0)))
        }
        Unary::Ln => (x.ln(), None),
        Unary::Neg => (-x, None),
        Unary::Powi(n) => (x.powi(n), None),
        Unary::Powf(n) => (x.powf(n.into()), None),
        Unary::Recip => (1.0 / x, None),
        Unary::Round => (x.round(), None),
        Unary::RoundEven => (x.round_ties_even(), None),
        Unary::Rsqrt => (1.0 / x.sqrt(), None),
        Unary::Sigmoid => (1.0 / (1.0 + (-x).exp()), None),
        Unary::Sign => (if x == 0.0 { 0.0 } else { x.signum() }, None),
        Unary::Sin => (x.sin(), Some(1.0)),
        Unary::Sqrt => (x.sqrt(), None),
        Unary::Square => (x * x, None),
        Unary::Tanh => (x.tanh(), None),
        Unary::Not => (f64::from(u8::from(x == 0.0)), None),
        Unary::Truth => (f64::from(u8::from(x != 0.0)), None),
    }
}

/// The error function, by its series of terms of one sign: nothing cancels in it.
fn erf(x: f64) -> f64 {
    // What is left to 1 is below half of an f64's last place.
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > sum.abs() * f64::EPSILON / 4.0 {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// What a function in f32 is off by whatever its result is: where that comes near 0 since parts of it cancel.
fn slack(op: Unary, x: f64) -> f64 {
    // What the error function in f32, and the tangent near 1, are off by.
    const SUM: f64 = 4e-7;
    match op {
        Unary::Erf => SUM,
        Unary::Gelu | Unary::GeluTanh => 0.5 * x.abs() * SUM,
        Unary::Ln => 8e-8,
        // The multiple of pi that is taken off is rounded.
        Unary::Sin | Unary::Cos => 4.0 * UNIT,
        _ => 0.0,
    }
}

fn unary(op: Unary, a: Bound) -> Bound {
    let (x, least, most) = (a.value, a.value - a.off, a.value + a.off);
    let (value, slope) = function(op, x);
    // Where a function turns, or is not one: at 0.
    let across = least <= 0.0 && most >= 0.0 && a.off > 0.0;
    let off = match op {
        Unary::Neg => return Bound { value, off: a.off },
        Unary::Square | Unary::Powi(2) => return times(a, a),
        Unary::Not | Unary::Truth => return answer(value != 0.0, !across),
        Unary::Recip | Unary::Rsqrt | Unary::Ln | Unary::Powf(_) if across || (x <= 0.0 && a.off > 0.0) => {
            f64::INFINITY
        }
        Unary::Powi(_) if across => f64::INFINITY,
        Unary::Sqrt if across => most.sqrt(),
        _ => match slope {
            Some(slope) => slope * a.off,
            None => [least, most].map(|x| (function(op, x).0 - value).abs()).into_iter().fold(0.0, f64::max),
        },
    };
    Bound { value, off: off + FUNCTION * (value.abs() + off) + slack(op, x.abs() + a.off) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::math;

    #[test]
    fn the_error_function_equals_its_integral() {
        assert_eq!([erf(0.0), erf(7.0), erf(-7.0)], [0.0, 1.0, -1.0]);
        // By Simpson's rule, whose error is far below what is asked for.
        for tenths in 1..=60 {
            let x = f64::from(tenths) / 10.0;
            let step = x / 4000.0;
            let at = |i: i32| {
                let t = f64::from(i) * step;
                let weight = if i == 0 || i == 4000 { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
                weight * (-t * t).exp()
            };
            let integral = std::f64::consts::FRAC_2_SQRT_PI * (0..=4000).map(at).sum::<f64>() * step / 3.0;
            assert!((erf(x) - integral).abs() < 1e-13, "{x}: {}, {integral}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    /// Where their parts cancel, too: the bound of an exact argument holds for what f32 makes of it.
    #[test]
    fn functions_stay_within_their_bounds_where_they_come_near_0() {
        let within = |op: Unary, x: f32, found: f32| {
            let bound = unary(op, Bound { value: x.into(), off: 0.0 });
            let off = (f64::from(found) - bound.value).abs();
            assert!(off <= bound.off, "{op:?} of {x}: {found}, {bound:?}");
        };
        for at in -6000..=6000i16 {
            let x = f32::from(at) / 1000.0;
            within(Unary::Erf, x, math::erf(x));
            within(Unary::Gelu, x, 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)));
            let near_1 = 1.0 + x / 100.0;
            within(Unary::Ln, near_1, math::ln(near_1));
            let of_pi = f32::from(at) * std::f32::consts::FRAC_PI_2;
            within(Unary::Sin, of_pi, of_pi.sin());
            within(Unary::Cos, of_pi, of_pi.cos());
        }
    }

    #[test]
    fn a_square_has_the_error_of_both_its_factors() {
        let x = Bound { value: 3.0, off: 0.01 };
        assert!(times(x, x).off >= 3.01 * 3.01 - 9.0);
    }
}
