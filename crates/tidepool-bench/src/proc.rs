//! What the kernel says of a process (Linux): the time its threads have run, and its memory.

use std::{fs, time::Duration};

/// How long the threads of process `pid` have run, those whose names begin with `prefix`; all of them with an
/// empty one. In nanoseconds of the scheduler's own count. Threads that have ended are not in it. `None`:
/// there is no such process, or no `/proc`.
#[must_use]
pub fn cpu_time(pid: u32, prefix: &str) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let mut total = Duration::ZERO;
    for task in tasks.flatten().map(|task| task.path()) {
        // A thread may end while this is read.
        let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        if !prefix.is_empty() && !read("comm").starts_with(prefix) {
            continue;
        }
        let ran = read("schedstat").split_whitespace().next().and_then(|ns| ns.parse().ok());
        total += Duration::from_nanos(ran.unwrap_or_default());
    }
    Some(total)
}

/// How often the threads of process `pid` whose names begin with `prefix` have gone to sleep of their own accord, each of
/// which had to be woken. Threads that have ended are not counted.
#[must_use]
pub fn wakeups(pid: u32, prefix: &str) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let mut total = 0;
    for task in tasks.flatten().map(|task| task.path()) {
        let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        if !prefix.is_empty() && !read("comm").starts_with(prefix) {
            continue;
        }
        let status = read("status");
        let slept = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        total += slept.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or_default();
    }
    Some(total)
}

/// Resident bytes of process `pid`, mapped files included.
#[must_use]
pub fn rss_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// Resident bytes of process `pid` that no file stands behind.
#[must_use]
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "RssAnon:")
}

/// Resident bytes of process `pid` that are of mapped files.
#[must_use]
pub fn file_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "RssFile:")
}

fn status_bytes(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, process, thread, time::Instant};

    use super::*;

    #[test]
    fn a_thread_that_works_is_counted_under_its_name() {
        let pid = process::id();
        let worked = thread::Builder::new().name("proc-test".into()).spawn(move || {
            let before = cpu_time(pid, "proc-test").unwrap();
            let began = Instant::now();
            let mut spun = 0u64;
            while began.elapsed() < Duration::from_millis(20) {
                spun = black_box(spun + 1);
            }
            // The count of a running thread is brought up to date when it is scheduled away.
            thread::yield_now();
            // Here, for threads that have ended are in no count.
            (cpu_time(pid, "proc-test").unwrap() - before, cpu_time(pid, "").unwrap())
        });
        let (worked, all) = worked.unwrap().join().unwrap();
        assert!(worked > Duration::ZERO && worked <= all, "{worked:?} {all:?}");
        assert_eq!(cpu_time(pid, "no such thread"), Some(Duration::ZERO));
        assert!(wakeups(pid, "").unwrap() > 0, "whoever waits for a thread sleeps");
        assert_eq!((wakeups(pid, "no such thread"), wakeups(u32::MAX, "")), (Some(0), None));
    }

    #[test]
    fn this_process_has_memory_and_another_may_not_exist() {
        let pid = process::id();
        let (anonymous, file) = (anonymous_bytes(pid).unwrap(), file_bytes(pid).unwrap());
        assert!(anonymous > 0 && file > 0, "{anonymous} {file}");
        assert!(rss_bytes(pid).unwrap() >= anonymous.max(file));
        assert_eq!((cpu_time(u32::MAX, ""), rss_bytes(u32::MAX)), (None, None));
    }
}
