//! The metrics of a node. They are registered in a registry of its own: several nodes may share a process.

use std::{sync::Arc, time::Duration};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector, exponential_buckets,
};

use tidepool_table::MemoryUse;
use tidepool_types::Name;

use crate::{error::LookupError, guard::Guard, lookup::Answer, state::NodeState};

/// What there may be too much of.
const SHED_REASONS: [&str; 5] = ["rows", "rate", "queue", "quota", "deadline"];

/// Where the lookups of a table are counted: found once, and not again for each lookup.
#[derive(Debug)]
pub(crate) struct TableSeries {
    rows: IntCounter,
    missing_ids: IntCounter,
    seconds: Histogram,
}

/// How long the stages of a lookup took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stages {
    /// Waiting for a thread; `None` when it needed none.
    pub(crate) queue: Option<Duration>,
    /// Checking the request.
    pub(crate) decode: Duration,
    /// From there to the answer, other waiting included.
    pub(crate) lookup: Duration,
}

/// Series that every answered lookup goes by, found once.
#[derive(Clone, Debug)]
struct Hot {
    ok: IntCounter,
    queue: Histogram,
    decode: Histogram,
    lookup: Histogram,
    gather: IntCounter,
    pool: IntCounter,
}

/// Counters and gauges; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Lookups by outcome: `ok`, or the error code's word.
    lookups: IntCounterVec,
    /// Lookups that were turned away without any work, by what there was too much of.
    shed: IntCounterVec,
    /// From the request decoded to the answer made, answered lookups only.
    lookup_seconds: Histogram,
    /// Stages of answered lookups: `queue`, `decode`, `lookup`.
    stage_seconds: HistogramVec,
    /// By table: ids, missing ids, and time on threads.
    table_rows: IntCounterVec,
    table_missing_ids: IntCounterVec,
    table_seconds: HistogramVec,
    /// Ids looked up in answered lookups.
    rows: IntCounter,
    /// Those of them that no table has.
    missing_ids: IntCounter,
    /// Bytes of stored rows, and of sums, counts and weight sums.
    response_bytes: IntCounterVec,
    /// Bytes of messages that have not come whole, and of answers that have not been taken.
    held_bytes: IntGauge,
    /// Partitions of the assignment by state.
    partitions: IntGaugeVec,
    /// Bytes of the partition files that are mapped.
    mapped_bytes: IntGauge,
    /// Bytes of rows and indexes that were in memory when their partitions were brought there.
    resident_bytes: IntGauge,
    /// Those of them on pages of 2 MiB.
    huge_page_bytes: IntGauge,
    /// Bytes of rows and indexes by whether warm-up has read them.
    warm_up_bytes: IntGaugeVec,
    /// Epoch of the assignment.
    epoch: IntGauge,
    hot: Hot,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When `registry` has a metric of such a name already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let name = |rest: &str| format!("tidepool_node_{rest}");
        let buckets = exponential_buckets(10e-6, 2.0, 18)?;
        let stages = HistogramOpts::new(
            name("stage_seconds"),
            "Stages of answered lookups: waiting for a thread, checking the request, looking up",
        );
        let tables = HistogramOpts::new(
            name("table_seconds"),
            "Time on threads for a feature of an answered lookup, by table",
        );
        let seconds = HistogramOpts::new(
            name("lookup_seconds"),
            "Time from a decoded request to its answer, of answered lookups",
        );
        let lookups = IntCounterVec::new(
            Opts::new(name("lookups_total"), "Lookups by outcome: ok, or the error code"),
            &["code"],
        )?;
        let stage_seconds = HistogramVec::new(stages.buckets(buckets.clone()), &["stage"])?;
        let response_bytes = IntCounterVec::new(
            Opts::new(name("response_bytes_total"), "Bytes of rows and sums in answers, by wire form"),
            &["wire_form"],
        )?;
        let hot = Hot {
            ok: lookups.with_label_values(&["ok"]),
            queue: stage_seconds.with_label_values(&["queue"]),
            decode: stage_seconds.with_label_values(&["decode"]),
            lookup: stage_seconds.with_label_values(&["lookup"]),
            gather: response_bytes.with_label_values(&["gather"]),
            pool: response_bytes.with_label_values(&["pool"]),
        };
        let metrics = Self {
            hot,
            lookups,
            response_bytes,
            stage_seconds,
            shed: IntCounterVec::new(
                Opts::new(name("shed_total"), "Lookups turned away without any work, by reason"),
                &["reason"],
            )?,
            lookup_seconds: Histogram::with_opts(seconds.buckets(buckets.clone()))?,
            table_rows: IntCounterVec::new(
                Opts::new(name("table_rows_total"), "Ids looked up in answered lookups, by table"),
                &["table"],
            )?,
            table_missing_ids: IntCounterVec::new(
                Opts::new(
                    name("table_missing_ids_total"),
                    "Ids looked up that are not in their table, by table",
                ),
                &["table"],
            )?,
            table_seconds: HistogramVec::new(tables.buckets(buckets), &["table"])?,
            rows: IntCounter::new(name("rows_total"), "Ids looked up in answered lookups")?,
            missing_ids: IntCounter::new(
                name("missing_ids_total"),
                "Ids looked up that are not in their table",
            )?,
            held_bytes: IntGauge::new(
                name("held_bytes"),
                "Bytes of messages that have not come whole, and of answers that have not been taken",
            )?,
            partitions: IntGaugeVec::new(
                Opts::new(name("partitions"), "Partitions of the assignment, by state"),
                &["state"],
            )?,
            mapped_bytes: IntGauge::new(
                name("mapped_bytes"),
                "Bytes of the partition files that are mapped",
            )?,
            resident_bytes: IntGauge::new(
                name("resident_bytes"),
                "Bytes of rows and indexes that were in memory when their partitions were brought there",
            )?,
            huge_page_bytes: IntGauge::new(
                name("huge_page_bytes"),
                "Those of resident_bytes on pages of 2 MiB",
            )?,
            warm_up_bytes: IntGaugeVec::new(
                Opts::new(
                    name("warm_up_bytes"),
                    "Bytes of rows and indexes, by whether warm-up has read them",
                ),
                &["state"],
            )?,
            epoch: IntGauge::new(name("epoch"), "Epoch of the assignment; 0 while there is none")?,
        };
        let all: [Box<dyn Collector>; 17] = [
            Box::new(metrics.lookups.clone()),
            Box::new(metrics.shed.clone()),
            Box::new(metrics.lookup_seconds.clone()),
            Box::new(metrics.stage_seconds.clone()),
            Box::new(metrics.table_rows.clone()),
            Box::new(metrics.table_missing_ids.clone()),
            Box::new(metrics.table_seconds.clone()),
            Box::new(metrics.rows.clone()),
            Box::new(metrics.missing_ids.clone()),
            Box::new(metrics.response_bytes.clone()),
            Box::new(metrics.held_bytes.clone()),
            Box::new(metrics.partitions.clone()),
            Box::new(metrics.mapped_bytes.clone()),
            Box::new(metrics.resident_bytes.clone()),
            Box::new(metrics.huge_page_bytes.clone()),
            Box::new(metrics.warm_up_bytes.clone()),
            Box::new(metrics.epoch.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))?;
        // From the start, so that the first one is seen as an increase.
        for reason in SHED_REASONS {
            metrics.shed.with_label_values(&[reason]);
        }
        Ok(metrics)
    }

    /// Stands before the service, and counts what it refuses with the lookups.
    pub(crate) fn guard(&self, max_held_bytes: u64, receive_timeout: Duration) -> Guard {
        Guard::new(max_held_bytes, receive_timeout, self.held_bytes.clone(), self.lookups.clone())
    }

    /// Where the lookups of a table are counted from now on.
    pub(crate) fn table(&self, table: &Name) -> Arc<TableSeries> {
        Arc::new(TableSeries {
            rows: self.table_rows.with_label_values(&[table]),
            missing_ids: self.table_missing_ids.with_label_values(&[table]),
            seconds: self.table_seconds.with_label_values(&[table]),
        })
    }

    /// Shows tables no more that are not served any more.
    pub(crate) fn forget(&self, tables: &[&Name]) {
        for table in tables {
            // One that is not there is forgotten already.
            let _ = self.table_rows.remove_label_values(&[table]);
            let _ = self.table_missing_ids.remove_label_values(&[table]);
            let _ = self.table_seconds.remove_label_values(&[table]);
        }
    }

    /// Counts one lookup.
    pub(crate) fn count(&self, outcome: &Result<(Answer, Stages), LookupError>, took: Duration) {
        let (answer, stages) = match outcome {
            Ok(answered) => answered,
            Err(error) => {
                self.lookups.with_label_values(&[error.code().as_str()]).inc();
                if let Some(reason) = error.shed_for() {
                    self.shed.with_label_values(&[reason]).inc();
                }
                return;
            }
        };
        self.hot.ok.inc();
        self.lookup_seconds.observe(took.as_secs_f64());
        if let Some(queue) = stages.queue {
            self.hot.queue.observe(queue.as_secs_f64());
        }
        self.hot.decode.observe(stages.decode.as_secs_f64());
        self.hot.lookup.observe(stages.lookup.as_secs_f64());
        for share in &answer.shares {
            share.series.rows.inc_by(share.rows);
            share.series.missing_ids.inc_by(share.missing);
            share.series.seconds.observe(share.took.as_secs_f64());
        }
        self.rows.inc_by(answer.shares.iter().map(|share| share.rows).sum());
        self.missing_ids.inc_by(answer.shares.iter().map(|share| share.missing).sum());
        self.hot.gather.inc_by(answer.gather_bytes);
        self.hot.pool.inc_by(answer.pool_bytes);
    }

    /// Shows how far the assignment is, and how many bytes are mapped.
    pub(crate) fn show(&self, state: &NodeState, mapped_bytes: u64) {
        let counts = state.counts();
        for (word, count) in [("loading", counts.loading), ("ready", counts.ready), ("failed", counts.failed)]
        {
            self.partitions.with_label_values(&[word]).set(gauge(count as u64));
        }
        self.mapped_bytes.set(gauge(mapped_bytes));
        let sum =
            |of: fn(&MemoryUse) -> u64| gauge(state.partitions.iter().map(|held| of(&held.memory)).sum());
        self.resident_bytes.set(sum(|memory| memory.resident_bytes));
        self.huge_page_bytes.set(sum(|memory| memory.huge_page_bytes));
        self.epoch.set(gauge(state.epoch.0));
        self.show_warm_up(state);
    }

    /// Shows how far warm-up is.
    pub(crate) fn show_warm_up(&self, state: &NodeState) {
        let (mut done, mut all) = (0, 0);
        for warmth in state.warmth().into_values() {
            done += warmth.done_bytes;
            all += warmth.all_bytes;
        }
        for (word, bytes) in [("done", done), ("waiting", all.saturating_sub(done))] {
            self.warm_up_bytes.with_label_values(&[word]).set(gauge(bytes));
        }
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
