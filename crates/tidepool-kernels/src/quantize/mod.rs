//! From f32 values to the bytes of a stored row: one file per family of formats. The rules of int4 and
//! int8 are FBGEMM's fused rowwise formats, to the byte; docs/table-format.md spells them out.
//!
//! One body is compiled once per instruction set (`avx2.rs`, `avx512.rs`), each of which brings its own
//! [`Wide`]: the loops over columns that a compiler does not make good vectors of. `optimize.rs` is plain
//! Rust over arrays of sixteen lanes, of which it does. What is fused is written so (`mul_add`), so that
//! every instruction set writes the same bytes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod half;
mod int4;
mod int8;
mod optimize;

#[cfg(test)]
mod optimize_tests;
#[cfg(test)]
mod tests;

pub use tidepool_types::Quantizer;
use tidepool_types::RowFormat;

use crate::{Isa, QuantizeError};

/// Writes values into a row, which is exactly as long as the format wants.
pub(crate) type QuantizeFn = fn(RowFormat, Quantizer, &[f32], &mut [u8]) -> Result<(), QuantizeError>;

/// The function of an instruction set; the reference's where this CPU lacks it.
pub(crate) fn function(isa: Isa) -> QuantizeFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if isa.is_available() => avx2::quantize,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if isa.is_available() => avx512::quantize,
        _ => |format, quantizer, values, row| quantize(Reference, format, quantizer, values, row),
    }
}

/// The loops of an instruction set. A value of a type that implements this shows that the CPU has it.
trait Wide: Copy {
    /// The smallest and the largest value, or `None` when a value is NaN or infinite. An empty row gives
    /// infinities; of two zeros it gives either.
    fn extremes(self, values: &[f32]) -> Option<[f32; 2]>;

    /// The int4 codes of [`int4::code`], two in a byte; `codes` is as long as they need.
    fn int4_codes(self, values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]);

    /// A finite number rounded to the nearest f16, halves to even; infinite where f16 cannot hold it.
    #[inline(always)]
    fn round_to_half(self, x: f32) -> f32 {
        int4::round_to_half(x)
    }

    /// The bytes of two numbers that are f16, one after the other.
    #[inline(always)]
    fn half_bytes(self, x: f32, y: f32) -> [u8; 4] {
        int4::half_bytes(x, y)
    }

    /// The int8 codes of [`int8::code`]; `codes` is as long as `values`.
    fn int8_codes(self, values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]);
}

/// Plain Rust: what the other instruction sets must equal, and what they leave the last columns to.
#[derive(Clone, Copy)]
struct Reference;

impl Wide for Reference {
    fn extremes(self, values: &[f32]) -> Option<[f32; 2]> {
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for &value in values {
            if !value.is_finite() {
                return None;
            }
            min = if value < min { value } else { min };
            max = if value > max { value } else { max };
        }
        Some([min, max])
    }

    fn int4_codes(self, values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
        for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
            let high = pair.get(1).map_or(0, |&value| int4::code(value, bias, inverse));
            *byte = int4::code(pair[0], bias, inverse) | high << 4;
        }
    }

    fn int8_codes(self, values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
        for (byte, &value) in codes.iter_mut().zip(values) {
            *byte = int8::code(value, bias, inverse);
        }
    }
}

/// The one body of all instruction sets.
#[inline(always)]
fn quantize(
    wide: impl Wide,
    format: RowFormat,
    quantizer: Quantizer,
    values: &[f32],
    row: &mut [u8],
) -> Result<(), QuantizeError> {
    let Some(extremes) = wide.extremes(values) else { return Err(not_finite(values)) };
    let extremes = Extremes::settled(extremes, values);
    match format {
        RowFormat::Int4 => int4::quantize(wide, quantizer, extremes, values, row),
        RowFormat::Int8 => int8::quantize(wide, extremes, values, row),
        RowFormat::F16 => half::quantize(values, row),
        RowFormat::F32 => {
            for (bytes, value) in row.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            Ok(())
        }
    }
}

/// The smallest and the largest value of a row; zeros for an empty one. Which zero (`0.0` or `-0.0`) a
/// minimum is gets settled by the first of them in the row.
#[derive(Clone, Copy)]
struct Extremes {
    min: f32,
    max: f32,
}

impl Extremes {
    #[inline(always)]
    fn settled([mut min, mut max]: [f32; 2], values: &[f32]) -> Self {
        if values.is_empty() {
            return Self { min: 0.0, max: 0.0 };
        }
        if min == 0.0 {
            min = values.iter().copied().find(|&value| value == 0.0).unwrap_or(min);
        }
        if max == min {
            max = min;
        }
        Self { min, max }
    }
}

#[cold]
#[inline(never)]
fn not_finite(values: &[f32]) -> QuantizeError {
    let column = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
    QuantizeError::NotFinite { column, value: values.get(column).copied().unwrap_or(f32::NAN) }
}

/// `value` of the row is too large for `format`: names its first column.
#[cold]
#[inline(never)]
fn too_large(format: RowFormat, values: &[f32], value: f32) -> QuantizeError {
    let column = values.iter().position(|&v| v == value).unwrap_or(0);
    QuantizeError::OutOfRange { column, value: values.get(column).copied().unwrap_or(value), format }
}

/// At 2^23 the spacing of f32 is one, so that adding it rounds to an integer, halves to even.
const ROUND: f32 = 8_388_608.0;

/// `x` rounded to the nearest integer, halves to even, for `0 <= x <= 255`: the integer is what the
/// mantissa of the sum ends in.
#[inline(always)]
fn round_to_code(x: f32) -> u8 {
    (x + ROUND).to_bits().to_le_bytes()[0]
}
