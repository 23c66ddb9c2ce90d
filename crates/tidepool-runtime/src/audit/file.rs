//! The file of the audit log: lines at its end, put aside by size, by this process or by others (logrotate).
//!
//! `audit.log` becomes `audit.log.1`, that `audit.log.2`, and the oldest goes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{AuditError, AuditOptions};
use crate::owner::open_or_make;

#[derive(Debug)]
pub(super) struct AuditFile {
    options: AuditOptions,
    file: File,
}

impl AuditFile {
    /// Opens it, to write on at its end.
    pub(super) fn open(options: AuditOptions) -> Result<Self, AuditError> {
        let error =
            |source| AuditError::File { did: "open", path: options.path.clone(), source: Arc::new(source) };
        let file = open_at_end(&options.path).map_err(error)?;
        Ok(Self { options, file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.options.path
    }

    /// Writes lines and brings them to the disk. After an error nobody knows how much of them is there.
    pub(super) fn append(&mut self, lines: &[&[u8]]) -> Result<(), AuditError> {
        let path = self.options.path.clone();
        let error = |did| {
            let path = path.clone();
            move |source: io::Error| AuditError::File { did, path, source: Arc::new(source) }
        };
        self.follow().map_err(error("open"))?;
        let mut len = self.file.metadata().map_err(error("open"))?.len();
        let mut rest = lines;
        while let Some(first) = rest.first() {
            if len > 0 && len + first.len() as u64 > self.options.max_bytes {
                self.rotate().map_err(error("rotate"))?;
                len = 0;
            }
            // What ended in the middle, by a full disk or with its process, must not swallow the line after it.
            let mut together = if self.is_torn(len) { b"\n".to_vec() } else { Vec::new() };
            let mut taken = 0;
            for line in rest {
                let after = len + (together.len() + line.len()) as u64;
                if taken > 0 && after > self.options.max_bytes {
                    break;
                }
                together.extend_from_slice(line);
                taken += 1;
            }
            // In one call, so that a line of this process is never between the parts of another's.
            let written = self.file.write_all(&together).and_then(|()| self.file.sync_data());
            written.map_err(error("write"))?;
            len += together.len() as u64;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Opens the file anew when another is at its path, or none: somebody has put it aside.
    fn follow(&mut self) -> io::Result<()> {
        let here = self.file.metadata()?;
        match fs::metadata(&self.options.path) {
            Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.file = open_at_end(&self.options.path)?;
        Ok(())
    }

    /// Whether the last line has no end.
    fn is_torn(&self, len: u64) -> bool {
        let Some(last) = len.checked_sub(1) else { return false };
        let mut byte = [0];
        // What cannot be read is taken for torn: an empty line harms nobody.
        !(self.file.read_exact_at(&mut byte, last).is_ok() && byte == *b"\n")
    }

    fn rotate(&mut self) -> io::Result<()> {
        let AuditOptions { path, keep, .. } = &self.options;
        for number in (1..*keep).rev() {
            rename_if_there(&numbered(path, number), &numbered(path, number + 1))?;
        }
        match keep {
            0 => fs::remove_file(path)?,
            _ => rename_if_there(path, &numbered(path, 1))?,
        }
        self.file = open_at_end(path)?;
        Ok(())
    }
}

pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

/// The file, made if it is not there; its name is on the disk too.
fn open_at_end(path: &Path) -> io::Result<File> {
    let file = open_or_make(path, OpenOptions::new().read(true).append(true).mode(0o600))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}
