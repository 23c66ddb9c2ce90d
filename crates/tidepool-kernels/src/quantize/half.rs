//! F16: each value rounded to the nearest half-precision number, halves to even.

use ::half::f16;
use tidepool_types::RowFormat;

use crate::QuantizeError;

pub(super) fn quantize(values: &[f32], row: &mut [u8]) -> Result<(), QuantizeError> {
    for (column, (bytes, &value)) in row.chunks_exact_mut(2).zip(values).enumerate() {
        let rounded = f16::from_f32(value);
        if rounded.is_infinite() {
            return Err(QuantizeError::OutOfRange { column, value, format: RowFormat::F16 });
        }
        bytes.copy_from_slice(&rounded.to_le_bytes());
    }
    Ok(())
}
