//! Quantizers by name: how the scale and the bias of a stored row are chosen.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::row::RowFormat;

/// How the scale and the bias of a row are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantizer {
    /// From the smallest and the largest value: FBGEMM's rule, to the byte.
    #[default]
    MinMax,
    /// Int4: the best found by least squares over clipped ranges; the squared error of a row is never
    /// larger than with [`MinMax`](Self::MinMax). The other formats have nothing to gain and are stored as
    /// by it. What one quantizer refuses, the other does too.
    Optimized,
}

impl Quantizer {
    /// Both.
    pub const ALL: [Self; 2] = [Self::MinMax, Self::Optimized];

    /// The word used in configuration, manifests and benches.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MinMax => "min_max",
            Self::Optimized => "optimized",
        }
    }

    /// The one whose rule the rows of `format` follow when this one is asked for: `None` where rows have no
    /// scale and no bias.
    #[must_use]
    pub const fn in_effect(self, format: RowFormat) -> Option<Self> {
        match format {
            RowFormat::Int4 => Some(self),
            RowFormat::Int8 => Some(Self::MinMax),
            RowFormat::F16 | RowFormat::F32 => None,
        }
    }
}

impl fmt::Display for Quantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Quantizer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|quantizer| quantizer.as_str() == text)
            .ok_or_else(|| format!("unknown quantizer {text:?}: min_max or optimized"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_come_back_and_are_those_of_manifests() {
        for quantizer in Quantizer::ALL {
            assert_eq!(quantizer.as_str().parse(), Ok(quantizer));
            assert_eq!(toml::Value::try_from(quantizer).unwrap().as_str(), Some(quantizer.as_str()));
        }
        assert!("greedy".parse::<Quantizer>().is_err());
    }

    #[test]
    fn only_int4_rows_have_a_choice() {
        let of = |format| Quantizer::ALL.map(|quantizer| quantizer.in_effect(format));
        assert_eq!(of(RowFormat::Int4), Quantizer::ALL.map(Some));
        assert_eq!(of(RowFormat::Int8), [Some(Quantizer::MinMax); 2]);
        assert_eq!((of(RowFormat::F16), of(RowFormat::F32)), ([None; 2], [None; 2]));
    }
}
