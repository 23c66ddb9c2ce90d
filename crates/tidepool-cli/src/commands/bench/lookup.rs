//! `tidepool bench lookup`: lookups through a cluster of real processes, under load.

use std::{
    fs,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tidepool_bench::{
    Skew, Spread,
    load::{Asked, BatchShape, Rate},
    lookup::{self, Break, Figures, Params, Place, Progress, Report, Steps, TraceParams, TraceUse},
};
use tidepool_client::{ClientConfig, LookupOptions, WireForm};
use tidepool_types::{PartitionCount, Pooling, TableVersion};

use super::{
    Offered, offered, partition_count, seconds,
    table::{Shown, TableArgs},
};
use crate::{
    commands::control,
    output::{Outcome, Output},
};

/// Partitions for each node of a group, before they are rounded up to a power of two.
const PARTITIONS_PER_NODE: usize = 16;

#[derive(clap::Args)]
pub(crate) struct Lookup {
    /// Nodes in each group. Several numbers, as in 2,4,10, are measured one after the other. Not with --controller.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "2")]
    nodes: Vec<NonZeroUsize>,
    /// Replica groups. Not with --controller.
    #[arg(long, value_name = "N", default_value = "1")]
    groups: NonZeroUsize,
    /// Requests a second, which arrive by chance whether others have been answered or not; or max: as many as
    /// are answered with --in-flight at once.
    #[arg(long, value_name = "R|max", default_value = "100", value_parser = offered)]
    rate: Offered,
    /// Requests in flight with --rate max.
    #[arg(long, value_name = "N", default_value = "16")]
    in_flight: NonZeroUsize,
    /// Bags of a request, over the whole cluster.
    #[arg(long, value_name = "N", default_value = "100")]
    batch: NonZeroU32,
    /// How that differs from request to request: fixed, or heavy: many small and few large ones, the mean as given.
    #[arg(long, default_value = "fixed")]
    batch_shape: BatchShape,
    /// Ids of a bag.
    #[arg(long, value_name = "N", default_value = "1")]
    bag: NonZeroU32,
    /// How long requests are sent; with --steps in each step.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    #[command(flatten)]
    table: TableArgs,
    /// Into how many partitions the table is cut: a power of two. Without it 16 for each node of a group.
    #[arg(long, value_parser = partition_count)]
    partitions: Option<PartitionCount>,
    /// The bench table of a running cluster (--controller), when it serves several.
    #[arg(long = "table", value_name = "TABLE@VERSION", value_parser = control::table_version)]
    served: Option<TableVersion>,
    /// Which rows are asked for: uniform, or zipf:EXPONENT.
    #[arg(long, default_value = "uniform")]
    skew: Skew,
    /// How a bag becomes a vector: sum, mean or none.
    #[arg(long, default_value = "sum")]
    pooling: Pooling,
    /// Give every id a weight.
    #[arg(long)]
    weighted: bool,
    /// Ask what a trace has (tidepool trace record), in its order, in the place of requests that are drawn; its ids
    /// become rows of the bench table. Load ends with the trace. For the recorded tables and times: trace replay.
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["batch", "batch_shape", "bag", "skew", "pooling", "weighted", "kernel"])]
    trace: Option<PathBuf>,
    /// Begin again at the end of the trace, until --seconds are over.
    #[arg(long, requires = "trace")]
    trace_repeat: bool,
    /// Insist on a wire form: gather or pool. Without it the one with fewer bytes, for each node.
    #[arg(long, value_parser = wire_form)]
    wire_form: Option<WireForm>,
    /// Stored rows travel and are pooled by the client, in the order of the request.
    #[arg(long)]
    exact: bool,
    /// Bytes of the client's cache of hot rows; 0: there is none.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    cache_bytes: u64,
    /// The budget of a lookup.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    timeout_ms: u64,
    /// Threads of the client.
    #[arg(long, value_name = "N", default_value = "1")]
    client_threads: NonZeroUsize,
    /// Do not send the same bytes over bare TCP in between.
    #[arg(long)]
    no_baseline: bool,
    /// Pool the same table within this process in between, and compare the CPU time of a row.
    #[arg(long)]
    kernel: bool,
    /// Begin at --rate, and send 1.4 times as many from step to step, until the SLO breaks, requests fail, or no
    /// more are answered; in so many steps at most. The figures at the head are those of the last step that held;
    /// when not even the first did, the command ends with 3.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "24")]
    steps: Option<NonZeroUsize>,
    /// The 99th percentile, in microseconds, that ends the steps.
    #[arg(long, value_name = "MICROSECONDS", requires = "steps")]
    slo_p99_us: Option<f64>,
    /// Write a page that plots latency against throughput.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A configuration key of every node, as in inline_max_rows=4096.
    #[arg(long = "node-set", value_name = "KEY=VALUE", value_parser = toml_value)]
    node_set: Vec<(String, toml::Value)>,
    /// Seed of arrivals, ids and weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn wire_form(text: &str) -> Result<WireForm, String> {
    match text {
        "gather" => Ok(WireForm::Gather),
        "pool" => Ok(WireForm::Pool),
        _ => Err(format!("{text:?} is no wire form: gather or pool")),
    }
}

/// A number, `true` or `false` is one; everything else is text.
fn toml_value(text: &str) -> Result<(String, toml::Value), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    let read = value.parse().unwrap_or_else(|_| toml::Value::from(value));
    Ok((key.to_owned(), read))
}

/// `running`: how the cluster that runs is reached, when it is one.
pub(super) fn run(args: &Lookup, running: Option<ClientConfig>, output: Output) -> Result<Outcome> {
    let places = places(args, running.is_some());
    let client = running.unwrap_or_default();
    let mut reports = Vec::with_capacity(places.len());
    for place in places {
        let report = one(args, place, &client)?;
        show(&report, output);
        reports.push(report);
    }
    if let Some(path) = &args.html {
        fs::write(path, lookup::plot(&reports)).with_context(|| format!("writing {}", path.display()))?;
        output.line(format!("plotted in {}", path.display()));
    }
    let wrong: u64 = reports.iter().map(Report::wrong_answers).sum();
    let unchecked = reports.iter().any(|report| report.checked_answers() == 0);
    output.object(match &reports[..] {
        [one] => serde_json::to_value(one)?,
        several => json!({ "runs": several, "wrong_answers": wrong, "seed": args.seed }),
    });
    if unchecked {
        output.line("no answer was looked at: that none was wrong means nothing");
    }
    let held = !reports.iter().any(Report::no_step_held);
    Ok(if wrong == 0 && !unchecked && held { Outcome::Done } else { Outcome::PromiseBroken })
}

/// A cluster for each number of nodes, or the one that runs.
fn places(args: &Lookup, runs: bool) -> Vec<Place> {
    if runs {
        return vec![Place::Running { table: args.served.clone() }];
    }
    let local = |nodes: &NonZeroUsize| Place::Local {
        program: None,
        nodes: nodes.get(),
        groups: args.groups.get(),
        dir: args.table.dir.clone(),
        node_config: args.node_set.iter().cloned().collect(),
    };
    args.nodes.iter().map(local).collect()
}

/// One bench, with its progress shown.
fn one(args: &Lookup, place: Place, client: &ClientConfig) -> Result<Report> {
    let most_nodes = args.nodes.iter().map(|nodes| nodes.get()).max().unwrap_or(1);
    // The same for all numbers of nodes, so that they serve the same table.
    let partitions = match args.partitions {
        Some(partitions) => partitions,
        None => {
            let wanted = (PARTITIONS_PER_NODE * most_nodes).next_power_of_two();
            PartitionCount::try_from(u32::try_from(wanted)?).map_err(anyhow::Error::msg)?
        }
    };
    if let (Some(_), Offered::Max) = (args.steps, args.rate) {
        bail!("--steps begin at a rate: give --rate R instead of max");
    }
    let params = Params {
        place,
        asked: Asked {
            table: args.table.bench_table(partitions),
            batch: args.batch.get() as usize,
            shape: args.batch_shape,
            bag: args.bag.get() as usize,
            pooling: args.pooling,
            weighted: args.weighted,
            skew: args.skew,
            seed: args.seed,
        },
        trace: args.trace.clone().map(|file| TraceParams { file, repeat: args.trace_repeat }),
        rate: match args.rate {
            Offered::PerSecond(rate) => Rate::PerSecond(rate),
            Offered::Max => Rate::Max { in_flight: args.in_flight.get() },
        },
        time: Duration::from_secs_f64(args.seconds),
        options: LookupOptions {
            timeout: Duration::from_millis(args.timeout_ms),
            exact: args.exact,
            wire_form: args.wire_form,
            ..LookupOptions::default()
        },
        client: ClientConfig { cache_bytes: args.cache_bytes, ..client.clone() },
        client_threads: args.client_threads,
        baseline: !args.no_baseline,
        kernel: args.kernel,
        steps: args.steps.map(|most| Steps { most: most.get(), slo_p99_us: args.slo_p99_us }),
    };
    let mut shown = Shown::default();
    let report = lookup::run(&params, &mut |progress| match progress {
        Progress::Table(step, done, total) => shown.step(step, done, total),
        Progress::Starting => shown.set("starting processes", 0, 1),
        Progress::Measuring(done, total) => shown.set("measuring", done, total),
    });
    shown.end();
    report.with_context(|| format!("benching with tables in {}", args.table.dir.display()))
}

fn show(report: &Report, output: Output) {
    let Report { nodes, groups, batch, bag, dim, format, table_rows, machine, .. } = report;
    output.line(format!(
        "{nodes} nodes in {} group{}; {batch} bags of {bag} a request ({}), {}{}, {}; {} of {table_rows} rows, dim \
         {dim}, {format}",
        if *groups == 1 { "one".to_owned() } else { format!("each of {groups}") },
        if *groups == 1 { "" } else { "s" },
        report.batch_shape,
        report.pooling.map_or("pooled as recorded", Pooling::as_str),
        if report.weighted == Some(true) { ", weighted" } else { "" },
        report.skew,
        report.table_version,
    ));
    if let Some(TraceUse { file, source, lookups, asked, repeat, ended }) = &report.trace {
        let then = match (ended, repeat) {
            (true, _) => "; it was over before the time was",
            (false, true) => "; it begins again at its end",
            (false, false) => "",
        };
        output.line(format!("{asked} of {lookups} lookups of {source} in {}{then}", file.display()));
    }
    output.line(format!("on {}, {} cores, {}", machine.cpu, machine.cores, machine.kernel));
    if report.steps.is_empty() {
        head(output);
        line("lookups", &report.figures, output);
        if let Some(bare) = &report.bare_tcp {
            line("bare TCP", &bare.figures, output);
        }
        of_a_request(&report.figures, output);
        if let Some(bare) = &report.bare_tcp {
            output.line(format!(
                "over the same bytes by bare TCP ({:.0} sent, {:.0} received): mean {}, p50 {}, p99 {}, in {} rounds",
                bare.sent_bytes_per_request,
                bare.received_bytes_per_request,
                ratio(&bare.mean_ratio),
                ratio(&bare.p50_ratio),
                ratio(&bare.p99_ratio),
                report.rounds
            ));
        }
        if let Some(kernel) = &report.kernel {
            output.line(format!(
                "CPU of the nodes for a row over the kernel within one process ({:.1} ns): {}",
                kernel.ns_per_row.median,
                ratio(&kernel.node_cpu_ratio)
            ));
        }
    } else {
        head(output);
        for step in &report.steps {
            line(&format!("{:.0}/s offered", step.offered_rate.unwrap_or_default()), step, output);
        }
        for line in held(report) {
            output.line(line);
        }
        of_a_request(&report.figures, output);
    }
}

/// Up to where steps held, and why not beyond.
fn held(report: &Report) -> Vec<String> {
    let slo = report.slo_p99_us.map(|slo| format!(" with p99 within {slo:.0} us")).unwrap_or_default();
    let rate = report.figures.requests_per_second;
    let offered = |figures: Option<&Figures>| figures.and_then(|f| f.offered_rate).unwrap_or_default();
    if report.no_step_held() {
        let because = report.steps_ended_by.map_or("", Break::because);
        return vec![format!(
            "NO STEP HELD: {because} at {:.0}/s offered already; begin lower (--rate). What follows is of that step",
            offered(report.steps.first())
        )];
    }
    let up_to = format!("held up to {rate:.0} requests/s{slo}");
    let beyond = match report.steps_ended_by {
        Some(by) => format!("at {:.0}/s offered {}", offered(report.steps.last()), by.because()),
        None => "that was the last step; --steps N allows more".to_owned(),
    };
    vec![up_to, beyond]
}

fn head(output: Output) {
    output.line(format!(
        "{:<16} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>7} {:>6}",
        "",
        "requests/s",
        "rows/s",
        "mean us",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "nodes CPU",
        "client CPU",
        "failed",
        "wrong"
    ));
}

/// A load in one line; CPU time is for a request, in microseconds.
fn line(what: &str, figures: &Figures, output: Output) {
    output.line(format!(
        "{what:<16} {:>10.1} {:>10.0} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>10} {:>10} {:>7} {:>6}",
        figures.requests_per_second,
        figures.rows_per_second,
        figures.mean_us,
        figures.p50_us,
        figures.p99_us,
        figures.p999_us,
        whole(figures.node_cpu_us_per_request),
        whole(figures.client_cpu_us_per_request),
        figures.failed_requests,
        figures.wrong_answers,
    ));
}

/// A number without its fraction; `-`: it is not known.
fn whole(number: Option<f64>) -> String {
    number.map_or_else(|| "-".into(), |number| format!("{number:.0}"))
}

fn of_a_request(figures: &Figures, output: Output) {
    output.line(format!(
        "a request: {:.1} nodes, {:.0} bytes ({:.0} of rows, {:.0} of sums); a row looked up: {} ns of nodes; an \
         id: {} ns of the client; sent {:.0} us late (p99 {:.0})",
        figures.nodes_touched_per_request,
        figures.wire_bytes_per_request,
        figures.gather_bytes_per_request,
        figures.pool_bytes_per_request,
        whole(figures.node_cpu_ns_per_row),
        whole(figures.client_cpu_ns_per_row),
        figures.start_delay_p50_us,
        figures.start_delay_p99_us,
    ));
    if let Some(failure) = &figures.first_failure {
        let codes: Map<String, Value> = figures
            .failed_requests_by_code
            .iter()
            .map(|(code, count)| ((*code).to_owned(), (*count).into()))
            .collect();
        output.line(format!("failed: {}; the first: {failure}", Value::Object(codes)));
    }
    output.line(format!(
        "wrong answers: {} of {} that the oracle looked at; {} requests not looked at",
        figures.wrong_answers, figures.checked_answers, figures.unchecked_requests
    ));
}

fn ratio(of: &Spread) -> String {
    format!("{:.2} ({:.2} to {:.2})", of.median, of.low, of.high)
}
