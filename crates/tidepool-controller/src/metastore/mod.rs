//! The metastore: where the durable state of the cluster is written down, as one document with a revision.
//!
//! **Invariant:** after a crash at any moment the document is the old one or the new one, and once
//! [`Metastore::store`] has returned it is the new one. A document that is damaged is an error that names
//! the file, never an empty state.

mod disk;
mod file;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use disk::{Disk, DiskFile, DiskLock, RealDisk};
pub use file::FileMetastore;

/// A document, and which writing of it this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// From 1, growing with each writing.
    pub revision: u64,
    /// What was written.
    pub document: Vec<u8>,
}

/// Keeps one document. It blocks: call it where that is allowed.
pub trait Metastore: Send {
    /// The document, if one was ever stored.
    ///
    /// # Errors
    /// [`MetastoreError`] when it cannot be read or is not what was written.
    fn load(&mut self) -> Result<Option<Versioned>, MetastoreError>;

    /// Replaces the document, given that its revision is `expected` (0: there is none yet), and gives the new
    /// revision. After an error other than [`MetastoreError::Conflict`] the document is the old one
    /// or the new one; storing may be tried again with the same `expected`.
    ///
    /// # Errors
    /// [`MetastoreError::Conflict`] when the revision is another; otherwise what could not be done.
    fn store(&mut self, expected: u64, document: &[u8]) -> Result<u64, MetastoreError>;
}

/// Why the durable state could not be read or written.
#[derive(Debug, Error)]
pub enum MetastoreError {
    /// The operating system said no.
    #[error("could not {tried} {path}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Another controller has the directory.
    #[error("another controller uses {path}: it holds the lock on it", path = path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// The file is not what was written.
    #[error("{path} is damaged: {problem}. Restore it from a copy, or remove it to begin with an empty cluster", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// How it shows.
        problem: String,
    },
    /// Somebody else has written in between.
    #[error("{path} has revision {found}, not {expected}", path = path.display())]
    Conflict {
        /// The file.
        path: PathBuf,
        /// The revision that was to be replaced.
        expected: u64,
        /// The revision that is there.
        found: u64,
    },
}
