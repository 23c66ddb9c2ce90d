//! What a client counts. Recorded once per lookup or call, never per id.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tidepool_types::ErrorCode;

use crate::{error::ClientError, request::LookupOutcome};

/// The metrics of one client, all named `tidepool_client_...`.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Lookups, by outcome: `ok` or the error's code.
    lookups: IntCounterVec,
    /// How long a lookup took, fallbacks included.
    seconds: Histogram,
    /// Calls to nodes, by outcome: `ok` or the error's code.
    rpcs: IntCounterVec,
    /// Partitions asked elsewhere after a failure.
    fallbacks: IntCounter,
    /// Ids sent and answered, after deduplication.
    rows: IntCounter,
    /// Ids that were not in their table, with repetitions.
    missing: IntCounter,
    /// Vectors that became a default row.
    defaulted: IntCounter,
    /// Bytes of packed numbers, both ways, by wire form.
    wire_bytes: IntCounterVec,
    /// Epoch of the map that the last lookup was routed by.
    epoch: IntGauge,
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
        let buckets = prometheus::exponential_buckets(0.000_1, 2.0, 16)?;
        let seconds =
            HistogramOpts::new("tidepool_client_lookup_seconds", "Time of a lookup, fallbacks included");
        let seconds = Histogram::with_opts(seconds.buckets(buckets))?;
        registry.register(Box::new(seconds.clone()))?;
        let epoch = IntGauge::new("tidepool_client_map_epoch", "Epoch of the map that the last lookup used")?;
        registry.register(Box::new(epoch.clone()))?;
        Ok(Self {
            lookups: by_label("lookups_total", "Lookups by outcome", "code")?,
            seconds,
            rpcs: by_label("rpcs_total", "Calls to nodes by outcome", "code")?,
            fallbacks: counter("fallback_partitions_total", "Partitions asked elsewhere after a failure")?,
            rows: counter("requested_rows_total", "Ids sent and answered, after deduplication")?,
            missing: counter("missing_ids_total", "Ids that were not in their table")?,
            defaulted: counter("defaulted_bags_total", "Vectors that became a default row")?,
            wire_bytes: by_label("wire_bytes_total", "Bytes of packed numbers, both ways, by form", "form")?,
            epoch,
        })
    }

    /// A call to a node has ended; None: well.
    pub(crate) fn rpc(&self, failure: Option<ErrorCode>) {
        self.rpcs.with_label_values(&[failure.map_or("ok", ErrorCode::as_str)]).inc();
    }

    /// A lookup has ended.
    pub(crate) fn lookup(&self, result: &Result<LookupOutcome, ClientError>, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let code = match result {
            Ok(_) => "ok",
            Err(error) => error.code().as_str(),
        };
        self.lookups.with_label_values(&[code]).inc();
        let Ok(outcome) = result else { return };
        self.fallbacks.inc_by(outcome.fallbacks.into());
        self.rows.inc_by(outcome.rows_requested);
        self.missing.inc_by(outcome.features.iter().map(|f| u64::from(f.missing_ids)).sum());
        self.defaulted.inc_by(outcome.features.iter().map(|f| u64::from(f.defaulted_bags)).sum());
        self.wire_bytes.with_label_values(&["gather"]).inc_by(outcome.wire_bytes.gather);
        self.wire_bytes.with_label_values(&["pool"]).inc_by(outcome.wire_bytes.pool);
        self.epoch.set(outcome.epoch.0.try_into().unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_is_counted_under_its_code() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        assert!(Metrics::new(&registry).is_err(), "the names are taken");
        metrics.lookup(&Ok(LookupOutcome { rows_requested: 5, ..Default::default() }), Duration::ZERO);
        metrics.lookup(&Err(ClientError::NoMap), Duration::ZERO);
        metrics.rpc(Some(ErrorCode::Overloaded));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "tidepool_client_lookups_total{code=\"ok\"} 1",
            "tidepool_client_lookups_total{code=\"unavailable\"} 1",
            "tidepool_client_rpcs_total{code=\"overloaded\"} 1",
            "tidepool_client_requested_rows_total 5",
            "tidepool_client_lookup_seconds_count 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
