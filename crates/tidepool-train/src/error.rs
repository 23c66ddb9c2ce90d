//! What can go wrong between a folder of ratings and a release in the store.

use std::{io, path::PathBuf};

use thiserror::Error;
use tidepool_kernels::QuantizeError;
use tidepool_store::StoreError;
use tidepool_table::BuildError;
use tidepool_types::{NameError, TableVersion, UtilityError};

/// A data set that cannot be read.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file's first line does not name the columns that are needed.
    #[error("{}: {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A line does not say what its header promises.
    #[error("{}, line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1; the header is line 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// Training or export that cannot go on.
#[derive(Debug, Error)]
pub enum TrainError {
    /// There is nothing to learn from, or nothing to measure with.
    #[error(
        "the {part} slice of data set {data:?} has {positives} positive of {examples} examples; both labels are needed"
    )]
    OneClass {
        /// The data set.
        data: String,
        /// `train`, `validation` or `test`.
        part: &'static str,
        /// Examples in it.
        examples: usize,
        /// Those with label 1.
        positives: usize,
    },
    /// Training left the numbers: a learning rate is too high.
    #[error("the loss of phase {phase} is no longer finite after {epoch} epochs")]
    Diverged {
        /// Which phase.
        phase: &'static str,
        /// Epochs done.
        epoch: usize,
    },
    /// An option that no training can run with.
    #[error("option {option}: {problem}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Why not.
        problem: String,
    },
    /// A trained row cannot be stored in a row format.
    #[error("row {id} of table {table} cannot be quantized")]
    Quantize {
        /// The table.
        table: String,
        /// The row.
        id: u64,
        /// Why.
        source: QuantizeError,
    },
    /// A table version cannot be written.
    #[error("cannot write table {table}")]
    Table {
        /// Which.
        table: TableVersion,
        /// Why.
        source: Box<BuildError>,
    },
    /// A table's name cannot be the name of a folder.
    #[error("a table cannot be named so")]
    Name(#[from] NameError),
    /// What candidates would be ranked by is no formula.
    #[error("the utility is no formula")]
    Utility(#[from] UtilityError),
    /// Golden vectors cannot be written down.
    #[error("writing golden vectors")]
    Golden(#[source] serde_json::Error),
    /// The release cannot be written.
    #[error("cannot write the release")]
    Store(#[source] Box<StoreError>),
}
