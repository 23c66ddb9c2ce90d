//! `tidepool bench drill`: real faults on a cluster of real processes, and whether the promises held.

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tidepool_bench::{
    Machine,
    drill::{self, Asked, Drill as Name, Params, Report},
};

use crate::output::{Outcome, Output};

pub(in crate::commands) fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && rate.is_finite());
    rate.ok_or_else(|| format!("{text:?} is no number of requests per second"))
}

#[derive(Args)]
pub(crate) struct Drill {
    /// kill, stop, outage, overload, quota, partition, soak, or all of them.
    #[arg(value_parser = Asked::<Name>::from_str)]
    name: Asked<Name>,
    /// Rows of the table.
    #[arg(long, value_parser = super::rows, default_value = "1_000_000")]
    rows: u64,
    /// Requests per second of the drills that do not look for a limit: 200 ids each, on average.
    #[arg(long, default_value_t = 200.0, value_parser = rate)]
    rate: f64,
    /// How long each phase of a drill lasts.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, value_parser = super::seconds)]
    phase_seconds: f64,
    /// Lookups of the soak. Allocators have come to rest after some 20,000: how memory grows is judged over the second
    /// half of many more.
    #[arg(long, default_value_t = 100_000)]
    lookups: u64,
    /// Seed of all that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print promises about time, but do not judge them: for machines that do other things at the same time.
    #[arg(long)]
    no_timing: bool,
    /// Where the table is kept and used again, and where the clusters have their files.
    #[arg(long, value_name = "DIR", default_value = "data/bench")]
    dir: PathBuf,
}

pub(super) async fn run(args: Drill, output: Output) -> Result<Outcome> {
    let params = Params {
        program: None,
        dir: args.dir,
        rows: args.rows,
        rate: args.rate,
        phase: Duration::from_secs_f64(args.phase_seconds),
        lookups: args.lookups,
        seed: args.seed,
        judge_timing: !args.no_timing,
    };
    let mut reports = Vec::new();
    for name in args.name.0 {
        output.line(format!("{name}:"));
        let report = drill::run(name, &params, &mut |what| output.line(format!("  ({what})")))
            .await
            .with_context(|| format!("the drill {name}"))?;
        show_promises(&report, output);
        reports.push(report);
    }
    let kept = reports.iter().all(Report::is_kept);
    output.object(json!({
        "kept": kept,
        "drills": reports,
        "rows": params.rows,
        "rate": params.rate,
        "phase_seconds": params.phase.as_secs_f64(),
        "seed": params.seed,
        "timing_judged": params.judge_timing,
        "machine": Machine::here(),
    }));
    Ok(if kept { Outcome::Done } else { Outcome::PromiseBroken })
}

/// A line for each promise, and one for the figures.
pub(in crate::commands) fn show_promises(report: &Report, output: Output) {
    for promise in &report.promises {
        let word = match (promise.kept, promise.judged) {
            (true, _) => "kept",
            (false, true) => "BROKEN",
            (false, false) => "not kept, not judged",
        };
        output.line(format!("  {word:<8} {}", promise.text));
    }
    let figures: Vec<_> = report.figures.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
    output.line(format!("  figures: {}", figures.join(", ")));
}
