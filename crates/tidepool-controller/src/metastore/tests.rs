//! Crashes of the file metastore, on a disk in memory that forgets what was not synced.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::*;

/// Splitmix64: enough to draw the outcomes of a crash, and the same on every machine.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        tidepool_types::mix64(self.0)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    now: Vec<u8>,
    /// What a crash leaves for certain; `None` while nothing was ever synced.
    synced: Option<Vec<u8>>,
}

/// A change of the directory that is not lasting yet: this name stands for this inode from now on, and the
/// other name, if any, for none.
#[derive(Clone, Debug)]
struct Change {
    name: PathBuf,
    inode: usize,
    gone: Option<PathBuf>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    now: BTreeMap<PathBuf, usize>,
    synced: BTreeMap<PathBuf, usize>,
    pending: Vec<Change>,
    locked: bool,
    calls: usize,
    /// The power goes at this call.
    crash_at: Option<usize>,
    draw: Option<Draw>,
    off: bool,
    /// A disk that says it has synced and has not.
    lies: bool,
}

#[derive(Clone, Default)]
struct MemoryDisk(Arc<Mutex<State>>);

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// One I/O call. At the crash it is done or not, as drawn, and nothing works any more.
    fn call(&self, act: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.state();
        let off = || io::Error::new(ErrorKind::BrokenPipe, "the power is gone");
        if state.off {
            return Err(off());
        }
        state.calls += 1;
        if state.crash_at == Some(state.calls) {
            state.off = true;
            if state.draw.as_mut().is_some_and(Draw::coin) {
                act(&mut state);
            }
            return Err(off());
        }
        act(&mut state);
        Ok(())
    }

    /// The machine starts again: what was not synced is there, or not, or torn.
    fn power_on(&self, draw: &mut Draw) {
        let mut state = self.state();
        let mut names = state.synced.clone();
        for change in std::mem::take(&mut state.pending) {
            if draw.coin() {
                if let Some(gone) = &change.gone {
                    names.remove(gone);
                }
                names.insert(change.name, change.inode);
            }
        }
        for inode in &mut state.inodes {
            let kept = match (draw.next() % 4, inode.synced.clone()) {
                (0, synced) => synced.unwrap_or_default(),
                (1, _) => inode.now.clone(),
                (2, _) => inode.now[..draw.next() as usize % (inode.now.len() + 1)].to_vec(),
                _ => {
                    let from = draw.next() as usize % (inode.now.len() + 1);
                    let mut torn = inode.now.clone();
                    torn[from..].fill(0);
                    torn
                }
            };
            // Synced content is safe as long as nothing was written after it.
            let safe = inode.synced.as_ref() == Some(&inode.now);
            let kept = if safe { inode.now.clone() } else { kept };
            *inode = Inode { now: kept.clone(), synced: Some(kept) };
        }
        state.synced.clone_from(&names);
        state.now = names;
        state.locked = false;
        state.off = false;
        state.crash_at = None;
    }

    /// The process is killed, the machine goes on: nothing is lost, nothing is lasting that was not.
    fn kill(&self) {
        self.state().locked = false;
    }

    fn crash_after(&self, calls: usize, seed: u64) {
        let mut state = self.state();
        state.crash_at = Some(state.calls + calls);
        state.draw = Some(Draw(seed));
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    inode: usize,
}

impl DiskFile for MemoryFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.call(|state| state.inodes[self.inode].now.extend_from_slice(bytes))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.call(|state| {
            if !state.lies {
                let inode = &mut state.inodes[self.inode];
                inode.synced = Some(inode.now.clone());
            }
        })
    }
}

struct Lock(MemoryDisk);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        self.call(|_| {})
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.call(|_| {})?;
        let state = self.state();
        Ok(state.now.get(path).map(|inode| state.inodes[*inode].now.clone()))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut inode = 0;
        self.call(|state| match state.now.get(path) {
            Some(found) => {
                inode = *found;
                state.inodes[inode].now.clear();
            }
            None => {
                inode = state.inodes.len();
                state.inodes.push(Inode::default());
                state.now.insert(path.to_owned(), inode);
                state.pending.push(Change { name: path.to_owned(), inode, gone: None });
            }
        })?;
        Ok(Box::new(MemoryFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(|state| {
            let inode = state.now.remove(from).unwrap();
            state.now.insert(to.to_owned(), inode);
            state.pending.push(Change { name: to.to_owned(), inode, gone: Some(from.to_owned()) });
        })
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.call(|state| {
            if !state.lies {
                state.synced = state.now.clone();
                state.pending.clear();
            }
        })
    }

    fn try_lock(&self, _: &Path) -> io::Result<Option<DiskLock>> {
        let mut state = self.state();
        if std::mem::replace(&mut state.locked, true) {
            return Ok(None);
        }
        drop(state);
        Ok(Some(Box::new(Lock(self.clone()))))
    }
}

fn open(disk: &MemoryDisk) -> Result<FileMetastore, MetastoreError> {
    FileMetastore::open(Box::new(disk.clone()), "/state")
}

/// What is there after the power came back; the state must be readable, whatever happened.
fn recovered(disk: &MemoryDisk) -> Option<Versioned> {
    open(disk).unwrap().load().unwrap()
}

/// Documents of several lengths, so that a torn mix of two would show.
fn document(number: usize) -> Vec<u8> {
    format!("document {number} ").repeat(number * 7 + 1).into_bytes()
}

const WRITES: usize = 3;

/// Stores documents until the power goes, if it does. Gives the last one whose storing returned.
fn write(disk: &MemoryDisk, from: usize) -> Option<usize> {
    let mut stored = None;
    let Ok(mut store) = open(disk) else { return None };
    let mut revision = store.load().ok()?.map_or(0, |found| found.revision);
    for number in from..from + WRITES {
        match store.store(revision, &document(number)) {
            Ok(new) => {
                assert!(new > revision);
                (revision, stored) = (new, Some(number));
            }
            Err(_) => break,
        }
    }
    stored
}

/// Runs writers with a crash at call `at`, on a disk that is honest or not. Fails as the test would.
fn crash_once(at: usize, seed: u64, lies: bool) -> Result<bool, String> {
    let disk = MemoryDisk::default();
    let mut draw = Draw(seed ^ 0xabcd);
    assert_eq!(write(&disk, 0), Some(WRITES - 1));
    disk.state().lies = lies;
    disk.crash_after(at, seed);
    let first = write(&disk, WRITES);
    let crashed = disk.state().off;
    disk.power_on(&mut draw);
    let last_stored = first.unwrap_or(WRITES - 1);
    let check = |found: Option<Versioned>, last: usize| match found {
        Some(found) if found.document == document(last) || found.document == document(last + 1) => Ok(found),
        other => Err(format!("call {at}, seed {seed}: stored {last}, found {other:?}")),
    };
    let found = open(&disk).and_then(|mut store| store.load()).map_err(|e| format!("call {at}: {e}"))?;
    let found = check(found, last_stored)?;
    // What was read is not taken back by another crash, and the next writer goes on from it.
    disk.power_on(&mut draw);
    assert_eq!(recovered(&disk), Some(found.clone()));
    let second = write(&disk, 100).unwrap();
    disk.kill();
    assert_eq!(recovered(&disk).unwrap().document, document(second));
    assert!(recovered(&disk).unwrap().revision > found.revision);
    Ok(crashed)
}

#[test]
fn after_a_crash_at_any_call_the_state_is_the_old_one_or_the_new_one() {
    let mut at = 1;
    loop {
        let mut crashed = false;
        for seed in 0..64 {
            crashed = crash_once(at, seed, false).unwrap();
        }
        if !crashed {
            break;
        }
        at += 1;
    }
    // Opening is four calls, each of the three writes five.
    assert!(at > 4 + 5 * WRITES, "only {at} calls were crashed");
}

#[test]
fn the_crash_test_finds_a_disk_that_does_not_sync() {
    let lost = (1..30).any(|at| (0..64).any(|seed| crash_once(at, seed, true).is_err()));
    assert!(lost);
}

/// A killed process may have renamed and not synced; the next one reads that, tells others, and then the
/// power goes.
#[test]
fn what_was_read_after_a_kill_survives_the_power_going() {
    let mut unsynced = 0;
    for seed in 0..64 {
        let disk = MemoryDisk::default();
        write(&disk, 0);
        let mut store = open(&disk).unwrap();
        let revision = store.load().unwrap().unwrap().revision;
        // The fifth call is the syncing of the directory.
        disk.crash_after(5, seed);
        assert!(store.store(revision, &document(10)).is_err());
        drop(store);
        disk.state().off = false;
        disk.state().crash_at = None;
        unsynced += disk.state().pending.len();
        let read = recovered(&disk);
        assert_eq!(read.as_ref().unwrap().document, document(10));
        disk.power_on(&mut Draw(seed));
        assert_eq!(recovered(&disk), read, "seed {seed}");
    }
    assert!(unsynced > 0, "no run was killed between the two");
}

#[test]
fn a_failed_store_can_be_tried_again() {
    let disk = MemoryDisk::default();
    let mut store = open(&disk).unwrap();
    let first = store.store(0, b"one").unwrap();
    disk.crash_after(4, 0);
    assert!(matches!(store.store(first, b"two"), Err(MetastoreError::Io { .. })));
    disk.state().off = false;
    disk.state().crash_at = None;
    let third = store.store(first, b"three").unwrap();
    assert!(third > first + 1, "the revision of the failed one is not used again");
    assert_eq!(store.load().unwrap(), Some(Versioned { revision: third, document: b"three".to_vec() }));
    let stale = store.store(first, b"four").unwrap_err();
    assert!(
        matches!(stale, MetastoreError::Conflict { expected, found, .. } if (expected, found) == (first, third))
    );
}

#[test]
fn on_a_real_disk_it_comes_back_locks_and_every_flipped_bit_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("a").join("b c");
    let open = || FileMetastore::open(Box::new(RealDisk), &dir);
    let mut store = open().unwrap();
    assert_eq!(store.load().unwrap(), None);
    store.store(0, b"{\"a\": 1}").unwrap();
    assert!(matches!(open(), Err(MetastoreError::InUse { path }) if path.starts_with(&dir)));
    drop(store);
    let mut store = open().unwrap();
    let found = store.load().unwrap().unwrap();
    assert_eq!((found.revision, &found.document[..]), (1, &b"{\"a\": 1}"[..]));
    let path = store.path();
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error, MetastoreError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
    };
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            refused(&flipped);
        }
        refused(&whole[..at]);
    }
    refused(&[&whole[..], b"x"].concat());
}
