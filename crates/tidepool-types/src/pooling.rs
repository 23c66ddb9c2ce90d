//! How the rows of a bag become one vector.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What is done with the rows of a bag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The (weighted) sum of the rows that were found.
    Sum,
    /// The sum divided by the count of rows found, or by the sum of their weights.
    Mean,
    /// No pooling: one vector per id.
    None,
}

impl Pooling {
    /// The word used in configs and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Pooling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Sum, Self::Mean, Self::None]
            .into_iter()
            .find(|p| p.as_str() == text)
            .ok_or_else(|| format!("unknown pooling {text:?}: sum, mean or none"))
    }
}
