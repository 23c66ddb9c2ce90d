//! What a cache counts. Recorded once per table of a lookup, never per id.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tidepool_cluster::ClusterMap;
use tidepool_types::Name;

use crate::labels::TableLabels;

/// The metrics of the cache of one client, all named `tidepool_client_cache_...`.
#[derive(Debug)]
pub(super) struct CacheMetrics {
    /// Unique ids of a lookup that were in the cache, by table.
    hits: IntCounterVec,
    /// Those that were not.
    misses: IntCounterVec,
    /// Which tables those two have series of.
    tables: TableLabels,
    /// What is held, overhead included.
    bytes: IntGauge,
    /// Rows held, and ids known to have none.
    rows: IntGauge,
    /// Rows that had to go for others, or were not let in.
    evictions: IntCounter,
}

/// The counters of one table.
#[derive(Debug)]
pub(super) struct TableCounts {
    hits: IntCounter,
    misses: IntCounter,
}

impl CacheMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When `registry` has metrics of these names already.
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let name = |rest: &str| format!("tidepool_client_cache_{rest}");
        let metrics = Self {
            hits: IntCounterVec::new(Opts::new(name("hits_total"), "Ids found in the cache"), &["table"])?,
            misses: IntCounterVec::new(
                Opts::new(name("misses_total"), "Ids not found in the cache"),
                &["table"],
            )?,
            tables: TableLabels::default(),
            bytes: IntGauge::new(name("held_bytes"), "Bytes held by the cache, overhead included")?,
            rows: IntGauge::new(name("held_rows"), "Rows held by the cache")?,
            evictions: IntCounter::new(name("evictions_total"), "Rows that had to go for others")?,
        };
        registry.register(Box::new(metrics.hits.clone()))?;
        registry.register(Box::new(metrics.misses.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.rows.clone()))?;
        registry.register(Box::new(metrics.evictions.clone()))?;
        Ok(metrics)
    }

    /// The counters of `table`.
    pub(super) fn table(&self, table: &Name) -> TableCounts {
        self.tables.label(table, |label| TableCounts {
            hits: self.hits.with_label_values(&[label]),
            misses: self.misses.with_label_values(&[label]),
        })
    }

    /// Lets the series of tables go that `map` does not have.
    pub(super) fn follow(&self, map: &ClusterMap) {
        self.tables.follow(map, |label| {
            for series in [&self.hits, &self.misses] {
                // There is none of a table that nobody has counted for.
                let _ = series.remove_label_values(&[label]);
            }
        });
    }

    pub(super) fn held(&self, bytes: u64, rows: u64, evicted: u64) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.bytes.set(gauge(bytes));
        self.rows.set(gauge(rows));
        self.evictions.inc_by(evicted.saturating_sub(self.evictions.get()));
    }
}

impl TableCounts {
    pub(super) fn read(&self, hits: u64, misses: u64) {
        self.hits.inc_by(hits);
        self.misses.inc_by(misses);
    }
}
