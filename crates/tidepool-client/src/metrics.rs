//! What a client counts. Recorded once per lookup or call, never per id.

use std::{
    sync::Weak,
    time::{Duration, Instant},
};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tidepool_cluster::ClusterMap;
use tidepool_types::{ErrorCode, Name};

use crate::{
    breaker::Status,
    error::ClientError,
    follow::Follow,
    labels::TableLabels,
    request::{Counted, FeatureCounts, LookupOutcome, Stages},
};

/// The metrics of one client, all named `tidepool_client_...`.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Lookups, by outcome: `ok`, `partial` or the error's code.
    lookups: IntCounterVec,
    /// How long a lookup took, fallbacks included.
    seconds: Histogram,
    /// How long its parts took.
    stages: [Histogram; 3],
    /// Calls to nodes, by outcome: `ok` or the error's code.
    rpcs: IntCounterVec,
    ok_rpcs: IntCounter,
    /// How long calls took that were answered.
    rpc_seconds: Histogram,
    /// Partitions asked elsewhere after a failure.
    fallbacks: IntCounter,
    /// Calls made after a failure: sent, or suppressed by the budget.
    retries: [IntCounter; 2],
    /// Late calls asked of another group as well: sent, won, or suppressed by the budget.
    hedges: [IntCounter; 3],
    /// Ids sent and answered, after deduplication.
    rows: IntCounter,
    /// Per table, with repetitions: ids asked for, not in the table, and on partitions nobody answered for;
    /// and vectors that became a default row.
    ids: IntCounterVec,
    missing: IntCounterVec,
    unavailable: IntCounterVec,
    defaulted: IntCounterVec,
    /// Per table, without repetitions: ids that nobody was asked for.
    held: IntCounterVec,
    /// Which tables those five have series of.
    tables: TableLabels,
    /// Bytes of packed numbers, both ways, by wire form.
    wire_bytes: [IntCounter; 2],
    /// Epoch of the map that the last lookup was routed by.
    epoch: IntGauge,
}

/// The counters of one table.
#[derive(Debug)]
pub(crate) struct TableMetrics {
    ids: IntCounter,
    missing: IntCounter,
    unavailable: IntCounter,
    defaulted: IntCounter,
    held: IntCounter,
}

impl Metrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When `registry` has metrics of these names already.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("tidepool_client_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let by_label = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(Opts::new(format!("tidepool_client_{name}"), help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let seconds = |name: &str, help: &str| {
            // 25 µs to 3.3 s.
            let buckets = prometheus::exponential_buckets(0.000_025, 2.0, 18)?;
            Ok::<_, prometheus::Error>(
                HistogramOpts::new(format!("tidepool_client_{name}"), help).buckets(buckets),
            )
        };
        let histogram = |name: &str, help: &str| {
            let histogram = Histogram::with_opts(seconds(name, help)?)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let stages =
            HistogramVec::new(seconds("stage_seconds", "Time of the parts of a lookup")?, &["stage"])?;
        registry.register(Box::new(stages.clone()))?;
        let epoch = IntGauge::new("tidepool_client_map_epoch", "Epoch of the map that the last lookup used")?;
        registry.register(Box::new(epoch.clone()))?;
        let rpcs = by_label("rpcs_total", "Calls to nodes by outcome", "code")?;
        let retries =
            by_label("retries_total", "Calls made after a failure, by what became of them", "outcome")?;
        let hedges = by_label("hedges_total", "Calls made because one was late, likewise", "outcome")?;
        let wire_bytes = by_label("wire_bytes_total", "Bytes of packed numbers, both ways, by form", "form")?;
        Ok(Self {
            lookups: by_label("lookups_total", "Lookups by outcome", "code")?,
            seconds: histogram("lookup_seconds", "Time of a lookup, fallbacks included")?,
            stages: ["split", "wait", "merge"].map(|stage| stages.with_label_values(&[stage])),
            ok_rpcs: rpcs.with_label_values(&["ok"]),
            rpcs,
            rpc_seconds: histogram("rpc_seconds", "Time of a call to a node that was answered")?,
            fallbacks: counter("fallback_partitions_total", "Partitions asked elsewhere after a failure")?,
            retries: ["sent", "suppressed"].map(|outcome| retries.with_label_values(&[outcome])),
            hedges: ["sent", "won", "suppressed"].map(|outcome| hedges.with_label_values(&[outcome])),
            rows: counter("requested_rows_total", "Ids sent and answered, after deduplication")?,
            ids: by_label("ids_total", "Ids asked for, with repetitions", "table")?,
            missing: by_label("missing_ids_total", "Ids that were not in their table", "table")?,
            unavailable: by_label("unavailable_ids_total", "Ids that nobody answered for", "table")?,
            defaulted: by_label("defaulted_bags_total", "Vectors that became a default row", "table")?,
            held: by_label(
                "held_ids_total",
                "Ids whose rows whoever asks holds, after deduplication",
                "table",
            )?,
            tables: TableLabels::default(),
            wire_bytes: ["gather", "pool"].map(|form| wire_bytes.with_label_values(&[form])),
            epoch,
        })
    }

    /// The counters of `table`.
    fn table(&self, table: &Name) -> TableMetrics {
        self.tables.label(table, |label| TableMetrics {
            ids: self.ids.with_label_values(&[label]),
            missing: self.missing.with_label_values(&[label]),
            unavailable: self.unavailable.with_label_values(&[label]),
            defaulted: self.defaulted.with_label_values(&[label]),
            held: self.held.with_label_values(&[label]),
        })
    }

    /// The counters of each layout of `map`, in its order. The series of tables that it does not have are let go.
    pub(crate) fn tables(&self, map: &ClusterMap) -> Vec<TableMetrics> {
        self.tables.follow(map, |label| {
            for series in [&self.ids, &self.missing, &self.unavailable, &self.defaulted, &self.held] {
                // They were made together; there is none if somebody has removed it before.
                let _ = series.remove_label_values(&[label]);
            }
        });
        map.layouts.iter().map(|layout| self.table(&layout.schema.table_version.table)).collect()
    }

    /// A call to a node has ended; None: well.
    pub(crate) fn rpc(&self, failure: Option<ErrorCode>, took: Duration) {
        match failure {
            None => {
                self.ok_rpcs.inc();
                self.rpc_seconds.observe(took.as_secs_f64());
            }
            Some(code) => self.rpcs.with_label_values(&[code.as_str()]).inc(),
        }
    }

    /// A hedge was not made, for want of a budget.
    pub(crate) fn hedge_suppressed(&self) {
        self.hedges[2].inc();
    }

    /// A retry was not made, for want of a budget.
    pub(crate) fn retry_suppressed(&self) {
        self.retries[1].inc();
    }

    /// A lookup has ended.
    pub(crate) fn lookup<T: Counted>(&self, result: &Result<LookupOutcome<T>, ClientError>, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let code = match result {
            Ok(outcome) if outcome.partial() => "partial",
            Ok(_) => "ok",
            Err(error) => error.code().as_str(),
        };
        self.lookups.with_label_values(&[code]).inc();
        let Ok(outcome) = result else { return };
        let Stages { split, wait, merge, .. } = outcome.stages;
        for (stage, took) in self.stages.iter().zip([split, wait, merge]) {
            stage.observe(took.as_secs_f64());
        }
        self.fallbacks.inc_by(outcome.fallbacks.into());
        self.retries[0].inc_by(outcome.retries.into());
        self.hedges[0].inc_by(outcome.hedges.into());
        self.hedges[1].inc_by(outcome.hedges_won.into());
        self.rows.inc_by(outcome.rows_requested);
        self.wire_bytes[0].inc_by(outcome.wire_bytes.gather);
        self.wire_bytes[1].inc_by(outcome.wire_bytes.pool);
        self.epoch.set(outcome.epoch.0.try_into().unwrap_or(i64::MAX));
    }
}

impl TableMetrics {
    /// A feature that asked for `ids` ids of this table has its vectors or rows.
    pub(crate) fn feature(&self, ids: usize, counts: FeatureCounts) {
        self.ids.inc_by(ids as u64);
        self.missing.inc_by(counts.missing_ids.into());
        self.unavailable.inc_by(counts.unavailable_ids.into());
        self.defaulted.inc_by(counts.defaulted_bags.into());
    }

    /// Of a lookup's unique ids of this table so many were asked of nobody.
    pub(crate) fn held(&self, ids: u64) {
        // Of nearly every table it is none, and a counter is written by all threads.
        if ids > 0 {
            self.held.inc_by(ids);
        }
    }
}

/// The state of the nodes, looked up when somebody asks for it.
#[derive(Debug)]
pub(crate) struct NodeMetrics {
    follow: Weak<Follow>,
    /// Nodes of the map, by what their breakers say.
    nodes: IntGaugeVec,
    /// Calls under way.
    in_flight: IntGauge,
}

impl NodeMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When `registry` has metrics of these names already.
    pub(crate) fn register(registry: &Registry, follow: Weak<Follow>) -> Result<(), prometheus::Error> {
        let nodes = Opts::new("tidepool_client_nodes", "Nodes of the map, by breaker");
        let nodes = IntGaugeVec::new(nodes, &["state"])?;
        let in_flight = IntGauge::new("tidepool_client_calls_in_flight", "Calls to nodes under way")?;
        registry.register(Box::new(Self { follow, nodes, in_flight }))
    }
}

impl Collector for NodeMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [self.nodes.desc(), self.in_flight.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (mut closed, mut probing, mut open, mut in_flight) = (0, 0, 0, 0);
        if let Some(follow) = self.follow.upgrade() {
            let now = Instant::now();
            for node in &follow.newest().nodes {
                let look = node.peer.look(now);
                in_flight += i64::from(look.in_flight);
                match look.status {
                    Status::Closed => closed += 1,
                    Status::Probing | Status::ProbeDue => probing += 1,
                    Status::Open => open += 1,
                }
            }
        }
        for (state, count) in [("closed", closed), ("probing", probing), ("open", open)] {
            self.nodes.with_label_values(&[state]).set(count);
        }
        self.in_flight.set(in_flight);
        [self.nodes.collect(), self.in_flight.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        labels::MAX_TABLES,
        layouts_tests::{map_of_schemas, schema},
        request::FeatureVectors,
    };

    #[test]
    fn a_lookup_is_counted_under_its_code() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        assert!(Metrics::new(&registry).is_err(), "the names are taken");
        let ok = LookupOutcome::<FeatureVectors> { rows_requested: 5, ..Default::default() };
        metrics.lookup(&Ok(ok), Duration::ZERO);
        metrics.lookup::<FeatureVectors>(&Err(ClientError::NoMap), Duration::ZERO);
        metrics.rpc(Some(ErrorCode::Overloaded), Duration::ZERO);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "tidepool_client_lookups_total{code=\"ok\"} 1",
            "tidepool_client_lookups_total{code=\"unavailable\"} 1",
            "tidepool_client_rpcs_total{code=\"overloaded\"} 1",
            "tidepool_client_requested_rows_total 5",
            "tidepool_client_lookup_seconds_count 2",
            "tidepool_client_hedges_total{outcome=\"suppressed\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn tables_beyond_the_bound_share_a_label() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        for _ in 0..2 {
            for n in 0..MAX_TABLES + 5 {
                metrics.table(&Name::new(format!("t{n}")).unwrap()).ids.inc();
            }
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("tidepool_client_ids_total{table=\"t0\"} 2"), "{text}");
        assert!(text.contains("tidepool_client_ids_total{table=\"other\"} 10"), "{text}");
        // Of the tables of a newer map only those are shown, and each of them.
        let kept = schema("t3", 32);
        let tables = metrics.tables(&map_of_schemas(2, &[&schema("new", 32), &kept]));
        tables.iter().for_each(|table| table.ids.inc());
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let shown = text.lines().filter(|line| line.starts_with("tidepool_client_ids_total{"));
        let ids = |of: &str, count| format!("tidepool_client_ids_total{{table=\"{of}\"}} {count}");
        assert_eq!(shown.collect::<Vec<_>>(), [ids("new", 1), ids("other", 10), ids("t3", 3)]);
    }
}
