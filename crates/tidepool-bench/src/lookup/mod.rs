//! `bench lookup`: lookups of a bench table through a cluster of real processes, under load, beside what the
//! same bytes take over bare TCP and what the same rows take within one process.
//!
//! Time is cut into rounds. In each of them the cluster is under load for some seconds, then the servers of
//! bare bytes, with the same arrivals, then the kernel; the order turns round from one round to the next. A
//! round gives one ratio.

mod echo;
mod figures;
mod kernel;
mod measure;
mod plot;
mod site;
mod traced;

use std::{num::NonZeroUsize, path::PathBuf, thread, time::Duration};

use serde::Serialize;
use tidepool_client::{ClientConfig, LookupOptions};
use tidepool_types::{Keying, Pooling, RowFormat, TableVersion};
use tokio::runtime::Runtime;

pub use self::{
    echo::serve_bytes,
    figures::Figures,
    plot::{plot, plot_replay},
    traced::{TraceParams, TraceUse},
};
use self::{measure::Bench, site::Site, traced::Traced};
use crate::{
    BenchError, Machine, Spread, Step,
    load::{Asked, Rate},
};

/// Threads of the client are called so: their time is the client's.
const CLIENT_THREADS: &str = "lookup-client";
/// How long a round's load takes at most.
const ROUND: Duration = Duration::from_secs(2);
/// How long lookups are sent before anything is measured, and how many at once.
const WARM_UP: Duration = Duration::from_millis(500);
const WARM_UP_IN_FLIGHT: usize = 4;
/// What the offered rate is multiplied by from step to step.
const STEP_FACTOR: f64 = 1.4;
/// A step in which less than this share of what is offered is answered does not hold.
const ACHIEVED: f64 = 0.9;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Params {
    /// Where the cluster is.
    pub place: Place,
    /// What requests ask. In a running cluster its table is replaced by the one that is served.
    pub asked: Asked,
    /// A trace whose lookups are asked in the place of what is drawn: their ids laid onto the rows of the bench
    /// table, all features of all its tables.
    pub trace: Option<TraceParams>,
    /// How many requests there are.
    pub rate: Rate,
    /// How long they are sent, all rounds together; in steps, in each of them.
    pub time: Duration,
    /// Timeout, tenant, wire form.
    pub options: LookupOptions,
    /// The client; of a cluster that is started here, but for its controllers.
    pub client: ClientConfig,
    /// Threads that the client runs on.
    pub client_threads: NonZeroUsize,
    /// Whether bare bytes are sent too.
    pub baseline: bool,
    /// Whether the kernel is timed too.
    pub kernel: bool,
    /// Grow the rate from step to step, from a [`Rate::PerSecond`].
    pub steps: Option<Steps>,
}

/// Where the cluster is.
#[derive(Clone, Debug)]
pub enum Place {
    /// It is started here, of real processes.
    Local {
        /// The `tidepool` program; `None` for the one that runs this.
        program: Option<PathBuf>,
        /// Nodes in each group.
        nodes: usize,
        /// Replica groups.
        groups: usize,
        /// The artifact store of bench tables; the cluster's files go into it while it runs.
        dir: PathBuf,
        /// Configuration keys of every node.
        node_config: toml::Table,
    },
    /// It runs, at the controllers of the client, and serves a bench table.
    Running {
        /// The table; `None` when it serves one bench table.
        table: Option<TableVersion>,
    },
}

/// How the rate grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steps {
    /// Steps at most.
    pub most: usize,
    /// The p99 that ends it, in microseconds.
    pub slo_p99_us: Option<f64>,
}

/// What a step broke by, and all steps ended by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Break {
    /// Answers were wrong.
    WrongAnswers,
    /// Requests failed.
    FailedRequests,
    /// The p99 was longer than it may be.
    Slo,
    /// Less than 90 % of what was offered was answered.
    Saturation,
}

impl Break {
    /// What a load of `time` broke by, the worst if by several; `None`: it held.
    fn of(figures: &Figures, time: Duration, slo_p99_us: Option<f64>) -> Option<Self> {
        // Not the rate: chance may have sent more or less.
        let sent_per_second = figures.requests as f64 / time.as_secs_f64();
        let breaks = [
            (figures.wrong_answers > 0, Self::WrongAnswers),
            (figures.failed_requests > 0, Self::FailedRequests),
            (slo_p99_us.is_some_and(|most| figures.p99_us > most), Self::Slo),
            (figures.requests_per_second < ACHIEVED * sent_per_second, Self::Saturation),
        ];
        breaks.into_iter().find(|(broke, _)| *broke).map(|(_, by)| by)
    }

    /// In words, after "the step ... because".
    #[must_use]
    pub const fn because(self) -> &'static str {
        match self {
            Self::WrongAnswers => "answers were wrong",
            Self::FailedRequests => "requests failed",
            Self::Slo => "p99 was longer than the SLO allows",
            Self::Saturation => "less than 90 % of what was offered was answered",
        }
    }
}

/// How far a bench is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The table is made, or opened for the kernel.
    Table(Step, u64, u64),
    /// Processes start and load the table.
    Starting,
    /// Rounds or steps that are over, and how many there are at most.
    Measuring(u64, u64),
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nodes in each group.
    pub nodes: usize,
    /// Replica groups.
    pub groups: usize,
    /// The table version.
    pub table_version: TableVersion,
    /// Its rows.
    pub table_rows: u64,
    /// Its partitions.
    pub partitions: u32,
    /// Elements of a row.
    pub dim: u32,
    /// How rows are stored.
    pub format: RowFormat,
    /// Dense or hashed.
    pub keys: Keying,
    /// Whether the table was built for this run.
    pub built: bool,
    /// Bags of a request, on average; of a trace, of all its features.
    pub batch: usize,
    /// `fixed`, `heavy` or `trace`.
    pub batch_shape: String,
    /// Ids of a bag; of a trace, on average.
    pub bag: usize,
    /// How a bag becomes a vector; none: a trace says it for each feature.
    pub pooling: Option<Pooling>,
    /// Whether ids have weights; none as above.
    pub weighted: Option<bool>,
    /// `uniform`, `zipf:EXPONENT` or `trace`.
    pub skew: String,
    /// The trace that requests were taken from.
    pub trace: Option<TraceUse>,
    /// Whether stored rows had to travel and be pooled by the client in the order of the request.
    pub exact: bool,
    /// The wire form that was insisted on: `gather` or `pool`.
    pub wire_form: Option<String>,
    /// The seed of arrivals, ids and weights.
    pub seed: u64,
    /// The budget of a lookup.
    pub timeout_ms: u64,
    /// Threads of the client.
    pub client_threads: usize,
    /// Requests in flight, when they are as many as are answered and not so many a second.
    pub in_flight: Option<usize>,
    /// All rounds together; in steps, the last that held, or the first when none did (`steps_held` is 0 then).
    #[serde(flatten)]
    pub figures: Figures,
    /// Rounds.
    pub rounds: usize,
    /// The same bytes over bare TCP, in the same rounds.
    pub bare_tcp: Option<BareTcp>,
    /// The same rows within one process, in the same rounds.
    pub kernel: Option<Kernel>,
    /// Every step, when the rate grew.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Figures>,
    /// How many of them held, when the rate grew: all but the one that broke. At 0 nothing is known of what the
    /// cluster can do but that it is less.
    pub steps_held: Option<usize>,
    /// What the last step broke by; none when there were no more steps to come.
    pub steps_ended_by: Option<Break>,
    /// The p99 that a step must keep to hold.
    pub slo_p99_us: Option<f64>,
    /// Where all this was.
    pub machine: Machine,
}

/// What the same bytes took over bare TCP.
#[derive(Clone, Debug, Serialize)]
pub struct BareTcp {
    /// Its figures; `node` is the servers.
    #[serde(flatten)]
    pub figures: Figures,
    /// Bytes that a request sent and received, with the lengths in front.
    pub sent_bytes_per_request: f64,
    /// The same, received.
    pub received_bytes_per_request: f64,
    /// Mean latency of lookups over that of bare bytes, round by round.
    pub mean_ratio: Spread,
    /// The same of the median.
    pub p50_ratio: Spread,
    /// The same of the 99th percentile.
    pub p99_ratio: Spread,
}

/// What the kernel took.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// Nanoseconds of one thread for a row, ids to pooled vectors; an id that a request has twice is two rows, for
    /// it looks it up twice.
    pub ns_per_row: Spread,
    /// CPU time of the nodes for a row that they looked up over it, round by round.
    pub node_cpu_ratio: Spread,
}

/// Measures. It takes threads of its own, and must not be called on one of a tokio runtime.
///
/// # Errors
/// [`BenchError`]: a table or a cluster that cannot be had. Lookups that fail are counted.
pub fn run(params: &Params, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Report, BenchError> {
    let threads = params.client_threads.get();
    thread::scope(|scope| {
        // With one thread the client runs on the very thread that waits here.
        let measuring = thread::Builder::new().name(CLIENT_THREADS.into()).spawn_scoped(scope, || {
            let runtime = runtime(threads).map_err(BenchError::io("starting the client's threads"))?;
            let report = runtime.block_on(measure(params, progress));
            // A thread that checks answers of a load that failed is not waited for.
            runtime.shutdown_background();
            report
        });
        let measuring = measuring.map_err(BenchError::io("starting the client's thread"))?;
        measuring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn runtime(threads: usize) -> std::io::Result<Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).thread_name(CLIENT_THREADS).enable_all().build()
}

async fn measure(params: &Params, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Report, BenchError> {
    if params.trace.is_some() && params.kernel {
        return Err(BenchError::Parameters(
            "the kernel is timed with drawn requests, not with those of a trace",
        ));
    }
    let site = Site::open(params, progress).await?;
    let asked = Asked { table: site.table, ..params.asked };
    let traced = params.trace.as_ref().map(|trace| Traced::open(trace, site.table)).transpose()?;
    let bench = Bench { params, asked, traced, site: &site };
    bench.warm_up(WARM_UP, WARM_UP_IN_FLIGHT).await?;
    let report = match (params.steps, params.rate) {
        (Some(steps), Rate::PerSecond(first)) => bench.steps(first, steps, progress).await?,
        (Some(_), Rate::Max { .. }) => {
            return Err(BenchError::Parameters("steps begin at a rate, not as fast as it goes"));
        }
        (None, _) => bench.rounds(progress).await?,
    };
    site.close().await?;
    Ok(report)
}

impl Report {
    /// Wrong answers of all rounds or steps.
    #[must_use]
    pub fn wrong_answers(&self) -> u64 {
        if self.steps.is_empty() {
            return self.figures.wrong_answers;
        }
        self.steps.iter().map(|figures| figures.wrong_answers).sum()
    }

    /// Whether the rate grew, and not even the first step held.
    #[must_use]
    pub fn no_step_held(&self) -> bool {
        self.steps_held == Some(0)
    }

    /// Answers that were looked at, of all rounds or steps.
    #[must_use]
    pub fn checked_answers(&self) -> u64 {
        if self.steps.is_empty() {
            return self.figures.checked_answers;
        }
        self.steps.iter().map(|figures| figures.checked_answers).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{figures::Cpu, *};
    use crate::load::LoadReport;

    #[test]
    fn a_step_breaks_by_the_worst_that_happened() {
        let mut figures = Figures::new(&LoadReport::new().unwrap(), Some(100.0), Cpu::default());
        (figures.requests, figures.requests_per_second, figures.p99_us) = (80, 39.0, 400.0);
        let broken = |figures: &Figures, slo| Break::of(figures, Duration::from_secs(2), slo);
        assert_eq!(broken(&figures, None), None);
        assert_eq!(broken(&figures, Some(400.0)), None);
        figures.requests_per_second = 35.0;
        assert_eq!(broken(&figures, Some(400.0)), Some(Break::Saturation));
        assert_eq!(broken(&figures, Some(399.0)), Some(Break::Slo));
        figures.failed_requests = 1;
        assert_eq!(broken(&figures, Some(399.0)), Some(Break::FailedRequests));
        figures.wrong_answers = 1;
        assert_eq!(broken(&figures, None), Some(Break::WrongAnswers));
    }
}
