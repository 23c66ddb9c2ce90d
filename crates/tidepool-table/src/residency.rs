//! Where the bytes lie that lookups read (in the file's map, locked, or copied), how they are brought into
//! memory ahead of the first lookup, and how many of them stand on huge pages.

use std::{
    fmt, fs, io,
    ops::{ControlFlow, Range},
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use thiserror::Error;

use crate::{
    memory,
    mmap::{HUGE_PAGE_BYTES, HugeMemory, MappedFile, lock_limit_bytes},
    pace::give_way,
    partition::PartitionFile,
};

/// Warm-up looks at the clock and at its progress this often.
const STEP_BYTES: usize = 16 << 20;

/// A copy gives way after so many bytes.
const COPY_BYTES: usize = 256 << 10;

/// From how many bytes of a version on huge pages are worth a copy: less fits the caches of the page tables.
pub const HUGE_WORTH_BYTES: u64 = 64 << 20;

/// What a copy leaves of the memory that there is: requests and page tables want some.
const LEFT_BYTES: u64 = 128 << 20;

/// Where the rows and the index of a partition are to lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// Mapped; copied when it turns out that the map has no huge pages and that the process holds enough of
    /// the version to miss them.
    #[default]
    Auto,
    /// In the map of the file.
    Mapped,
    /// In the map of the file, and the kernel may not take the pages away.
    Locked,
    /// Copied into anonymous memory on huge pages.
    Copied,
}

/// What a partition occupies of memory: of the bytes that lookups read, rows and index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// All of them.
    pub lookup_bytes: u64,
    /// Those in memory and in the page tables.
    pub resident_bytes: u64,
    /// Those on pages of 2 MiB.
    pub huge_page_bytes: u64,
    /// Those that could be on such pages: what is less than a page at either end cannot.
    pub huge_page_limit_bytes: u64,
}

/// Why a partition does not lie where it should.
#[derive(Debug, Error)]
pub enum ResidencyError {
    /// Reading ahead failed: the disk, or memory.
    #[error("bringing {path} into memory", path = path.display())]
    WarmUp {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Locking failed.
    #[error(
        "locking {bytes} bytes of {path}: {limit}; raise it (LimitMEMLOCK= in a systemd unit, ulimit -l in a \
         shell, the capability IPC_LOCK in a container), or choose another residency",
        path = path.display(),
        limit = limit.map_or_else(
            || "no limit is set (RLIMIT_MEMLOCK), so it is memory that lacks".to_owned(),
            |limit| format!("this process may lock {limit} bytes in all (RLIMIT_MEMLOCK)"),
        )
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// How much of it.
        bytes: u64,
        /// How much the process may lock in all, if there is a limit.
        limit: Option<u64>,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no memory for a copy, and it was not begun.
    #[error(
        "{path} was not copied: that takes {bytes} bytes, and the limit that leaves least is {limit}, which leaves \
         {room}; {LEFT_BYTES} are kept free. Give this process more memory or fewer partitions, or set residency to \
         mapped",
        path = path.display()
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// What the copy would take.
        bytes: u64,
        /// What there is.
        room: u64,
        /// Whose limit that is.
        limit: String,
    },
    /// The copy failed.
    #[error("copying {bytes} bytes of {path} into memory", path = path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// How much of it.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
}

impl PartitionFile {
    /// Reads all that lookups read into memory, at `bytes_per_second` or as fast as it goes, so that no
    /// lookup waits for the disk. `progress` is told the bytes done and the bytes in all, and may end it.
    /// Blocks.
    ///
    /// # Errors
    /// [`ResidencyError::WarmUp`]. Lookups work all the same.
    pub fn warm_up(
        &self,
        bytes_per_second: Option<u64>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(), ResidencyError> {
        let Some((map, ranges)) = self.mapped_ranges() else { return Ok(()) };
        let total = ranges.iter().map(|r| r.len() as u64).sum();
        let (begun, mut done) = (Instant::now(), 0);
        for range in ranges {
            let mut from = range.start;
            while from < range.end {
                // Steps end where huge pages do.
                let to = ((from + STEP_BYTES) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES).min(range.end);
                populate(map, from..to)
                    .map_err(|source| ResidencyError::WarmUp { path: self.path().to_owned(), source })?;
                done += (to - from) as u64;
                from = to;
                if progress(done, total).is_break() {
                    return Ok(());
                }
                if let Some(rate) = bytes_per_second.filter(|&rate| rate > 0) {
                    let due = Duration::from_secs_f64(done as f64 / rate as f64);
                    std::thread::sleep(due.saturating_sub(begun.elapsed()));
                }
            }
        }
        Ok(())
    }

    /// Keeps all that lookups read in memory until the file is dropped. Reads what is not there yet. Blocks.
    ///
    /// # Errors
    /// [`ResidencyError::Lock`] with the limit and what to do about it.
    pub fn lock(&self) -> Result<(), ResidencyError> {
        let Some((map, ranges)) = self.mapped_ranges() else { return Ok(()) };
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            let bytes = range.len() as u64;
            map.lock(range).map_err(|source| ResidencyError::Lock {
                path: self.path().to_owned(),
                bytes,
                limit: lock_limit_bytes(),
                source,
            })?;
        }
        Ok(())
    }

    /// The same partition with rows and index copied into anonymous memory, on huge pages if the kernel
    /// has any. The map stays for what lookups do not read; once nobody looks up in `self` any more,
    /// [`release_unread`](Self::release_unread) gives its memory back. Blocks.
    ///
    /// # Errors
    /// [`ResidencyError::NoRoom`] before anything is copied; [`ResidencyError::Copy`].
    pub fn to_copied(&self) -> Result<Self, ResidencyError> {
        self.check_room(memory::room())?;
        let copy = |bytes: &[u8]| {
            let copied = HugeMemory::zeros(bytes.len()).map(|mut memory| {
                for (to, from) in memory.chunks_mut(COPY_BYTES).zip(bytes.chunks(COPY_BYTES)) {
                    to.copy_from_slice(from);
                    give_way();
                }
                memory
            });
            copied.map_err(|source| ResidencyError::Copy {
                path: self.path().to_owned(),
                bytes: bytes.len() as u64,
                source,
            })
        };
        Ok(self.with_copy(copy(self.rows())?, copy(self.pilots())?, copy(self.remap())?))
    }

    fn check_room(&self, room: Option<memory::Room>) -> Result<(), ResidencyError> {
        let bytes = self.lookup_bytes();
        match room {
            Some(room) if room.bytes < bytes.saturating_add(LEFT_BYTES) => Err(ResidencyError::NoRoom {
                path: self.path().to_owned(),
                bytes,
                room: room.bytes,
                limit: room.limit,
            }),
            _ => Ok(()),
        }
    }

    /// Bytes that lookups read: rows and index.
    #[must_use]
    pub fn lookup_bytes(&self) -> u64 {
        self.lookup_addresses().iter().map(|range| range.len() as u64).sum()
    }

    /// What the partition occupies of memory, as of `smaps`.
    #[must_use]
    pub fn memory_use(&self, smaps: &Smaps) -> MemoryUse {
        let mut memory = MemoryUse::default();
        for range in self.lookup_addresses() {
            memory.lookup_bytes += range.len() as u64;
            let from = range.start.next_multiple_of(HUGE_PAGE_BYTES);
            let to = range.end / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
            memory.huge_page_limit_bytes += to.saturating_sub(from) as u64;
            smaps.add(&range, &mut memory);
        }
        memory
    }
}

impl MemoryUse {
    /// Whether lookups would be faster on huge pages, which these bytes of a partition do not have.
    /// `version_bytes` are those that the process holds of the version in all its partitions: it is the
    /// version whose rows compete for the caches of the page tables, however it is cut.
    #[must_use]
    pub fn lacks_huge_pages(&self, version_bytes: u64) -> bool {
        version_bytes >= HUGE_WORTH_BYTES && self.huge_page_bytes < self.huge_page_limit_bytes / 10 * 9
    }

    /// Whether huge pages would be worth it and the partition is cut too small to have many.
    #[must_use]
    pub fn is_too_small_for_huge_pages(&self, version_bytes: u64) -> bool {
        version_bytes >= HUGE_WORTH_BYTES && self.huge_page_limit_bytes < self.lookup_bytes / 2
    }
}

/// A huge page at a time, giving way in between: the kernel does not, within a call.
fn populate(map: &MappedFile, range: Range<usize>) -> io::Result<()> {
    let mut from = range.start;
    while from < range.end {
        let to = ((from + HUGE_PAGE_BYTES) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES).min(range.end);
        populate_at_once(map, from..to)?;
        give_way();
        from = to;
    }
    Ok(())
}

/// Where kernels do not know the call, pages are touched one by one.
fn populate_at_once(map: &MappedFile, range: Range<usize>) -> io::Result<()> {
    match map.populate(range.clone()) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let sum = map[range].iter().step_by(4096).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            std::hint::black_box(sum);
            Ok(())
        }
        result => result,
    }
}

/// What the kernel says of the memory of this process: `/proc/self/smaps` at one moment. Reading it takes
/// milliseconds per gigabyte on small pages, so it is read once for all partitions.
#[derive(Clone, Debug, Default)]
pub struct Smaps(Vec<Area>);

#[derive(Clone, Debug)]
struct Area {
    addresses: Range<usize>,
    resident_bytes: u64,
    huge_page_bytes: u64,
}

impl Smaps {
    /// Reads it.
    ///
    /// # Errors
    /// When there is no such file: another system than Linux, or no `/proc`.
    pub fn read() -> io::Result<Self> {
        fs::read_to_string("/proc/self/smaps").map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut areas: Vec<Area> = Vec::new();
        for line in text.lines() {
            let Some((word, rest)) = line.split_once(' ') else { continue };
            if let Some(addresses) = address_range(word) {
                areas.push(Area { addresses, resident_bytes: 0, huge_page_bytes: 0 });
            } else if let Some(area) = areas.last_mut() {
                let kilobytes = rest.trim().strip_suffix(" kB").and_then(|n| n.parse::<u64>().ok());
                let bytes = kilobytes.unwrap_or(0) << 10;
                match word {
                    "Rss:" => area.resident_bytes += bytes,
                    "AnonHugePages:" | "FilePmdMapped:" | "ShmemPmdMapped:" => area.huge_page_bytes += bytes,
                    _ => {}
                }
            }
        }
        Self(areas)
    }

    /// Adds what lies in `range`. Of an area that reaches beyond it, its share counts.
    fn add(&self, range: &Range<usize>, memory: &mut MemoryUse) {
        for area in &self.0 {
            let from = area.addresses.start.max(range.start);
            let to = area.addresses.end.min(range.end);
            if from < to {
                let share = |bytes: u64| {
                    let scaled = u128::from(bytes) * (to - from) as u128 / area.addresses.len() as u128;
                    u64::try_from(scaled).unwrap_or(u64::MAX)
                };
                memory.resident_bytes += share(area.resident_bytes);
                memory.huge_page_bytes += share(area.huge_page_bytes);
            }
        }
    }
}

/// `7f00-7f80`, hexadecimal.
fn address_range(word: &str) -> Option<Range<usize>> {
    let (from, to) = word.split_once('-')?;
    Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
}

impl Residency {
    /// The word used in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Mapped => "mapped",
            Self::Locked => "locked",
            Self::Copied => "copied",
        }
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Residency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Auto, Self::Mapped, Self::Locked, Self::Copied]
            .into_iter()
            .find(|residency| residency.as_str() == text)
            .ok_or_else(|| format!("unknown residency {text:?}: auto, mapped, locked or copied"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps_are_added_up_by_address() {
        let text = "\
10000-20000 r--s 00000000 fe:00 42    /data/part-00000.tide
Size:                 64 kB
Rss:                  32 kB
FilePmdMapped:        16 kB
VmFlags: rd sh mr me ms hg
20000-30000 rw-p 00000000 00:00 0
Rss:                  64 kB
AnonHugePages:        64 kB
7f0000-7f1000 ---p 00000000 00:00 0    [x: y]
Rss:                   4 kB
";
        let smaps = Smaps::parse(text);
        let of = |range: Range<usize>| {
            let mut memory = MemoryUse::default();
            smaps.add(&range, &mut memory);
            (memory.resident_bytes >> 10, memory.huge_page_bytes >> 10)
        };
        assert_eq!(of(0x10000..0x20000), (32, 16));
        assert_eq!(of(0x18000..0x30000), (16 + 64, 8 + 64));
        assert_eq!(of(0x40000..0x7f0000), (0, 0));
    }

    #[test]
    fn words_come_back_and_errors_say_what_to_do() {
        for word in ["auto", "mapped", "locked", "copied"] {
            assert_eq!(word.parse::<Residency>().unwrap().to_string(), word);
        }
        assert!("anywhere".parse::<Residency>().unwrap_err().contains("locked"));
        let lock = |limit| {
            let source = io::Error::from(io::ErrorKind::OutOfMemory);
            ResidencyError::Lock { path: "p.tide".into(), bytes: 9000, limit, source }.to_string()
        };
        let limited = lock(Some(8192));
        for part in ["9000", "p.tide", "8192", "RLIMIT_MEMLOCK", "LimitMEMLOCK", "ulimit -l"] {
            assert!(limited.contains(part), "{limited}");
        }
        assert!(lock(None).contains("no limit"));
    }

    #[test]
    fn a_version_is_judged_and_not_the_partition() {
        let of = |megabytes: u64, huge_page_bytes: u64| MemoryUse {
            lookup_bytes: megabytes << 20,
            resident_bytes: megabytes << 20,
            huge_page_bytes,
            huge_page_limit_bytes: (megabytes / 2 * 2) << 20,
        };
        assert!(!of(63, 0).lacks_huge_pages(63 << 20), "small enough for the caches");
        assert!(of(64, 0).lacks_huge_pages(64 << 20));
        // One of sixteen partitions of 45 MiB.
        assert!(!of(45, 0).lacks_huge_pages(45 << 20));
        assert!(of(45, 0).lacks_huge_pages((16 * 45) << 20));
        assert!(of(45, 22 << 20).lacks_huge_pages((16 * 45) << 20));
        assert!(!of(45, 44 << 20).lacks_huge_pages((16 * 45) << 20), "all that it can have");
        assert!(of(1024, 1 << 29).lacks_huge_pages(1 << 30));
        assert!(!of(1024, (1 << 30) - (2 << 20)).lacks_huge_pages(1 << 30));
        // A copy would change nothing for partitions of 1 MiB; fewer of them would.
        assert!(!of(1, 0).lacks_huge_pages(1 << 30));
        assert!(of(1, 0).is_too_small_for_huge_pages(1 << 30));
        assert!(!of(1, 0).is_too_small_for_huge_pages(1 << 20));
        assert!(!of(45, 0).is_too_small_for_huge_pages(1 << 30));
    }
}
