//! The types that elements may have, by the names that NPY and safetensors give them.

use half::{bf16, f16};

use super::Array;
use crate::ImportError;

/// Types that vectors may have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Element {
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    pub(crate) const EXPECTED: &'static str =
        "little-endian floating point (<f2, <f4, <f8; F16, BF16, F32, F64)";

    pub(crate) fn of(dtype: &str) -> Option<Self> {
        match dtype {
            "<f2" | "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            "<f4" | "F32" => Some(Self::F32),
            "<f8" | "F64" => Some(Self::F64),
            _ => None,
        }
    }

    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Decodes a row. The error is the column of a finite number that f32 cannot hold; what is not finite
    /// in the file is passed on, and refused by the table builder.
    pub(crate) fn decode(self, row: &[u8], values: &mut [f32]) -> Result<(), usize> {
        match self {
            Self::F16 => decode_with(row, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => decode_with(row, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::F32 => decode_with(row, values, f32::from_le_bytes),
            Self::F64 => {
                for (column, value) in values.iter_mut().enumerate() {
                    *value = single(f64_at(row, column)).ok_or(column)?;
                }
            }
        }
        Ok(())
    }
}

fn decode_with<const N: usize>(row: &[u8], values: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(row.as_chunks().0) {
        *value = decode(*bytes);
    }
}

/// The nearest f32, unless the number is finite and that is not.
pub(crate) fn single(exact: f64) -> Option<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is wanted")]
    let single = exact as f32;
    (single.is_finite() || !exact.is_finite()).then_some(single)
}

/// The f64 element at `column`.
pub(crate) fn f64_at(row: &[u8], column: usize) -> f64 {
    row.as_chunks().0.get(column).map_or(f64::NAN, |bytes| f64::from_le_bytes(*bytes))
}

/// Types that ids may have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum IdElement {
    U64,
    I64,
}

impl IdElement {
    pub(crate) const EXPECTED: &'static str = "uint64 or int64 (<u8, <i8; U64, I64)";

    pub(crate) fn of(dtype: &str) -> Option<Self> {
        match dtype {
            "<u8" | "U64" => Some(Self::U64),
            "<i8" | "I64" => Some(Self::I64),
            _ => None,
        }
    }

    /// Reads the next id of `ids`, that of `row`.
    pub(crate) fn read(self, ids: &mut Array, row: u64) -> Result<u64, ImportError> {
        let mut bytes = [0; 8];
        ids.read_exact(&mut bytes)?;
        match self {
            Self::U64 => Ok(u64::from_le_bytes(bytes)),
            Self::I64 => {
                let id = i64::from_le_bytes(bytes);
                u64::try_from(id).map_err(|_| ImportError::NegativeId { path: ids.path.clone(), row, id })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_reads_back_what_it_holds() {
        let exact = [1.0f32, -0.5, 0.0, 240.0];
        let bytes = |f: &dyn Fn(f32) -> Vec<u8>| exact.iter().flat_map(|&v| f(v)).collect::<Vec<u8>>();
        for (dtype, row) in [
            ("<f2", bytes(&|v| f16::from_f32(v).to_le_bytes().to_vec())),
            ("F16", bytes(&|v| f16::from_f32(v).to_le_bytes().to_vec())),
            ("BF16", bytes(&|v| bf16::from_f32(v).to_le_bytes().to_vec())),
            ("<f4", bytes(&|v| v.to_le_bytes().to_vec())),
            ("F64", bytes(&|v| f64::from(v).to_le_bytes().to_vec())),
        ] {
            let element = Element::of(dtype).unwrap();
            assert_eq!(row.len(), exact.len() * element.bytes());
            let mut values = [f32::NAN; 4];
            element.decode(&row, &mut values).unwrap();
            assert_eq!(values, exact, "{dtype}");
        }
        assert!(Element::of(">f4").is_none() && IdElement::of("<u4").is_none());
    }

    #[test]
    fn numbers_are_rounded_and_never_become_infinite() {
        assert_eq!(single(0.1), Some(0.1));
        assert_eq!(single(1e39), None);
        assert_eq!(single(f64::NEG_INFINITY), Some(f32::NEG_INFINITY));
        assert!(single(f64::NAN).unwrap().is_nan());
    }
}
