//! What a node keeps in its own directory: the last assignment, and which partition files it has verified.
//! Losing any of it costs time, never answers.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tidepool_cluster::Assignment;

use crate::error::StartError;

/// Replaces `path` whole: after a crash the old content is there, or the new one.
fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(value)?;
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// The content of `path`; `None` when there is none, or none that can be read, which is logged.
fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let read = fs::read(path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
    match read {
        Ok(value) => Some(value),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "could not be read; going on without it");
            None
        }
    }
}

/// That a directory is this node's: held as long as the node may write there, and let go of by the kernel if the
/// process is killed.
#[derive(Debug)]
pub(crate) struct DataDir {
    _lock: File,
}

impl DataDir {
    /// Makes the directory if there is none, and takes it.
    ///
    /// # Errors
    /// [`StartError::DataDirTaken`] when another node has it, and [`StartError::DataDir`].
    pub(crate) fn take(path: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::DataDir { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let file = File::options().create(true).append(true).open(path.join("lock")).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _lock: file }),
            Err(TryLockError::WouldBlock) => Err(StartError::DataDirTaken { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// The assignment that the node worked on last.
#[derive(Debug)]
pub(crate) struct LastAssignment {
    path: PathBuf,
}

impl LastAssignment {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { path: data_dir.join("assignment.json") }
    }

    /// The one that was saved last, if its schemas are sound.
    pub(crate) fn read(&self) -> Option<Assignment> {
        let assignment: Assignment = read_json(&self.path)?;
        let outside = |t: &tidepool_cluster::TableAssignment| {
            t.partitions.iter().any(|p| p.0 >= t.schema.partitions.get())
        };
        for table in &assignment.tables {
            if table.schema.validate().is_err() || outside(table) {
                let table = &table.schema.table_version;
                tracing::warn!(path = %self.path.display(), %table, "contradicts itself; going on without it");
                return None;
            }
        }
        Some(assignment)
    }

    pub(crate) fn save(&self, assignment: &Assignment) -> io::Result<()> {
        write_json(&self.path, assignment)
    }
}

/// By what a file is known again. Who changes a file's bytes changes its time or length, unless they mean harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileIdentity {
    file_bytes: u64,
    modified_ns: u64,
    footer_crc32c: u32,
}

impl FileIdentity {
    /// Of the file at `path`, whose footer has this checksum.
    pub(crate) fn of(path: &Path, footer_crc32c: u32) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let modified = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified_ns = u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self { file_bytes: meta.len(), modified_ns, footer_crc32c })
    }
}

/// Which files have been verified here, so that they need not be again.
#[derive(Debug)]
pub(crate) struct VerifiedFiles {
    path: PathBuf,
    files: Mutex<BTreeMap<String, FileIdentity>>,
}

impl VerifiedFiles {
    pub(crate) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("verified.json");
        let files = Mutex::new(read_json(&path).unwrap_or_default());
        Self { path, files }
    }

    pub(crate) fn has(&self, file: &Path, identity: &FileIdentity) -> bool {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&*file.to_string_lossy()) == Some(identity)
    }

    /// Notes that a file was verified. It waits for the disk.
    pub(crate) fn add(&self, file: &Path, identity: FileIdentity) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        // Files that are gone need no memory; without this the record would grow for ever.
        files.retain(|path, _| Path::new(path).exists());
        files.insert(file.to_string_lossy().into_owned(), identity);
        if let Err(error) = write_json(&self.path, &*files) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "could not be written; files will be verified again after a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use tidepool_types::Epoch;

    use super::*;

    #[test]
    fn the_last_assignment_comes_back_and_garbage_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let last = LastAssignment::new(dir.path());
        assert_eq!(last.read(), None);
        for epoch in [4, 5] {
            let assignment = Assignment { epoch: Epoch(epoch), ..Assignment::default() };
            last.save(&assignment).unwrap();
            assert_eq!(last.read(), Some(assignment));
        }
        fs::write(dir.path().join("assignment.json"), "{\"epoch\": ").unwrap();
        assert_eq!(last.read(), None);
    }

    #[test]
    fn a_directory_is_one_nodes_until_it_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node");
        let first = DataDir::take(&path).unwrap();
        let refused = DataDir::take(&path).unwrap_err();
        assert!(matches!(&refused, StartError::DataDirTaken { path: named } if *named == path), "{refused}");
        assert!(refused.to_string().contains("data_dir"));
        drop(first);
        DataDir::take(&path).unwrap();
    }

    #[test]
    fn a_verified_file_is_known_again_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("part");
        fs::write(&file, "abc").unwrap();
        let identity = FileIdentity::of(&file, 7).unwrap();
        let verified = VerifiedFiles::open(dir.path());
        assert!(!verified.has(&file, &identity));
        verified.add(&file, identity.clone());
        let reopened = VerifiedFiles::open(dir.path());
        assert!(reopened.has(&file, &identity));
        assert!(!reopened.has(&file, &FileIdentity::of(&file, 8).unwrap()), "another footer");
        fs::write(&file, "abcd").unwrap();
        assert!(!reopened.has(&file, &FileIdentity::of(&file, 7).unwrap()), "another length");
    }
}
