//! Int8: `dim` code bytes, then f32 scale, then f32 bias (the minimum).

use tidepool_types::RowFormat;

use super::{extremes, round_to_code};
use crate::QuantizeError;

/// The largest code.
const LEVELS: f32 = 255.0;
/// Keeps the inverse finite when all values are equal; part of the rule.
const EPSILON: f32 = 1e-8;

pub(super) fn quantize(values: &[f32], row: &mut [u8]) -> Result<(), QuantizeError> {
    let (min_column, max_column) = extremes(values);
    let (min, max) = match values {
        [] => (0.0, 0.0),
        _ => (values[min_column], values[max_column]),
    };
    let range = max - min;
    if range.is_infinite() {
        let column = if max > -min { max_column } else { min_column };
        return Err(QuantizeError::OutOfRange { column, value: values[column], format: RowFormat::Int8 });
    }
    let scale = range / LEVELS;
    let inverse = LEVELS / (range + EPSILON);

    let (codes, tail) = row.split_at_mut(values.len());
    for (byte, &value) in codes.iter_mut().zip(values) {
        // The product can pass 255 by a rounding error, never by half a code.
        *byte = round_to_code((value - min) * inverse);
    }
    let (scale_bytes, bias_bytes) = tail.split_at_mut(4);
    scale_bytes.copy_from_slice(&scale.to_le_bytes());
    bias_bytes.copy_from_slice(&min.to_le_bytes());
    Ok(())
}
