//! A version directory that appears whole or not at all: everything is written and fsynced under a
//! temporary name beside it, then renamed.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use tidepool_types::Name;

use crate::error::BuildError;

/// Tells apart the temporary directories of one process.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A directory being filled. Dropped before [`publish`](Self::publish), it is removed.
#[derive(Debug)]
pub(crate) struct StagedDir {
    version: Name,
    target: PathBuf,
    parent: PathBuf,
    temp: PathBuf,
    /// Whether the temporary directory is there, and ours to remove.
    remove: bool,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Io { action, path, source }
}

impl StagedDir {
    /// Makes the temporary directory for `target`, and the directories above it.
    pub(crate) fn create(target: &Path, version: &Name) -> Result<Self, BuildError> {
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        create_dirs(&parent)?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let temp = parent.join(format!(".tmp-{version}-{}-{serial}", process::id()));
        let mut staged =
            Self { version: version.clone(), target: target.to_owned(), parent, temp, remove: false };
        staged.refuse_existing()?;
        // A crashed process of the same number may have left this one behind; nobody else uses the name.
        if staged.temp.exists() {
            fs::remove_dir_all(&staged.temp).map_err(failed("removing", &staged.temp))?;
        }
        fs::create_dir(&staged.temp).map_err(failed("creating", &staged.temp))?;
        staged.remove = true;
        Ok(staged)
    }

    fn refuse_existing(&self) -> Result<(), BuildError> {
        if self.target.symlink_metadata().is_ok() { Err(self.already_exists()) } else { Ok(()) }
    }

    fn already_exists(&self) -> BuildError {
        BuildError::AlreadyExists { version: self.version.clone(), path: self.target.clone() }
    }

    /// Makes a directory inside.
    pub(crate) fn create_dir(&self, name: &str) -> Result<PathBuf, BuildError> {
        let path = self.temp.join(name);
        fs::create_dir(&path).map_err(failed("creating", &path))?;
        Ok(path)
    }

    /// Writes a whole small file inside, and waits until the disk has it.
    pub(crate) fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), BuildError> {
        let path = self.temp.join(name);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(failed("writing", &path))
    }

    /// Waits until the disk has the names in `dir`.
    pub(crate) fn sync_dir(dir: &Path) -> Result<(), BuildError> {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("syncing", dir))
    }

    /// Gives the directory its name. Its files and inner directories have been synced.
    pub(crate) fn publish(mut self) -> Result<(), BuildError> {
        Self::sync_dir(&self.temp)?;
        self.refuse_existing()?;
        fs::rename(&self.temp, &self.target).map_err(|source| match source.kind() {
            // Somebody else was faster.
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => self.already_exists(),
            _ => BuildError::Io { action: "publishing", path: self.target.clone(), source },
        })?;
        self.remove = false;
        Self::sync_dir(&self.parent)
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if self.remove {
            // Best effort: the error that brought us here is the one to report.
            let _ = fs::remove_dir_all(&self.temp);
        }
    }
}

/// Makes `dir` and what is missing above it, and waits until the disk has their names.
fn create_dirs(dir: &Path) -> Result<(), BuildError> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    fs::create_dir_all(dir).map_err(failed("creating", dir))?;
    for above in missing.iter().filter_map(|dir| dir.parent()) {
        StagedDir::sync_dir(if above.as_os_str().is_empty() { Path::new(".") } else { above })?;
    }
    Ok(())
}
