//! The sections `[batch]` and `[models.NAME]` of a ranker's configuration; `config/ranker.toml` explains every key.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tidepool_runtime::config::Problems;
use tidepool_types::Name;

use crate::request;

/// No batch has more rows.
const MAX_BATCH_ROWS: u32 = 1 << 20;
/// No model has more batches under way, and no batch more requests.
const MAX_COUNT: u32 = 1 << 16;

/// Batches of a model per thread of the CPU pool that leave at once: one to be run, one to be fetched meanwhile.
const PLACES_PER_THREAD: usize = 2;
/// Batches of a model beside those that may be under way because lookups take long.
const MORE_BATCHES: usize = 32;

/// How requests share batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawBatch {
    /// Rows of a batch; a request with more is cut.
    pub max_rows: u32,
    /// Requests of a batch.
    pub max_requests: u32,
    /// How long a request waits for a place while threads are free.
    pub max_delay_ms: u64,
    /// Batches of a model that are under way at a time, at most; 0: 32 more than there are places.
    pub max_concurrent_batches: u32,
    /// Rows of a model that may wait for a batch.
    pub max_waiting_rows: u64,
    /// Requests of a model that may wait for a batch.
    pub max_waiting_requests: u32,
    /// Bytes of the inputs of those requests.
    pub max_waiting_bytes: u64,
}

impl Default for RawBatch {
    fn default() -> Self {
        Self {
            max_rows: 2048,
            max_requests: 64,
            max_delay_ms: 2,
            max_concurrent_batches: 0,
            max_waiting_rows: 200_000,
            max_waiting_requests: 4096,
            max_waiting_bytes: 256 << 20,
        }
    }
}

/// What one model may have; what is left out is as for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawModel {
    /// Batches that are under way at a time.
    pub max_concurrent_batches: Option<u32>,
    /// Rows that may wait for a batch.
    pub max_waiting_rows: Option<u64>,
    /// Memory of its releases and of its batches; none: as much as there is.
    pub max_memory_bytes: Option<u64>,
}

/// How requests share batches, of a model that has no limits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Rows of a batch; a request with more is cut.
    pub max_rows: u64,
    /// Requests of a batch.
    pub max_requests: usize,
    /// Ids of a batch of several requests.
    pub max_ids: u64,
    /// Batches that leave at once: as many as keep the threads busy, while others are fetched.
    pub places: usize,
    /// How long a request waits for a place while threads are free: those who have the places wait for their lookups.
    pub max_delay: Duration,
    /// Batches that are under way at a time, at most; at least one.
    pub max_concurrent_batches: usize,
    /// Rows that may wait for a batch, unless it is one request that has more.
    pub max_waiting_rows: u64,
    /// Requests that may wait for a batch.
    pub max_waiting_requests: usize,
    /// Bytes of the inputs of what waits, unless it is one request that has more.
    pub max_waiting_bytes: u64,
    /// Every lookup is answered to the bit on any layout.
    pub exact: bool,
}

/// What one model may have; None: as for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelLimits {
    /// Batches that are under way at a time.
    pub max_concurrent_batches: Option<usize>,
    /// Rows that may wait for a batch.
    pub max_waiting_rows: Option<u64>,
    /// Bytes of its releases and of its batches.
    pub max_memory_bytes: Option<u64>,
}

impl BatchOptions {
    /// Those of a model that has limits of its own.
    pub(super) fn with(self, limits: ModelLimits) -> Self {
        Self {
            max_concurrent_batches: limits
                .max_concurrent_batches
                .unwrap_or(self.max_concurrent_batches)
                .max(1),
            max_waiting_rows: limits.max_waiting_rows.unwrap_or(self.max_waiting_rows),
            ..self
        }
    }

    /// Dense runs of a model at a time, at most: each has a thread of the CPU pool.
    pub(super) fn runs(self) -> usize {
        self.places.div_ceil(PLACES_PER_THREAD).min(self.max_concurrent_batches)
    }
}

/// The options, and the limits of each model that is named; the problems noted where something cannot be.
pub(crate) fn check(
    problems: &mut Problems,
    raw: &RawBatch,
    models: &BTreeMap<String, RawModel>,
    (pool_threads, requests, exact): (usize, request::Limits, bool),
) -> (BatchOptions, BTreeMap<Name, ModelLimits>) {
    let mut count = |key: &str, least: u32, count: u32| {
        problems.check((least..=MAX_COUNT).contains(&count), format!("{key}: from {least} to {MAX_COUNT}"));
        count as usize
    };
    let max_requests = count("batch.max_requests", 1, raw.max_requests);
    let max_waiting_requests = count("batch.max_waiting_requests", 1, raw.max_waiting_requests);
    let concurrent = count("batch.max_concurrent_batches", 0, raw.max_concurrent_batches);
    let mut limits = BTreeMap::new();
    for (model, raw) in models {
        let key = |rest: &str| format!("models.{model}.{rest}");
        let of_model = ModelLimits {
            max_concurrent_batches: raw
                .max_concurrent_batches
                .map(|batches| count(&key("max_concurrent_batches"), 1, batches)),
            max_waiting_rows: raw.max_waiting_rows,
            max_memory_bytes: raw.max_memory_bytes,
        };
        limits.insert((model, key("")), of_model);
    }
    let mut named = BTreeMap::new();
    for ((model, section), of_model) in limits {
        if of_model.max_waiting_rows == Some(0) {
            problems.add(format!("{section}max_waiting_rows: at least 1"));
        }
        if of_model.max_memory_bytes == Some(0) {
            problems.add(format!("{section}max_memory_bytes: at least 1"));
        }
        if let Some(name) = problems.parse::<Name>("models", model) {
            named.insert(name, of_model);
        }
    }
    let rows = raw.max_rows;
    problems
        .check((1..=MAX_BATCH_ROWS).contains(&rows), format!("batch.max_rows: from 1 to {MAX_BATCH_ROWS}"));
    problems.check(raw.max_delay_ms <= 1_000, "batch.max_delay_ms: at most 1000");
    problems.check(raw.max_waiting_rows > 0, "batch.max_waiting_rows: at least 1");
    problems.check(raw.max_waiting_bytes > 0, "batch.max_waiting_bytes: at least 1");
    let places = pool_threads.max(1) * PLACES_PER_THREAD;
    let options = BatchOptions {
        max_rows: rows.into(),
        max_requests,
        max_ids: requests.max_ids,
        max_delay: Duration::from_millis(raw.max_delay_ms),
        places,
        max_concurrent_batches: if concurrent == 0 { places + MORE_BATCHES } else { concurrent },
        max_waiting_rows: raw.max_waiting_rows,
        max_waiting_requests,
        max_waiting_bytes: raw.max_waiting_bytes,
        exact,
    };
    (options, named)
}
