//! Int4: `ceil(dim / 2)` code bytes (even element in the low nibble), then f16 scale, then f16 bias.

use tidepool_types::RowFormat;

use super::{Extremes, Quantizer, Wide, optimize, round_to_code, too_large};
use crate::QuantizeError;

/// The largest code.
pub(super) const LEVELS: f32 = 15.0;

/// The largest finite f16.
const MAX_HALF: f32 = 65_504.0;
/// The smallest normal f16, 2^-14.
const MIN_NORMAL_HALF: f32 = 1.0 / 16_384.0;

/// The scale and the bias of a row, both of them f16 numbers.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) scale: f32,
    pub(super) bias: f32,
}

#[inline(always)]
pub(super) fn quantize(
    wide: impl Wide,
    quantizer: Quantizer,
    extremes: Extremes,
    values: &[f32],
    row: &mut [u8],
) -> Result<(), QuantizeError> {
    let mut grid = min_max(wide, extremes, values)?;
    if quantizer == Quantizer::Optimized {
        grid = optimize::improve(grid, extremes, values);
    }
    let (codes, tail) = row.split_at_mut(values.len().div_ceil(2));
    wide.int4_codes(values, grid.bias, 1.0 / grid.scale, codes);
    tail.copy_from_slice(&wide.half_bytes(grid.scale, grid.bias));
    Ok(())
}

/// The code of a value.
#[inline(always)]
pub(super) fn code(value: f32, bias: f32, inverse: f32) -> u8 {
    round_to_code(clamp_to_codes((value - bias) * inverse))
}

/// FBGEMM's rule.
#[inline(always)]
fn min_max(wide: impl Wide, Extremes { min, max }: Extremes, values: &[f32]) -> Result<Grid, QuantizeError> {
    // The bias is rounded first and the range is measured from it; the maximum keeps full precision.
    // Where the bias was rounded up past the maximum, range and scale are negative, and that is the rule.
    let bias = wide.round_to_half(min);
    if !is_half(bias) {
        return Err(too_large(RowFormat::Int4, values, min));
    }
    let range = max - bias;
    let mut scale = if range == 0.0 { 1.0 } else { wide.round_to_half(range / LEVELS) };
    if !is_half(scale) {
        return Err(too_large(RowFormat::Int4, values, max));
    }
    // A range too small for an f16 scale. (The rule also resets a scale whose inverse overflows f32;
    // there is no such f16: the smallest is 2^-24.)
    if scale == 0.0 {
        scale = 1.0;
    }
    Ok(Grid { scale, bias })
}

/// `x` within the codes. Not `clamp`, whose care for NaN costs instructions.
#[inline(always)]
pub(super) fn clamp_to_codes(x: f32) -> f32 {
    let x = if x > 0.0 { x } else { 0.0 };
    if x < LEVELS { x } else { LEVELS }
}

/// Whether a rounded number is within f16.
#[inline(always)]
pub(super) fn is_half(rounded: f32) -> bool {
    rounded.abs() <= MAX_HALF
}

/// A finite number rounded to the nearest f16, halves to even; beyond [`MAX_HALF`] the number is not an
/// f16. Written without branches and in f32, so that it is one register's work for sixteen lanes.
#[inline(always)]
pub(super) fn round_to_half(x: f32) -> f32 {
    let bits = x.to_bits();
    // Thirteen bits of the mantissa go. A carry into the exponent is just what is wanted.
    let normal = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff);
    // At 1/2 the spacing of f32 is that of subnormal f16.
    let subnormal = ((x.abs() + 0.5) - 0.5).copysign(x);
    if x.abs() < MIN_NORMAL_HALF { subnormal } else { normal }
}

/// The bytes of two numbers that are f16, one after the other.
#[inline(always)]
pub(super) fn half_bytes(x: f32, y: f32) -> [u8; 4] {
    let [[a, b], [c, d]] = [x, y].map(|x| half_bits(x).to_le_bytes());
    [a, b, c, d]
}

/// The bits of a number that is an f16.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an f16 has sixteen bits")]
fn half_bits(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = if x.abs() < MIN_NORMAL_HALF {
        // So many times 2^-24.
        (x.abs() * 16_777_216.0) as u16
    } else {
        // The exponent's bias is 15 instead of 127.
        ((x.abs().to_bits() >> 13) - (112 << 10)) as u16
    };
    sign | magnitude
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::{half_bits, is_half, round_to_half};

    #[test]
    fn every_f16_is_itself() {
        for bits in (0..=u16::MAX).filter(|&bits| f16::from_bits(bits).is_finite()) {
            let value = f16::from_bits(bits).to_f32();
            assert_eq!(round_to_half(value).to_bits(), value.to_bits());
            assert_eq!(half_bits(value), bits);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        #[test]
        fn numbers_round_as_the_half_crate_rounds(bits in any::<u32>(), near_f16 in any::<bool>()) {
            // Half of them between f16 numbers that are neighbours or the middle of two.
            let bits = if near_f16 { (bits & !0x3fff) | 0x1000 | (bits & 3) } else { bits };
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            let rounded = round_to_half(value);
            prop_assert_eq!(is_half(rounded), f16::from_f32(value).is_finite());
            if is_half(rounded) {
                prop_assert_eq!(half_bits(rounded), f16::from_f32(value).to_bits());
            }
        }
    }
}
