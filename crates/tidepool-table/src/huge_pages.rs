//! Why rows are not on pages of 2 MiB, and what to change: for the one who reads the log.

use std::{fs, path::Path};

use crate::partition::PartitionFile;

/// What decides whether there are huge pages.
#[derive(Clone, Debug, Default)]
struct System {
    /// Major and minor.
    kernel: Option<(u32, u32)>,
    /// The chosen word of `/sys/kernel/mm/transparent_hugepage/enabled`.
    anonymous: Option<String>,
    /// Type and options of the file system that the file lies in.
    file_system: Option<(String, String)>,
}

impl PartitionFile {
    /// What to change so that this partition comes to lie on pages of 2 MiB, as a sentence without its end.
    /// For a partition that [lacks them](crate::MemoryUse::lacks_huge_pages).
    #[must_use]
    pub fn huge_page_advice(&self) -> String {
        System::read(self.path()).advice(self.is_copied())
    }
}

impl System {
    fn read(path: &Path) -> Self {
        let read = |path| fs::read_to_string(path).ok();
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").and_then(|text| version(&text)),
            anonymous: read("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|text| chosen(&text)),
            file_system: read("/proc/self/mountinfo").and_then(|text| file_system(&text, &path)),
        }
    }

    fn advice(&self, copied: bool) -> String {
        if copied {
            return match self.anonymous.as_deref() {
                Some("never") => {
                    "set /sys/kernel/mm/transparent_hugepage/enabled to madvise (it is never), and \
                                  restart the node"
                        .into()
                }
                None => "use a kernel with transparent huge pages".into(),
                Some(_) => {
                    "free memory or write 1 to /proc/sys/vm/compact_memory (there was memory, but not in \
                            pieces of 2 MiB), and restart the node"
                        .into()
                }
            };
        }
        let copy = "set residency to auto or copied";
        let Some((name, options)) = &self.file_system else { return copy.into() };
        let release =
            self.kernel.map_or_else(String::new, |(major, minor)| format!(" (this is {major}.{minor})"));
        let older = |than| self.kernel.is_some_and(|kernel| kernel < than);
        let map = match name.as_str() {
            "tmpfs" if !options.split(',').any(|o| o.starts_with("huge=") && o != "huge=never") => {
                "mount the tmpfs of the store with huge=within_size".to_owned()
            }
            "ext4" if older((6, 16)) => format!("use Linux 6.16 or later for large folios in ext4{release}"),
            "xfs" if older((5, 18)) => format!("use Linux 5.18 or later for large folios in xfs{release}"),
            "ext4" | "xfs" | "tmpfs" => "the page cache has held the file in small pages since it was written or \
                                         copied: stop the node, write 1 to /proc/sys/vm/drop_caches, and start it"
                .to_owned(),
            other => format!("put the store on ext4 (Linux 6.16 or later) or xfs, {other} may have no large folios"),
        };
        format!("{copy}; or {map}")
    }
}

/// `6.18.44-generic` is 6.18.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Of `always [madvise] never` the word in brackets.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Type and options of the mount that `path` lies in, given `/proc/self/mountinfo`.
fn file_system(mounts: &str, path: &Path) -> Option<(String, String)> {
    let mut found = None;
    let mut depth = 0;
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(at) = before.split(' ').nth(4) else { continue };
        // A space in a name is written as a number.
        let at = at.replace("\\040", " ");
        let at = Path::new(&at);
        let here = at.components().count();
        // Of two mounts on the same place the later one is seen.
        if path.starts_with(at) && here >= depth {
            let mut words = after.split(' ');
            let kind = words.next()?.to_owned();
            (depth, found) = (here, Some((kind, words.nth(1).unwrap_or_default().to_owned())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_read_from_its_files() {
        assert_eq!(version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(version("5.4\n"), Some((5, 4)));
        assert_eq!(version("next"), None);
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("madvise"), None);
        let mounts = "\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:31 / /mnt/with\\040space rw - xfs /dev/vdb rw,attr2
31 22 0:32 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=5k
32 31 0:33 / /dev/shm rw,nosuid - tmpfs tmpfs rw,huge=always
nonsense
";
        let of = |path: &str| file_system(mounts, Path::new(path)).unwrap();
        assert_eq!(of("/mnt/with space/store/x").0, "xfs");
        assert_eq!(of("/mnt/without"), ("ext4".into(), "rw".into()));
        assert_eq!(of("/dev/shm/x"), ("tmpfs".into(), "rw,huge=always".into()));
        assert_eq!(file_system("", Path::new("/")), None);
        assert!(System::read(Path::new(".")).kernel.is_some());
    }

    #[test]
    fn each_cause_has_its_own_advice() {
        let advice = |kernel, anonymous: &str, name: &str, options: &str, copied| {
            let system = System {
                kernel: Some(kernel),
                anonymous: Some(anonymous.to_owned()),
                file_system: Some((name.to_owned(), options.to_owned())),
            };
            system.advice(copied)
        };
        for ((kernel, anonymous, name, options, copied), part) in [
            (
                ((6, 8), "madvise", "ext4", "rw", false),
                "Linux 6.16 or later for large folios in ext4 (this is 6.8)",
            ),
            (((6, 18), "madvise", "ext4", "rw", false), "drop_caches"),
            (((5, 10), "madvise", "xfs", "rw", false), "Linux 5.18"),
            (((6, 18), "always", "tmpfs", "rw,size=5k", false), "huge=within_size"),
            (((6, 18), "always", "tmpfs", "rw,huge=never", false), "huge=within_size"),
            (((6, 18), "always", "tmpfs", "rw,huge=always", false), "drop_caches"),
            (((6, 18), "always", "nfs4", "rw", false), "nfs4 may have no large folios"),
            (((6, 18), "never", "ext4", "rw", true), "transparent_hugepage/enabled to madvise"),
            (((6, 18), "madvise", "ext4", "rw", true), "compact_memory"),
        ] {
            let text = advice(kernel, anonymous, name, options, copied);
            assert!(text.contains(part), "{text}");
            assert_eq!(text.contains("residency"), !copied, "{text}");
        }
        assert!(System::default().advice(false).contains("residency"));
        assert!(System::default().advice(true).contains("kernel"));
    }
}
