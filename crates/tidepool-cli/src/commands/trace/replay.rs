//! `tidepool trace replay`: the lookups of a trace asked of a cluster, at the times at which they came.

use std::{collections::BTreeMap, fs::File, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tidepool_bench::{
    Machine,
    trace::{ReplaySpec, Replayed, Survey, replay},
};
use tidepool_client::{Client, ClientConfig, LookupOptions, trace::TraceReader};
use tidepool_types::TableVersion;

use crate::{
    commands::control,
    output::{Outcome, Output},
};

const WAIT_FOR_MAP: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,
    /// How much faster than it was recorded.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Ask this version of a table instead of the recorded one; once per table.
    #[arg(long = "as-version", value_name = "TABLE@VERSION", value_parser = control::table_version)]
    versions: Vec<TableVersion>,
    /// A lookup fails after this.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 500)]
    timeout_ms: u64,
    /// Lookups in flight at most; more are held back, and their latency runs.
    #[arg(long, default_value_t = 4096)]
    max_in_flight: usize,
}

pub(crate) async fn run(args: Args, controller: &str, output: Output) -> Result<Outcome> {
    let reading = || format!("reading {}", args.file.display());
    let open = || -> Result<_> {
        TraceReader::new(File::open(&args.file).with_context(reading)?).with_context(reading)
    };
    let mut reader = open()?;
    let survey = tokio::task::spawn_blocking(move || Survey::of(&mut reader)).await?.with_context(reading)?;
    if !survey.complete {
        output.line(format!("warning: {} was cut off; what is whole is asked", args.file.display()));
    }
    let config = ClientConfig { controllers: vec![controller.to_owned()], ..ClientConfig::default() };
    let client = Client::start(config).await?;
    client
        .wait_for_map(|map| map.epoch.0 > 0, WAIT_FOR_MAP)
        .await
        .with_context(|| format!("no cluster map from a controller at {controller}"))?;
    let mut versions = BTreeMap::new();
    for TableVersion { table, version } in args.versions {
        let twice = versions.insert(table.clone(), version).is_some();
        ensure!(!twice, "--as-version names two versions of {table}");
    }
    let timeout = Duration::from_millis(args.timeout_ms);
    let spec = ReplaySpec {
        speed: args.speed,
        versions,
        options: LookupOptions { timeout, ..client.default_options() },
        max_in_flight: args.max_in_flight,
        ..ReplaySpec::default()
    };
    output.line(format!(
        "{} lookups of {} with {} ids over {:.1} s, at {} times the speed",
        survey.requests, survey.source, survey.ids, survey.seconds, args.speed
    ));
    let replayed = replay(&client, open()?, &survey, &spec).await?;
    show(&replayed, output);
    output.object(object(&args.file, args.speed, &survey, &replayed)?);
    Ok(if replayed.load.verdict.wrong == 0 { Outcome::Done } else { Outcome::PromiseBroken })
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

fn object(
    file: &std::path::Path,
    speed: f64,
    survey: &Survey,
    Replayed { load, checked_tables, unchecked_tables }: &Replayed,
) -> Result<Value> {
    let Survey { source, every, complete, requests, ids, seconds, .. } = survey;
    let times = &load.latency;
    let offered = if *seconds > 0.0 { *requests as f64 / seconds * speed } else { 0.0 };
    Ok(json!({
        "trace": {
            "file": file.display().to_string(), "source": source, "every": every, "complete": complete,
            "requests": requests, "ids": ids, "seconds": seconds,
        },
        "machine": Machine::here(), "speed": speed, "offered_rate": offered,
        "seconds": load.elapsed.as_secs_f64(), "requests": load.requests, "answered_requests": load.answered,
        "mean_us": times.mean_us(), "p50_us": times.quantile_us(0.5), "p90_us": times.quantile_us(0.9),
        "p99_us": times.quantile_us(0.99), "p999_us": times.quantile_us(0.999), "max_us": times.max_us(),
        "requests_per_second": load.requests_per_second(), "rows_per_second": load.rows_per_second(),
        "nodes_touched_per_request": load.per_request(load.nodes_touched),
        "wire_bytes_per_request": load.per_request(load.gather_bytes + load.pool_bytes),
        "failed_requests": load.failed_requests(), "failed_requests_by_code": load.failed,
        "first_failure": load.first_failure, "missing_ids": load.missing_ids,
        "defaulted_bags": load.defaulted_bags, "fallbacks": load.fallbacks,
        "checked_answers": load.verdict.checked, "wrong_answers": load.verdict.wrong,
        "unchecked_requests": load.unchecked, "checked_tables": checked_tables,
        "unchecked_tables": unchecked_tables, "held_back_requests": load.held_back,
        "unprepared_requests": load.unprepared, "start_delay_p99_us": load.start_delay.quantile_us(0.99),
    }))
}
