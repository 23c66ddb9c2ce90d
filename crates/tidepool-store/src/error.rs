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
    /// A text that names no place for a store.
    #[error("{text:?} is no place for an artifact store: {problem}; give a directory or s3://BUCKET/PREFIX")]
    Location {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A place in an object store was given where files are worked on in place.
    #[error(
        "{location} is not a directory, and this works on files where they lie: `tidepool store pull` brings them into \
         a directory, `tidepool store push` takes them from one to an object store"
    )]
    NotADirectory {
        /// What was given.
        location: String,
    },
    /// The settings in the environment do not do.
    #[error("{location} cannot be used with the AWS_... variables as they are: {problem}")]
    Settings {
        /// The store.
        location: String,
        /// What the client library says, without secrets.
        problem: String,
    },
    /// The object store refuses who asks.
    #[error(
        "could not {tried} {path}: the object store refuses these credentials (AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN, or \
         the role of the machine): {problem}",
        path = path.display()
    )]
    Denied {
        /// What was tried, as a verb.
        tried: &'static str,
        /// On which object.
        path: PathBuf,
        /// What the store says, without secrets.
        problem: String,
    },
    /// The object store does not answer, or not with what it was asked for, however often it is asked.
    #[error("could not {tried} {path}, {attempts} times: {problem}", path = path.display())]
    Unreachable {
        /// What was tried, as a verb.
        tried: &'static str,
        /// On which object.
        path: PathBuf,
        /// How often.
        attempts: u32,
        /// What came of the last time.
        problem: String,
    },
    /// An object became another one while it was being read.
    #[error("{path} was replaced while it was being fetched; what came of it was thrown away", path = path.display())]
    Changed {
        /// The object.
        path: PathBuf,
    },
    /// There is no room for a file.
    #[error(
        "{path} does not fit on its disk: {needed} bytes are needed, {free} are free",
        path = path.display()
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Bytes that were still to be written.
        needed: u64,
        /// Bytes that were free.
        free: u64,
    },
    /// Somebody else is fetching the same file to the same place.
    #[error("{path} is being fetched by another process; every node needs a data_dir of its own", path = path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Another upload of the same name was begun, with other content.
    #[error(
        "{what} is being uploaded with other content, or such an upload was given up: choose another name, or have \
         `tidepool store gc` take away what lies beside {path}",
        path = path.display()
    )]
    Claimed {
        /// "table user@v1".
        what: String,
        /// The object that says so.
        path: PathBuf,
    },
    /// The runtime that the work was given to is gone.
    #[error("the work on {path} was broken off: {problem}", path = path.display())]
    Aborted {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
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
            Self::Io { .. }
            | Self::Settings { .. }
            | Self::Denied { .. }
            | Self::Unreachable { .. }
            | Self::Changed { .. }
            | Self::DiskFull { .. }
            | Self::Busy { .. } => ErrorCode::Unavailable,
            Self::NotFound { .. } | Self::NoStore { .. } => ErrorCode::NotFound,
            Self::AlreadyExists { .. } | Self::Claimed { .. } => ErrorCode::Conflict,
            Self::Refused { .. } | Self::Location { .. } | Self::NotADirectory { .. } => {
                ErrorCode::InvalidRequest
            }
            Self::Aborted { .. } => ErrorCode::Internal,
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
