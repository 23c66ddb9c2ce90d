//! A version directory that appears whole or not at all: everything is written and fsynced under a
//! temporary name beside it, then renamed.
//!
//! A build holds a lock (`flock`) on its temporary directory as long as it lives, so one that nobody holds
//! was left by a build that was killed: the next build of the same version removes it.

use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
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
    /// The temporary directory, locked.
    lock: Option<File>,
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
        let mut staged = Self {
            version: version.clone(),
            target: target.to_owned(),
            parent,
            temp: PathBuf::new(),
            lock: None,
            remove: false,
        };
        staged.refuse_existing()?;
        staged.remove_leftovers()?;
        while staged.lock.is_none() {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            staged.temp = staged.parent.join(format!(".tmp-{version}-{}-{serial}", process::id()));
            match fs::create_dir(&staged.temp) {
                Ok(()) => staged.lock = lock(&staged.temp)?,
                // Of a killed process with our number, in another container; or of one that just begins.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("creating", &staged.temp)(error)),
            }
        }
        staged.remove = true;
        Ok(staged)
    }

    /// Removes the temporary directories of builds of this version that are no more.
    fn remove_leftovers(&self) -> Result<(), BuildError> {
        let prefix = format!(".tmp-{}-", self.version);
        let entries = fs::read_dir(&self.parent).map_err(failed("listing", &self.parent))?;
        for entry in entries {
            let name = entry.map_err(failed("listing", &self.parent))?.file_name();
            let path = self.parent.join(&name);
            if !is_temporary(&name, &prefix) || !path.is_dir() {
                continue;
            }
            // Held until it is gone, or a build that has just made it could begin to fill it.
            let Some(_held) = lock(&path)? else { continue };
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("removing", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What it will be called.
    pub(crate) fn target(&self) -> &Path {
        &self.target
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

    /// Removes a directory inside, with all that is in it.
    pub(crate) fn remove_dir(&self, name: &str) -> Result<(), BuildError> {
        let path = self.temp.join(name);
        fs::remove_dir_all(&path).map_err(failed("removing", &path))
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

/// Whether a directory is called as those of one version are: the prefix, a process number, a serial number.
fn is_temporary(name: &OsStr, prefix: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.to_str().and_then(|name| name.strip_prefix(prefix)?.split_once('-'));
    numbers.is_some_and(|(process, serial)| number(process) && number(serial))
}

/// Locks a directory; `None` when somebody else has locked it, or has removed it meanwhile.
fn lock(dir: &Path) -> Result<Option<File>, BuildError> {
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("opening", dir)(error)),
    };
    match file.try_lock() {
        // Whoever cleans up may have had it between our opening and our locking.
        Ok(()) => Ok(dir.exists().then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed("locking", dir)(error)),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_killed_builds_left_is_removed_and_nothing_else() {
        let root = tempfile::TempDir::new().unwrap();
        let at = |name: &str| root.path().join(name);
        let kept = [".tmp-v1-2-33-0", ".tmp-v1-x-1", ".tmp-v1-7", ".tmp-v2-7-0", "v0"];
        for name in kept.into_iter().chain([".tmp-v1-33-0", ".tmp-v1-4194304-12"]) {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), b"half").unwrap();
        }
        let version = Name::new("v1").unwrap();
        let living = StagedDir::create(&at("v1"), &version).unwrap();
        let second = StagedDir::create(&at("v1"), &version).unwrap();
        let alive = |staged: &StagedDir| staged.temp.file_name().unwrap().to_str().unwrap().to_owned();
        let mut expected: Vec<String> = kept.map(str::to_owned).into();
        expected.extend([alive(&living), alive(&second)]);
        expected.sort();
        assert_eq!(entries(root.path()), expected);

        second.publish().unwrap();
        drop(living);
        let mut expected: Vec<String> = kept.map(str::to_owned).into();
        expected.push("v1".into());
        expected.sort();
        assert_eq!(entries(root.path()), expected);
    }
}
