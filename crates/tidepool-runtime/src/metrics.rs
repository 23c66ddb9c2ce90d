//! Metrics of the process itself, under the names that dashboards for Prometheus expect.
//!
//! They are read from `/proc/self` at each scrape. The `process` feature of the `prometheus` crate
//! does the same through two more crates; the four small files are parsed here instead.

use std::{
    fs,
    sync::{Mutex, PoisonError},
};

use prometheus::{
    Counter, Gauge, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// The unit of CPU times in `/proc`: Linux shows them to programs at 100 ticks a second, whatever the
/// kernel's own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// Shows CPU time, memory, file descriptors, threads and start time of this process in `registry`.
///
/// # Errors
/// What the registry says when it has them already.
pub fn register_process(registry: &Registry) -> prometheus::Result<()> {
    registry.register(Box::new(ProcessCollector::new()?))
}

/// Reads `/proc/self` when it is asked. What cannot be read is left out, not zero.
struct ProcessCollector {
    /// A scrape sets the values and takes them in one go, even when two come at once.
    metrics: Mutex<Metrics>,
    descs: Vec<Desc>,
}

struct Metrics {
    /// CPU time used, user and system.
    cpu_seconds: Counter,
    /// Memory in RAM.
    resident_bytes: Gauge,
    /// Address space.
    virtual_bytes: Gauge,
    /// File descriptors open, and how many may be.
    open_fds: Gauge,
    max_fds: Gauge,
    /// Threads.
    threads: Gauge,
    /// Unix time of the start.
    start_time_seconds: Gauge,
}

impl ProcessCollector {
    fn new() -> prometheus::Result<Self> {
        let metrics = Metrics {
            cpu_seconds: Counter::new("process_cpu_seconds_total", "CPU time used, user and system")?,
            resident_bytes: Gauge::new("process_resident_memory_bytes", "Memory in RAM")?,
            virtual_bytes: Gauge::new("process_virtual_memory_bytes", "Address space")?,
            open_fds: Gauge::new("process_open_fds", "Open file descriptors")?,
            max_fds: Gauge::new("process_max_fds", "File descriptors that may be open")?,
            threads: Gauge::new("process_threads", "Threads")?,
            start_time_seconds: Gauge::new("process_start_time_seconds", "Start, in Unix time")?,
        };
        let mut descs: Vec<Desc> = metrics.cpu_seconds.desc().into_iter().cloned().collect();
        for gauge in metrics.gauges() {
            descs.extend(gauge.desc().into_iter().cloned());
        }
        Ok(Self { metrics: Mutex::new(metrics), descs })
    }
}

impl Metrics {
    fn gauges(&self) -> [&Gauge; 6] {
        [
            &self.resident_bytes,
            &self.virtual_bytes,
            &self.open_fds,
            &self.max_fds,
            &self.threads,
            &self.start_time_seconds,
        ]
    }

    fn read(&self) -> Vec<MetricFamily> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
        let (stat, status) = (read("self/stat"), read("self/status"));
        let mut families = Vec::new();
        if let Some(seconds) = cpu_seconds(&stat) {
            self.cpu_seconds.reset();
            self.cpu_seconds.inc_by(seconds);
            families.extend(self.cpu_seconds.collect());
        }
        // The descriptor that reads the directory is in the count, and gone right after.
        let open_fds = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1) as f64);
        let values = [
            status_field(&status, "VmRSS").map(|kib| kib * 1024.0),
            status_field(&status, "VmSize").map(|kib| kib * 1024.0),
            open_fds,
            max_fds(&read("self/limits")),
            status_field(&status, "Threads"),
            start_time_seconds(&stat, &read("stat")),
        ];
        for (gauge, value) in self.gauges().into_iter().zip(values) {
            if let Some(value) = value {
                gauge.set(value);
                families.extend(gauge.collect());
            }
        }
        families
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).read()
    }
}

/// Field `number` of `/proc/self/stat`, counted from 1 as proc(5) does. The second is the program's name
/// in parentheses, which may hold spaces and parentheses itself.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / TICKS_PER_SECOND)
}

/// The start is given in ticks since boot; `/proc/stat` says when that was.
fn start_time_seconds(stat: &str, system_stat: &str) -> Option<f64> {
    let boot: f64 = system_stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + stat_field(stat, 22)? / TICKS_PER_SECOND)
}

/// The number after `name:` in `/proc/self/status`; memory is in KiB there.
fn status_field(status: &str, name: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

fn max_fds(limits: &str) -> Option<f64> {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    soft.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    const STAT: &str =
        "17209 (a) b (c) R 17207 17207 7122 0 -1 4194304 99 0 0 0 250 150 0 0 20 0 1 0 135199 3133440 383";

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        assert_eq!(cpu_seconds(STAT), Some(4.0));
        assert_eq!(start_time_seconds(STAT, "cpu 1 2\nbtime 1000\n"), Some(1000.0 + 1351.99));
    }

    #[test]
    fn what_is_not_there_is_no_value() {
        assert_eq!(cpu_seconds(""), None);
        assert_eq!(cpu_seconds("1 (x) R 2"), None);
        assert_eq!(start_time_seconds(STAT, "cpu 1 2\n"), None);
        assert_eq!(status_field("VmRSSX:\t7 kB\n", "VmRSS"), None);
        assert_eq!(status_field("Name:\tx\nVmRSS:\t    7 kB\n", "VmRSS"), Some(7.0));
        assert_eq!(max_fds("Max open files            unlimited  unlimited  files\n"), None);
        assert_eq!(max_fds("Max open files            1024       4096       files\n"), Some(1024.0));
    }

    #[test]
    fn this_process_is_shown_as_it_is() {
        let registry = Registry::new();
        register_process(&registry).unwrap();
        assert!(register_process(&registry).is_err(), "once is enough");
        let value = |name: &str| {
            let families = registry.gather();
            let family = families.iter().find(|f| f.name() == name).unwrap();
            let metric = &family.get_metric()[0];
            metric.get_gauge().get_value() + metric.get_counter().get_value()
        };
        let resident = value("process_resident_memory_bytes");
        assert!(resident > 1e5 && resident < value("process_virtual_memory_bytes"), "{resident} bytes");
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_open_fds") < value("process_max_fds"));

        let _three: Vec<_> = (0..3).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        assert!(value("process_open_fds") >= 3.0);

        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let start = value("process_start_time_seconds");
        assert!(start <= now + 2.0 && start > now - 24.0 * 3600.0, "started at {start}, now is {now}");

        // A counter: burning time makes it grow, and reading it often does not.
        let before = value("process_cpu_seconds_total");
        let mut sum = 0u64;
        while value("process_cpu_seconds_total") < before + 0.05 {
            sum = (0..100_000u64).fold(sum, |a, b| std::hint::black_box(a ^ b));
        }
        for _ in 0..200 {
            value("process_cpu_seconds_total");
        }
        let direct = || cpu_seconds(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        let bounds = (direct(), value("process_cpu_seconds_total"), direct());
        assert!(bounds.0 <= bounds.1 && bounds.1 <= bounds.2, "{bounds:?}");
    }
}
