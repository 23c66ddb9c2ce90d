//! Int4: `ceil(dim / 2)` code bytes (even element in the low nibble), then f16 scale, then f16 bias.

use ::half::f16;
use tidepool_types::RowFormat;

use super::{extremes, round_to_code};
use crate::QuantizeError;

/// The largest code.
const LEVELS: f32 = 15.0;

pub(super) fn quantize(values: &[f32], row: &mut [u8]) -> Result<(), QuantizeError> {
    let (min_column, max_column) = extremes(values);
    let (min, max) = match values {
        [] => (0.0, 0.0),
        _ => (values[min_column], values[max_column]),
    };
    let too_large = |column, value| QuantizeError::OutOfRange { column, value, format: RowFormat::Int4 };

    // The bias is rounded first and the range is measured from it; the maximum keeps full precision.
    // Where the bias was rounded up past the maximum, range and scale are negative, and that is the rule.
    let bias = f16::from_f32(min);
    if bias.is_infinite() {
        return Err(too_large(min_column, min));
    }
    let bias_f32 = bias.to_f32();
    let range = max - bias_f32;
    let mut scale = if range == 0.0 { f16::ONE } else { f16::from_f32(range / LEVELS) };
    if scale.is_infinite() {
        return Err(too_large(max_column, max));
    }
    // A range too small for an f16 scale. (The rule also resets a scale whose inverse overflows f32;
    // there is no such f16: the smallest is 2^-24.)
    if scale == f16::ZERO {
        scale = f16::ONE;
    }
    let inverse = 1.0 / scale.to_f32();

    let code = |value: f32| round_to_code(((value - bias_f32) * inverse).clamp(0.0, LEVELS));
    let (codes, tail) = row.split_at_mut(values.len().div_ceil(2));
    for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
        *byte = match *pair {
            [low, high] => code(low) | code(high) << 4,
            [low] => code(low),
            _ => 0,
        };
    }
    let (scale_bytes, bias_bytes) = tail.split_at_mut(2);
    scale_bytes.copy_from_slice(&scale.to_le_bytes());
    bias_bytes.copy_from_slice(&bias.to_le_bytes());
    Ok(())
}
