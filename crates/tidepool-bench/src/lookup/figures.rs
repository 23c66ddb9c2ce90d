//! The figures of a load, as they are printed and plotted.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::load::LoadReport;

/// CPU time of both sides during a load.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cpu {
    /// Of the nodes, or of what stands in for them; `None` when they are not ours to look at.
    pub(super) nodes: Option<Duration>,
    /// Of the threads of the client; `None` when it shares them.
    pub(super) client: Option<Duration>,
}

impl Cpu {
    /// What has passed since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        let passed = |now: Option<Duration>, then| Some(now?.saturating_sub(then?));
        Self { nodes: passed(self.nodes, before.nodes), client: passed(self.client, before.client) }
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (ours, theirs) in [(&mut self.nodes, other.nodes), (&mut self.client, other.client)] {
            *ours = match (*ours, theirs) {
                (Some(ours), Some(theirs)) => Some(ours + theirs),
                (ours, theirs) => ours.or(theirs),
            };
        }
    }
}

/// What a load was and what came of it. Latencies run from the moment at which a request was meant to be
/// sent, in microseconds; those of failed requests are not among them.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Requests a second that were meant to be sent; none when it was as fast as it goes.
    pub offered_rate: Option<f64>,
    /// Seconds of load.
    pub seconds: f64,
    /// Requests sent.
    pub requests: u64,
    /// Latency on average.
    pub mean_us: f64,
    /// Half of the answers took no longer.
    pub p50_us: f64,
    /// 90 % took no longer.
    pub p90_us: f64,
    /// 99 % took no longer.
    pub p99_us: f64,
    /// 99.9 % took no longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Answered requests a second.
    pub requests_per_second: f64,
    /// Ids of answered requests a second.
    pub rows_per_second: f64,
    /// Nodes asked for a request.
    pub nodes_touched_per_request: f64,
    /// Bytes of packed numbers and rows for a request, both ways, without framing.
    pub wire_bytes_per_request: f64,
    /// Those of them of rows that travelled as they are stored.
    pub gather_bytes_per_request: f64,
    /// Those of them of sums that nodes had made.
    pub pool_bytes_per_request: f64,
    /// The share of ids that the client knew without asking.
    pub cache_hit_rate: f64,
    /// Requests that failed.
    pub failed_requests: u64,
    /// The same by error code.
    pub failed_requests_by_code: BTreeMap<&'static str, u64>,
    /// What the first of them said.
    pub first_failure: Option<String>,
    /// Bags whose answers were looked at.
    pub checked_answers: u64,
    /// Those of them that were wrong.
    pub wrong_answers: u64,
    /// Answered requests that were not looked at, for want of memory.
    pub unchecked_requests: u64,
    /// CPU time of all nodes for a request, in microseconds.
    pub node_cpu_us_per_request: Option<f64>,
    /// CPU time of the client for a request, without what the generator spent waiting; none when it has no threads
    /// of its own.
    pub client_cpu_us_per_request: Option<f64>,
    /// Rows that nodes looked up for a request: its ids without repetitions, and without those that the
    /// client's cache knew.
    pub looked_up_rows_per_request: f64,
    /// CPU time of all nodes for each of those rows, in nanoseconds; none when none was looked up, as by servers
    /// of bare bytes.
    pub node_cpu_ns_per_row: Option<f64>,
    /// CPU time of the client for an id of a request, repetitions counted, in nanoseconds: it makes vectors of
    /// all of them.
    pub client_cpu_ns_per_row: Option<f64>,
    /// How late requests were sent, by the generator's own fault: the median.
    pub start_delay_p50_us: f64,
    /// The same, the 99th percentile.
    pub start_delay_p99_us: f64,
    /// Requests that were held back because too many were in flight.
    pub held_back_requests: u64,
    /// Requests that were not prepared in time.
    pub unprepared_requests: u64,
    /// Partitions asked elsewhere after a failure.
    pub fallbacks: u64,
    /// Ids not found.
    pub missing_ids: u64,
}

impl Figures {
    /// Those of a load of which no CPU time is known.
    #[must_use]
    pub fn of(report: &LoadReport, offered_rate: Option<f64>) -> Self {
        Self::new(report, offered_rate, Cpu::default())
    }

    pub(super) fn new(report: &LoadReport, offered_rate: Option<f64>, cpu: Cpu) -> Self {
        let times = &report.latency;
        let client = cpu.client.map(|time| time.saturating_sub(report.spun));
        let per_request = |time: Duration| per(time.as_secs_f64() * 1e6, report.answered);
        Self {
            offered_rate,
            seconds: report.elapsed.as_secs_f64(),
            requests: report.requests,
            mean_us: times.mean_us(),
            p50_us: times.quantile_us(0.5),
            p90_us: times.quantile_us(0.9),
            p99_us: times.quantile_us(0.99),
            p999_us: times.quantile_us(0.999),
            max_us: times.max_us(),
            requests_per_second: report.requests_per_second(),
            rows_per_second: report.rows_per_second(),
            nodes_touched_per_request: report.per_request(report.nodes_touched),
            wire_bytes_per_request: report.per_request(report.gather_bytes + report.pool_bytes),
            gather_bytes_per_request: report.per_request(report.gather_bytes),
            pool_bytes_per_request: report.per_request(report.pool_bytes),
            cache_hit_rate: per(report.cache_hits as f64, report.cache_hits + report.rows_requested),
            failed_requests: report.failed_requests(),
            failed_requests_by_code: report.failed.clone(),
            first_failure: report.first_failure.clone(),
            checked_answers: report.verdict.checked,
            wrong_answers: report.verdict.wrong,
            unchecked_requests: report.unchecked,
            node_cpu_us_per_request: cpu.nodes.map(per_request),
            client_cpu_us_per_request: client.map(per_request),
            looked_up_rows_per_request: report.per_request(report.rows_requested),
            node_cpu_ns_per_row: node_cpu_ns_per_row(report, cpu),
            client_cpu_ns_per_row: client.map(|time| per(time.as_secs_f64() * 1e9, report.ids)),
            start_delay_p50_us: report.start_delay.quantile_us(0.5),
            start_delay_p99_us: report.start_delay.quantile_us(0.99),
            held_back_requests: report.held_back,
            unprepared_requests: report.unprepared,
            fallbacks: report.fallbacks,
            missing_ids: report.missing_ids,
        }
    }
}

/// CPU time of the nodes for a row that they looked up, in nanoseconds: what can be held against the time of a
/// kernel, which looks up each id that it is given.
pub(super) fn node_cpu_ns_per_row(report: &LoadReport, cpu: Cpu) -> Option<f64> {
    let rows = report.rows_requested;
    (rows > 0).then_some(cpu.nodes?.as_secs_f64() * 1e9 / rows as f64)
}

/// `total` for each of `count`; 0 when there is none.
fn per(total: f64, count: u64) -> f64 {
    if count > 0 { total / count as f64 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_measured_by_the_rows_that_they_looked_up() {
        let report = LoadReport { answered: 2, ids: 1000, rows_requested: 200, ..LoadReport::new().unwrap() };
        let cpu = Cpu { nodes: Some(Duration::from_micros(20)), client: Some(Duration::from_micros(50)) };
        let figures = Figures::new(&report, None, cpu);
        assert_eq!(figures.looked_up_rows_per_request, 100.0);
        let near = |found: f64, expected: f64| (found - expected).abs() < 1e-9 * expected;
        assert!(near(figures.node_cpu_ns_per_row.unwrap(), 100.0), "of 200 rows: {figures:?}");
        assert!(near(figures.client_cpu_ns_per_row.unwrap(), 50.0), "of 1000 ids: {figures:?}");

        let bare = LoadReport { rows_requested: 0, ..report.clone() };
        assert_eq!(Figures::new(&bare, None, cpu).node_cpu_ns_per_row, None);
        assert_eq!(Figures::of(&report, None).client_cpu_us_per_request, None);

        let mut both = cpu;
        both.merge(Cpu { nodes: None, client: Some(Duration::from_micros(1)) });
        assert_eq!((both.nodes, both.client), (cpu.nodes, Some(Duration::from_micros(51))));
        let since = both.since(Cpu { nodes: None, ..cpu });
        assert_eq!((since.nodes, since.client), (None, Some(Duration::from_micros(1))));
    }
}
