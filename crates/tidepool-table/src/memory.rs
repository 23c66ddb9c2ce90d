//! How much memory this process may take in all, and how much of it is left: what the machine has, and what the
//! control groups that it is in allow.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::mmap::lock_limit_bytes;

/// What there is room for, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    /// For people: whose limit it is, and how it is raised.
    pub(crate) limit: String,
}

/// All the memory that there is for this process, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// How much.
    pub bytes: u64,
    /// For people: the file that says it.
    pub said_by: String,
}

/// The least of what the machine has and what the control groups of this process allow; `None` where the system
/// does not tell. It may be changed while the process runs.
#[must_use]
pub fn memory_limit() -> Option<MemoryLimit> {
    let machine = meminfo("MemTotal:").map(|bytes| (bytes, "MemTotal in /proc/meminfo".to_owned()));
    let groups = own_group_dirs().into_iter().filter_map(|dir| {
        let group = GroupFiles::of(&dir)?;
        Some((group.limit, group.limit_file.display().to_string()))
    });
    let least = groups.chain(machine).min_by_key(|(bytes, _)| *bytes)?;
    Some(MemoryLimit { bytes: least.0, said_by: least.1 })
}

/// Bytes charged to the innermost control group of this process that counts them, page cache included. Other
/// processes may be in it.
#[must_use]
pub fn charged_bytes() -> Option<u64> {
    let read = |dir: PathBuf| GROUP_FILES.iter().find_map(|files| number(&dir.join(files.used)));
    own_group_dirs().into_iter().find_map(read)
}

/// How many bytes this process may lock; `None` for no limit: none is set, or the process has the capability
/// `IPC_LOCK`, for which the kernel asks no limit.
#[must_use]
pub fn lockable_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if has_capability(&status, CAP_IPC_LOCK) { None } else { lock_limit_bytes() }
}

/// The least of all limits; `None` where the system tells none.
pub(crate) fn room() -> Option<Room> {
    let system = meminfo("MemAvailable:")
        .map(|bytes| Room { bytes, limit: "the machine's (MemAvailable in /proc/meminfo)".into() });
    own_group_dirs()
        .into_iter()
        .filter_map(|dir| group_room(&dir))
        .chain(system)
        .min_by_key(|room| room.bytes)
}

/// Memory that nobody uses for anything, not even for the page cache.
pub(crate) fn unused_bytes() -> Option<u64> {
    meminfo("MemFree:")
}

fn meminfo(word: &str) -> Option<u64> {
    value_of(&fs::read_to_string("/proc/meminfo").ok()?, word)?.checked_mul(1024)
}

/// The number after a word that begins a line.
fn value_of(text: &str, word: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(word)).then(|| words.next()?.parse().ok())?)
}

/// The folders of the groups that can limit memory, given `/proc/self/cgroup`: version 2 and the memory
/// controller of version 1, from the process upwards.
fn group_dirs(groups: &str, root: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let root = match controllers {
            "" => root.to_owned(),
            _ if controllers.split(',').any(|controller| controller == "memory") => root.join("memory"),
            _ => continue,
        };
        // In a container the path may be one that is seen from outside only: the root is its group then.
        let path = path.trim_start_matches('/');
        dirs.extend(Path::new(path).ancestors().map(|path| root.join(path)));
    }
    dirs
}

fn own_group_dirs() -> Vec<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    group_dirs(&groups, Path::new("/sys/fs/cgroup"))
}

/// How the files of a group are called, and a line of its statistics.
struct Names {
    limit: &'static str,
    used: &'static str,
    inactive: &'static str,
}

/// In version 2, and in version 1.
const GROUP_FILES: [Names; 2] = [
    Names { limit: "memory.max", used: "memory.current", inactive: "inactive_file" },
    Names { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", inactive: "total_inactive_file" },
];

/// The limit of a group that has one.
struct GroupFiles {
    names: &'static Names,
    limit: u64,
    limit_file: PathBuf,
}

impl GroupFiles {
    fn of(dir: &Path) -> Option<Self> {
        GROUP_FILES.iter().find_map(|names| {
            let limit_file = dir.join(names.limit);
            // "max" is no number, and no limit.
            Some(Self { names, limit: number(&limit_file)?, limit_file })
        })
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What a group leaves of its limit. Page cache that it has not used lately makes room when it is needed.
fn group_room(dir: &Path) -> Option<Room> {
    let GroupFiles { names, limit, limit_file } = GroupFiles::of(dir)?;
    let used = number(&dir.join(names.used))?;
    let stat = fs::read_to_string(dir.join("memory.stat")).ok();
    let inactive = stat.and_then(|stat| value_of(&stat, names.inactive)).unwrap_or(0);
    Some(Room {
        bytes: limit.saturating_sub(used.saturating_sub(inactive)),
        limit: format!(
            "that of its control group: {limit} bytes in {}; raise it (MemoryMax= in a systemd unit, the memory \
             limit of a container)",
            limit_file.display()
        ),
    })
}

/// Its number among the kernel's capabilities.
const CAP_IPC_LOCK: u32 = 14;

/// Whether `/proc/self/status` says that a capability is in effect.
fn has_capability(status: &str, number: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> number & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_here() {
        let room = room().unwrap();
        assert!(room.bytes > 0 && !room.limit.is_empty(), "{room:?}");
        assert!(unused_bytes().is_some());
        let limit = memory_limit().unwrap();
        assert!(limit.bytes >= 1 << 20 && limit.said_by.contains('/'), "{limit:?}");
    }

    #[test]
    fn groups_are_looked_at_upwards_in_both_versions() {
        let groups = "12:cpu,cpuacct:/x\n4:memory:/a/b\n0::/c\n";
        let dirs = group_dirs(groups, Path::new("/g"));
        let expected = ["/g/memory/a/b", "/g/memory/a", "/g/memory/", "/g/c", "/g/"];
        assert_eq!(dirs, expected.map(PathBuf::from));
        assert!(group_dirs("nonsense\n", Path::new("/g")).is_empty());
    }

    #[test]
    fn a_group_leaves_what_is_not_used_and_what_was_not_used_lately() {
        let dir = tempfile::TempDir::new().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(group_room(dir.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(group_room(dir.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(group_room(dir.path()).unwrap().bytes, 300);
        write("memory.stat", "anon 5\ninactive_file 250\n");
        let room = group_room(dir.path()).unwrap();
        assert_eq!(room.bytes, 550);
        assert!(room.limit.contains("1000 bytes in") && room.limit.contains("MemoryMax="), "{}", room.limit);
        write("memory.current", "2000\n");
        assert_eq!(group_room(dir.path()).unwrap().bytes, 0);

        let old = tempfile::TempDir::new().unwrap();
        for (name, text) in [
            ("memory.limit_in_bytes", "1000"),
            ("memory.usage_in_bytes", "900"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
        ] {
            fs::write(old.path().join(name), text).unwrap();
        }
        assert_eq!(group_room(old.path()).unwrap().bytes, 200);
    }

    #[test]
    fn a_capability_is_a_bit() {
        let status = "CapPrm:\t0000000000000000\nCapEff:\t0000000000004000\n";
        assert!(has_capability(status, CAP_IPC_LOCK) && !has_capability(status, 13));
        assert!(!has_capability("CapEff:\t00000000a80425fb\n", CAP_IPC_LOCK), "that of a container");
        assert!(!has_capability("nonsense", CAP_IPC_LOCK));
    }
}
