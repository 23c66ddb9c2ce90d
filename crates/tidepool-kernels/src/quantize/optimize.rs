//! A better scale and bias for an int4 row than its extremes give.
//!
//! Given the codes of a row, the best scale and bias are the least-squares line through (code, value);
//! given those, the best codes are the nearest ones. Going back and forth never makes the error larger and
//! ends in one of many local minima, so it begins at many places: ranges clipped at both ends by shares
//! that are spread evenly over 0 to [`MAX_CLIP`]. The lanes of a register are places to begin at, not
//! columns: nothing is summed across lanes, the ends of rows are no special case, and the arithmetic of a
//! lane is the same on every instruction set.
//!
//! 1. From [`STARTS`] registers of beginnings, one step; each lane keeps its best.
//! 2. [`STEPS`] more steps.
//! 3. Scale and bias are rounded to f16, the bias for the rounded scale; the error is what would be stored.
//!
//! The best lane is taken where its error, now in f64, is smaller than that of the min-max rule.

use super::{
    Extremes, ROUND,
    int4::{Grid, LEVELS, clamp_to_codes, is_half, round_to_half},
};

/// What is worked on at once: one register of AVX-512.
const LANES: usize = 16;

type Lanes = [f32; LANES];

/// The largest share of the range that is clipped at one end to begin with; steps go further by themselves.
const MAX_CLIP: f64 = 0.12;
/// Registers of beginnings.
const STARTS: usize = 2;
/// Steps after the first, for the best beginning of each lane.
const STEPS: usize = 2;

/// The shares clipped below and above: points of the additive sequence that spreads best over a square.
const CLIPS: [[Lanes; 2]; STARTS] = {
    let mut clips = [[[0.0; LANES]; 2]; STARTS];
    let mut at = 0;
    while at < STARTS * LANES {
        let point = (at + 1) as f64;
        clips[at / LANES][0][at % LANES] =
            (MAX_CLIP * fraction(0.5 + 0.754_877_666_246_692_7 * point)) as f32;
        clips[at / LANES][1][at % LANES] =
            (MAX_CLIP * fraction(0.5 + 0.569_840_290_998_053_2 * point)) as f32;
        at += 1;
    }
    clips
};

const fn fraction(x: f64) -> f64 {
    x - (x as u64) as f64
}

/// The best grid found, or `min_max`.
#[inline(always)]
pub(super) fn improve(min_max: Grid, Extremes { min, max }: Extremes, values: &[f32]) -> Grid {
    let range = max - min;
    // Equal values, and ranges so small that a scale has no bits left to choose.
    if range <= LEVELS * f32::EPSILON * min.abs() || range == 0.0 {
        return min_max;
    }
    let row = Row::of(values, min);
    let mut best = Lines { scale: [0.0; LANES], bias: [0.0; LANES], code: [0.0; LANES], gain: [-1.0; LANES] };
    for [below, above] in &CLIPS {
        let mut lines = best;
        for lane in 0..LANES {
            lines.scale[lane] = (1.0 - below[lane] - above[lane]) * range / LEVELS;
            lines.bias[lane] = below[lane] * range;
        }
        row.step(&mut lines);
        best.keep_better(&lines);
    }
    for _ in 0..STEPS {
        row.step(&mut best);
    }
    let found = row.best_rounded(&best, min_max);
    if squared_error(values, found) < squared_error(values, min_max) { found } else { min_max }
}

/// Sixteen lines `code * scale + bias`, the bias measured from the row's minimum.
#[derive(Clone, Copy)]
struct Lines {
    scale: Lanes,
    bias: Lanes,
    /// The mean of the codes that the line was fitted to.
    code: Lanes,
    /// How much of the row's squared deviation the line explains, times a constant of the row.
    gain: Lanes,
}

impl Lines {
    #[inline(always)]
    fn keep_better(&mut self, other: &Self) {
        let gain = self.gain;
        let pick = |old: &mut Lanes, new: &Lanes| {
            for lane in 0..LANES {
                old[lane] = if other.gain[lane] > gain[lane] { new[lane] } else { old[lane] };
            }
        };
        pick(&mut self.scale, &other.scale);
        pick(&mut self.bias, &other.bias);
        pick(&mut self.code, &other.code);
        pick(&mut self.gain, &other.gain);
    }
}

/// A row with its values measured from its minimum, which keeps sums small.
struct Row<'a> {
    values: &'a [f32],
    min: f32,
    count: f32,
    sum: f32,
}

impl<'a> Row<'a> {
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "a row has far fewer than 2^24 columns")]
    fn of(values: &'a [f32], min: f32) -> Self {
        let sum = values.iter().fold(0.0, |sum, &value| sum + (value - min));
        Self { values, min, count: values.len() as f32, sum }
    }

    /// Quantizes the row by each line, and makes each line the least-squares one of the codes it gave.
    #[inline(always)]
    fn step(&self, lines: &mut Lines) {
        let mut inverse = [0.0; LANES];
        let mut offset = [0.0; LANES];
        for lane in 0..LANES {
            inverse[lane] = 1.0 / lines.scale[lane];
            offset[lane] = -lines.bias[lane] * inverse[lane];
        }
        let (mut codes, mut squares, mut products) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for &value in self.values {
            let value = value - self.min;
            for lane in 0..LANES {
                let code = (clamp_to_codes(value.mul_add(inverse[lane], offset[lane])) + ROUND) - ROUND;
                codes[lane] += code;
                squares[lane] = code.mul_add(code, squares[lane]);
                products[lane] = code.mul_add(value, products[lane]);
            }
        }
        for lane in 0..LANES {
            let covariance = self.count * products[lane] - codes[lane] * self.sum;
            let variance = self.count * squares[lane] - codes[lane] * codes[lane];
            // A line that gave one code only, or that falls, is left as it was and gains nothing.
            let fits = variance > 0.0 && covariance > 0.0;
            let slope = if fits { covariance / variance } else { lines.scale[lane] };
            lines.scale[lane] = slope;
            lines.code[lane] = codes[lane] / self.count;
            lines.bias[lane] = (self.sum - slope * codes[lane]) / self.count;
            lines.gain[lane] = if fits { covariance * slope } else { 0.0 };
        }
    }

    /// Rounds the lines to f16 and gives the one that then has the least error; lines that f16 cannot hold
    /// are `otherwise`.
    #[inline(always)]
    fn best_rounded(&self, lines: &Lines, otherwise: Grid) -> Grid {
        let mean = self.min + self.sum / self.count;
        let (mut scale, mut bias, mut inverse) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let rounded = round_to_half(lines.scale[lane]);
            let through = round_to_half(mean - rounded * lines.code[lane]);
            let held = rounded > 0.0 && is_half(rounded) && is_half(through);
            scale[lane] = if held { rounded } else { otherwise.scale };
            bias[lane] = if held { through } else { otherwise.bias };
            inverse[lane] = 1.0 / scale[lane];
        }
        let mut errors = [0.0; LANES];
        for &value in self.values {
            for lane in 0..LANES {
                let code = (clamp_to_codes((value - bias[lane]) * inverse[lane]) + ROUND) - ROUND;
                let error = value - code.mul_add(scale[lane], bias[lane]);
                errors[lane] = error.mul_add(error, errors[lane]);
            }
        }
        let least = errors.into_iter().fold(f32::INFINITY, |a, b| if b < a { b } else { a });
        let best = errors.iter().position(|&error| error == least).unwrap_or(0);
        Grid { scale: scale[best], bias: bias[best] }
    }
}

/// The squared error of a row stored by a grid.
#[inline(always)]
fn squared_error(values: &[f32], Grid { scale, bias }: Grid) -> f64 {
    const WIDTH: usize = 8;
    let inverse = 1.0 / scale;
    let error = |value: f32| {
        let code = (clamp_to_codes((value - bias) * inverse) + ROUND) - ROUND;
        let error = f64::from(value) - f64::from(code.mul_add(scale, bias));
        error * error
    };
    let mut sums = [0.0f64; WIDTH];
    let (chunks, rest) = values.as_chunks::<WIDTH>();
    for chunk in chunks {
        for lane in 0..WIDTH {
            sums[lane] += error(chunk[lane]);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += error(value);
    }
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
}
