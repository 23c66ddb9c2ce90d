//! Row formats: how one vector is stored, and in how many bytes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest dimension of a row.
pub const MAX_DIM: u32 = 1024;

/// How the elements of a row are stored. The bytes of each format are in `docs/table-format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowFormat {
    /// 4-bit codes, then f16 scale and f16 bias: FBGEMM's fused 4-bit rowwise format.
    Int4,
    /// 8-bit codes, then f32 scale and f32 bias: FBGEMM's fused 8-bit rowwise format.
    Int8,
    /// IEEE 754 half precision.
    F16,
    /// IEEE 754 single precision.
    F32,
}

/// A dimension that no row can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("dimension {0}: it must be even, from 2 to {MAX_DIM}")]
pub struct DimError(pub u64);

impl RowFormat {
    /// Every format, smallest first.
    pub const ALL: [Self; 4] = [Self::Int4, Self::Int8, Self::F16, Self::F32];

    /// The bytes of one stored row of `dim` elements, without fingerprint.
    #[must_use]
    pub const fn row_bytes(self, dim: u32) -> usize {
        let dim = dim as usize;
        match self {
            Self::Int4 => dim.div_ceil(2) + 4,
            Self::Int8 => dim + 8,
            Self::F16 => dim * 2,
            Self::F32 => dim * 4,
        }
    }

    /// Checks that `dim` is a dimension that tables may have.
    ///
    /// # Errors
    /// [`DimError`] when it is odd, zero or above [`MAX_DIM`].
    pub const fn check_dim(dim: u64) -> Result<u32, DimError> {
        if dim >= 2 && dim <= MAX_DIM as u64 && dim.is_multiple_of(2) {
            #[expect(clippy::cast_possible_truncation, reason = "at most MAX_DIM, checked on the line above")]
            Ok(dim as u32)
        } else {
            Err(DimError(dim))
        }
    }

    /// The number that stands for the format in files and on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Int4 => 1,
            Self::Int8 => 2,
            Self::F16 => 3,
            Self::F32 => 4,
        }
    }

    /// The format whose [`code`](Self::code) this is.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.code() == code)
    }

    /// The word used in manifests and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

impl fmt::Display for RowFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for RowFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|f| f.as_str() == text)
            .ok_or_else(|| format!("unknown row format {text:?}: int4, int8, f16 or f32"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_row_at_dim_32() {
        let bytes = RowFormat::ALL.map(|f| f.row_bytes(32));
        assert_eq!(bytes, [20, 40, 64, 128]);
    }

    #[test]
    fn codes_and_words_come_back() {
        for format in RowFormat::ALL {
            assert_eq!(RowFormat::from_code(format.code()), Some(format));
            assert_eq!(format.as_str().parse(), Ok(format));
        }
        assert_eq!(RowFormat::from_code(0), None);
        assert!("int2".parse::<RowFormat>().is_err());
    }

    #[test]
    fn odd_zero_and_huge_dims_are_refused() {
        for dim in [0, 1, 3, 33, 1025, 1026, u64::MAX] {
            assert_eq!(RowFormat::check_dim(dim), Err(DimError(dim)));
        }
        for dim in [2, 32, 100, 1024] {
            assert!(RowFormat::check_dim(dim).is_ok());
        }
    }
}
