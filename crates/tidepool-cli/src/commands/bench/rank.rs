//! `tidepool bench rank`: rankings through a ranker and its nodes, beside the same without a network.

use std::{num::NonZeroU32, num::NonZeroUsize, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tidepool_bench::{
    Spread,
    load::Rate,
    rank::{self, KnownTable, Params, Progress, RankModel, Report, Way},
};
use tidepool_train::{
    Architecture, ModelSize, ReferenceOptions, SyntheticSize, synthetic, untrained_reference,
};
use tidepool_types::Name;

use super::{Offered, offered, seconds, table::Shown};
use crate::output::{Outcome, Output};

/// Hybrid p99 over in-process p99: what is promised while less is offered than either answers.
const MOST_P99_RATIO: f64 = 1.25;
/// What ranker and nodes may add to a dense run of a millisecond, at the 99th percentile.
const MOST_ADDED_P99_US: f64 = 300.0;

#[derive(Args)]
pub(crate) struct Rank {
    /// Candidates of a request. Several numbers, as in 100,500,10000, are measured one after the other.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "500")]
    candidates: Vec<NonZeroU32>,
    /// Requests a second, which arrive by chance whether others have been answered or not; or max: as many as
    /// are answered with --in-flight at once.
    #[arg(long, value_name = "R|max", default_value = "20", value_parser = offered)]
    rate: Offered,
    /// Requests in flight with --rate max.
    #[arg(long, value_name = "N", default_value = "16")]
    in_flight: NonZeroUsize,
    /// How long each way of answering is under load.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// The dense model, with random weights.
    #[arg(long, value_enum, default_value_t)]
    model: Model,
    /// Rows of each of its hashed tables: users and items.
    #[arg(long, default_value = "1_000_000", value_parser = super::rows)]
    rows: u64,
    /// Nodes in each group.
    #[arg(long, value_name = "N", default_value = "2")]
    nodes: NonZeroUsize,
    /// Replica groups.
    #[arg(long, value_name = "N", default_value = "1")]
    groups: NonZeroUsize,
    /// After it no answer is worth anything.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10_000)]
    deadline_ms: u64,
    /// One request a batch, to see what batches are good for.
    #[arg(long)]
    unbatched: bool,
    /// Do not end with 3 when something takes longer than it should: for machines that have other work.
    #[arg(long)]
    no_timing: bool,
    /// Seed of arrivals, ids and weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Artifact store of the tables of benches. They are kept, and used again by a bench with the same parameters.
    #[arg(long, value_name = "DIR", default_value = "data/bench")]
    dir: PathBuf,
}

/// The reference models, in the size that is for serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Model {
    /// DCN-v2 experts, mixed for two heads: about two million parameters.
    #[default]
    DcnMmoe,
    /// The dot product of a user's and an item's vector.
    TwoTower,
    /// Dot products of all pairs of features.
    Dlrm,
}

impl From<Model> for Architecture {
    fn from(model: Model) -> Self {
        match model {
            Model::DcnMmoe => Self::DcnMmoe,
            Model::TwoTower => Self::TwoTower,
            Model::Dlrm => Self::Dlrm,
        }
    }
}

pub(super) fn run(args: &Rank, output: Output) -> Result<Outcome> {
    let mut reports = Vec::with_capacity(args.candidates.len());
    for candidates in &args.candidates {
        let report = one(args, candidates.get())?;
        show(&report, output);
        reports.push(report);
    }
    let kept = reports.iter().all(|report| is_kept(report, args));
    output.object(match &reports[..] {
        [one] => serde_json::to_value(one)?,
        several => serde_json::json!({ "runs": several, "seed": args.seed }),
    });
    Ok(if kept { Outcome::Done } else { Outcome::PromiseBroken })
}

/// Whether what is promised was kept. Of times, something is promised where requests do not wait for each other: not
/// while as many are sent as are answered.
fn is_kept(report: &Report, args: &Rank) -> bool {
    let right = report.wrong_answers == 0
        && report.checked_answers > 0
        && report.hybrid.failed_requests + report.in_process.failed_requests + report.timed.failed_requests
            == 0;
    let timed = args.no_timing || report.in_flight.is_some();
    right
        && (timed || (report.p99_ratio.median <= MOST_P99_RATIO && report.added_p99_us <= MOST_ADDED_P99_US))
}

/// A reference model with random weights.
fn model(args: &Rank) -> Result<RankModel> {
    // Of the data, only how many genres and occupations there are matters.
    let data = synthetic(args.seed, SyntheticSize::default());
    let options = ReferenceOptions::new(args.model.into(), ModelSize::Large, args.seed);
    let model = untrained_reference(&data, &options)?.model;
    let spec = model.spec(Name::new(options.architecture.as_str())?)?;
    let tables = model.tables.iter().map(|table| KnownTable {
        name: table.name.clone(),
        dim: table.dim as u32,
        keying: table.keying,
        rows: table.ids.len() as u64,
    });
    Ok(RankModel { onnx: model.onnx(), parameters: model.parameters(), tables: tables.collect(), spec })
}

fn one(args: &Rank, candidates: u32) -> Result<Report> {
    let params = Params {
        program: None,
        dir: args.dir.clone(),
        nodes: args.nodes.get(),
        groups: args.groups.get(),
        model: model(args)?,
        rows: args.rows,
        candidates,
        rate: match args.rate {
            Offered::PerSecond(rate) => Rate::PerSecond(rate),
            Offered::Max => Rate::Max { in_flight: args.in_flight.get() },
        },
        time: Duration::from_secs_f64(args.seconds),
        deadline: Duration::from_millis(args.deadline_ms),
        unbatched: args.unbatched,
        seed: args.seed,
    };
    let mut shown = Shown::default();
    let report = rank::run(&params, &mut |progress| match progress {
        Progress::Tables(done, total) => shown.set("building tables", done, total),
        Progress::Starting => shown.set("starting processes", 0, 1),
        Progress::Measuring(done, total) => shown.set("measuring", done, total),
    });
    shown.end();
    report.with_context(|| format!("benching with tables in {}", args.dir.display()))
}

fn show(report: &Report, output: Output) {
    let Report { candidates, nodes, groups, parameters, table_rows, machine, .. } = report;
    output.line(format!(
        "{candidates} candidates a request, {}; {nodes} nodes in {groups} group(s); {parameters} parameters; {table_rows} \
         rows a hashed table; {}",
        match (report.offered_per_second, report.in_flight) {
            (Some(rate), _) => format!("{rate:.0} requests/s"),
            (None, in_flight) => format!("{} in flight", in_flight.unwrap_or_default()),
        },
        if report.batched { "requests share batches" } else { "one request a batch" },
    ));
    output.line(format!("on {}, {} cores, {}", machine.cpu, machine.cores, machine.kernel));
    output.line(format!(
        "{:<28} {:>10} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9} {:>8} {:>7}",
        "",
        "requests/s",
        "mean us",
        "p50 us",
        "p99 us",
        "lookup us",
        "dense us",
        "queue us",
        "in batch",
        "failed"
    ));
    way("ranker and nodes", &report.hybrid, output);
    way("in this process", &report.in_process, output);
    way("ranker, nodes and a timer", &report.timed, output);
    let Spread { median, low, high } = report.p99_ratio;
    output.line(format!(
        "p99 over in-process p99: {median:.2} ({low:.2} to {high:.2}) in {} rounds; beyond a dense run of 1 ms: p50 {:.0} us, \
         p99 {:.0} us",
        report.rounds, report.added_p50_us, report.added_p99_us
    ));
    output.line(format!(
        "in-process mean over the kernel ({:.0} us) and the dense run: {:.2}; rows looked up a request: {:.0}",
        report.kernel_us, report.in_process_ratio, report.hybrid.rows_looked_up
    ));
    output.line(format!(
        "wrong answers: {} of {} that were compared",
        report.wrong_answers, report.checked_answers
    ));
}

fn way(what: &str, way: &Way, output: Output) {
    output.line(format!(
        "{what:<28} {:>10.1} {:>9.0} {:>9.0} {:>9.0} {:>10.0} {:>9.0} {:>9.0} {:>8.2} {:>7}",
        way.requests_per_second,
        way.mean_us,
        way.p50_us,
        way.p99_us,
        way.lookup_us,
        way.dense_us,
        way.queue_us,
        way.batch_requests,
        way.failed_requests
    ));
    if let Some(failure) = &way.first_failure {
        output.line(format!("failed, the first: {failure}"));
    }
}
