//! What ends a bench before it has a figure.

use std::io;

use thiserror::Error;
use tidepool_client::{ClientError, trace::TraceError};
use tidepool_kernels::{Isa, QuantizeError};
use tidepool_store::StoreError;
use tidepool_table::{BuildError, Damage, NotHeld, OpenError, ResidencyError};
use tidepool_types::{DimError, NameError, TableVersion};

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
    /// A table that cannot be benched.
    #[error("{0}")]
    Table(String),
    /// The artifact store.
    #[error("the store of bench tables")]
    Store(#[from] StoreError),
    /// A file, a socket or a process.
    #[error("{what}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A process of the cluster did not do as it should.
    #[error("{process} {problem}")]
    Process {
        /// Role and name.
        process: String,
        /// What it did, and the end of its log.
        problem: String,
    },
    /// The controller refused, or what was waited for did not come.
    #[error("controller: {0}")]
    Control(String),
    /// What was waited for did not come.
    #[error("waited {seconds} s until {what}: {problem}")]
    Waited {
        /// What was to be.
        what: &'static str,
        /// How it was at the end.
        problem: String,
        /// How long it was waited.
        seconds: u64,
    },
    /// A trace asks for what the cluster does not have.
    #[error("{0} is not served: serve it, or name a version that is, with --as-version TABLE@VERSION")]
    NotServed(TableVersion),
    /// A trace that cannot be read.
    #[error("reading the trace")]
    Trace(#[from] TraceError),
    /// The lookup client.
    #[error("looking up in the cluster")]
    Client(#[from] ClientError),
}

impl BenchError {
    /// For `map_err`: `what` was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }
}
