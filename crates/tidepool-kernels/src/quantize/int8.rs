//! Int8: `dim` code bytes, then f32 scale, then f32 bias (the minimum).

use tidepool_types::RowFormat;

use super::{Extremes, Wide, round_to_code, too_large};
use crate::QuantizeError;

/// The largest code.
const LEVELS: f32 = 255.0;
/// Keeps the inverse finite when all values are equal; part of the rule.
const EPSILON: f32 = 1e-8;

#[inline(always)]
pub(super) fn quantize(
    wide: impl Wide,
    Extremes { min, max }: Extremes,
    values: &[f32],
    row: &mut [u8],
) -> Result<(), QuantizeError> {
    let range = max - min;
    if range.is_infinite() {
        return Err(too_large(RowFormat::Int8, values, if max > -min { max } else { min }));
    }
    let scale = range / LEVELS;
    let inverse = LEVELS / (range + EPSILON);

    let (codes, tail) = row.split_at_mut(values.len());
    wide.int8_codes(values, min, inverse, codes);
    let (scale_bytes, bias_bytes) = tail.split_at_mut(4);
    scale_bytes.copy_from_slice(&scale.to_le_bytes());
    bias_bytes.copy_from_slice(&min.to_le_bytes());
    Ok(())
}

/// The code of a value. The product can pass 255 by a rounding error, never by half a code.
#[inline(always)]
pub(super) fn code(value: f32, bias: f32, inverse: f32) -> u8 {
    round_to_code((value - bias) * inverse)
}
