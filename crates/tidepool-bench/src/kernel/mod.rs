//! `bench kernel`: ids to pooled vectors through [`LayoutView::pool`], the function that a node calls,
//! beside the gather limit of the same ids: what this machine's memory would allow at most.
//!
//! Time is measured in pairs of passes. A pass is some thousands of bags of ids that were never asked for
//! before, long enough that its rows fill the last-level cache several times over. The rows of one pass are
//! pooled, and touched for the limit; which of the two goes first alternates. A pair gives one ratio.

mod limit;
pub(crate) mod timer;
mod worker;

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;
use tidepool_kernels::{Isa, RowKernel};
use tidepool_store::ArtifactStore;
use tidepool_table::{LayoutView, Residency};
use tidepool_types::{Keying, PartitionCount, RowFormat};

use self::{
    timer::{Timed, Timer},
    worker::{PassShape, Worker, at_once},
};
use crate::{
    BenchError, BenchTable, Machine, Oracle, Skew, Spread, Step,
    draw::Draw,
    table::{OpenTable, ROWS_VERSION, huge_page_bytes},
};

/// Ids that one call looks up, about: some hundred requests that came together.
const BATCH_IDS: usize = 20_000;
/// Prefetch distances, in rows, that the limit is tried at.
const DISTANCES: [usize; 9] = [4, 8, 12, 16, 24, 32, 48, 64, 96];
/// How often each is tried.
const SWEEPS: usize = 3;
/// Pairs that are taken however little time there is.
const MIN_PAIRS: usize = 5;
/// Ids of a pass of all workers, at most.
const MAX_PASS_IDS: u64 = 4 << 20;

/// What is timed.
#[derive(Clone, Debug)]
pub struct Params {
    /// Rows of the table.
    pub rows: u64,
    /// Elements of a row.
    pub dim: u32,
    /// Ids of a bag.
    pub bag: u32,
    /// How rows are stored.
    pub format: RowFormat,
    /// Which rows are asked for how often.
    pub skew: Skew,
    /// Which ids the rows have.
    pub keying: Keying,
    /// Into how many partitions the table is cut.
    pub partitions: PartitionCount,
    /// Threads that look up at once, each its own ids.
    pub threads: NonZeroUsize,
    /// The instruction set; `None` for the best there is.
    pub isa: Option<Isa>,
    /// Whether ids have weights.
    pub weighted: bool,
    /// Where the rows are to lie.
    pub residency: Residency,
    /// How long pairs are taken. Building the table and finding the best prefetch distance come on top.
    pub time: Duration,
    /// Seeds ids and weights.
    pub seed: u64,
    /// Bytes of cache lines that a pass asks for; `None` for four times the last-level cache.
    pub pass_bytes: Option<u64>,
    /// The artifact store where tables are kept, to be used again.
    pub dir: PathBuf,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    pub rows: u64,
    /// Elements of a row.
    pub dim: u32,
    /// Ids of a bag.
    pub bag: u32,
    /// How rows are stored.
    pub format: RowFormat,
    /// `uniform` or `zipf:EXPONENT`.
    pub skew: String,
    /// Dense or hashed.
    pub keys: Keying,
    /// Partitions of the table.
    pub partitions: u32,
    /// Threads that looked up at once.
    pub threads: usize,
    /// The instruction set that pooled.
    pub isa: &'static str,
    /// Whether ids had weights.
    pub weighted: bool,
    /// Where the rows were to lie.
    pub residency: &'static str,
    /// The seed of ids and weights.
    pub seed: u64,

    /// Ids pooled in a second by all threads: the median of the pairs.
    pub rows_per_second: f64,
    /// The same with its spread.
    pub rows_per_second_spread: Spread,
    /// Rows touched in a second by all threads, at the best prefetch distance.
    pub gather_limit_rows_per_second: f64,
    /// The same with its spread.
    pub gather_limit_rows_per_second_spread: Spread,
    /// The first over the second, pair by pair.
    pub ratio_to_gather_limit: Spread,
    /// The same, while on a core: what other processes took is left out. Beside others on the machine it is
    /// the steadier one; their share of caches and memory is in it all the same.
    pub rows_per_second_on_cpu: Spread,
    /// That of the limit.
    pub gather_limit_rows_per_second_on_cpu: Spread,
    /// The first over the second, pair by pair.
    pub ratio_to_gather_limit_on_cpu: Spread,
    /// Bytes of rows, with their key checks, pooled in a second.
    pub bytes_per_second: f64,
    /// What a row took one thread.
    pub ns_per_row: f64,
    /// What a cache line took one thread.
    pub ns_per_line: f64,
    /// Cache lines that a row lies in, on average.
    pub lines_per_row: f64,
    /// The prefetch distance of the limit, in rows.
    pub gather_limit_distance: usize,

    /// Bytes of a row in the file, with its key check.
    pub row_bytes: u64,
    /// Bytes of all files.
    pub table_bytes: u64,
    /// Bytes of the index: pilots and remap.
    pub index_bytes: u64,
    /// Of the bytes that lookups read, rows and index, those on 2 MiB pages when the pairs had been taken.
    pub huge_page_bytes: u64,
    /// Seconds from files on disk to a verified table; building is not in it.
    pub open_and_verify_seconds: f64,
    /// Whether the table was built for this run, and not by an earlier one.
    pub built: bool,

    /// Pairs taken.
    pub pairs: usize,
    /// Ids of a pass, of all threads.
    pub ids_per_pass: u64,
    /// Ids looked up in one call.
    pub ids_per_batch: usize,
    /// Answers that the oracle looked at, and those of them that were wrong.
    pub checked_answers: u64,
    /// Answers that were off by more than 1e-5 of their sum of |weight x value|, or lacked a row.
    pub wrong_answers: u64,

    /// Where all this was.
    pub machine: Machine,
}

/// Builds or opens the table, takes the time, and checks answers. `progress` is told what is done of how
/// much.
///
/// # Errors
/// [`BenchError`]: parameters that no table can have, a table that cannot be built, opened or verified.
pub fn run(params: &Params, progress: &mut dyn FnMut(Step, u64, u64)) -> Result<Report, BenchError> {
    if params.rows == 0 || params.bag == 0 || params.bag as usize > BATCH_IDS {
        return Err(BenchError::Parameters("a table has rows, and a bag has 1 to 20000 ids"));
    }
    let dim = RowFormat::check_dim(params.dim.into())?;
    let kernel = match params.isa {
        None => RowKernel::new(params.format, dim),
        Some(isa) => RowKernel::with_isa(params.format, dim, isa).ok_or(BenchError::NoIsa(isa))?,
    };
    let machine = Machine::here();
    let (table, built) = open(params, kernel, progress)?;
    let lines_per_row = lines_per_row(&table.view);

    let bags = (BATCH_IDS / params.bag as usize).max(1);
    let batch_ids = bags * params.bag as usize;
    let pass_bytes = params.pass_bytes.unwrap_or(4 * machine.last_level_cache_bytes);
    let pass_ids = ((pass_bytes as f64 / (lines_per_row * 64.0)) as u64).min(MAX_PASS_IDS);
    let batches = pass_ids.div_ceil((batch_ids * params.threads.get()) as u64).max(1) as usize;
    let shape = PassShape { bag: params.bag as usize, bags, batches };
    let draw = Draw::new(params.skew, params.rows);
    let mut workers: Vec<Worker<'_>> = (0..params.threads.get() as u64)
        .map(|worker| Worker::new(&table.view, &draw, shape, params.weighted, params.seed ^ worker << 48))
        .collect();

    let pairs = take(&mut workers, params, progress)?;
    let median = |spread: &Spread| spread.median;
    let pooled = Spread::of(pairs.taken.iter().map(|pair| pair.pooled.by_clock));
    let limit = Spread::of(pairs.taken.iter().map(|pair| pair.limit.by_clock));
    let row_bytes = table.view.partitions().next().map_or(0, |file| file.meta().stride() as u64);
    let ns_per_row = params.threads.get() as f64 * 1e9 / median(&pooled);
    Ok(Report {
        rows: params.rows,
        dim,
        bag: params.bag,
        format: params.format,
        skew: params.skew.to_string(),
        keys: params.keying,
        partitions: params.partitions.get(),
        threads: params.threads.get(),
        isa: kernel.isa().as_str(),
        weighted: params.weighted,
        residency: params.residency.as_str(),
        seed: params.seed,
        rows_per_second: median(&pooled),
        rows_per_second_spread: pooled,
        gather_limit_rows_per_second: median(&limit),
        gather_limit_rows_per_second_spread: limit,
        ratio_to_gather_limit: Spread::of(
            pairs.taken.iter().map(|pair| pair.pooled.by_clock / pair.limit.by_clock),
        ),
        rows_per_second_on_cpu: Spread::of(pairs.taken.iter().map(|pair| pair.pooled.on_cpu)),
        gather_limit_rows_per_second_on_cpu: Spread::of(pairs.taken.iter().map(|pair| pair.limit.on_cpu)),
        ratio_to_gather_limit_on_cpu: Spread::of(
            pairs.taken.iter().map(|pair| pair.pooled.on_cpu / pair.limit.on_cpu),
        ),
        bytes_per_second: median(&pooled) * row_bytes as f64,
        ns_per_row,
        ns_per_line: ns_per_row / lines_per_row,
        lines_per_row,
        gather_limit_distance: pairs.distance,
        row_bytes,
        table_bytes: table.view.partitions().map(|file| file.file_bytes()).sum(),
        index_bytes: table.view.partitions().map(|file| file.section_bytes().index).sum(),
        huge_page_bytes: huge_page_bytes(&table.view),
        open_and_verify_seconds: table.open_and_verify.as_secs_f64(),
        built,
        pairs: pairs.taken.len(),
        ids_per_pass: (batches * batch_ids * params.threads.get()) as u64,
        ids_per_batch: batch_ids,
        checked_answers: pairs.checked,
        wrong_answers: pairs.wrong,
        machine,
    })
}

/// Opens the table of `params`, after building it if it is not there; says whether it had to.
fn open(
    params: &Params,
    kernel: RowKernel,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<(OpenTable, bool), BenchError> {
    let Params { rows, dim, format, keying, partitions, .. } = *params;
    let table = BenchTable { rows, dim, format, keying, partitions };
    let store = ArtifactStore::open(&params.dir)?;
    let built = table.ensure(&store, progress)?;
    Ok((table.open(&store, kernel, params.residency, progress)?, built))
}

/// The two passes over the same ids.
struct Pair {
    pooled: Rate,
    limit: Rate,
}

/// Rows per second of a pass, of all workers.
struct Rate {
    /// From the first who began to the last who ended.
    by_clock: f64,
    /// As if each had had a core to itself.
    on_cpu: f64,
}

struct Pairs {
    taken: Vec<Pair>,
    distance: usize,
    checked: u64,
    wrong: u64,
}

/// Finds the best distance, then takes pairs until the time is over.
fn take(
    workers: &mut [Worker<'_>],
    params: &Params,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<Pairs, BenchError> {
    let mut tries = [(); DISTANCES.len()].map(|()| Vec::new());
    for _ in 0..SWEEPS {
        for (&distance, tries) in DISTANCES.iter().zip(&mut tries) {
            at_once(workers, |worker, _| worker.prepare());
            tries.push(touched(workers, distance).on_cpu);
        }
    }
    let tries = tries.map(|tries| Spread::of(tries).median);
    let best = DISTANCES.iter().zip(tries).max_by(|a, b| a.1.total_cmp(&b.1));
    let distance = best.map_or(DISTANCES[0], |(&distance, _)| distance);
    // Once, so that no scratch grows while a clock runs.
    pooled(workers)?;

    let mut oracle = Oracle::new(params.format, params.dim, ROWS_VERSION);
    let mut pairs = Pairs { taken: Vec::new(), distance, checked: 0, wrong: 0 };
    let began = Instant::now();
    while pairs.taken.len() < MIN_PAIRS || began.elapsed() < params.time {
        at_once(workers, |worker, _| worker.prepare());
        let pair = if pairs.taken.len().is_multiple_of(2) {
            let pooled = pooled(workers)?;
            Pair { pooled, limit: touched(workers, distance) }
        } else {
            let limit = touched(workers, distance);
            Pair { pooled: pooled(workers)?, limit }
        };
        pairs.taken.push(pair);
        for worker in &*workers {
            let (checked, wrong) = worker.check(&mut oracle);
            pairs.checked += checked;
            pairs.wrong += wrong;
        }
        progress(Step::Timing, began.elapsed().as_millis() as u64, params.time.as_millis() as u64);
    }
    Ok(pairs)
}

/// Pools what is prepared.
fn pooled(workers: &mut [Worker<'_>]) -> Result<Rate, BenchError> {
    let times = at_once(workers, |worker, start| {
        let timer = Timer::start(start);
        worker.pool().map(|()| timer.stop())
    });
    let times = times.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(rate(workers, &times))
}

/// Touches what is prepared.
fn touched(workers: &mut [Worker<'_>], distance: usize) -> Rate {
    let times = at_once(workers, |worker, start| {
        let timer = Timer::start(start);
        worker.touch(distance);
        timer.stop()
    });
    rate(workers, &times)
}

fn rate(workers: &[Worker<'_>], times: &[Timed]) -> Rate {
    let per_second = |ids: usize, took: Duration| ids as f64 / took.as_secs_f64().max(1e-9);
    let began = times.iter().map(|timed| timed.began).min();
    let ended = times.iter().map(|timed| timed.ended).max();
    let took = ended.zip(began).map_or(Duration::ZERO, |(ended, began)| ended.duration_since(began));
    let each = workers.iter().zip(times).map(|(worker, timed)| per_second(worker.ids(), timed.on_cpu));
    Rate { by_clock: per_second(workers.iter().map(Worker::ids).sum(), took), on_cpu: each.sum() }
}

/// Cache lines of a row with its key check, over the places where rows of one partition lie: one line of
/// 64 bytes repeats after 64 rows at most.
fn lines_per_row(view: &LayoutView) -> f64 {
    view.partitions().next().map_or(1.0, |file| {
        let stride = file.meta().stride();
        // Rows begin on a page.
        let lines: usize = (0..64).map(|row| (row * stride % 64 + stride - 1) / 64 + 1).sum();
        lines as f64 / 64.0
    })
}

#[cfg(test)]
mod tests;
