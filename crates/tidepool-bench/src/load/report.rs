//! What came of a load.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use tidepool_client::{LookupOutcome, LookupRequest};

use super::{answers::Verdict, drive::Failure};
use crate::BenchError;

/// The shortest and the longest time that is told apart, in nanoseconds, and how precisely: three digits.
const BOUNDS_NS: (u64, u64) = (100, 600_000_000_000);
const DIGITS: u8 = 3;

/// Many times, of which quantiles are asked.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new() -> Result<Self, BenchError> {
        let (least, most) = BOUNDS_NS;
        let histogram = Histogram::new_with_bounds(least, most, DIGITS);
        histogram.map(Self).map_err(|_| BenchError::Parameters("the bounds of a histogram"))
    }

    pub(crate) fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds other times to these.
    pub(crate) fn merge(&mut self, other: &Self) {
        // All have the same bounds.
        let _ = self.0.add(&other.0);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Microseconds on average; 0 when there are none.
    #[must_use]
    pub fn mean_us(&self) -> f64 {
        self.0.mean() / 1e3
    }

    /// Microseconds that the share `q` of them does not exceed; 0 when there are none.
    #[must_use]
    pub fn quantile_us(&self, q: f64) -> f64 {
        self.0.value_at_quantile(q) as f64 / 1e3
    }

    /// The longest of them, in microseconds.
    #[must_use]
    pub fn max_us(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }
}

/// What came of a load. Reports of several loads can be [merged](Self::merge).
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// Requests sent.
    pub requests: u64,
    /// Those of them that were answered.
    pub answered: u64,
    /// Those that were not, by the word of the error's code.
    pub failed: BTreeMap<&'static str, u64>,
    /// What the first of these said.
    pub first_failure: Option<String>,
    /// From the moment at which a request was meant to be sent to its answer; those that failed are not in
    /// it.
    pub latency: Times,
    /// From the moment at which a request was meant to be sent to that at which it was: the generator's own
    /// delay, which `latency` contains.
    pub start_delay: Times,
    /// Ids of the answered requests, with repetitions.
    pub ids: u64,
    /// Ids that were sent to nodes for them and answered.
    pub rows_requested: u64,
    /// Ids whose rows the client's cache knew.
    pub cache_hits: u64,
    /// Nodes that were asked for them.
    pub nodes_touched: u64,
    /// Partitions that were asked elsewhere after a failure.
    pub fallbacks: u64,
    /// Ids not found.
    pub missing_ids: u64,
    /// Vectors that became default rows.
    pub defaulted_bags: u64,
    /// Bytes of packed numbers, both ways, of rows that travelled as they are stored.
    pub gather_bytes: u64,
    /// The same, of sums that nodes had made.
    pub pool_bytes: u64,
    /// From the first moment of the load to the last answer.
    pub elapsed: Duration,
    /// What checking found.
    pub verdict: Verdict,
    /// Answers that were not kept, and so not checked.
    pub unchecked: u64,
    /// Requests that were sent later because too many were in flight.
    pub held_back: u64,
    /// Requests that were not prepared when they should have been sent.
    pub unprepared: u64,
    /// How long the generator looked at the clock between two requests.
    pub spun: Duration,
}

impl LoadReport {
    /// Of no load.
    ///
    /// # Errors
    /// None in practice: the bounds of the histograms are constants.
    pub fn new() -> Result<Self, BenchError> {
        Ok(Self {
            requests: 0,
            answered: 0,
            failed: BTreeMap::new(),
            first_failure: None,
            latency: Times::new()?,
            start_delay: Times::new()?,
            ids: 0,
            rows_requested: 0,
            cache_hits: 0,
            nodes_touched: 0,
            fallbacks: 0,
            missing_ids: 0,
            defaulted_bags: 0,
            gather_bytes: 0,
            pool_bytes: 0,
            elapsed: Duration::ZERO,
            verdict: Verdict::default(),
            unchecked: 0,
            held_back: 0,
            unprepared: 0,
            spun: Duration::ZERO,
        })
    }

    /// A request has ended, `start_delay` late and `latency` after it was meant to be sent.
    pub(super) fn record(
        &mut self,
        request: &LookupRequest,
        result: &Result<LookupOutcome, Failure>,
        start_delay: Duration,
        latency: Duration,
    ) {
        self.requests += 1;
        self.start_delay.record(start_delay);
        match result {
            Ok(outcome) => {
                self.answered += 1;
                self.latency.record(latency);
                self.ids += request.features.iter().map(|f| f.ids.len() as u64).sum::<u64>();
                self.rows_requested += outcome.rows_requested;
                self.cache_hits += outcome.cache_hits;
                self.nodes_touched += u64::from(outcome.nodes_touched);
                self.fallbacks += u64::from(outcome.fallbacks);
                self.missing_ids += outcome.features.iter().map(|f| u64::from(f.missing_ids)).sum::<u64>();
                self.defaulted_bags +=
                    outcome.features.iter().map(|f| u64::from(f.defaulted_bags)).sum::<u64>();
                self.gather_bytes += outcome.wire_bytes.gather;
                self.pool_bytes += outcome.wire_bytes.pool;
            }
            Err(failure) => {
                *self.failed.entry(failure.code.as_str()).or_default() += 1;
                self.first_failure.get_or_insert_with(|| failure.text.clone());
            }
        }
    }

    /// Adds another load to this one: one after the other, `elapsed` adds up.
    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.answered += other.answered;
        for (code, count) in &other.failed {
            *self.failed.entry(code).or_default() += count;
        }
        if self.first_failure.is_none() {
            self.first_failure.clone_from(&other.first_failure);
        }
        for (ours, theirs) in
            [(&mut self.latency, &other.latency), (&mut self.start_delay, &other.start_delay)]
        {
            ours.merge(theirs);
        }
        self.ids += other.ids;
        self.rows_requested += other.rows_requested;
        self.cache_hits += other.cache_hits;
        self.nodes_touched += other.nodes_touched;
        self.fallbacks += other.fallbacks;
        self.missing_ids += other.missing_ids;
        self.defaulted_bags += other.defaulted_bags;
        self.gather_bytes += other.gather_bytes;
        self.pool_bytes += other.pool_bytes;
        self.elapsed += other.elapsed;
        self.verdict.checked += other.verdict.checked;
        self.verdict.wrong += other.verdict.wrong;
        self.unchecked += other.unchecked;
        self.held_back += other.held_back;
        self.unprepared += other.unprepared;
        self.spun += other.spun;
    }

    /// Requests that failed, of all codes.
    #[must_use]
    pub fn failed_requests(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Answered requests in a second.
    #[must_use]
    pub fn requests_per_second(&self) -> f64 {
        per(self.answered as f64, self.elapsed.as_secs_f64())
    }

    /// Answered ids in a second.
    #[must_use]
    pub fn rows_per_second(&self) -> f64 {
        per(self.ids as f64, self.elapsed.as_secs_f64())
    }

    /// `total` for each answered request.
    #[must_use]
    pub fn per_request(&self, total: u64) -> f64 {
        per(total as f64, self.answered as f64)
    }
}

/// `a` per `b`; 0 when there is no `b`.
fn per(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}
