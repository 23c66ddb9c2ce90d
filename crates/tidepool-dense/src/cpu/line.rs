//! Operations on a line of numbers as a whole: sums and the like, softmax, normalisation. A line is contiguous here;
//! the plan brings it together where it is not.

use super::{LANES, math, on_cpu};

/// The longest line: what a scratch line holds.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// What is done with a line. Reductions leave their result in its first element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LineOp {
    LogSoftmax,
    Max,
    MeanOfSquares,
    Min,
    Prod,
    /// `x / sqrt(mean(x^2) + epsilon)`.
    RmsNorm(f32),
    Softmax,
    Sum,
}

impl LineOp {
    /// Whether a whole line comes out, and not one number.
    pub(crate) fn keeps_length(self) -> bool {
        matches!(self, Self::LogSoftmax | Self::RmsNorm(_) | Self::Softmax)
    }
}

on_cpu! {
    /// Does it with one line, in place.
    line(op: LineOp, values: &mut [f32]) = line_body
}

#[inline(always)]
fn line_body(op: LineOp, values: &mut [f32]) {
    let count = values.len() as f32;
    let reduced = match op {
        LineOp::Sum => fold(values, 0.0, |sum, x| sum + x),
        LineOp::Max => fold(values, f32::NEG_INFINITY, math::max),
        LineOp::Min => fold(values, f32::INFINITY, math::min),
        LineOp::Prod => fold(values, 1.0, |product, x| product * x),
        LineOp::MeanOfSquares => squares(values) / count,
        LineOp::RmsNorm(epsilon) => {
            let scale = 1.0 / (squares(values) / count + epsilon).sqrt();
            return apply(values, |x| x * scale);
        }
        LineOp::Softmax => {
            let top = fold(values, f32::NEG_INFINITY, math::max);
            apply(values, |x| math::exp(x - top));
            let scale = 1.0 / fold(values, 0.0, |sum, x| sum + x);
            return apply(values, |x| x * scale);
        }
        LineOp::LogSoftmax => {
            let top = fold(values, f32::NEG_INFINITY, math::max);
            apply(values, |x| x - top);
            let mut sums = [0.0; LANES];
            let mut blocks = values.chunks_exact(LANES);
            for block in &mut blocks {
                for (sum, &x) in sums.iter_mut().zip(block) {
                    *sum += math::exp(x);
                }
            }
            for (sum, &x) in sums.iter_mut().zip(blocks.remainder()) {
                *sum += math::exp(x);
            }
            let log = math::ln(together(sums, |a, b| a + b));
            return apply(values, |x| x - log);
        }
    };
    if let Some(first) = values.first_mut() {
        *first = reduced;
    }
}

#[inline(always)]
fn apply(values: &mut [f32], f: impl Fn(f32) -> f32) {
    let mut blocks = values.chunks_exact_mut(LANES);
    for block in &mut blocks {
        for x in block {
            *x = f(*x);
        }
    }
    // Through a whole block as well: a vector loop may treat a lone number otherwise.
    let rest = blocks.into_remainder();
    let mut block = [0.0; LANES];
    block[..rest.len()].copy_from_slice(rest);
    for x in &mut block {
        *x = f(*x);
    }
    rest.copy_from_slice(&block[..rest.len()]);
}

/// Lane by lane, then the lanes pairwise.
#[inline(always)]
fn fold(values: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let mut blocks = values.chunks_exact(LANES);
    for block in &mut blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(blocks.remainder()) {
        *lane = f(*lane, x);
    }
    together(lanes, f)
}

#[inline(always)]
fn squares(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut blocks = values.chunks_exact(LANES);
    for block in &mut blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = x.mul_add(x, *lane);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(blocks.remainder()) {
        *lane = x.mul_add(x, *lane);
    }
    together(lanes, |a, b| a + b)
}

#[inline(always)]
pub(super) fn together(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (low, &high) in low.iter_mut().zip(&*high) {
            *low = f(*low, high);
        }
        half /= 2;
    }
    lanes[0]
}
