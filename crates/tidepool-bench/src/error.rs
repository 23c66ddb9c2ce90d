//! What ends a bench before it has a figure.

use thiserror::Error;
use tidepool_kernels::{Isa, QuantizeError};
use tidepool_table::{BuildError, Damage, NotHeld, OpenError, ResidencyError};
use tidepool_types::{DimError, NameError};

/// Why a bench ended early.
#[derive(Debug, Error)]
pub enum BenchError {
    /// No rows, or no ids in a bag.
    #[error("{0}")]
    Parameters(&'static str),
    /// A dimension that tables cannot have.
    #[error("no table has such rows")]
    Dim(#[from] DimError),
    /// The instruction set was asked for by name, and this CPU does not have it.
    #[error("this CPU has no {0}")]
    NoIsa(Isa),
    /// A value that the format cannot hold; the source names its column.
    #[error("row {row} cannot be stored")]
    Value {
        /// Which, from 0.
        row: usize,
        /// Column and value.
        source: QuantizeError,
    },
    /// The table's name, made of its parameters, is none.
    #[error("naming the table")]
    Name(#[from] NameError),
    /// The table cannot be built.
    #[error("building the table")]
    Build(#[from] BuildError),
    /// The table cannot be opened.
    #[error("opening the table; remove it, and it is built again")]
    Open(#[from] OpenError),
    /// The table is damaged.
    #[error("verifying the table; remove it, and it is built again")]
    Verify(#[from] Damage),
    /// The table cannot lie where it should.
    #[error("bringing the table into memory")]
    Residency(#[from] ResidencyError),
    /// A whole table lacks a partition.
    #[error("looking up")]
    Lookup(#[from] NotHeld),
}
