//! The folder in which compiled kernels are kept: what is written there, what is taken from there, and what goes when it is
//! too much.
//!
//! Any number of processes may share it, and be killed at any time. A file comes into its place whole and is never changed;
//! whoever finds one gone, or not as it was written, makes it anew. There is no list beside the files: which were used
//! last, their times say.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use xxhash_rust::xxh3::xxh3_64;

/// The first line of a kept file: what it is, then the hash of the PTX behind it.
const MAGIC: &str = "// tidepool ptx 1 ";
/// What a file's name ends with.
const EXTENSION: &str = "ptx";
/// How long a file that never came into its place is left to whoever writes it.
const WRITING: Duration = Duration::from_secs(3600);

/// How many names are tried for a file that is written.
const MOST_NAMES: u32 = 16;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// A model takes one to three files of some hundred KiB at most, and another set of them for every version of NVRTC.
pub(crate) const LIMITS: Limits = Limits { files: 512, bytes: 256 << 20 };

/// The path of what has this key.
pub(crate) fn path_of(folder: &Path, key: u128) -> PathBuf {
    folder.join(format!("{key:032x}.{EXTENSION}"))
}

/// The PTX of a kept file; nothing when there is none, or when it is not what was written: then it is made anew.
pub(crate) fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (line, ptx) = text.split_once('\n')?;
    let hash = u64::from_str_radix(line.strip_prefix(MAGIC)?, 16).ok()?;
    if xxh3_64(ptx.as_bytes()) != hash {
        return None;
    }
    // Used now: it goes last. In a folder that may only be read nothing goes.
    let _ = fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    Some(ptx.to_owned())
}

/// Writes it beside its place and moves it there: a reader, also of another process, sees all of it or nothing.
pub(crate) fn write(path: &Path, ptx: &str) -> io::Result<()> {
    let (mut file, beside) = beside(path)?;
    let mut fill = || {
        write!(file, "{MAGIC}{:016x}\n{ptx}", xxh3_64(ptx.as_bytes()))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    fill().inspect_err(|_| {
        // Half a file is of no use; it may not even be there.
        let _ = fs::remove_file(&beside);
    })
}

/// A new file beside the place. Processes of two containers that share the folder may have the same number, and threads of the
/// same numbers, so the time is in its name, and a name that is taken is somebody else's.
fn beside(path: &Path) -> io::Result<(fs::File, PathBuf)> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let (process, thread) = (std::process::id(), thread_number());
    let mut number = 0u32;
    loop {
        let beside = path.with_extension(format!("{EXTENSION}.{process}.{thread:x}.{since:x}.{number}"));
        match fs::File::options().write(true).create_new(true).open(&beside) {
            Ok(file) => return Ok((file, beside)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < MOST_NAMES => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Takes away what was not used for longest, until no more is kept than may be, and what whoever was killed while writing has
/// left. What is at `latest` stays, and so do files that are none of these.
pub(crate) fn prune(folder: &Path, latest: &Path, limits: Limits) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Another process may have taken it away meanwhile, here and below.
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        match kind(&path) {
            _ if !about.is_file() => {}
            Kind::Kept => kept.push((used, about.len(), path)),
            // A clock that was set back says nothing of its age.
            Kind::Beside if used.elapsed().is_ok_and(|age| age > WRITING) => removed(&path)?,
            Kind::Beside | Kind::Other => {}
        }
    }
    kept.sort();
    let (mut files, mut bytes) = (kept.len(), kept.iter().map(|(_, bytes, _)| bytes).sum::<u64>());
    for (_, size, path) in kept.iter().filter(|(_, _, path)| path != latest) {
        if files <= limits.files && bytes <= limits.bytes {
            break;
        }
        removed(path)?;
        files -= 1;
        bytes -= size;
    }
    Ok(())
}

/// What a file of the folder is, by its name.
enum Kind {
    /// Compiled kernels.
    Kept,
    /// Such a file before it came into its place.
    Beside,
    /// Nobody knows.
    Other,
}

fn kind(path: &Path) -> Kind {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((key, rest)) = name.split_once('.') else { return Kind::Other };
    let is_key = key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit());
    match rest.split_once('.') {
        None if is_key && rest == EXTENSION => Kind::Kept,
        Some((EXTENSION, _)) if is_key => Kind::Beside,
        _ => Kind::Other,
    }
}

fn removed(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Differs between the threads of a process.
fn thread_number() -> u64 {
    xxh3_64(format!("{:?}", std::thread::current().id()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_taken_only_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.ptx");
        assert_eq!(read(&path), None);
        write(&path, ".version 8.4\n").unwrap();
        assert_eq!(read(&path).as_deref(), Some(".version 8.4\n"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x02;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(read(&path), None, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(read(&path), None, "cut at {at}");
        }
    }

    #[test]
    fn two_that_write_the_same_file_do_so_in_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(folder.path(), 1);
        let found = [beside(&path).unwrap().1, beside(&path).unwrap().1];
        assert!(
            found[0] != found[1] && found.iter().all(|path| matches!(kind(path), Kind::Beside)),
            "{found:?}"
        );
    }

    #[test]
    fn what_cannot_be_kept_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        // A folder stands where the file is to go.
        let path = folder.path().join("k.ptx");
        fs::create_dir(&path).unwrap();
        write(&path, ".version 8.4\n").unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let aged = |path: &Path, seconds: u64| {
            let file = fs::File::options().append(true).open(path).unwrap();
            file.set_modified(now - Duration::from_secs(seconds)).unwrap();
        };
        let path = |key: u128| path_of(folder.path(), key);
        for key in 0..6 {
            write(&path(key), "0123456789").unwrap();
            aged(&path(key), 1000 - key as u64);
        }
        let there = || (0..6).filter(|key| path(*key).exists()).collect::<Vec<_>>();
        let size = fs::metadata(path(0)).unwrap().len();
        // The oldest is used, and so is the newest of all.
        assert!(read(&path(0)).is_some());
        prune(folder.path(), &path(5), Limits { files: 4, bytes: u64::MAX }).unwrap();
        assert_eq!(there(), [0, 3, 4, 5]);
        prune(folder.path(), &path(3), Limits { files: 9, bytes: 3 * size }).unwrap();
        assert_eq!(there(), [0, 3, 5], "what was just written stays, though it is the oldest");
        prune(folder.path(), &path(3), Limits { files: 0, bytes: 0 }).unwrap();
        assert_eq!(there(), [3]);
    }

    #[test]
    fn what_is_no_kernel_stays_and_what_was_never_finished_goes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, age: u64| {
            let path = folder.path().join(name);
            fs::write(&path, "x").unwrap();
            let file = fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            path
        };
        let key = "0123456789abcdef0123456789abcdef";
        let writing = file(&format!("{key}.ptx.77.1"), 10);
        let left = file(&format!("{key}.ptx.78.1"), 100_000);
        let others = ["notes.txt", "short.ptx", &format!("{key}.ptx2")].map(|name| file(name, 100_000));
        fs::create_dir(path_of(folder.path(), 1)).unwrap();
        prune(folder.path(), &path_of(folder.path(), 2), Limits { files: 0, bytes: 0 }).unwrap();
        assert!(writing.exists() && !left.exists() && others.iter().all(|path| path.exists()));
        assert!(path_of(folder.path(), 1).exists());
    }

    /// As many processes would, each with keys of its own and some that they share.
    #[test]
    fn many_may_share_a_folder_that_is_too_small_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { files: 3, bytes: u64::MAX };
        std::thread::scope(|scope| {
            for writer in 0..4u128 {
                let folder = folder.path();
                scope.spawn(move || {
                    for round in 0..40 {
                        let key = if round % 2 == 0 { round } else { writer << 64 | round };
                        let (path, ptx) = (path_of(folder, key), format!("{key}"));
                        if let Some(found) = read(&path) {
                            assert_eq!(found, ptx);
                            continue;
                        }
                        write(&path, &ptx).unwrap();
                        prune(folder, &path, limits).unwrap();
                    }
                });
            }
        });
        let latest = path_of(folder.path(), 1 << 100);
        write(&latest, "last").unwrap();
        prune(folder.path(), &latest, limits).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
