//! Beside what people use today: the same lookups answered by a node of ours, by Redis (MGET), and by a plain
//! gRPC server over redb. The node pools where the rows live; of the others the client fetches rows, and pools
//! them with our kernels. Every server is a process of its own on the loopback interface.
//!
//! `cargo bench -p tidepool-cli --bench peers` prints a table and, as the last line, a JSON object. Without
//! `--bench` (as `cargo test` runs it) everything is tiny and done once; Redis may then be missing.
//!
//! The sides take turns, each answers the same requests in the same order, answers are checked by the oracle
//! of tidepool-bench, and figures are medians over the rounds with their spread.

mod pooled;
mod redb_server;
mod redis;
mod report;

use std::{
    env,
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tidepool_bench::{
    BenchTable, Machine, Skew,
    cluster::{ClusterSpec, LocalCluster},
    load::{Asked, BatchShape, CheckRows, Keep, LoadReport, Lookups, Pace, Plan, Target, drive},
    proc,
};
use tidepool_client::{ClientConfig, LookupOptions, LookupRequest, WireForm};
use tidepool_store::ArtifactStore;
use tidepool_types::{Keying, PartitionCount, Pooling, RowFormat};

use crate::{
    redb_server::RedbServer,
    redis::Redis,
    report::{Report, Side, Slice},
};

/// As the `tidepool` program has it; the server over redb has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Requests that are answered at once: alone, and under load.
const IN_FLIGHT: [usize; 2] = [1, 4];
/// What a load may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Threads of the runtime, which is where the clients work.
const CLIENT_THREADS: &str = "client";
const SEED: u64 = 1;

/// How much is done.
#[derive(Clone, Copy)]
struct Scale {
    rows: u64,
    /// Bags of a request.
    batch: usize,
    /// Requests of a slice.
    requests: usize,
    rounds: u64,
}

const BENCH: Scale = Scale { rows: 1_000_000, batch: 500, requests: 100, rounds: 11 };
const TEST: Scale = Scale { rows: 2_000, batch: 10, requests: 3, rounds: 1 };

impl Scale {
    fn table(self) -> Result<BenchTable> {
        let partitions = PartitionCount::new(16).context("16 is a power of two")?;
        Ok(BenchTable {
            rows: self.rows,
            dim: 64,
            format: RowFormat::Int4,
            keying: Keying::Hashed,
            partitions,
        })
    }

    /// What is asked in a round: other ids in each, the same on every side.
    fn requests(self, round: u64) -> Result<Vec<LookupRequest>> {
        let asked = Asked {
            table: self.table()?,
            batch: self.batch,
            shape: BatchShape::Fixed,
            bag: 20,
            pooling: Pooling::Sum,
            weighted: false,
            skew: Skew::Uniform,
            seed: SEED + round,
        };
        Ok(asked.requests()?.take(self.requests).collect())
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name(CLIENT_THREADS)
        .enable_all()
        .build()
        .context("starting a runtime")?;
    if let [mode, path, ..] = &args[..]
        && mode == redb_server::MODE
    {
        return runtime.block_on(redb_server::serve(Path::new(path)));
    }
    let bench = args.iter().any(|arg| arg == "--bench") && !args.iter().any(|arg| arg == "--test");
    runtime.block_on(compare(if bench { BENCH } else { TEST }, bench))
}

async fn compare(scale: Scale, bench: bool) -> Result<()> {
    let mut said = io::stderr();
    let dir = TempDir::new()?;
    let table = scale.table()?;
    let redis = match Redis::start(dir.path()).await {
        Ok(redis) => Some(redis),
        Err(error) if !bench => {
            writeln!(said, "left out in this test: Redis ({error:#})")?;
            None
        }
        Err(error) => return Err(error),
    };
    writeln!(said, "putting {} rows into each server", scale.rows)?;
    let ours = Ours::start(dir.path(), &table).await?;
    let redb = RedbServer::start(dir.path(), &table).await?;
    if let Some(redis) = &redis {
        redis.fill(&table).await?;
    }
    let mut report = Report::new(&table, scale.batch, scale.rounds, Machine::here());
    if let Some(redis) = &redis {
        let warm = scale.requests(u64::MAX / 2)?;
        report.keys_per_mget = Some(redis.choose_batch(&warm).await?);
    }
    for round in 0..=scale.rounds {
        let requests = scale.requests(round)?;
        for in_flight in IN_FLIGHT {
            let cpu = || Some(ours.cluster.nodes_cpu_time());
            let slice = slice(&ours.lookups, cpu, &requests, in_flight, table).await?;
            report.add(Side::Node, in_flight, round, slice);
            if let Some(redis) = &redis {
                let slice = self::slice(redis, || redis.cpu_time(), &requests, in_flight, table).await?;
                report.add(Side::Redis, in_flight, round, slice);
            }
            let slice = self::slice(&redb, || redb.cpu_time(), &requests, in_flight, table).await?;
            report.add(Side::Redb, in_flight, round, slice);
        }
        write!(said, "round {round} of {}\r", scale.rounds)?;
    }
    writeln!(said)?;
    let memory = |pid: Option<u32>| pid.and_then(proc::anonymous_bytes).unwrap_or_default();
    let node = ours.cluster.nodes().first().and_then(|node| node.rss_bytes()).unwrap_or_default();
    report.resident_bytes.push((Side::Node, node));
    if let Some(redis) = &redis {
        report.resident_bytes.push((Side::Redis, memory(Some(redis.pid()))));
    }
    report.resident_bytes.push((Side::Redb, redb.pid().and_then(proc::rss_bytes).unwrap_or_default()));
    report.print(&mut io::stdout())?;
    ours.cluster.stop().await?;
    ensure!(report.is_right(), "there are wrong or failed answers");
    Ok(())
}

/// A controller and one node that holds the table.
struct Ours {
    cluster: LocalCluster,
    lookups: Arc<Lookups>,
}

impl Ours {
    async fn start(dir: &Path, table: &BenchTable) -> Result<Self> {
        let store = ArtifactStore::open(dir.join("store"))?;
        table.ensure(&store, &mut |_, _, _| {})?;
        let spec = ClusterSpec {
            program: Some(env!("CARGO_BIN_EXE_tidepool").into()),
            ..ClusterSpec::new(dir.join("clusters"), store.root(), 1, 1)
        };
        let cluster = LocalCluster::start(spec).await?;
        let table_version = table.table_version()?;
        cluster.serve_table(&table_version, PATIENCE).await?;
        let client = cluster.client(ClientConfig::default(), &table_version).await?;
        // Sums of bags travel, as the client would choose for bags of this length.
        let options =
            LookupOptions { timeout: PATIENCE, wire_form: Some(WireForm::Pool), ..client.default_options() };
        Ok(Self { cluster, lookups: Arc::new(Lookups { client, options }) })
    }
}

/// Has one side answer all requests, always so many at once.
async fn slice<T: Target>(
    target: &Arc<T>,
    server_cpu: impl Fn() -> Option<Duration>,
    requests: &[LookupRequest],
    in_flight: usize,
    table: BenchTable,
) -> Result<Slice> {
    let ids = requests.first().map_or(1, |request| request.features[0].ids.len());
    let owned: Vec<_> = requests.to_vec();
    let plan = Plan::endless(owned.into_iter(), ids);
    // Some twenty answers are kept and checked: the oracle takes its time.
    let check = (Arc::new(CheckRows(table)) as _, Keep { bytes: 5 << 20, beside: false });
    let pace = Pace::Max { in_flight, time: PATIENCE };
    let cpu = || {
        let client = proc::cpu_time(std::process::id(), CLIENT_THREADS);
        server_cpu().zip(client).context("CPU times are read from /proc, which is not there")
    };
    let (server, client) = cpu()?;
    let report: LoadReport = drive(Arc::clone(target), plan, pace, Some(check)).await?;
    let (server_after, client_after) = cpu()?;
    if let Some(failure) = &report.first_failure {
        writeln!(io::stderr(), "a request failed: {failure}")?;
    }
    Ok(Slice { report, server_cpu: server_after - server, client_cpu: client_after - client })
}
