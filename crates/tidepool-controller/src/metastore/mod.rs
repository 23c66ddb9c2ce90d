//! The metastore: where the durable state of the cluster is written down, as one document with a revision, and
//! who may write it.
//!
//! **Invariant:** after a crash at any moment the document is the old one or the new one, and once
//! [`Metastore::store`] has returned it is the new one. Who does not lead any more cannot write. A document that
//! is damaged is an error that names the place, never an empty state.
//!
//! Read first: [`Metastore`] (one document), [`Election`] (who may write it), [`Lease`] (how long).

mod disk;
mod document;
mod etcd;
mod file;
mod lease;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use thiserror::Error;
use tidepool_runtime::tls::TlsError;
use tonic::Status;

pub use disk::{Disk, DiskFile, DiskLock, RealDisk};
pub use document::{Versioned, decode, encode};
pub use etcd::{EtcdElection, EtcdOptions};
pub use file::{FileElection, FileMetastore};
pub use lease::Lease;

/// Keeps one document. It blocks: call it where that is allowed.
pub trait Metastore: Send {
    /// The document, if one was ever stored.
    ///
    /// # Errors
    /// [`MetastoreError`] when it cannot be read or is not what was written.
    fn load(&mut self) -> Result<Option<Versioned>, MetastoreError>;

    /// Replaces the document, given that its revision is `expected` (0: there is none yet), and gives the new
    /// revision. After an error other than [`MetastoreError::Conflict`] and [`MetastoreError::Deposed`] the
    /// document is the old one or the new one; storing may be tried again with the same `expected`.
    ///
    /// # Errors
    /// [`MetastoreError::Conflict`] when the revision is another; [`MetastoreError::Deposed`] when another
    /// controller leads; otherwise what could not be done.
    fn store(&mut self, expected: u64, document: &[u8]) -> Result<u64, MetastoreError>;
}

/// Decides which controller leads: the only one that can store.
#[tonic::async_trait]
pub trait Election: Send {
    /// Waits until this controller leads. `seen` hears meanwhile who does, `host:port`, or that nobody does.
    ///
    /// # Errors
    /// [`MetastoreError`]: nothing is known of who leads then. It may be tried again.
    async fn campaign(&mut self, seen: &Seen) -> Result<Elected, MetastoreError>;

    /// Ends what [`campaign`](Self::campaign) has begun, so that another may lead at once.
    async fn resign(&mut self);
}

/// Told who leads.
pub type Seen = dyn Fn(Option<String>) + Send + Sync;

/// What a controller that leads is given.
pub struct Elected {
    /// Stores as long as it leads, and not longer.
    pub metastore: Box<dyn Metastore>,
    /// How long it certainly leads.
    pub lease: Lease,
}

impl std::fmt::Debug for Elected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Elected").field("lease", &self.lease).finish_non_exhaustive()
    }
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
    /// The document is not what was written.
    #[error(
        "{place} is damaged: {problem}. Restore a backup with `tidepool metastore restore`, or remove it to begin \
         with an empty cluster, which `tidepool metastore rebuild` fills from what the nodes hold"
    )]
    Corrupt {
        /// The file or the key.
        place: String,
        /// How it shows.
        problem: String,
    },
    /// The document is of a version that this program does not know.
    #[error(
        "{place} has schema version {found}, and this program reads {oldest} to {newest}: run the version of tidepool \
         that wrote it, or put a backup of before in its place with `tidepool metastore restore`"
    )]
    Version {
        /// The file or the key.
        place: String,
        /// Its version.
        found: u32,
        /// The oldest that is read.
        oldest: u32,
        /// The newest that is read, which is the one that is written.
        newest: u32,
    },
    /// Somebody else has written in between.
    #[error("{place} has revision {found}, not {expected}")]
    Conflict {
        /// The file or the key.
        place: String,
        /// The revision that was to be replaced.
        expected: u64,
        /// The revision that is there.
        found: u64,
    },
    /// An endpoint that is none.
    #[error("etcd_endpoints: {endpoint:?} is no address: {problem}")]
    Endpoint {
        /// What was configured.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Certificates for etcd that do not do; the source names the file.
    #[error("no TLS with etcd can be had (etcd_ca, etcd_certificate, etcd_key)")]
    Tls(#[from] TlsError),
    /// No etcd member did what was asked.
    #[error("could not {tried} in etcd at {endpoint}: {message}", message = source.message())]
    Etcd {
        /// What was tried, as a verb.
        tried: &'static str,
        /// The member that was asked last.
        endpoint: String,
        /// What it, or the connection, said.
        source: Box<Status>,
    },
    /// etcd answered what its API does not promise.
    #[error("etcd answered {0}")]
    Answer(&'static str),
    /// This controller leads no more, and nothing was written.
    #[error("this controller does not lead any more: {}", leader.as_ref().map_or_else(|| "its lease has ended".to_owned(), |leader| format!("{leader} does")))]
    Deposed {
        /// `host:port` of the one that leads, if there is one.
        leader: Option<String>,
    },
    /// Somebody leads who must not.
    #[error("the controller at {leader} leads: stop every controller first")]
    Led {
        /// `host:port` of it.
        leader: String,
    },
}
