//! What is counted of batches, per model.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};
use tidepool_types::Name;

/// The metrics of all batchers of a ranker. Series go with their model.
#[derive(Clone, Debug)]
pub struct BatchMetrics {
    /// Rows per batch.
    rows: HistogramVec,
    /// Requests per batch.
    requests: HistogramVec,
    /// From a request's arrival at its batcher to its first batch.
    wait: HistogramVec,
    /// Rows that wait for a batch.
    waiting: IntGaugeVec,
    /// Batches under way.
    under_way: IntGaugeVec,
    /// Requests that were not put into a batch, by reason: a [`Dropped`].
    dropped: IntCounterVec,
    /// Runs of several requests that failed, so that they were run again in halves.
    taken_apart: IntCounterVec,
}

/// Why a request was not put into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Its time was up, or would have been before a batch can end.
    Late,
    /// Nobody waited for it any more.
    Gone,
    /// Too much waited already.
    Refused,
}

impl Dropped {
    const ALL: [Self; 3] = [Self::Late, Self::Gone, Self::Refused];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Gone => "gone",
            Self::Refused => "refused",
        }
    }
}

/// The metrics of one model.
#[derive(Debug)]
pub(super) struct ModelMetrics {
    rows: Histogram,
    requests: Histogram,
    wait: Histogram,
    waiting: IntGauge,
    under_way: IntGauge,
    dropped: [IntCounter; 3],
    taken_apart: IntCounter,
}

impl BatchMetrics {
    /// Metrics that are not shown yet.
    ///
    /// # Errors
    /// When a name is none: a defect.
    pub fn new() -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &["model"])
        };
        Ok(Self {
            rows: histogram(
                "tidepool_ranker_batch_rows",
                "Rows per batch",
                exponential_buckets(1.0, 2.0, 18)?,
            )?,
            requests: histogram(
                "tidepool_ranker_batch_requests",
                "Requests per batch",
                exponential_buckets(1.0, 2.0, 11)?,
            )?,
            wait: histogram(
                "tidepool_ranker_batch_wait_seconds",
                "From a request's arrival until its first batch leaves",
                // 50 µs to 1.6 s.
                exponential_buckets(50e-6, 2.0, 16)?,
            )?,
            waiting: IntGaugeVec::new(
                Opts::new("tidepool_ranker_batch_waiting_rows", "Rows that wait for a batch"),
                &["model"],
            )?,
            under_way: IntGaugeVec::new(
                Opts::new("tidepool_ranker_batches_under_way", "Batches that have left and not ended"),
                &["model"],
            )?,
            dropped: IntCounterVec::new(
                Opts::new(
                    "tidepool_ranker_batch_dropped_requests_total",
                    "Requests that were not put into a batch, by reason",
                ),
                &["model", "reason"],
            )?,
            taken_apart: IntCounterVec::new(
                Opts::new(
                    "tidepool_ranker_batches_taken_apart_total",
                    "Runs of several requests that failed, which were then run in halves",
                ),
                &["model"],
            )?,
        })
    }

    /// Shows them.
    ///
    /// # Errors
    /// What the registry says of a name that is taken.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.rows.clone()))?;
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.wait.clone()))?;
        registry.register(Box::new(self.waiting.clone()))?;
        registry.register(Box::new(self.under_way.clone()))?;
        registry.register(Box::new(self.dropped.clone()))?;
        registry.register(Box::new(self.taken_apart.clone()))
    }

    pub(super) fn of(&self, model: &Name) -> ModelMetrics {
        let label = &[model.as_str()];
        ModelMetrics {
            rows: self.rows.with_label_values(label),
            requests: self.requests.with_label_values(label),
            wait: self.wait.with_label_values(label),
            waiting: self.waiting.with_label_values(label),
            under_way: self.under_way.with_label_values(label),
            // Each is there from the start, at 0, so that a rate is never missing its first sample.
            dropped: Dropped::ALL
                .map(|reason| self.dropped.with_label_values(&[model.as_str(), reason.as_str()])),
            taken_apart: self.taken_apart.with_label_values(label),
        }
    }

    /// A model has no release here any more.
    pub(super) fn forget(&self, model: &Name) {
        let label = &[model.as_str()];
        // What is not there is forgotten already.
        let _ = self.rows.remove_label_values(label);
        let _ = self.requests.remove_label_values(label);
        let _ = self.wait.remove_label_values(label);
        let _ = self.waiting.remove_label_values(label);
        let _ = self.under_way.remove_label_values(label);
        let _ = self.taken_apart.remove_label_values(label);
        for reason in Dropped::ALL {
            let _ = self.dropped.remove_label_values(&[model.as_str(), reason.as_str()]);
        }
    }
}

impl ModelMetrics {
    /// A batch leaves with so many requests and rows, which have waited so long.
    pub(super) fn left(&self, (requests, rows): (usize, u64), waited: impl Iterator<Item = Duration>) {
        self.requests.observe(requests as f64);
        self.rows.observe(rows as f64);
        waited.for_each(|waited| self.wait.observe(waited.as_secs_f64()));
    }

    pub(super) fn waiting(&self, rows: u64, under_way: usize) {
        self.waiting.set(i64::try_from(rows).unwrap_or(i64::MAX));
        self.under_way.set(i64::try_from(under_way).unwrap_or(i64::MAX));
    }

    #[cfg(test)]
    pub(super) fn times_taken_apart(&self) -> u64 {
        self.taken_apart.get()
    }

    /// A run of several requests failed, and they are run in halves.
    pub(super) fn taken_apart(&self) {
        self.taken_apart.inc();
    }

    pub(super) fn dropped(&self, reason: Dropped) {
        if let Some(counter) = Dropped::ALL.iter().position(|is| *is == reason) {
            self.dropped[counter].inc();
        }
    }
}
