//! What sharing batches gains and what waiting for company costs: the ranker's own batcher in this process, with a lookup
//! and a dense run that take known times and do nothing. Requests come at a rate of their own (by chance, as callers that
//! know nothing of each other do), so what cannot be kept up with shows as time.
//!
//! `cargo bench -p tidepool-ranker --bench batching`; in test mode one short round is tried.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on says where")]
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tidepool_client::{
    FeatureRows, FeatureVectors, Held, LocalTables, LookupAccount, LookupOptions, LookupOutcome,
    LookupRequest,
};
use tidepool_dense::{DenseBatch, DenseError};
use tidepool_ranker::{
    InputRows,
    batch::{
        BatchInput, BatchMetrics, BatchModel, BatchOptions, Batchers, InputFrom, Job, Looking, Scorer,
        VectorSource,
    },
};
use tidepool_runtime::pool::CpuPool;
use tidepool_types::{Epoch, Name, Pooling, Side, TableSchema, TableVersion, mix64};

/// What a lookup takes, whatever it asks for.
const LOOKUP: Duration = Duration::from_micros(400);
/// What a dense run takes beside its rows.
const RUN: Duration = Duration::from_micros(200);
/// What a row takes.
const ROW: Duration = Duration::from_nanos(400);
const BUDGET: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct TimedLookup;

impl VectorSource for TimedLookup {
    fn default_options(&self) -> LookupOptions {
        LookupOptions::default()
    }

    fn look_up<'a>(
        &'a self,
        request: &'a LookupRequest,
        _: &'a LookupOptions,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a> {
        Box::pin(async move {
            // The timers of the runtime go by milliseconds.
            tokio::task::spawn_blocking(|| thread::sleep(LOOKUP)).await.unwrap();
            let vectors = |feature: &tidepool_client::FeatureLookup| FeatureVectors {
                table_version: feature.table_version.clone(),
                sequence: 0,
                dim: 1,
                values: vec![0.5; feature.ids.len()],
                found: vec![1; feature.ids.len()],
                missing_ids: 0,
                unavailable_ids: 0,
                unavailable: Vec::new(),
                defaulted_bags: 0,
                defaulted: Vec::new(),
            };
            let features = request.features.iter().map(vectors).collect();
            Ok(LookupOutcome { features, epoch: Epoch(1), ..LookupOutcome::default() })
        })
    }

    fn look_up_rows<'a>(
        &'a self,
        request: &'a LookupRequest,
        _: &'a LookupOptions,
        held: Option<&'a dyn Held>,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a, FeatureRows> {
        Box::pin(async move {
            tokio::task::spawn_blocking(|| thread::sleep(LOOKUP)).await.unwrap();
            let tables = LocalTables::new(["user", "item"].map(schema).into());
            tables.look_up_rows(request, held, |_, ids, put| {
                (0..ids.len()).for_each(|at| put(at, &0.5f32.to_le_bytes()));
                Ok(())
            })
        })
    }
}

/// A table of one number a row.
fn schema(table: &str) -> TableSchema {
    let text = format!(
        r#"{{"table_version": {{"table": "{table}", "version": "v1"}}, "dim": 1, "format": "f32",
            "keying": "hashed", "partitions": 1, "rows": 1}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[derive(Debug)]
struct TimedRun;

impl Scorer for TimedRun {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        thread::sleep(RUN + ROW * u32::try_from(batch.rows).unwrap());
        Ok(vec![vec![0.5; batch.rows]])
    }
}

fn main() {
    // `cargo test` and `cargo bench` tell a bench without a harness apart by this alone.
    let once = !std::env::args().any(|arg| arg == "--bench");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let whole = if once { Duration::from_millis(20) } else { Duration::from_millis(600) };
    println!(
        "lookup {LOOKUP:?}, dense run {RUN:?} and {ROW:?} a row, one thread for dense runs; 100 candidates a request"
    );
    println!("p50 and p99 in ms, requests per batch");
    let settings =
        [("alone", 1, 2), ("1 place", 64, 1), ("2 places", 64, 2), ("4 places", 64, 4), ("8 places", 64, 8)];
    let rates: &[u32] = if once { &[200] } else { &[100, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000] };
    for rate in rates {
        let mut line = format!("{rate:>6}/s");
        for (words, max_requests, places) in settings {
            let options = BatchOptions { max_requests, places, ..options() };
            let [p50, p99, share] = runtime.block_on(load(options, 100, *rate, whole));
            line += &format!("   {words}: {p50:>6.2} {p99:>7.2} {share:>5.1}");
        }
        println!("{line}");
    }
    println!("a request of 100,000 candidates at a time beside 500 small ones a second, by rows of a batch");
    for max_rows in [256, 512, 1_024, 2_048, 4_096, 16_384, 100_000] {
        let options = BatchOptions { max_rows, ..options() };
        let huge = if once { 1_000 } else { 100_000 };
        let [p50, p99, took] = runtime.block_on(beside(options, huge, whole));
        println!("{max_rows:>7} rows: small ones p50 {p50:>6.2} p99 {p99:>7.2}; the huge one {took:>7.1} ms");
    }
}

fn options() -> BatchOptions {
    BatchOptions {
        max_rows: 2_048,
        max_requests: 64,
        max_ids: 1_000_000,
        places: 2,
        max_delay: Duration::from_millis(2),
        max_concurrent_batches: 34,
        max_waiting_rows: 400_000,
        max_waiting_requests: 100_000,
        max_waiting_bytes: 1 << 40,
        exact: false,
    }
}

/// A model of one input of the user, and one of candidates.
fn model() -> Arc<BatchModel> {
    let input = |name: &str, side| {
        let table = TableVersion { table: Name::new(name).unwrap(), version: Name::new("v1").unwrap() };
        BatchInput { name: name.into(), side, width: 1, from: InputFrom::Bags(table, Pooling::Sum) }
    };
    Arc::new(BatchModel {
        model: Name::new("m").unwrap(),
        release: Name::new("r1").unwrap(),
        inputs: vec![input("user", Side::User), input("item", Side::Candidate)],
        scorer: Arc::new(TimedRun),
    })
}

/// Who asks, and what has been seen.
struct Site {
    batchers: Batchers,
    model: Arc<BatchModel>,
}

impl Site {
    fn new(options: BatchOptions) -> Self {
        let pool = CpuPool::new(1, 256).unwrap();
        let metrics = BatchMetrics::new().unwrap();
        let batchers = Batchers::new(options, BTreeMap::new(), pool, Arc::new(TimedLookup), metrics);
        Self { batchers, model: model() }
    }

    /// Milliseconds of one request, and how many shared its batch; None: it was not answered.
    async fn ask(&self, rows: u32) -> Option<(f64, f64)> {
        let begun = Instant::now();
        let bags = |ids: Vec<u64>| InputRows::Bags { ids, lengths: None, weights: None };
        let job = Job {
            model: self.model.clone(),
            rows,
            inputs: vec![bags(vec![1]), bags((0..u64::from(rows)).collect())],
            finishing: Arc::default(),
            tenant: None,
            deadline: begun + BUDGET,
            budget: BUDGET,
            request_id: String::new(),
            traceparent: None,
            background: false,
            noted: false,
        };
        let ticket = self.batchers.of(&self.model.model).submit(job, Ok).ok()?;
        let progress = ticket.progress().clone();
        ticket.wait().await.ok()?;
        Some((begun.elapsed().as_secs_f64() * 1e3, f64::from(progress.share().batch_requests)))
    }
}

/// p50 and p99 of requests at a rate, and how many shared a batch on average. What was not answered counts as its budget.
async fn load(options: BatchOptions, rows: u32, rate: u32, whole: Duration) -> [f64; 3] {
    let site = Arc::new(Site::new(options));
    let (begun, mut at, mut turn) = (Instant::now(), 0.0, 0u64);
    let mut asked = Vec::new();
    while at < whole.as_secs_f64() {
        // The times between are those of chance: many short ones, few long ones.
        turn += 1;
        let chance = (mix64(turn) >> 11) as f64 / (1u64 << 53) as f64;
        at -= (1.0 - chance).ln() / f64::from(rate);
        let due = begun + Duration::from_secs_f64(at);
        // The timers of the runtime are too coarse: whoever is due is asked when the clock has come so far.
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        let site = site.clone();
        asked.push(tokio::spawn(async move { site.ask(rows).await }));
    }
    let mut took = Vec::new();
    let mut shared = 0.0;
    for answer in asked {
        let (ms, share) = answer.await.unwrap().unwrap_or((BUDGET.as_secs_f64() * 1e3, 0.0));
        took.push(ms);
        shared += share;
    }
    let count = took.len().max(1) as f64;
    let [p50, p99] = percentiles(&mut took);
    [p50, p99, shared / count]
}

/// p50 and p99 of small requests while huge ones are answered one after the other, and what such a one takes.
async fn beside(options: BatchOptions, huge: u32, whole: Duration) -> [f64; 3] {
    let site = Arc::new(Site::new(options));
    let end = Instant::now() + whole;
    let big = tokio::spawn({
        let site = site.clone();
        async move {
            let mut took = Vec::new();
            while Instant::now() < end {
                took.extend(site.ask(huge).await.map(|(ms, _)| ms));
            }
            took
        }
    });
    let mut took = Vec::new();
    while Instant::now() < end {
        took.extend(site.ask(20).await.map(|(ms, _)| ms));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let [p50, p99] = percentiles(&mut took);
    let mut of_huge = big.await.unwrap();
    let [of_huge, _] = percentiles(&mut of_huge);
    [p50, p99, of_huge]
}

fn percentiles(list: &mut [f64]) -> [f64; 2] {
    list.sort_by(f64::total_cmp);
    [50, 99].map(|percent| list.get(list.len() * percent / 100).copied().unwrap_or(f64::NAN))
}
