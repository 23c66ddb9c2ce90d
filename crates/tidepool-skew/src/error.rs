//! What can keep a sample from being replayed.

use std::{io, path::PathBuf};

use thiserror::Error;
use tidepool_dense::DenseError;
use tidepool_ranker::{RankError, offline::OfflineError, samples::SampleError};
use tidepool_runtime::pool::SpawnError;
use tidepool_store::StoreError;
use tidepool_table::{Damage, OpenError};
use tidepool_types::{Name, TableVersion};

/// A sample could not be replayed.
#[derive(Debug, Error)]
pub enum SkewError {
    /// A release is not in the store, or not whole.
    #[error("release {release} of model {model}")]
    Release {
        /// The model.
        model: Name,
        /// The release.
        release: Name,
        /// What is wrong with it.
        source: Box<StoreError>,
    },
    /// A table of a release that is judged cannot be opened.
    #[error("opening table {table}")]
    Open {
        /// The table.
        table: TableVersion,
        /// Names the file.
        source: Box<OpenError>,
    },
    /// A table of a release that is judged is not what was written.
    #[error("table {table} is damaged")]
    Damaged {
        /// The table.
        table: TableVersion,
        /// Names the block.
        source: Box<Damage>,
    },
    /// The dense model of a release does not load.
    #[error("loading the dense model of release {release}")]
    Dense {
        /// The release.
        release: Name,
        /// What is wrong with it.
        source: Box<DenseError>,
    },
    /// A release cannot be run with its own tables.
    #[error("release {release} with its own tables")]
    Offline {
        /// The release.
        release: Name,
        /// Why not.
        source: OfflineError,
    },
    /// A release is named twice.
    #[error("release {0} is named twice")]
    Twice(Name),
    /// A sample or a file of labels cannot be opened.
    #[error("opening {path}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line of a sample is none.
    #[error("{path}", path = path.display())]
    Sample {
        /// The file.
        path: PathBuf,
        /// Names the line.
        source: Box<SampleError>,
    },
    /// A line of labels is none.
    #[error("{path}: line {line}: {problem}", path = path.display())]
    Label {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// There is nothing to be replayed.
    #[error("the sample has no requests{}", if *.damaged > 0 { format!(", and {} damaged lines", .damaged) } else { String::new() })]
    Empty {
        /// Lines that a ranker did not write to their ends.
        damaged: u64,
    },
    /// A request could not be scored.
    #[error("{path}: line {line}: scoring with release {release} and tables of {tables}", path = path.display())]
    Score {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// Whose dense model.
        release: Name,
        /// Whose tables.
        tables: String,
        /// Why not.
        source: Box<RankError>,
    },
    /// The system gives no more threads.
    #[error("starting the CPU pool")]
    Pool(#[from] SpawnError),
    /// A thread ended without a result: a defect.
    #[error("the replay broke down")]
    Broken(#[from] tokio::task::JoinError),
}
