//! What can go wrong in the store, always with the path and with what was tried there.

use std::{io, path::PathBuf};

use thiserror::Error;
use tidepool_types::{ErrorCode, ManifestError, ModelError};

/// Why something could not be read from the store, or written to it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The operating system said no.
    #[error("could not {tried} {path}", path = path.display())]
    Io {
        /// What was tried, as a verb: "read", "create the directory", ...
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// There is no store.
    #[error("there is no artifact store at {path}: the path is wrong, or nothing was built there yet", path = path.display())]
    NoStore {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Something else lies in the place of a document.
    #[error("{path} is not a regular file", path = path.display())]
    NotAFile {
        /// What was to be read.
        path: PathBuf,
    },
    /// There is no such table version or release.
    #[error("there is no {what} in the store (looked for {path})", path = path.display())]
    NotFound {
        /// "table user@v1", "release movielens@r1".
        what: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// A file that its manifest promises is not there.
    #[error("{path} is missing, though {what} lists it", path = path.display())]
    Missing {
        /// Whose file.
        what: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// The name is taken. What is there was not touched.
    #[error("{what} exists already, at {path}", path = path.display())]
    AlreadyExists {
        /// "release movielens@r1".
        what: String,
        /// Where.
        path: PathBuf,
    },
    /// A document that is not JSON, or not of our keys.
    #[error("{path} does not parse", path = path.display())]
    Syntax {
        /// The document.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A manifest that contradicts itself.
    #[error("{path} contradicts itself", path = path.display())]
    Manifest {
        /// The document.
        path: PathBuf,
        /// How.
        source: ManifestError,
    },
    /// A stored `model.toml` that is no contract.
    #[error("{path} is not a model contract", path = path.display())]
    Model {
        /// The document.
        path: PathBuf,
        /// All that is wrong with it.
        source: ModelError,
    },
    /// A document that speaks of something else than the place it lies in.
    #[error("{path} says that it is {found}, its place is that of {expected}", path = path.display())]
    Misplaced {
        /// The document.
        path: PathBuf,
        /// What lies there by the path.
        expected: String,
        /// What it says it is.
        found: String,
    },
    /// Bytes that are not those that were published.
    #[error("{path} is not what was published: its hash is {found}, {what} says {expected}", path = path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Who promises the hash.
        what: String,
        /// The promise.
        expected: String,
        /// The hash of what is there.
        found: String,
    },
    /// A file that is shorter or longer than its manifest says.
    #[error("{path} has {found} bytes, {what} says {expected}", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Who promises the size.
        what: String,
        /// The promise, in bytes.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A document so large that it cannot be one of ours.
    #[error("{path} has {bytes} bytes, a document may have {limit}", path = path.display())]
    TooLarge {
        /// The document.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// What was to be written does not fit together; nothing was written.
    #[error("{what} was not written: {}", problems.join("; "))]
    Refused {
        /// "release movielens@r1".
        what: String,
        /// Every problem found.
        problems: Vec<String>,
    },
}

impl StoreError {
    /// The wire code that says the same.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Io { .. } => ErrorCode::Unavailable,
            Self::NotFound { .. } | Self::NoStore { .. } => ErrorCode::NotFound,
            Self::AlreadyExists { .. } => ErrorCode::Conflict,
            Self::Refused { .. } => ErrorCode::InvalidRequest,
            Self::Missing { .. }
            | Self::NotAFile { .. }
            | Self::Syntax { .. }
            | Self::Manifest { .. }
            | Self::Model { .. }
            | Self::Misplaced { .. }
            | Self::Hash { .. }
            | Self::Size { .. }
            | Self::TooLarge { .. } => ErrorCode::Corrupt,
        }
    }

    /// For `map_err`: "could not `tried` `path`".
    pub(crate) fn io(tried: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { tried, path, source }
    }
}
