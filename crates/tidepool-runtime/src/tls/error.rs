//! What can be wrong with certificates and keys, and what to do about it.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::utc;

/// Why there is no TLS, or no newer.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("could not read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A private key that others may read.
    #[error(
        "the private key in {path} can be read by others (its mode is {mode:04o}): `chmod 600 {path}`, and if others \
         have had the time to read it, make a new one", path = path.display()
    )]
    Shared {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file is not PEM.
    #[error("{path} is not PEM: {problem}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Where it is not.
        problem: String,
    },
    /// A file has nothing of what it is for.
    #[error("{path} has no {what} in it (a PEM section that begins with -----BEGIN)", path = path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// "certificate" or "private key".
        what: &'static str,
    },
    /// A certificate that is none.
    #[error("{path} has a certificate that cannot be read", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// A certificate whose time is over.
    #[error("the certificate in {path} expired on {}: put a new one there", utc::format(*not_after), path = path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its last moment, in seconds since the beginning of 1970.
        not_after: i64,
    },
    /// A certificate whose time has not come.
    #[error(
        "the certificate in {path} holds from {} on, and it is {} here: is the clock right?",
        utc::format(*not_before), utc::format(*now), path = path.display()
    )]
    NotYet {
        /// The file.
        path: PathBuf,
        /// Its first moment, in seconds since the beginning of 1970.
        not_before: i64,
        /// The clock.
        now: i64,
    },
    /// Certificate and key do not go together, or the key is of a kind that is not known.
    #[error("the certificate in {cert} and the key in {key} cannot be used together", cert = cert.display(), key = key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A certificate that nobody can be checked against.
    #[error("{path} has a certificate that cannot be trusted as a certificate authority", path = path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Something that only a defect of ours explains.
    #[error("TLS could not be set up")]
    Setup {
        /// Why.
        source: rustls::Error,
    },
}
