//! What machine this is; much of it is unknown where there is no `/proc`.

use std::{fs, thread};

use serde::Serialize;

/// Last-level cache to assume where it is not told.
const CACHE_BYTES: u64 = 32 << 20;

/// The machine of a figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// What the CPU calls itself.
    pub cpu: String,
    /// Cores, or hardware threads, that this process may use.
    pub cores: usize,
    /// The last-level cache.
    pub last_level_cache_bytes: u64,
    /// Memory in all.
    pub memory_bytes: u64,
    /// Operating system and its release.
    pub kernel: String,
    /// Whether the kernel gives 2 MiB pages: `always`, `madvise` or `never`.
    pub transparent_huge_pages: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned());
        let family = field(&read("/proc/cpuinfo"), "cpu family").unwrap_or_default();
        let model = field(&read("/proc/cpuinfo"), "model").unwrap_or_default();
        let memory = field(&read("/proc/meminfo"), "MemTotal").and_then(|kib| kib_bytes(&kib));
        let caches = (0..8).filter_map(|at| {
            let size = read(&format!("/sys/devices/system/cpu/cpu0/cache/index{at}/size"));
            Some(size.strip_suffix('K')?.parse::<u64>().ok()? << 10)
        });
        let pages = read("/sys/kernel/mm/transparent_hugepage/enabled");
        let chosen = pages.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        Self {
            cpu: format!("{cpu} (family {family}, model {model})"),
            cores: thread::available_parallelism().map_or(1, usize::from),
            last_level_cache_bytes: caches.max().unwrap_or(CACHE_BYTES),
            memory_bytes: memory.unwrap_or_default(),
            kernel: format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease")),
            transparent_huge_pages: chosen.map_or_else(|| "unknown".to_owned(), |(word, _)| word.to_owned()),
        }
    }
}

/// The first `name : value` of a file of such lines.
fn field(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn kib_bytes(value: &str) -> Option<u64> {
    Some(value.strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_cache_and_a_core() {
        let machine = Machine::here();
        assert!(machine.cores >= 1 && machine.last_level_cache_bytes > 0);
    }
}
