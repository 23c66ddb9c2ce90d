//! The file of the audit log: its lines are on the disk before anybody is told that they are.

use std::{path::Path, sync::Arc};

use super::{AuditError, AuditOptions};
#[cfg(test)]
pub(super) use crate::rotating::numbered;
use crate::rotating::{RotatingError, RotatingFile, RotatingOptions};

#[derive(Debug)]
pub(super) struct AuditFile(RotatingFile);

impl AuditFile {
    /// Opens it, to write on at its end.
    pub(super) fn open(options: AuditOptions) -> Result<Self, AuditError> {
        let AuditOptions { path, max_bytes, keep } = options;
        let file = RotatingFile::open(RotatingOptions { path: path.clone(), max_bytes, keep, sync: true });
        file.map(Self).map_err(|error| failed(&path, error))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes lines and brings them to the disk. After an error nobody knows how much of them is there.
    pub(super) fn append(&mut self, lines: &[&[u8]]) -> Result<(), AuditError> {
        self.0.append(lines).map_err(|error| failed(self.0.path(), error))
    }
}

fn failed(path: &Path, RotatingError { did, source }: RotatingError) -> AuditError {
    AuditError::File { did, path: path.to_owned(), source: Arc::new(source) }
}
