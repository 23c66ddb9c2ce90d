//! `tidepool trace replay`: the lookups of a trace asked of a cluster, at the times at which they came.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tidepool_bench::{
    Machine,
    lookup::{self, Figures},
    trace::{ReplaySpec, Replayed, Survey, replay},
};
use tidepool_client::{Client, LookupOptions, trace::TraceReader};
use tidepool_types::TableVersion;

use crate::{
    commands::control,
    output::{Outcome, Output},
    remote::Remote,
};

const WAIT_FOR_MAP: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,
    /// How much faster than it was recorded. Several numbers, as in 1,2,4, are asked one after the other.
    #[arg(long, value_name = "FACTOR", value_delimiter = ',', default_value = "1")]
    speed: Vec<f64>,
    /// Ask this version of a table instead of the recorded one; once per table.
    #[arg(long = "as-version", value_name = "TABLE@VERSION", value_parser = control::table_version)]
    versions: Vec<TableVersion>,
    /// A lookup fails after this.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 500)]
    timeout_ms: u64,
    /// Lookups in flight at most; more are held back, and their latency runs.
    #[arg(long, default_value_t = 4096)]
    max_in_flight: usize,
    /// Write a page that plots latency against throughput, a point for each speed.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, remote: &Remote, output: Output) -> Result<Outcome> {
    let reading = || format!("reading {}", args.file.display());
    let open = || -> Result<_> {
        TraceReader::new(File::open(&args.file).with_context(reading)?).with_context(reading)
    };
    let mut reader = open()?;
    let survey = tokio::task::spawn_blocking(move || Survey::of(&mut reader)).await?.with_context(reading)?;
    if !survey.complete {
        output.line(format!("warning: {} was cut off; what is whole is asked", args.file.display()));
    }
    let config = remote.client_config()?;
    let client = Client::start(config).await?;
    client
        .wait_for_map(|map| map.epoch.0 > 0, WAIT_FOR_MAP)
        .await
        .with_context(|| format!("no cluster map from a controller at {}", remote.controller))?;
    let mut versions = BTreeMap::new();
    for TableVersion { table, version } in args.versions {
        let twice = versions.insert(table.clone(), version).is_some();
        ensure!(!twice, "--as-version names two versions of {table}");
    }
    let timeout = Duration::from_millis(args.timeout_ms);
    let mut spec = ReplaySpec {
        versions,
        options: LookupOptions { timeout, ..client.default_options() },
        max_in_flight: args.max_in_flight,
        ..ReplaySpec::default()
    };
    let (mut runs, mut plotted, mut wrong) = (Vec::new(), Vec::new(), 0);
    for speed in args.speed {
        spec.speed = speed;
        output.line(format!(
            "{} lookups of {} with {} ids over {:.1} s, at {speed} times the speed",
            survey.requests, survey.source, survey.ids, survey.seconds
        ));
        let replayed = replay(&client, open()?, &survey, &spec).await?;
        show(&replayed, output);
        let offered = (survey.seconds > 0.0).then(|| survey.requests as f64 / survey.seconds * speed);
        let figures = Figures::of(&replayed.load, offered);
        runs.push(object(&args.file, speed, &survey, &replayed, &figures)?);
        plotted.push((format!("{speed} times the speed"), figures));
        wrong += replayed.load.verdict.wrong;
    }
    if let Some(path) = &args.html {
        let title = format!("{} lookups of {} in {}", survey.requests, survey.source, args.file.display());
        let page = lookup::plot_replay(&title, &plotted);
        fs::write(path, page).with_context(|| format!("writing {}", path.display()))?;
        output.line(format!("plotted in {}", path.display()));
    }
    output.object(match runs.len() {
        1 => runs.remove(0),
        _ => json!({ "runs": runs, "wrong_answers": wrong }),
    });
    Ok(if wrong == 0 { Outcome::Done } else { Outcome::PromiseBroken })
}

fn show(Replayed { load, checked_tables, unchecked_tables }: &Replayed, output: Output) {
    let times = &load.latency;
    output.line(format!(
        "{} of {} lookups answered, {:.1}/s, {:.0} ids/s; {} failed, {} were held back",
        load.answered,
        load.requests,
        load.requests_per_second(),
        load.rows_per_second(),
        load.failed_requests(),
        load.held_back
    ));
    let quantile = |q: f64| times.quantile_us(q);
    output.line(format!(
        "mean {:.0} us, p50 {:.0}, p99 {:.0}, p99.9 {:.0}, max {:.0}; {:.2} nodes a lookup",
        times.mean_us(),
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        times.max_us(),
        load.per_request(load.nodes_touched)
    ));
    for (code, count) in &load.failed {
        output.line(format!("failed with {code}: {count}"));
    }
    if let Some(failure) = &load.first_failure {
        output.line(format!("the first: {failure}"));
    }
    output.line(format!(
        "{} ids missing, {} bags defaulted, {} partitions asked elsewhere",
        load.missing_ids, load.defaulted_bags, load.fallbacks
    ));
    let names =
        |tables: &[TableVersion]| tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !checked_tables.is_empty() {
        output.line(format!(
            "{} wrong of {} answers that the oracle looked at ({})",
            load.verdict.wrong,
            load.verdict.checked,
            names(checked_tables)
        ));
    }
    if !unchecked_tables.is_empty() {
        output.line(format!(
            "not checked, for only bench tables have rows that are known: {}",
            names(unchecked_tables)
        ));
    }
}

/// The figures of a load, and what is said of a trace besides.
fn object(
    file: &Path,
    speed: f64,
    survey: &Survey,
    Replayed { load, checked_tables, unchecked_tables }: &Replayed,
    figures: &Figures,
) -> Result<Value> {
    let Survey { source, every, complete, requests, ids, seconds, .. } = survey;
    let mut object = serde_json::to_value(figures)?;
    let more = json!({
        "trace": {
            "file": file.display().to_string(), "source": source, "every": every, "complete": complete,
            "requests": requests, "ids": ids, "seconds": seconds,
        },
        "machine": Machine::here(), "speed": speed, "answered_requests": load.answered,
        "defaulted_bags": load.defaulted_bags, "checked_tables": checked_tables,
        "unchecked_tables": unchecked_tables,
    });
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    Ok(object)
}
