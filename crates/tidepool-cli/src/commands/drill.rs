//! `tidepool drill`: what may happen to releases and to what they depend on, on a cluster of real processes under
//! checked load, and whether anybody noticed.

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::json;
use tidepool_bench::{
    Machine,
    drill::{
        Asked,
        releases::{self, Params, ReleaseDrill, Report},
    },
};

use super::bench::{self, show_promises};
use crate::output::{Outcome, Output};

/// What a drill does wrongly on purpose, to show that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mutation {
    /// Releases are published with a table of the release before.
    MixVersions,
}

#[derive(Args)]
pub(crate) struct Drill {
    /// promote, rollback, ramp-bad, kill-controller, kill-node, kill-group, metastore-outage, store-outage, or all.
    #[arg(value_parser = Asked::<ReleaseDrill>::from_str)]
    name: Asked<ReleaseDrill>,
    /// Rows of both tables together.
    #[arg(long, value_parser = bench::rows, default_value = "10_000_000")]
    rows: u64,
    /// Requests per second, of 20 candidates each.
    #[arg(long, default_value_t = 400.0, value_parser = bench::rate)]
    rate: f64,
    /// Rankers that are asked in turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    rankers: u8,
    /// Requests that are sent during transitions at least, all pairs together.
    #[arg(long, value_parser = bench::rows, default_value = "10_000")]
    requests_during: u64,
    /// How often it is done, each time after as many requests that it is compared with: up to 14.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=14))]
    pairs: u8,
    /// Milliseconds after which an answer is none: up to 250.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=250))]
    deadline_ms: u64,
    /// Seed of all that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print promises about time, but do not judge them: for machines that do other things at the same time.
    #[arg(long)]
    no_timing: bool,
    /// Where tables are kept and used again, and where the clusters have their files.
    #[arg(long, value_name = "DIR", default_value = "data/bench")]
    dir: PathBuf,
    /// Build tables that were kept again.
    #[arg(long)]
    fresh: bool,
    /// Leave configurations, logs and state of clusters where they are.
    #[arg(long)]
    keep: bool,
    /// The etcd of metastore-outage.
    #[arg(long, value_name = "PATH", default_value = "etcd")]
    etcd: PathBuf,
    /// Do something wrong, to see that it is found.
    #[arg(long, value_enum, hide = true)]
    mutate: Option<Mutation>,
}

pub(crate) async fn run(args: Drill, output: Output) -> Result<Outcome> {
    let params = Params {
        program: None,
        dir: args.dir,
        rows: args.rows,
        rate: args.rate,
        rankers: args.rankers.into(),
        requests_during: args.requests_during,
        pairs: args.pairs.into(),
        deadline: Duration::from_millis(args.deadline_ms),
        seed: args.seed,
        keep: args.keep,
        fresh: args.fresh,
        etcd: args.etcd,
        mix_versions: args.mutate == Some(Mutation::MixVersions),
        judge_timing: !args.no_timing,
    };
    let mut reports = Vec::new();
    for (at, name) in args.name.0.into_iter().enumerate() {
        output.line(format!("{name}:"));
        // What was built afresh for the first is good for the others.
        let params = Params { fresh: params.fresh && at == 0, ..params.clone() };
        let report = releases::run(name, &params, &mut |what| output.line(format!("  ({what})")))
            .await
            .with_context(|| format!("the drill {name}"))?;
        show_promises(&report.judged, output);
        reports.push(report);
    }
    show(&reports, output);
    let kept = reports.iter().all(Report::is_kept);
    output.object(json!({
        "kept": kept,
        "drills": reports,
        "rows": params.rows,
        "rate": params.rate,
        "rankers": params.rankers,
        "deadline_ms": params.deadline.as_millis() as u64,
        "seed": params.seed,
        "timing_judged": params.judge_timing,
        "machine": Machine::here(),
    }));
    Ok(if kept { Outcome::Done } else { Outcome::PromiseBroken })
}

/// A line for each drill.
fn show(reports: &[Report], output: Output) {
    output.line(format!(
        "{:<17} {:>8} {:>7} {:>6} {:>5} {:>5} {:>9} {:>9} {:>9} {:>18} {:>7}",
        "drill",
        "during",
        "retries",
        "failed",
        "mixed",
        "wrong",
        "p99 before",
        "during",
        "p999",
        "p99 ratio",
        "seconds"
    ));
    for report in reports {
        let ratio = report.p99_ratio;
        output.line(format!(
            "{:<17} {:>8} {:>7} {:>6} {:>5} {:>5} {:>7.2} ms {:>6.2} ms {:>6.2} ms {:>18} {:>7.1}",
            report.judged.drill,
            report.requests_during,
            report.retries,
            report.failed_requests,
            report.mixed_versions,
            report.wrong_answers,
            report.p99_before_us / 1e3,
            report.p99_during_us / 1e3,
            report.p999_during_us / 1e3,
            format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.low, ratio.high),
            report.duration_seconds,
        ));
    }
}
