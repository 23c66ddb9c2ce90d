//! TLS of a process: one certificate of its own for all its ports and connections, one file of authorities that it
//! trusts. TLS 1.3 only: every peer is ours, or current.
//!
//! The files are read again while the process runs ([`Tls::reload`]). New connections are made with what was read
//! last; files that do not do are refused, and what was there stays.

mod dial;
mod error;
mod files;
mod x509;

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;

pub use self::{
    dial::{Dial, Stream},
    error::TlsError,
    files::{ClientAuth, ClientFiles, TlsFiles},
};
pub(crate) use self::{
    files::{H2, HTTP_1_1, Material},
    x509::{Validity, names},
};
use crate::{error::chain, utc};

/// The TLS of a process that serves. Clones share it.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: TlsFiles,
    material: ArcSwap<Material>,
    /// What was read last, whether it did or not.
    tried: Mutex<Tried>,
}

#[derive(Debug, Default)]
struct Tried {
    digest: Vec<u8>,
    problem: Option<String>,
}

/// What a look at the files has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// Nothing new.
    Unchanged,
    /// New connections are made with other certificates from now on.
    New,
    /// The files do not do, for this reason, which is not that of the last look.
    Refused(String),
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] names the file, and what to do about it.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let bytes = files.read()?;
        let material = ArcSwap::from_pointee(files.load(&bytes, utc::now())?);
        let tried = Mutex::new(Tried { digest: bytes.digest(), problem: None });
        Ok(Self(Arc::new(Inner { files, material, tried })))
    }

    /// Reads the files again, which takes a few reads of small files.
    pub fn reload(&self) -> Reloaded {
        let Inner { files, material, tried } = &*self.0;
        // The contents and not their times: those may be a second apart, and a link may be turned to another folder.
        let read = files.read();
        let mut tried = tried.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = read.and_then(|bytes| {
            let digest = bytes.digest();
            // Without a problem the same bytes need no second look. With one they do: the time of a certificate
            // may have come.
            if digest == tried.digest && tried.problem.is_none() {
                return Ok(None);
            }
            let loaded = files.load(&bytes, utc::now());
            tried.digest = digest;
            loaded.map(Some)
        });
        match loaded {
            Ok(None) => Reloaded::Unchanged,
            Ok(Some(loaded)) => {
                tried.problem = None;
                material.store(Arc::new(loaded));
                Reloaded::New
            }
            Err(error) => {
                let problem = chain(&error);
                if tried.problem.as_ref() == Some(&problem) {
                    return Reloaded::Unchanged;
                }
                tried.problem = Some(problem.clone());
                Reloaded::Refused(problem)
            }
        }
    }

    /// Why the files there are now are not used, if so.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.0.tried.lock().unwrap_or_else(PoisonError::into_inner).problem.clone()
    }

    /// What connections to others are made with.
    #[must_use]
    pub fn dial(&self) -> Dial {
        Dial::of(self.clone())
    }

    pub(crate) fn files(&self) -> &TlsFiles {
        &self.0.files
    }

    pub(crate) fn material(&self) -> Arc<Material> {
        self.0.material.load_full()
    }

    /// For a connection that has come.
    pub(crate) fn server(&self, protocol: &[u8]) -> Arc<ServerConfig> {
        let material = self.0.material.load();
        if protocol == H2 { material.grpc.clone() } else { material.http.clone() }
    }
}
