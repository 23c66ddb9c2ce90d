//! Batches without a network and without a model: what is looked up and what is run is seen, and held up where a test
//! wants it held up.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tidepool_client::{
    ClientError, FeatureRows, FeatureVectors, Held, LocalTables, LookupAccount, LookupOptions, LookupOutcome,
    LookupRequest, OnUnavailable,
};
use tidepool_dense::{DenseBatch, DenseError};
use tidepool_runtime::pool::CpuPool;
use tidepool_types::{Epoch, ErrorCode, Name, Pooling, Side, TableSchema, TableVersion};
use tokio::{sync::Semaphore, time::timeout};

use super::*;

mod bounds;
mod by_rows;
mod sharing;
mod twin;

const DEADLINE: Duration = Duration::from_secs(30);
/// Ids from here on are in no table.
const ROWS: u64 = 1_000_000;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn table(text: &str) -> TableVersion {
    TableVersion { table: name(text), version: name("v1") }
}

/// Every row is `[id, 1]`.
#[derive(Debug)]
struct Rows {
    /// What was asked.
    asked: Mutex<Vec<(LookupRequest, LookupOptions)>>,
    /// A permit per lookup; None: they are not held up.
    gate: Option<Semaphore>,
    on_unavailable: OnUnavailable,
    /// Lookups of more requests' users than one are refused, as those are that ask for too much.
    only_alone: bool,
}

impl Rows {
    fn open() -> Self {
        Self { asked: Mutex::default(), gate: None, on_unavailable: OnUnavailable::Fail, only_alone: false }
    }

    fn gated() -> Self {
        Self { gate: Some(Semaphore::new(0)), ..Self::open() }
    }

    fn let_through(&self, lookups: usize) {
        self.gate.as_ref().unwrap().add_permits(lookups);
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Waits until it is let through, and refuses what is too much.
    async fn let_in(&self, request: &LookupRequest) -> Result<(), ClientError> {
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let users = request.features.first().map_or(0, |feature| feature.ids.len());
        if self.only_alone && users > 1 {
            let (table, problem) = (table("user"), "there is too much of it".into());
            return Err(ClientError::Invalid { feature: 0, table, problem });
        }
        Ok(())
    }

    /// Ids asked for in lookup `at`, by feature.
    fn ids(&self, at: usize) -> Vec<Vec<u64>> {
        self.asked.lock().unwrap()[at].0.features.iter().map(|f| f.ids.clone()).collect()
    }
}

impl VectorSource for Rows {
    fn default_options(&self) -> LookupOptions {
        LookupOptions { on_unavailable: self.on_unavailable, ..LookupOptions::default() }
    }

    fn look_up<'a>(
        &'a self,
        request: &'a LookupRequest,
        options: &'a LookupOptions,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a> {
        self.asked.lock().unwrap().push((request.clone(), options.clone()));
        Box::pin(async move {
            self.let_in(request).await?;
            Ok(LookupOutcome {
                features: request.features.iter().map(vectors).collect(),
                epoch: Epoch(7),
                nodes_touched: 1,
                rows_requested: request.features.iter().map(|f| f.ids.len() as u64).sum(),
                ..LookupOutcome::default()
            })
        })
    }

    fn look_up_rows<'a>(
        &'a self,
        request: &'a LookupRequest,
        options: &'a LookupOptions,
        held: Option<&'a dyn Held>,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a, FeatureRows> {
        self.asked.lock().unwrap().push((request.clone(), options.clone()));
        Box::pin(async move {
            self.let_in(request).await?;
            let tables = LocalTables::new([schema(&table("user"), ""), schema(&table("item"), "")].into());
            let outcome = tables.look_up_rows(request, held, |_, ids, put| {
                for (at, id) in ids.iter().enumerate().filter(|(_, id)| **id < ROWS) {
                    put(at, &bytes(&[*id as f32, 1.0]));
                }
                Ok(())
            })?;
            Ok(LookupOutcome { epoch: Epoch(7), nodes_touched: 1, ..outcome })
        })
    }
}

/// A table of rows of two f32.
fn schema(table: &TableVersion, rest: &str) -> TableSchema {
    let text = format!(
        r#"{{"table_version": {{"table": "{}", "version": "{}"}}, "dim": 2, "format": "f32",
            "keying": "hashed", "partitions": 4, "rows": 4{rest}}}"#,
        table.table, table.version
    );
    serde_json::from_str(&text).unwrap()
}

/// A row as it is stored.
fn bytes(row: &[f32]) -> Vec<u8> {
    row.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn vectors(feature: &tidepool_client::FeatureLookup) -> FeatureVectors {
    let ones = vec![1; feature.ids.len()];
    let lengths = match feature.pooling {
        Pooling::None => &ones,
        _ => feature.lengths.as_ref().unwrap_or(&ones),
    };
    let (mut values, mut found, mut defaulted, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for length in lengths {
        let ids = &feature.ids[at..at + *length as usize];
        let weights = feature.weights.as_ref().map(|weights| &weights[at..at + *length as usize]);
        at += *length as usize;
        let mut sum = [0.0; 2];
        let mut count = 0;
        for (n, id) in ids.iter().enumerate().filter(|(_, id)| **id < ROWS) {
            let weight = weights.map_or(1.0, |weights| weights[n]);
            (sum[0], sum[1]) = (sum[0] + weight * *id as f32, sum[1] + weight);
            count += 1;
        }
        if count == 0 {
            defaulted.push(found.len() as u32);
        }
        found.push(count);
        values.extend(sum);
    }
    let missing = feature.ids.len() as u32 - found.iter().sum::<u32>();
    FeatureVectors {
        table_version: feature.table_version.clone(),
        sequence: 0,
        dim: 2,
        values,
        found,
        missing_ids: missing,
        unavailable_ids: 0,
        unavailable: Vec::new(),
        defaulted_bags: defaulted.len() as u32,
        defaulted,
    }
}

/// Gives for each row the sum of its numbers, each times its place; a bad number anywhere fails the whole run.
#[derive(Debug, Default)]
struct Sums {
    /// Rows of each run.
    ran: Mutex<Vec<usize>>,
    held: Mutex<bool>,
    changed: Condvar,
    runs_begun: AtomicUsize,
    refuses_sevens: AtomicBool,
    sides: Vec<Side>,
}

impl Sums {
    fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.changed.notify_all();
    }
}

impl Scorer for Sums {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        self.runs_begun.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held.lock().unwrap();
        while *held {
            held = self.changed.wait(held).unwrap();
        }
        drop(held);
        self.ran.lock().unwrap().push(batch.rows);
        if self.refuses_sevens.load(Ordering::SeqCst) && batch.inputs.iter().any(|i| i.contains(&7.0)) {
            return Err(DenseError::Input { input: "x".into(), problem: "a seven".into() });
        }
        let mut scores = vec![0.0; batch.rows];
        for (side, values) in self.sides.iter().zip(batch.inputs) {
            let rows = if *side == Side::User { batch.requests } else { batch.rows };
            let width = values.len() / rows.max(1);
            for (row, score) in scores.iter_mut().enumerate() {
                let of = if *side == Side::User { batch.request_of[row] as usize } else { row };
                for (n, value) in values[of * width..(of + 1) * width].iter().enumerate() {
                    *score += value * (n + 1) as f32;
                }
            }
        }
        Ok(vec![scores])
    }
}

/// A batcher of the model `m` with one thread, and what it is made of.
struct Site {
    rows: Arc<Rows>,
    sums: Arc<Sums>,
    model: Arc<BatchModel>,
    batchers: Batchers,
    batcher: Batcher,
    metrics: BatchMetrics,
}

fn options() -> BatchOptions {
    BatchOptions {
        max_rows: 100,
        max_requests: 8,
        max_ids: 10_000,
        places: 4,
        max_delay: DEADLINE,
        max_concurrent_batches: 1,
        max_waiting_rows: 1_000,
        max_waiting_requests: 20,
        max_waiting_bytes: 1_000_000,
        exact: true,
    }
}

impl Site {
    fn new(rows: Rows, options: BatchOptions) -> Self {
        Self::with(rows, options, BTreeMap::new())
    }

    fn with(rows: Rows, options: BatchOptions, limits: BTreeMap<Name, ModelLimits>) -> Self {
        let (rows, metrics) = (Arc::new(rows), BatchMetrics::new().unwrap());
        let pool = CpuPool::new(1, 64).unwrap();
        let batchers = Batchers::new(options, limits, pool, rows.clone(), metrics.clone());
        let (model, sums) = model("m");
        let batcher = batchers.of(&name("m"));
        Self { rows, sums, model, batchers, batcher, metrics }
    }

    fn job(&self, rows: u32) -> Job {
        job(&self.model, rows, 0)
    }

    fn submit(&self, job: Job) -> Ticket<Vec<f32>> {
        self.try_submit(job).unwrap()
    }

    fn try_submit(&self, job: Job) -> Result<Ticket<Vec<f32>>, RankError> {
        self.batcher.submit(job, |results| Ok(first(results)))
    }
}

/// The first output.
fn first(results: Results) -> Vec<f32> {
    results.into_outputs().unwrap().remove(0)
}

/// A user's id, its number, a sequence of ids of the user with a mask; a bag and a number per candidate.
fn model(of: &str) -> (Arc<BatchModel>, Arc<Sums>) {
    let input = |name: &str, side, width, from| BatchInput { name: name.into(), side, width, from };
    let sequence = InputFrom::Sequence { table_version: table("item"), max_len: 3, mask: true };
    let sides = vec![Side::User, Side::User, Side::User, Side::Candidate, Side::Candidate, Side::User];
    let sums = Arc::new(Sums { sides, ..Sums::default() });
    let model = BatchModel {
        model: name(of),
        release: name("r1"),
        inputs: vec![
            input("user", Side::User, 2, InputFrom::Bags(table("user"), Pooling::Sum)),
            input("age", Side::User, 1, InputFrom::Request),
            input("history", Side::User, 6, sequence),
            input("item", Side::Candidate, 2, InputFrom::Bags(table("item"), Pooling::Sum)),
            input("price", Side::Candidate, 1, InputFrom::Request),
        ],
        scorer: sums.clone(),
    };
    (Arc::new(model), sums)
}

/// A request whose ids and numbers follow from its size and its `seed`; every fourth bag is empty.
fn job(model: &Arc<BatchModel>, rows: u32, seed: u64) -> Job {
    let bags = |ids: Vec<u64>, lengths: Option<Vec<u32>>| InputRows::Bags { ids, lengths, weights: None };
    let lengths: Vec<u32> = (0..rows).map(|row| (row + 3) % 4).collect();
    let ids = (0..lengths.iter().sum::<u32>()).map(|n| u64::from(n) * 10 + seed).collect();
    let deadline = Instant::now() + DEADLINE;
    Job {
        model: model.clone(),
        rows,
        inputs: vec![
            bags(vec![1_000 + seed], None),
            InputRows::Numbers(vec![0.5]),
            bags(vec![20 + seed, 30], Some(vec![2])),
            bags(ids, Some(lengths)),
            InputRows::Numbers((0..rows).map(|row| row as f32 + 0.25).collect()),
        ],
        finishing: Arc::default(),
        tenant: None,
        deadline,
        budget: DEADLINE,
        request_id: format!("request-{seed}"),
        traceparent: None,
        background: false,
        noted: false,
    }
}

/// What [`job`] scores.
fn scores(rows: u32, seed: u64) -> Vec<f32> {
    let seed_f = seed as f32;
    // user [1000+s, 1], age 0.5, history [20+s, 1, 30, 1, 0, 0], its mask [1, 1, 0].
    let user = (1_000.0 + seed_f) + 2.0 + 0.5 + (20.0 + seed_f) + 2.0 + 3.0 * 30.0 + 4.0 + 1.0 + 2.0;
    let mut next = 0;
    let of_row = |row: u32| {
        let length = (row + 3) % 4;
        let ids: f32 = (next..next + length).map(|n| n as f32 * 10.0 + seed_f).sum();
        next += length;
        user + ids + 2.0 * length as f32 + row as f32 + 0.25
    };
    (0..rows).map(of_row).collect()
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

async fn answer(ticket: Ticket<Vec<f32>>) -> Result<Vec<f32>, RankError> {
    timeout(DEADLINE, ticket.wait()).await.expect("it is answered in time")
}
