//! `tidepool bench rank`: rankings through a ranker and its nodes, beside the same without a network.

use std::{num::NonZeroU32, num::NonZeroUsize, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tidepool_bench::{
    load::Rate,
    rank::{self, Cost, KnownTable, LEAST_SAMPLES, Params, Progress, RankModel, Report, Way},
};
use tidepool_train::{
    Architecture, ModelSize, ReferenceOptions, SyntheticSize, synthetic, untrained_reference,
};
use tidepool_types::Name;

use super::{Offered, offered, seconds, table::Shown};
use crate::output::{Outcome, Output};

/// Hybrid p99 over in-process p99: what is promised while less is offered than either answers.
const MOST_P99_RATIO: f64 = 1.25;
/// The in-process mean over kernel and dense run: likewise.
const MOST_IN_PROCESS_RATIO: f64 = 1.1;
/// What ranker and nodes may add to a dense run of a millisecond, at the 99th percentile.
const MOST_ADDED_P99_US: f64 = 300.0;
/// Requests each way, unless the time is told: so many that chance does not leave too few for a p99.
const REQUESTS: f64 = 2.0 * LEAST_SAMPLES as f64;
/// Seconds each way, unless told: at least, and at most.
const TIME_SECONDS: (f64, f64) = (10.0, 86_400.0);

#[derive(Args)]
pub(crate) struct Rank {
    /// Candidates of a request. Several numbers, as in 100,500,10000, are measured one after the other.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "500")]
    candidates: Vec<NonZeroU32>,
    /// Requests a second, which arrive by chance whether others have been answered or not; or max: as many as
    /// are answered with --in-flight at once.
    /// Several, as in 50,100,200, are measured one after the other.
    #[arg(long, value_name = "R|max", value_delimiter = ',', default_value = "20", value_parser = offered)]
    rate: Vec<Offered>,
    /// Requests in flight with --rate max.
    #[arg(long, value_name = "N", default_value = "16")]
    in_flight: NonZeroUsize,
    /// How long each way of answering is under load. Unless told: as long as 200 requests take at that rate, but 10 at least.
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
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
    /// Threads of a ranker that move bytes; 0: as many as it has by default.
    #[arg(long, value_name = "N", default_value_t = 0)]
    ranker_io_threads: u32,
    /// Ask the ranker with the timer over the Open Inference Protocol as well: what its tensors cost beside a native request.
    #[arg(long)]
    inference: bool,
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

/// Seconds under load of each way.
fn time(told: Option<f64>, rate: Offered) -> f64 {
    let (least, most) = TIME_SECONDS;
    told.unwrap_or(match rate {
        Offered::PerSecond(rate) => (REQUESTS / rate).ceil().clamp(least, most),
        Offered::Max => least,
    })
}

pub(super) fn run(args: &Rank, output: Output) -> Result<Outcome> {
    for offered in &args.rate {
        let seconds = time(args.seconds, *offered);
        if let Offered::PerSecond(rate) = offered
            && !args.no_timing
            && rate * seconds < 1.2 * LEAST_SAMPLES as f64
        {
            bail!(
                "at {rate} requests/s, {seconds} s give about {:.0} requests, of which no p99 can be said: give --seconds \
                 at least {:.0}, or --no-timing",
                rate * seconds,
                (1.2 * LEAST_SAMPLES as f64 / rate).ceil()
            );
        }
    }
    let mut reports = Vec::with_capacity(args.candidates.len() * args.rate.len());
    for candidates in &args.candidates {
        for rate in &args.rate {
            let report = one(args, candidates.get(), *rate)?;
            show(&report, output);
            reports.push(report);
        }
    }
    if reports.len() > 1 {
        curve(&reports, output);
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
    // What could not be said was not kept.
    let inference = report.inference.as_ref().is_none_or(|way| way.failed_requests == 0);
    right
        && inference
        && report.floor.failed_requests == 0
        && (timed
            || report.p99_ratio.is_some_and(|ratio| ratio.value <= MOST_P99_RATIO)
                && report.added_p99_us.is_some_and(|us| us <= MOST_ADDED_P99_US)
                && report.in_process_ratio <= MOST_IN_PROCESS_RATIO)
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

fn one(args: &Rank, candidates: u32, rate: Offered) -> Result<Report> {
    let params = Params {
        program: None,
        dir: args.dir.clone(),
        nodes: args.nodes.get(),
        groups: args.groups.get(),
        model: model(args)?,
        rows: args.rows,
        candidates,
        rate: match rate {
            Offered::PerSecond(rate) => Rate::PerSecond(rate),
            Offered::Max => Rate::Max { in_flight: args.in_flight.get() },
        },
        time: Duration::from_secs_f64(time(args.seconds, rate)),
        deadline: Duration::from_millis(args.deadline_ms),
        unbatched: args.unbatched,
        inference: args.inference,
        ranker_io_threads: args.ranker_io_threads,
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
        "{:<28} {:>10} {:>9} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9} {:>8} {:>7}",
        "",
        "requests/s",
        "mean us",
        "p50 us",
        "p99 us",
        "slowest",
        "lookup us",
        "dense us",
        "queue us",
        "in batch",
        "failed"
    ));
    way("ranker and nodes", &report.hybrid, output);
    way("in this process", &report.in_process, output);
    way("ranker, nodes and a timer", &report.timed, output);
    way("nothing but the calls", &report.floor, output);
    if let Some(inference) = &report.inference {
        way("tensors and a timer", inference, output);
    }
    match report.p99_ratio {
        Some(ratio) => output.line(format!(
            "p99 over in-process p99: {:.2} ({:.2} to {}), of {} requests each way in {} rounds",
            ratio.value,
            ratio.low,
            ratio.high.map_or_else(|| "unknown".to_owned(), |high| format!("{high:.2}")),
            report.hybrid.requests,
            report.rounds
        )),
        None => output.line(format!(
            "no p99 of {} requests each way: {LEAST_SAMPLES} are the least",
            report.hybrid.requests
        )),
    }
    output.line(format!(
        "beyond a dense run of 1 ms: p50 {:.0} us, p99 {}; the calls alone: p50 {:.0} us, p99 {}",
        report.added_p50_us,
        known(report.added_p99_us, report.added_p99.map(|p99| (p99.low_us, p99.high_us))),
        report.floor.p50_us,
        known(report.floor.p99_us, report.floor.p99.map(|p99| (p99.low_us, p99.high_us))),
    ));
    for (stage, times) in &report.added_us {
        output.line(format!(
            "  {stage:<18} mean {:>7.0} us, p50 {:>7.0}, p99 {:>7.0}",
            times.mean_us, times.p50_us, times.p99_us
        ));
    }
    let cost = |who: &str, cost: Cost| format!("{who} {:.0} us and {:.1}", cost.cpu_us, cost.wakeups);
    output.line(format!(
        "such a request costs, in CPU time and wakeups: {}, {}, {}",
        cost("client", report.costs.client),
        cost("ranker", report.costs.ranker),
        cost("nodes", report.costs.nodes)
    ));
    if let Some(added) = report.inference_added_p50_us {
        output.line(format!("the Open Inference Protocol beside a native request: {added:+.0} us at p50"));
    }
    output.line(format!(
        "in-process mean over the kernel ({:.0} us) and the dense run: {:.2}; rows looked up a request: {:.0}",
        report.kernel_us, report.in_process_ratio, report.hybrid.rows_looked_up
    ));
    output.line(format!(
        "wrong answers: {} of {} that were compared; the oracle computed {} scores again: {} wrong, off by {:.1e} at most, \
         of {:.1e} that rounding may do",
        report.wrong_answers,
        report.checked_answers,
        report.oracle.checked_scores,
        report.oracle.wrong_scores,
        report.oracle.largest_error,
        report.oracle.largest_bound
    ));
}

/// A time, and the interval in which it lies with 95 %.
fn known(us: Option<f64>, interval: Option<(f64, Option<f64>)>) -> String {
    match (us, interval) {
        (Some(us), Some((low, Some(high)))) => format!("{us:.0} us ({low:.0} to {high:.0})"),
        (Some(us), Some((low, None))) => format!("{us:.0} us ({low:.0} or more)"),
        _ => "unknown".into(),
    }
}

/// What several runs gave, a line each.
fn curve(reports: &[Report], output: Output) {
    output.line(format!(
        "{:>10} {:>10} {:>11} {:>9} {:>9} {:>8} {:>13} {:>9} {:>8}",
        "candidates",
        "offered/s",
        "answered/s",
        "p50 us",
        "p99 us",
        "in batch",
        "timer: ans./s",
        "p50 us",
        "in batch"
    ));
    for report in reports {
        let offered = report.offered_per_second.map_or_else(|| "max".to_owned(), |rate| format!("{rate:.0}"));
        let (hybrid, timed) = (&report.hybrid, &report.timed);
        output.line(format!(
            "{:>10} {offered:>10} {:>11.1} {:>9.0} {:>9} {:>8.2} {:>13.1} {:>9.0} {:>8.2}",
            report.candidates,
            hybrid.requests_per_second,
            hybrid.p50_us,
            hybrid.p99_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.0}")),
            hybrid.batch_requests,
            timed.requests_per_second,
            timed.p50_us,
            timed.batch_requests
        ));
    }
}

fn way(what: &str, way: &Way, output: Output) {
    output.line(format!(
        "{what:<28} {:>10.1} {:>9.0} {:>9.0} {:>9} {:>9.0} {:>10.0} {:>9.0} {:>9.0} {:>8.2} {:>7}",
        way.requests_per_second,
        way.mean_us,
        way.p50_us,
        way.p99_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.0}")),
        way.max_us,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unless_told_a_rate_gets_the_time_that_a_p99_needs() {
        let of = |rate| time(None, Offered::PerSecond(rate));
        for (rate, seconds) in [(1_000.0, 10.0), (20.0, 10.0), (10.0, 20.0), (3.0, 67.0), (1e-300, 86_400.0)]
        {
            assert_eq!(of(rate), seconds, "{rate} requests/s");
        }
        assert_eq!(time(None, Offered::Max), 10.0);
        assert_eq!(time(Some(0.5), Offered::PerSecond(10.0)), 0.5, "what is told counts");
    }
}
