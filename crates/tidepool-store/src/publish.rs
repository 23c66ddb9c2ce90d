//! Atomic publication of a directory: it is written beside its place under a name that no reader looks
//! at, synced file by file, and renamed. A crash leaves either nothing under the name or all of it.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use crate::error::StoreError;

/// With what names of directories begin that are not published yet.
pub(crate) const TEMP_PREFIX: &str = ".tmp-";

/// Writes `files` (name, content) as the directory `target`, which must not exist, and makes it last.
///
/// # Errors
/// [`StoreError::AlreadyExists`] when `target` exists or another writer was faster: exactly one of
/// several wins. [`StoreError::Io`] names the path. In both cases what was written is taken away.
pub(crate) fn publish_dir(target: &Path, what: &str, files: &[(&str, &[u8])]) -> Result<(), StoreError> {
    let exists = || StoreError::AlreadyExists { what: what.to_owned(), path: target.to_owned() };
    if target.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let parent = target.parent().unwrap_or(Path::new("."));
    create_dirs(parent)?;
    // tempfile makes directories that only their owner can read; this one is for everyone the umask allows.
    let temp = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .map_err(StoreError::io("create a temporary directory in", parent))?;
    for (name, content) in files {
        let path = temp.path().join(name);
        write_synced(&path, content).map_err(StoreError::io("write", &path))?;
    }
    sync_dir(temp.path())?;
    // A directory cannot be renamed onto one that has entries, so a faster writer is never overwritten.
    match fs::rename(temp.path(), target) {
        Ok(()) => {
            // It goes by its new name now: there is nothing left to take away.
            let _old_name = temp.keep();
        }
        Err(e) => {
            let taken = [ErrorKind::DirectoryNotEmpty, ErrorKind::AlreadyExists, ErrorKind::NotADirectory];
            return Err(if taken.contains(&e.kind()) && target.symlink_metadata().is_ok() {
                exists()
            } else {
                StoreError::io("rename the written directory to", target)(e)
            });
        }
    }
    sync_dir(parent)
}

/// Creates `path` and what is missing above it, each entry synced into the directory that holds it.
pub(crate) fn create_dirs(path: &Path) -> Result<(), StoreError> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    create_dirs(parent)?;
    match fs::create_dir(path) {
        Ok(()) => sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }),
        // Another process made it in the meantime.
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(StoreError::io("create the directory", path)(e)),
    }
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync the directory", path))
}
