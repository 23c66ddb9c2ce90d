//! The embedded metastore: one file in a directory of its own, replaced whole.
//!
//! ```text
//! tidepool-metastore 1 revision=7 bytes=1234 crc32c=0a1b2c3d\n
//! <the document, 1234 bytes>
//! ```
//! The checksum covers the revision (8 bytes, little-endian) and the document. A new state is written to a
//! temporary file, synced, renamed over the old one, and the directory is synced.

use std::path::{Path, PathBuf};

use crate::metastore::{
    Metastore, MetastoreError, Versioned,
    disk::{Disk, DiskLock},
};

const STATE_FILE: &str = "state";
const TEMP_FILE: &str = "state.tmp";
const LOCK_FILE: &str = "lock";
const MAGIC: &str = "tidepool-metastore 1";

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
        let dir = dir.into();
        disk.create_dir_all(&dir).map_err(io("create the directory", &dir))?;
        let path = dir.join(LOCK_FILE);
        let lock = disk.try_lock(&path).map_err(io("lock", &path))?;
        let lock = lock.ok_or(MetastoreError::InUse { path })?;
        // A process that was killed may have renamed without syncing. What is read now will be told to
        // others, so it must not be lost any more.
        disk.sync_dir(&dir).map_err(io("sync the directory", &dir))?;
        let mut store = Self { disk, dir, current: 0, tried: 0, _lock: lock };
        store.current = store.load()?.map_or(0, |found| found.revision);
        store.tried = store.current;
        Ok(store)
    }

    /// The file that holds the document.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(STATE_FILE)
    }
}

impl Metastore for FileMetastore {
    fn load(&mut self) -> Result<Option<Versioned>, MetastoreError> {
        let path = self.path();
        let bytes = self.disk.read(&path).map_err(io("read", &path))?;
        bytes.map(|bytes| decode(&path, &bytes)).transpose()
    }

    fn store(&mut self, expected: u64, document: &[u8]) -> Result<u64, MetastoreError> {
        let path = self.path();
        if expected != self.current {
            return Err(MetastoreError::Conflict { path, expected, found: self.current });
        }
        self.tried += 1;
        let revision = self.tried;
        let temp = self.dir.join(TEMP_FILE);
        let mut file = self.disk.create(&temp).map_err(io("create", &temp))?;
        file.write_all(header(revision, document).as_bytes()).map_err(io("write", &temp))?;
        file.write_all(document).map_err(io("write", &temp))?;
        file.sync().map_err(io("sync", &temp))?;
        drop(file);
        self.disk.rename(&temp, &path).map_err(io("replace", &path))?;
        self.disk.sync_dir(&self.dir).map_err(io("sync the directory", &self.dir))?;
        self.current = revision;
        Ok(revision)
    }
}

fn header(revision: u64, document: &[u8]) -> String {
    let (bytes, checksum) = (document.len(), checksum(revision, document));
    format!("{MAGIC} revision={revision} bytes={bytes} crc32c={checksum:08x}\n")
}

fn checksum(revision: u64, document: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&revision.to_le_bytes()), document)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Versioned, MetastoreError> {
    let corrupt =
        |problem: &str| MetastoreError::Corrupt { path: path.to_owned(), problem: problem.to_owned() };
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| corrupt("it has no header"))?;
    let (line, document) = (&bytes[..end], &bytes[end + 1..]);
    let line = std::str::from_utf8(line).map_err(|_| corrupt("its header is not text"))?;
    let fields = line.strip_prefix(MAGIC).ok_or_else(|| corrupt("its header is not ours"))?;
    let revision = fields
        .split(' ')
        .find_map(|field| field.strip_prefix("revision="))
        .and_then(|text| text.parse::<u64>().ok())
        .ok_or_else(|| corrupt("its header has no revision"))?;
    // The header is made again and must be the same: so length, checksum and their spelling are checked at once.
    if header(revision, document).as_bytes() != &bytes[..=end] {
        return Err(corrupt("its length or checksum is not what its header says"));
    }
    Ok(Versioned { revision, document: document.to_vec() })
}

/// For `map_err`: "could not `tried` `path`".
fn io(tried: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> MetastoreError {
    let path = path.to_owned();
    move |source| MetastoreError::Io { tried, path, source }
}
