//! A file of lines that is put aside by size, by this process or by others (logrotate): what is written, and what is kept
//! of it, is bounded.
//!
//! `a.log` becomes `a.log.1`, that `a.log.2`, and the oldest goes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::owner::open_or_make;

/// Where the lines go, and how much of them is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotatingOptions {
    /// The file that is written now.
    pub path: PathBuf,
    /// A file that would grow beyond this is put aside.
    pub max_bytes: u64,
    /// How many files are kept beside the one that is written.
    pub keep: u32,
    /// Whether lines are on the disk, and not only in the system's memory, before a call ends.
    pub sync: bool,
}

/// The file could not be had.
#[derive(Debug, Error)]
#[error("could not {did} it")]
pub struct RotatingError {
    /// "open", "write" or "rotate".
    pub did: &'static str,
    /// Why.
    pub source: io::Error,
}

impl RotatingError {
    const fn when(did: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self { did, source }
    }
}

/// The file, open at its end. Only its owner may read it.
#[derive(Debug)]
pub struct RotatingFile {
    options: RotatingOptions,
    file: File,
}

impl RotatingFile {
    /// Opens it, to write on at its end.
    ///
    /// # Errors
    /// [`RotatingError`].
    pub fn open(options: RotatingOptions) -> Result<Self, RotatingError> {
        let file = open_at_end(&options.path).map_err(RotatingError::when("open"))?;
        Ok(Self { options, file })
    }

    /// The file that is written now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.options.path
    }

    /// Writes lines, which end in a line feed each.
    ///
    /// # Errors
    /// [`RotatingError`]: nobody knows how much of them is there.
    pub fn append(&mut self, lines: &[&[u8]]) -> Result<(), RotatingError> {
        self.follow().map_err(RotatingError::when("open"))?;
        let mut len = self.file.metadata().map_err(RotatingError::when("open"))?.len();
        let mut rest = lines;
        while let Some(first) = rest.first() {
            if len > 0 && len + first.len() as u64 > self.options.max_bytes {
                self.rotate().map_err(RotatingError::when("rotate"))?;
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
            let written = self.file.write_all(&together);
            let written =
                written.and_then(|()| if self.options.sync { self.file.sync_data() } else { Ok(()) });
            written.map_err(RotatingError::when("write"))?;
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
        let RotatingOptions { path, keep, .. } = &self.options;
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

/// What a file that was put aside is called: 1 is the last one.
#[must_use]
pub fn numbered(path: &Path, number: u32) -> PathBuf {
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
