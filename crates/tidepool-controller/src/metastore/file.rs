//! The embedded metastore: one file in a directory of its own, replaced whole.
//!
//! A new state is written to a temporary file, synced, renamed over the old one, and the directory is synced.

use std::path::{Path, PathBuf};

use crate::metastore::{
    Elected, Election, Lease, Metastore, MetastoreError, RealDisk, Seen, Versioned,
    disk::{Disk, DiskLock},
    document::{decode, encode},
};

const STATE_FILE: &str = "state";
const TEMP_FILE: &str = "state.tmp";
const LOCK_FILE: &str = "lock";

/// The metastore in a directory. It holds the directory's lock as long as it lives.
pub struct FileMetastore {
    disk: Box<dyn Disk>,
    dir: PathBuf,
    /// The revision that is known to be there.
    current: u64,
    /// The largest revision that a store was tried with: a failed one may have reached the disk.
    tried: u64,
    _lock: DiskLock,
}

impl std::fmt::Debug for FileMetastore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileMetastore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl FileMetastore {
    /// Opens the metastore in `dir`, which is created when it is not there.
    ///
    /// # Errors
    /// [`MetastoreError::InUse`] when another process has it; [`MetastoreError::Corrupt`] when the file is
    /// damaged; [`MetastoreError::Io`].
    pub fn open(disk: Box<dyn Disk>, dir: impl Into<PathBuf>) -> Result<Self, MetastoreError> {
        let (store, found) = Self::open_to_replace(disk, dir)?;
        found?;
        Ok(store)
    }

    /// Opens it for who will replace what is there, which is given back. Where that is damaged, storing expects
    /// revision 0.
    ///
    /// # Errors
    /// [`MetastoreError::InUse`] when another process has it; [`MetastoreError::Io`].
    pub(crate) fn open_to_replace(
        disk: Box<dyn Disk>,
        dir: impl Into<PathBuf>,
    ) -> Result<(Self, Result<Option<Versioned>, MetastoreError>), MetastoreError> {
        let dir = dir.into();
        disk.create_dir_all(&dir).map_err(io("create the directory", &dir))?;
        let path = dir.join(LOCK_FILE);
        let lock = disk.try_lock(&path).map_err(io("lock", &path))?;
        let lock = lock.ok_or(MetastoreError::InUse { path })?;
        // A process that was killed may have renamed without syncing. What is read now will be told to
        // others, so it must not be lost any more.
        disk.sync_dir(&dir).map_err(io("sync the directory", &dir))?;
        let mut store = Self { disk, dir, current: 0, tried: 0, _lock: lock };
        let found = store.load();
        if let Ok(Some(found)) = &found {
            (store.current, store.tried) = (found.revision, found.revision);
        }
        Ok((store, found))
    }

    /// The document in `dir`, which another process may have; `None` when there is none.
    ///
    /// # Errors
    /// [`MetastoreError::Corrupt`], [`MetastoreError::Io`].
    pub(crate) fn peek(disk: &dyn Disk, dir: &Path) -> Result<Option<Versioned>, MetastoreError> {
        let path = dir.join(STATE_FILE);
        let bytes = disk.read(&path).map_err(io("read", &path))?;
        bytes.map(|bytes| decode(&path.display().to_string(), &bytes)).transpose()
    }

    /// The file that holds the document.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(STATE_FILE)
    }
}

impl Metastore for FileMetastore {
    fn load(&mut self) -> Result<Option<Versioned>, MetastoreError> {
        Self::peek(&*self.disk, &self.dir)
    }

    fn store(&mut self, expected: u64, document: &[u8]) -> Result<u64, MetastoreError> {
        let path = self.path();
        if expected != self.current {
            let (place, found) = (path.display().to_string(), self.current);
            return Err(MetastoreError::Conflict { place, expected, found });
        }
        self.tried += 1;
        let revision = self.tried;
        let temp = self.dir.join(TEMP_FILE);
        let mut file = self.disk.create(&temp).map_err(io("create", &temp))?;
        file.write_all(&encode(revision, document)).map_err(io("write", &temp))?;
        file.sync().map_err(io("sync", &temp))?;
        drop(file);
        self.disk.rename(&temp, &path).map_err(io("replace", &path))?;
        self.disk.sync_dir(&self.dir).map_err(io("sync the directory", &self.dir))?;
        self.current = revision;
        Ok(revision)
    }
}

/// The election of the embedded metastore: who has the lock on the directory leads, as long as it lives.
#[derive(Debug)]
pub struct FileElection {
    dir: PathBuf,
}

impl FileElection {
    /// For the metastore in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

#[tonic::async_trait]
impl Election for FileElection {
    /// Answers at once: with the directory's lock, or why it is not to be had.
    async fn campaign(&mut self, _: &Seen) -> Result<Elected, MetastoreError> {
        // Small files of one directory: short enough to wait for.
        let metastore = FileMetastore::open(Box::new(RealDisk), &self.dir)?;
        Ok(Elected { metastore: Box::new(metastore), lease: Lease::for_ever() })
    }

    async fn resign(&mut self) {}
}

/// For `map_err`: "could not `tried` `path`".
fn io(tried: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> MetastoreError {
    let path = path.to_owned();
    move |source| MetastoreError::Io { tried, path, source }
}
