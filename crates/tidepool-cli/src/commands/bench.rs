//! `tidepool bench`: how fast the parts are, beside what the machine would allow.

mod drill;
mod lookup;
mod quantize;
mod rank;
mod table;

use std::{io::Write, num::NonZeroUsize, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use tidepool_bench::{
    Skew, Spread,
    kernel::{Params, Report},
};
use tidepool_kernels::Isa;
use tidepool_table::Residency;
use tidepool_types::{Keying, PartitionCount, RowFormat};

pub(super) use self::drill::{rate, show_promises};
use self::table::Shown;
use crate::{
    commands::role,
    output::{Outcome, Output},
    remote::RemoteArgs,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Pool rows of a table of any size, beside the gather limit: the same rows, each cache line touched once.
    Kernel(Kernel),
    /// Look up under load in a cluster of real processes, beside the same bytes over bare TCP; every answer is
    /// checked. With --controller in a cluster that runs.
    Lookup(Box<lookup::Lookup>),
    /// Rank under load through a ranker and nodes that are real processes, beside the same batcher, model and tables in
    /// one process.
    Rank(rank::Rank),
    /// Build a table whose answers benches can check, to be served by a cluster of yours.
    Table(table::Table),
    /// Answer bare bytes, for `bench lookup`.
    #[command(hide = true)]
    BytesServer,
    /// Quantize the rows of a file in memory: rows per second, and what it costs in precision.
    Quantize(quantize::Quantize),
    /// Real faults on a cluster of real processes: kill, stop, outage, overload, quota, partition, soak, or all.
    Drill(drill::Drill),
}

#[derive(Args)]
pub(crate) struct Kernel {
    /// Rows of the table.
    #[arg(long, value_parser = rows)]
    rows: u64,
    /// Elements of a row.
    #[arg(long, default_value_t = 64)]
    dim: u32,
    /// Ids of a bag.
    #[arg(long, default_value_t = 20)]
    bag: u32,
    /// How rows are stored: int4, int8, f16 or f32.
    #[arg(long, default_value = "int4")]
    format: RowFormat,
    /// Which rows are asked for: uniform, or zipf:EXPONENT.
    #[arg(long, default_value = "uniform")]
    skew: Skew,
    /// Which ids the rows have: dense or hashed.
    #[arg(long, default_value = "dense")]
    keys: Keying,
    /// Threads that look up at once.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Into how many partitions the table is cut: a power of two.
    #[arg(long, default_value = "16", value_parser = partition_count)]
    partitions: PartitionCount,
    /// How long to measure, once the table is there.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// The instruction set: scalar, avx2 or avx512. Without it the best that this CPU has.
    #[arg(long)]
    isa: Option<Isa>,
    /// Where the rows lie: mapped, locked, copied (to 2 MiB pages), or auto: mapped, and copied when the map has
    /// no 2 MiB pages.
    #[arg(long, default_value = "auto")]
    residency: Residency,
    /// Give every id a weight.
    #[arg(long)]
    weighted: bool,
    /// Seed of ids and weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many MiB of cache lines a pass asks for before the same rows are met again. Without it four times
    /// the last-level cache.
    #[arg(long, value_name = "MIB")]
    pass_mib: Option<u64>,
    /// Artifact store of the tables of benches. They are kept, and used again by a bench with the same parameters.
    #[arg(long, value_name = "DIR", default_value = "data/bench")]
    dir: PathBuf,
}

/// A number, in which `_` may stand.
pub(super) fn rows(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("{text:?} is no number of rows"))
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| format!("{text:?} is no number of seconds up to a day"))
}

/// What `--rate` says.
#[derive(Clone, Copy)]
pub(crate) enum Offered {
    PerSecond(f64),
    Max,
}

fn offered(text: &str) -> Result<Offered, String> {
    if text == "max" {
        return Ok(Offered::Max);
    }
    let rate = text.parse().ok().filter(|rate| *rate > 0.0 && *rate <= 1e7);
    rate.map(Offered::PerSecond)
        .ok_or_else(|| format!("{text:?} is neither max nor a number of requests a second"))
}

fn partition_count(text: &str) -> Result<PartitionCount, String> {
    let count: u32 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    PartitionCount::try_from(count)
}

pub(crate) async fn run(command: Command, remote: RemoteArgs, output: Output) -> Result<Outcome> {
    let args = match command {
        Command::Kernel(args) => args,
        Command::Lookup(args) => {
            // Without a controller the cluster is one that is started here, and what opens the doors of others is
            // not for it.
            let running = remote.controller.is_some().then(|| remote.read()).transpose()?;
            let running = running.map(|remote| remote.client_config()).transpose()?;
            return tokio::task::spawn_blocking(move || lookup::run(&args, running, output)).await?;
        }
        Command::Table(args) => {
            return tokio::task::spawn_blocking(move || table::run(&args, output)).await?;
        }
        Command::Rank(args) => {
            return tokio::task::spawn_blocking(move || rank::run(&args, output)).await?;
        }
        Command::BytesServer => return bytes_server().await,
        Command::Drill(args) => return drill::run(args, output).await,
        Command::Quantize(args) => {
            return tokio::task::spawn_blocking(move || quantize::run(&args, output).map(|()| Outcome::Done))
                .await?;
        }
    };
    let report = tokio::task::spawn_blocking(move || kernel(args)).await??;
    show(&report, output);
    output.object(serde_json::to_value(&report)?);
    Ok(if report.wrong_answers == 0 { Outcome::Done } else { Outcome::PromiseBroken })
}

/// Serves until stdin closes.
async fn bytes_server() -> Result<Outcome> {
    let (failed, failure) = tokio::sync::oneshot::channel();
    // A thread that nobody waits for: it serves until the process ends.
    std::thread::spawn(move || {
        let served = tidepool_bench::lookup::serve_bytes(|address| {
            // Whoever started it reads this line.
            let _ = writeln!(std::io::stdout(), "{address}");
        });
        let _ = failed.send(served);
    });
    tokio::select! {
        () = role::parent_ended(true) => Ok(Outcome::Done),
        served = failure => Ok(served?.map(|()| Outcome::Done)?),
    }
}

fn kernel(args: Kernel) -> Result<Report> {
    let params = Params {
        rows: args.rows,
        dim: args.dim,
        bag: args.bag,
        format: args.format,
        skew: args.skew,
        keying: args.keys,
        partitions: args.partitions,
        threads: args.threads,
        isa: args.isa,
        residency: args.residency,
        weighted: args.weighted,
        time: Duration::from_secs_f64(args.seconds),
        seed: args.seed,
        pass_bytes: args.pass_mib.map(|mib| mib.saturating_mul(1 << 20)),
        dir: args.dir,
    };
    let mut shown = Shown::default();
    let report = tidepool_bench::kernel::run(&params, &mut |step, done, total| shown.step(step, done, total));
    shown.end();
    report.with_context(|| format!("benching with tables in {}", params.dir.display()))
}

fn show(report: &Report, output: Output) {
    let Report { rows, dim, bag, format, skew, keys, partitions, threads, isa, machine, .. } = report;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    output.line(format!(
        "{rows} rows of dim {dim}, {format}, {keys}, {partitions} partitions; bags of {bag}, {skew}{}; {threads} \
         threads, {isa}",
        if report.weighted { ", weighted" } else { "" }
    ));
    output.line(format!(
        "on {}, {} cores, {:.0} MiB of last-level cache, {}",
        machine.cpu,
        machine.cores,
        mib(machine.last_level_cache_bytes),
        machine.kernel
    ));
    output.line(format!(
        "table: {:.1} MiB of files, {:.1} MiB of them index, {:.1} MiB on 2 MiB pages; opened and verified in \
         {:.2} s",
        mib(report.table_bytes),
        mib(report.index_bytes),
        mib(report.huge_page_bytes),
        report.open_and_verify_seconds
    ));
    let rates = |what: &str, of: [&Spread; 2], unit: f64, after: &str| {
        let shown = of.map(|of| {
            let [median, low, high] = [of.median, of.low, of.high].map(|rate| rate / unit);
            format!("{median:>9.3} ({low:.3} to {high:.3})")
        });
        output.line(format!("{what:<24} {:<32} {:<32} {after}", shown[0], shown[1]));
    };
    output.line(format!("{:<24} {:>9} {:>32}", "", "by clock", "on a core"));
    let pooled = [&report.rows_per_second_spread, &report.rows_per_second_on_cpu];
    rates("pooled", pooled, 1e6, "M rows/s");
    let limit = [&report.gather_limit_rows_per_second_spread, &report.gather_limit_rows_per_second_on_cpu];
    rates("gather limit", limit, 1e6, "M rows/s");
    let ratio = [&report.ratio_to_gather_limit, &report.ratio_to_gather_limit_on_cpu];
    rates("pooled / gather limit", ratio, 1.0, &format!("in {} pairs", report.pairs));
    output.line(format!(
        "{:<24} {:>9.2} ns a row, {:.2} ns a cache line, {:.2} GB/s of rows; {:.2} lines a row",
        "each thread",
        report.ns_per_row,
        report.ns_per_line,
        report.bytes_per_second / 1e9 / report.threads as f64,
        report.lines_per_row
    ));
    output.line(format!(
        "{:<24} {:>9} of {} that the oracle looked at",
        "wrong answers", report.wrong_answers, report.checked_answers
    ));
}
