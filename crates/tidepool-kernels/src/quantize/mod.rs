//! From f32 values to the bytes of a stored row: one file per family of formats. The rules of int4 and
//! int8 are FBGEMM's fused rowwise formats, to the byte; docs/table-format.md spells them out.

mod half;
mod int4;
mod int8;

#[cfg(test)]
mod tests;

use tidepool_types::RowFormat;

use crate::QuantizeError;

/// Writes `values` into `row`, which is exactly as long as the format wants.
pub(crate) fn quantize(format: RowFormat, values: &[f32], row: &mut [u8]) -> Result<(), QuantizeError> {
    if let Some(column) = values.iter().position(|v| !v.is_finite()) {
        return Err(QuantizeError::NotFinite { column, value: values[column] });
    }
    match format {
        RowFormat::Int4 => int4::quantize(values, row),
        RowFormat::Int8 => int8::quantize(values, row),
        RowFormat::F16 => half::quantize(values, row),
        RowFormat::F32 => {
            for (bytes, value) in row.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            Ok(())
        }
    }
}

/// The columns of the smallest and the largest value: the first of each, so that which zero (`0.0` or
/// `-0.0`) becomes a row's bias is settled. An empty row gives `(0, 0)`.
fn extremes(values: &[f32]) -> (usize, usize) {
    let (mut min, mut max) = (0, 0);
    for (column, &value) in values.iter().enumerate() {
        if value < values[min] {
            min = column;
        }
        if value > values[max] {
            max = column;
        }
    }
    (min, max)
}

/// `x` rounded to the nearest integer, halves to even, for `0 <= x <= 255`. At 2^23 the spacing of f32 is
/// one, so the addition itself rounds, and the integer is what the mantissa then ends in.
#[inline]
fn round_to_code(x: f32) -> u8 {
    (x + 8_388_608.0).to_bits().to_le_bytes()[0]
}
