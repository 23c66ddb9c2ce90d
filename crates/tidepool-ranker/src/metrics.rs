//! What a ranker counts. Recorded once per request, never per candidate or id.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};
use tidepool_types::ErrorCode;

use crate::{choice::Choice, rank::RankAnswer};

/// The metrics of one ranker, all named `tidepool_ranker_...`.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Requests answered, by outcome: `ok` or the error's code.
    requests: IntCounterVec,
    /// Time of a request, from its arrival to its answer.
    rank: Histogram,
    /// Time of its lookup.
    lookup: Histogram,
    /// Time of its dense part: expansion, model, top-k; not the wait for a thread.
    dense: Histogram,
    /// Candidates per request.
    candidates: Histogram,
    /// Ids that no table had.
    missing: IntCounter,
    /// Bags that became a default row.
    defaulted: IntCounter,
    /// Ids whose partition nobody answered for.
    unavailable: IntCounter,
    /// Answers that were made without some ids.
    partial: IntCounter,
    /// Features that nothing of the contract takes, by model, where it ignores them.
    ignored: IntCounterVec,
    /// Releases in the cluster map, by state: `loading`, `ready`, `failed`.
    releases: IntGaugeVec,
    /// Epoch of the cluster map in use.
    epoch: IntGauge,
    /// Requests by how they came to their release: a [`Choice`].
    choices: IntCounterVec,
    /// What kept rows from being resident on a GPU.
    pub(crate) resident_problems: IntCounter,
    /// Lines that are not in the audit log.
    pub(crate) audit_failures: IntCounter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let seconds = |name: &str, help: &str| {
            // 50 µs to 1.6 s.
            let buckets = exponential_buckets(50e-6, 2.0, 16)?;
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        };
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("tidepool_ranker_requests_total", "Requests answered, by outcome"),
                &["code"],
            )?,
            rank: seconds("tidepool_ranker_rank_seconds", "Time of a request, arrival to answer")?,
            lookup: seconds("tidepool_ranker_lookup_seconds", "Time of a request's lookup")?,
            dense: seconds("tidepool_ranker_dense_seconds", "Time of a request's dense model")?,
            candidates: Histogram::with_opts(
                HistogramOpts::new("tidepool_ranker_request_candidates", "Candidates per request")
                    .buckets(exponential_buckets(1.0, 2.0, 15)?),
            )?,
            missing: IntCounter::new("tidepool_ranker_missing_ids_total", "Ids that no table had")?,
            defaulted: IntCounter::new(
                "tidepool_ranker_defaulted_bags_total",
                "Bags that became a default row",
            )?,
            unavailable: IntCounter::new(
                "tidepool_ranker_unavailable_ids_total",
                "Ids whose partition nobody answered for",
            )?,
            partial: IntCounter::new(
                "tidepool_ranker_partial_answers_total",
                "Answers that were made without some ids",
            )?,
            ignored: IntCounterVec::new(
                Opts::new(
                    "tidepool_ranker_ignored_features_total",
                    "Features of requests that their model does not take, and says are ignored",
                ),
                &["model"],
            )?,
            releases: IntGaugeVec::new(
                Opts::new("tidepool_ranker_releases", "Releases in the cluster map, by state here"),
                &["state"],
            )?,
            epoch: IntGauge::new("tidepool_ranker_map_epoch", "Epoch of the cluster map in use")?,
            choices: IntCounterVec::new(
                Opts::new("tidepool_ranker_choices_total", "Requests by how they came to their release"),
                &["choice"],
            )?,
            resident_problems: IntCounter::new(
                "tidepool_ranker_resident_problems_total",
                "What kept rows from being resident on a GPU",
            )?,
            audit_failures: IntCounter::new(
                "tidepool_ranker_audit_failures_total",
                "Changes that were not made, or whose outcome is missing, for the audit log could not be written",
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.rank.clone()))?;
        registry.register(Box::new(metrics.lookup.clone()))?;
        registry.register(Box::new(metrics.dense.clone()))?;
        registry.register(Box::new(metrics.candidates.clone()))?;
        registry.register(Box::new(metrics.missing.clone()))?;
        registry.register(Box::new(metrics.defaulted.clone()))?;
        registry.register(Box::new(metrics.unavailable.clone()))?;
        registry.register(Box::new(metrics.partial.clone()))?;
        registry.register(Box::new(metrics.ignored.clone()))?;
        registry.register(Box::new(metrics.releases.clone()))?;
        registry.register(Box::new(metrics.epoch.clone()))?;
        registry.register(Box::new(metrics.choices.clone()))?;
        registry.register(Box::new(metrics.resident_problems.clone()))?;
        registry.register(Box::new(metrics.audit_failures.clone()))?;
        for choice in Choice::ALL {
            metrics.choices.with_label_values(&[choice.as_str()]);
        }
        // Every outcome is there from the start, at 0, so that a rate is never missing its first sample.
        metrics.requests.with_label_values(&["ok"]);
        for code in ErrorCode::ALL {
            metrics.requests.with_label_values(&[code.as_str()]);
        }
        Ok(metrics)
    }

    pub(crate) fn chosen(&self, choice: Choice) {
        self.choices.with_label_values(&[choice.as_str()]).inc();
    }

    pub(crate) fn answered(&self, answer: &RankAnswer, took: Duration) {
        self.requests.with_label_values(&["ok"]).inc();
        self.rank.observe(took.as_secs_f64());
        self.lookup.observe(answer.lookup_time.as_secs_f64());
        self.dense.observe(answer.dense_time.as_secs_f64());
        self.candidates.observe(f64::from(answer.candidates));
        self.missing.inc_by(answer.missing_ids.into());
        self.defaulted.inc_by(answer.defaulted_bags.into());
        self.unavailable.inc_by(answer.unavailable_ids.into());
        self.partial.inc_by(u64::from(answer.unavailable_ids > 0));
        // The model of an answer is one that is loaded: there are few.
        let ignored = self.ignored.with_label_values(&[answer.model.as_str()]);
        ignored.inc_by(answer.ignored_features.len() as u64);
    }

    pub(crate) fn refused(&self, code: ErrorCode, took: Duration) {
        self.requests.with_label_values(&[code.as_str()]).inc();
        self.rank.observe(took.as_secs_f64());
    }

    pub(crate) fn releases(&self, epoch: u64, loading: usize, ready: usize, failed: usize) {
        self.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
        for (state, count) in [("loading", loading), ("ready", ready), ("failed", failed)] {
            self.releases.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
