//! `tidepool release skew`: releases replayed against a sample, with their own tables and with those of others, and what
//! the mismatch costs (docs/skew.md).

mod promises;
mod show;

use std::{fs, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use tidepool_runtime::pool::CpuPool;
use tidepool_skew::{Labels, Options, Plan, Progress, Verdict, replay};
use tidepool_store::ArtifactStore;
use tidepool_types::Name;

use self::promises::{Promise, promises};
use crate::output::{Outcome, Output, bar};

#[derive(Args)]
pub(crate) struct Skew {
    /// The model.
    model: Name,
    /// Releases whose dense models are judged, each with its own tables and with those of the others.
    #[arg(required = true)]
    releases: Vec<Name>,
    /// A release whose tables are tried too. Once per release.
    #[arg(long, value_name = "RELEASE")]
    tables_of: Vec<Name>,
    /// Try a single table of another release too, the rest being the dense model's own.
    #[arg(long)]
    each_table: bool,
    /// The artifact store, a directory; `store pull` brings what lies in S3.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Requests, one JSON object a line: those that `audit_sample` wrote, or others with labels. `-` reads stdin. Once per
    /// file.
    #[arg(long, value_name = "FILE", required = true)]
    sample: Vec<PathBuf>,
    /// Labels that came later, by request id and candidate.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// The candidate feature that labels name candidates by; without it they name places in the request.
    #[arg(long, value_name = "NAME", requires = "labels")]
    candidate_feature: Option<String>,
    /// Promise that log loss gets no worse than this with the tables of others, in percent of what it is with the matched
    /// ones. What the sample is too small to tell is not kept.
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    max_loss_change: Option<f64>,
    /// By how much an online score may differ from the one that is computed here, as a part of the larger of 1 and the
    /// score.
    #[arg(long, value_name = "PART", default_value_t = 1e-5, value_parser = share)]
    score_bound: f64,
    /// Promise that no more than so many percent of the online scores differ by more.
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    max_beyond: Option<f64>,
    /// Threads that run models; without it, one per core. Rows are looked up on threads of their own, one per core.
    #[arg(long)]
    threads: Option<u16>,
}

pub(super) async fn skew(args: Skew, output: Output) -> Result<Outcome> {
    if args.max_loss_change.is_some() && args.releases.len() == 1 && args.tables_of.is_empty() {
        bail!("--max-loss-change speaks of the tables of other releases: name some, or --tables-of");
    }
    let store = ArtifactStore::open_existing(&args.store)?;
    let plan = Plan {
        model: args.model.clone(),
        releases: args.releases.clone(),
        tables_of: args.tables_of.clone(),
        each_table: args.each_table,
    };
    let labels = match &args.labels {
        Some(path) => Some(Labels::read(path, args.candidate_feature.as_deref())?),
        None => None,
    };
    let threads = args.threads.map_or_else(CpuPool::default_threads, |threads| usize::from(threads.max(1)));
    let options = Options { threads, score_bound: args.score_bound };
    let total = args.sample.iter().map(|path| fs::metadata(path).ok().map(|meta| meta.len())).sum();
    let shown = bar("opening tables", total);
    let mut progress = |progress: Progress<'_>| match progress {
        Progress::Opening(table) => shown.set_message(format!("opening {table}")),
        Progress::Scored { requests, bytes } => {
            shown.set_message(format!("{requests} requests"));
            shown.set_position(bytes);
        }
    };
    let report = replay(&store, &plan, &args.sample, labels, &options, &mut progress).await?;
    shown.finish_and_clear();
    show::show(&report, args.score_bound, output);
    let promises = promises(&args, &report);
    for Promise { what, verdict } in &promises {
        output.line(format!("{}: {what}", verdict.as_str()));
    }
    let kept = promises.iter().all(|promise| promise.verdict == Verdict::Kept);
    let mut fields = serde_json::to_value(&report)?;
    fields["score_bound"] = json!(args.score_bound);
    let promise = |Promise { what, verdict }: &Promise| json!({ "promise": what, "verdict": verdict });
    fields["promises"] = promises.iter().map(promise).collect::<Value>();
    output.object(fields);
    Ok(if kept { Outcome::Done } else { Outcome::PromiseBroken })
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("{text:?} is no number from 0 on"))
}
