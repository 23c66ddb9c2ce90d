//! How much memory this process may still take: what the system has available, and what the control groups
//! that it is in leave of their limits.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What there is room for, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    /// For people: whose limit it is, and how it is raised.
    pub(crate) limit: String,
}

/// The least of all limits; `None` where the system tells none.
pub(crate) fn room() -> Option<Room> {
    let system = meminfo("MemAvailable:")
        .map(|bytes| Room { bytes, limit: "the machine's (MemAvailable in /proc/meminfo)".into() });
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = group_dirs(&groups, Path::new("/sys/fs/cgroup"));
    groups.into_iter().filter_map(|dir| group_room(&dir)).chain(system).min_by_key(|room| room.bytes)
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

/// What a group leaves of its limit. Page cache that it has not used lately makes room when it is needed.
fn group_room(dir: &Path) -> Option<Room> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let files = [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ];
    let (limit_file, (limit, used, inactive)) = files.into_iter().find_map(|(limit, used, inactive)| {
        // "max" is no number, and no limit.
        Some((limit, (read(limit)?.trim().parse::<u64>().ok()?, read(used)?, inactive)))
    })?;
    let used: u64 = used.trim().parse().ok()?;
    let inactive = read("memory.stat").and_then(|stat| value_of(&stat, inactive)).unwrap_or(0);
    let limit_file = dir.join(limit_file);
    Some(Room {
        bytes: limit.saturating_sub(used.saturating_sub(inactive)),
        limit: format!(
            "that of its control group: {limit} bytes in {}; raise it (MemoryMax= in a systemd unit, the memory \
             limit of a container)",
            limit_file.display()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_here() {
        let room = room().unwrap();
        assert!(room.bytes > 0 && !room.limit.is_empty(), "{room:?}");
        assert!(unused_bytes().is_some());
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
}
