//! `bench rank`: rankings through a ranker and its nodes, under load, beside the same batcher, the same model and the
//! same tables within this process, and beside a model that takes exactly as long as a timer says.
//!
//! Time is cut into rounds. In each of them every way answers requests for a while, with the same arrivals; the order
//! turns round from one round to the next. A round gives one ratio of each kind.

mod ask;
mod interval;
mod loaded;
mod measure;
mod model;
mod ours;
mod requests;
mod site;
mod stages;
mod tables;
mod truth;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Serialize;
use tidepool_types::ModelSpec;

pub use self::{
    interval::{LEAST_SAMPLES, P99},
    measure::run,
    model::{KnownTable, RankModel},
    stages::{Cost, Costs, StageTimes},
    truth::OracleFound,
};
use crate::{BenchError, Machine, load::Rate};

/// How long the dense run takes where a timer stands for it: added latency is what a request takes beyond it.
pub const TIMER: Duration = Duration::from_millis(1);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Params {
    /// The `tidepool` program; `None` for the one that runs this.
    pub program: Option<PathBuf>,
    /// Tables are kept in here, and the cluster's files while it runs.
    pub dir: PathBuf,
    /// Nodes in each group.
    pub nodes: usize,
    /// Replica groups.
    pub groups: usize,
    /// The contract and the graph.
    pub model: RankModel,
    /// Rows of each table whose ids are hashed; the others have as many as their model knows.
    pub rows: u64,
    /// Candidates of a request.
    pub candidates: u32,
    /// How many requests there are.
    pub rate: Rate,
    /// How long each way is under load, all rounds together.
    pub time: Duration,
    /// After it, no answer is worth anything.
    pub deadline: Duration,
    /// One request a batch: what batching is held against.
    pub unbatched: bool,
    /// Threads that move bytes in rankers; 0: as many as they have by default.
    pub ranker_io_threads: u32,
    /// Whether the same is asked over the Open Inference Protocol as well.
    pub inference: bool,
    /// The seed of arrivals and ids.
    pub seed: u64,
}

/// How far a bench is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Rows of tables that are made, of how many.
    Tables(u64, u64),
    /// Processes start and load the release.
    Starting,
    /// Rounds that are over, and how many there are.
    Measuring(u64, u64),
}

/// What one way of answering took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Way {
    /// Requests sent.
    pub requests: u64,
    /// Those of them that were not answered in time.
    pub failed_requests: u64,
    /// What the first of these said.
    pub first_failure: Option<String>,
    /// Answered in a second.
    pub requests_per_second: f64,
    /// From the moment at which a request was meant to be sent to its answer, in microseconds: the mean and quantiles of
    /// all rounds together.
    pub mean_us: f64,
    /// Half of the requests were faster.
    pub p50_us: f64,
    /// 99 of 100 were; none of fewer than [`LEAST_SAMPLES`] requests.
    pub p99_us: Option<f64>,
    /// The same, with the interval in which it lies.
    pub p99: Option<P99>,
    /// The slowest.
    pub max_us: f64,
    /// Mean time of the lookup, in microseconds; of a request that was cut, of all its pieces together.
    pub lookup_us: f64,
    /// Mean time of the dense run and what follows it.
    pub dense_us: f64,
    /// Mean time of the waits for a batch and for a thread.
    pub queue_us: f64,
    /// Mean count of requests in the batch that a request was in.
    pub batch_requests: f64,
    /// Mean count of rows that its batches asked of the tables.
    pub rows_looked_up: f64,
}

/// One p99 over another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The ratio.
    pub value: f64,
    /// From the ends of the intervals in which the two lie: it is not below,
    pub low: f64,
    /// nor above; none: there were too few requests to say.
    pub high: Option<f64>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Candidates of a request.
    pub candidates: u32,
    /// Requests a second that were offered; none: as many as were answered.
    pub offered_per_second: Option<f64>,
    /// Requests in flight, when they are as many as are answered.
    pub in_flight: Option<usize>,
    /// Whether requests shared batches.
    pub batched: bool,
    /// Through client, ranker and nodes.
    #[serde(flatten)]
    pub hybrid: Way,
    /// The same batcher, model and tables within one process, without RPC.
    pub in_process: Way,
    /// As `in_process.p99_us`.
    pub in_process_p99_us: Option<f64>,
    /// Hybrid over in-process p99. At most 1.25 is promised, while less is offered than either answers.
    pub p99_ratio: Option<Ratio>,
    /// What the kernel takes for the lookup of a request on one thread, in microseconds.
    pub kernel_us: f64,
    /// The in-process mean over that and the dense run. At most 1.1 is promised, likewise.
    pub in_process_ratio: f64,
    /// Through ranker and nodes, with a timer of a millisecond for a dense run.
    pub timed: Way,
    /// What a request takes beyond that timer, at the 99th percentile, in microseconds.
    pub added_p99_us: Option<f64>,
    /// The same, with the interval in which it lies.
    pub added_p99: Option<P99>,
    /// The same of half of the requests.
    pub added_p50_us: f64,
    /// What that is made of: by stage, as the ranker tells it and the client sees it.
    pub added_us: BTreeMap<&'static str, StageTimes>,
    /// What such a request costs processes.
    pub costs: Costs,
    /// What cannot be done without on this machine: one call without candidates to the same ranker, then one without ids
    /// to each node at once, of the same arrivals.
    pub floor: Way,
    /// As `timed`, asked over the Open Inference Protocol, if that was wanted.
    pub inference: Option<Way>,
    /// By how much half of those took longer than half of the native ones.
    pub inference_added_p50_us: Option<f64>,
    /// Answers that were compared with those of the model within this process, and those that differed.
    pub checked_answers: u64,
    /// By more than 1e-5, or those that the oracle does not confirm.
    pub wrong_answers: u64,
    /// What the oracle says, which knows rows and model by itself.
    pub oracle: OracleFound,
    /// Rounds.
    pub rounds: usize,
    /// Nodes in each group.
    pub nodes: usize,
    /// Replica groups.
    pub groups: usize,
    /// Numbers in the dense model that were trained, or would be.
    pub parameters: usize,
    /// Rows of each hashed table.
    pub table_rows: u64,
    /// Whether tables were built for this run.
    pub built: bool,
    /// The seed of arrivals and ids.
    pub seed: u64,
    /// Where all this was.
    pub machine: Machine,
}

/// The tables of a contract must be those that a bench can make.
fn unfit(spec: &ModelSpec, why: &str) -> BenchError {
    BenchError::Table(format!("a bench cannot serve model {}: {why}", spec.model))
}
