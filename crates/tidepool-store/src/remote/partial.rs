//! A file on its way in: beside its place, under a name that no reader looks at, with a journal of the ranges that
//! have come. A process that is killed goes on from there; what the journal says is held against the file first.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, flock, fstatvfs},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::StoreError,
    publish::{create_dirs, sync_dir},
};

/// For whoever holds the file: a fetch that was broken off in this process lets go of it soon.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Which object it is that comes, and in what pieces: the first line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Object {
    /// What the store tells it from its other contents by.
    pub(super) identity: String,
    pub(super) file_bytes: u64,
    pub(super) range_bytes: u64,
}

impl Object {
    pub(super) fn ranges(&self) -> u64 {
        self.file_bytes.div_ceil(self.range_bytes)
    }

    pub(super) fn range(&self, index: u64) -> Range<u64> {
        let start = index * self.range_bytes;
        start..(start + self.range_bytes).min(self.file_bytes)
    }
}

/// The file. Only one process at a time has it.
#[derive(Debug)]
pub(super) struct Partial {
    object: Object,
    target: PathBuf,
    path: PathBuf,
    journal_path: PathBuf,
    file: File,
    journal: Mutex<File>,
}

/// What `target` is called until it is whole, and where its journal is.
pub(crate) fn beside(target: &Path) -> (PathBuf, PathBuf) {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    (target.with_file_name(format!(".{name}.fetch")), target.with_file_name(format!(".{name}.ranges")))
}

impl Partial {
    /// Opens what there is of `target` by now, or begins it, and gives the ranges that are still to come.
    /// Ranges that the journal has and that are not as it says come again; so does all of it when it is of another
    /// object. Room for the whole file is made at once. Blocks.
    pub(super) fn open(target: &Path, object: Object) -> Result<(Self, Vec<u64>), StoreError> {
        if let Some(dir) = target.parent() {
            create_dirs(dir)?;
        }
        let (path, journal_path) = beside(target);
        let file = lock(&path)?;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let io = |tried| StoreError::io(tried, &journal_path);
        let mut journal = options.open(&journal_path).map_err(io("open"))?;
        let mut text = String::new();
        // What is no text is no journal of ours.
        let _ = journal.read_to_string(&mut text);
        // A line that was being written when the process died would run into the next one.
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        journal.set_len(text.len() as u64).map_err(io("cut"))?;
        let done = read_journal(&text, &object);
        let mut missing: Vec<u64> = Vec::new();
        let mut known: Vec<Option<u32>> = vec![None; usize::try_from(object.ranges()).unwrap_or(0)];
        for &(index, crc) in done.iter().flatten() {
            if let Some(entry) = usize::try_from(index).ok().and_then(|at| known.get_mut(at)) {
                *entry = Some(crc);
            }
        }
        for (index, crc) in (0..).zip(known) {
            let is_there =
                crc.is_some_and(|crc| checksum(&file, object.range(index)).is_ok_and(|c| c == crc));
            if !is_there {
                missing.push(index);
            }
        }
        if done.is_none() || missing.len() as u64 == object.ranges() {
            file.set_len(0).map_err(StoreError::io("empty", &path))?;
            journal.set_len(0).map_err(io("empty"))?;
            let mut line = serde_json::to_vec(&object)
                .map_err(|source| StoreError::Syntax { path: journal_path.clone(), source })?;
            line.push(b'\n');
            journal.write_all(&line).map_err(|e| full_or(e, "write", &journal_path, &file, 0))?;
        }
        let partial = Self {
            object,
            target: target.to_owned(),
            path,
            journal_path,
            file,
            journal: Mutex::new(journal),
        };
        if let Err(error) = partial.make_room() {
            if missing.len() as u64 == partial.object.ranges() {
                // Nothing has come that would be worth its room.
                partial.discard()?;
            }
            return Err(error);
        }
        Ok((partial, missing))
    }

    /// Has the file system set the whole file's blocks aside, so that a full disk is known before anything comes.
    fn make_room(&self) -> Result<(), StoreError> {
        let bytes = self.object.file_bytes;
        let look = StoreError::io("look at", &self.path);
        let needed = bytes.saturating_sub(self.file.metadata().map_err(look)?.blocks() * 512);
        if needed == 0 {
            return Ok(());
        }
        let free = free_bytes(&self.file).map_err(StoreError::io("ask for the free room of", &self.path))?;
        if needed > free {
            return Err(StoreError::DiskFull { path: self.target.clone(), needed, free });
        }
        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // The file system has no such call: it is found out on the way, then.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self
                .file
                .set_len(bytes)
                .map_err(|e| full_or(e, "make room for", &self.target, &self.file, needed)),
            Err(error) => Err(full_or(error.into(), "make room for", &self.target, &self.file, needed)),
        }
    }

    /// Puts a range in its place, on the disk and out of the page cache: what comes in must not push out what is
    /// being served. Blocks.
    pub(super) fn write(&self, index: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let range = self.object.range(index);
        let length = bytes.len() as u64;
        let failed = |e| full_or(e, "write", &self.path, &self.file, length);
        self.file.write_all_at(bytes, range.start).map_err(failed)?;
        // Only clean pages are let go of.
        self.file.sync_data().map_err(failed)?;
        drop_cached(&self.file, &range);
        let line = format!("{index} {:08x}\n", crc32c::crc32c(bytes));
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal
            .write_all(line.as_bytes())
            .map_err(|e| full_or(e, "write", &self.journal_path, &self.file, length))
    }

    /// Where it lies for now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name. It is on the disk before. Blocks.
    pub(super) fn keep(self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(StoreError::io("sync", &self.path))?;
        fs::rename(&self.path, &self.target)
            .map_err(StoreError::io("rename the fetched file to", &self.target))?;
        fs::remove_file(&self.journal_path).map_err(StoreError::io("remove", &self.journal_path))?;
        self.target.parent().map_or(Ok(()), sync_dir)
    }

    /// Takes it away. Blocks.
    pub(super) fn discard(&self) -> Result<(), StoreError> {
        for path in [&self.journal_path, &self.path] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(StoreError::io("remove", path)(e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Opens the file for this process alone.
fn lock(path: &Path) -> Result<File, StoreError> {
    let begun = Instant::now();
    loop {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(StoreError::io("open", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Whoever had it may have renamed or removed it in the meantime.
            Ok(()) if is_still_at(&file, path) => return Ok(file),
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_TIMEOUT => {
                thread::sleep(Duration::from_millis(20))
            }
            Err(Errno::WOULDBLOCK) => return Err(StoreError::Busy { path: path.to_owned() }),
            Err(error) => return Err(StoreError::io("lock", path)(error.into())),
        }
    }
}

fn is_still_at(file: &File, path: &Path) -> bool {
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(place), fs::metadata(path).map(place)), (Ok(a), Ok(b)) if a == b)
}

/// The ranges that a journal says are there, with their checksums; `None` when it is of another object.
fn read_journal(text: &str, object: &Object) -> Option<Vec<(u64, u32)>> {
    let mut lines = text.lines();
    let of: Object = serde_json::from_str(lines.next()?).ok()?;
    if of != *object {
        return None;
    }
    let entry = |line: &str| {
        let (index, crc) = line.split_once(' ')?;
        Some((index.parse().ok()?, u32::from_str_radix(crc, 16).ok()?))
    };
    Some(lines.filter_map(entry).collect())
}

fn checksum(file: &File, range: Range<u64>) -> io::Result<u32> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, range.start)?;
    drop_cached(file, &range);
    Ok(crc32c::crc32c(&bytes))
}

/// It is only advice: what does not follow it keeps pages.
fn drop_cached(file: &File, range: &Range<u64>) {
    let length = std::num::NonZeroU64::new(range.end - range.start);
    let _ = fadvise(file, range.start, length, Advice::DontNeed);
}

fn free_bytes(file: &File) -> io::Result<u64> {
    let stat = fstatvfs(file)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A full disk by its own name, with the numbers; everything else as it is.
fn full_or(error: io::Error, tried: &'static str, path: &Path, on: &File, needed: u64) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            StoreError::DiskFull { path: path.to_owned(), needed, free: free_bytes(on).unwrap_or(0) }
        }
        _ => StoreError::io(tried, path)(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(identity: &str) -> Object {
        Object { identity: identity.into(), file_bytes: 250, range_bytes: 100 }
    }

    #[test]
    fn what_has_come_is_known_again_and_what_was_altered_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/part");
        let (partial, missing) = Partial::open(&target, object("x")).unwrap();
        assert_eq!(missing, [0, 1, 2]);
        partial.write(1, &[1; 100]).unwrap();
        partial.write(2, &[2; 50]).unwrap();
        let path = partial.path().to_owned();
        drop(partial);

        // A line that was cut off by a crash, and a range whose bytes never reached the disk.
        let mut journal = OpenOptions::new().append(true).open(beside(&target).1).unwrap();
        journal.write_all(b"0 12").unwrap();
        let (partial, missing) = Partial::open(&target, object("x")).unwrap();
        assert_eq!(missing, [0]);
        drop(partial);
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[9], 150).unwrap();
        let (partial, missing) = Partial::open(&target, object("x")).unwrap();
        assert_eq!(missing, [0, 1]);
        drop(partial);

        // Of another object, nothing is taken over.
        let (partial, missing) = Partial::open(&target, object("y")).unwrap();
        assert_eq!(missing, [0, 1, 2]);
        (0..3).for_each(|i| partial.write(i, &[7; 100][..if i == 2 { 50 } else { 100 }]).unwrap());
        assert!(!target.exists(), "it has no name before it is kept");
        partial.keep().unwrap();
        assert_eq!(fs::read(&target).unwrap(), [7; 250]);
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_cannot_fit_is_refused_with_the_numbers_before_anything_comes() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("part");
        let huge = Object { identity: "x".into(), file_bytes: 1 << 60, range_bytes: 1 << 59 };
        let error = Partial::open(&target, huge).unwrap_err();
        let StoreError::DiskFull { path, needed, free } = &error else { panic!("{error:?}") };
        assert_eq!((path, *needed), (&target, 1 << 60));
        assert!(*free < 1 << 60 && error.to_string().contains(&free.to_string()), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it leaves nothing behind");
    }

    #[test]
    fn who_has_it_has_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("part");
        let (held, _) = Partial::open(&target, object("x")).unwrap();
        let waits = thread::spawn({
            let target = target.clone();
            move || Partial::open(&target, object("x")).map(|(_, missing)| missing)
        });
        thread::sleep(Duration::from_millis(50));
        held.write(0, &[3; 100]).unwrap();
        drop(held);
        assert_eq!(waits.join().unwrap().unwrap(), [1, 2], "it comes after, and sees what was done");
    }
}
