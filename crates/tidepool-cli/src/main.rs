//! The `tidepool` command: every role of the cluster, and every tool of its operators, as subcommands.

mod columns;
mod commands;
mod demo;
mod leader;
mod memory;
mod output;
mod remote;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    output::{Outcome, Output},
    remote::RemoteArgs,
};

/// Lookups make and drop buffers of some hundred KiB at a high rate, for which the system's allocator asks the
/// kernel each time: a page fault for every 4 KiB of every answer.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit codes, the same for every command; 2, wrong usage, is clap's.
const FAILED: u8 = 1;
const PROMISE_BROKEN: u8 = 3;

/// Embedding tables on sharded CPU nodes, dense models on rankers, one release for both.
#[derive(Parser)]
#[command(name = "tidepool", version, about, propagate_version = true)]
struct Cli {
    /// Print one JSON object as the last line of stdout; everything else goes to stderr.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train on real ratings, start a cluster of processes, rank every test user, and show the results.
    Demo(demo::Args),
    /// Train the demo's model or a reference model, and write it into a store as a release.
    Train(commands::train::Args),
    /// Run a controller.
    Controller(commands::role::Args),
    /// Run an embedding node.
    Node(commands::role::Args),
    /// Run a ranker.
    Ranker(commands::role::RankerArgs),
    /// What the cluster is, what is wrong with it, what happened to it; and have traffic leave nodes.
    #[command(subcommand)]
    Cluster(commands::cluster::Command),
    /// Build table versions and have them served.
    #[command(subcommand)]
    Table(commands::table::Command),
    /// What lies in the artifact store: list it, take it elsewhere, collect what nobody refers to.
    #[command(subcommand)]
    Store(commands::store::Command),
    /// Publish releases and promote them.
    #[command(subcommand)]
    Release(commands::release::Command),
    /// Limit what tenants may ask of each node.
    #[command(subcommand)]
    Quota(commands::quota::Command),
    /// Look ids up in a served table and show where each row came from.
    Lookup(commands::lookup::Args),
    /// Send a ranking request from a JSON file to a ranker.
    Rank(commands::rank::Args),
    /// What became of a recent request: release, nodes asked, ids that were not found, time by stage.
    Why(commands::why::Args),
    /// Record the lookups of a ranker, look at what was recorded, and ask it again.
    #[command(subcommand)]
    Trace(commands::trace::Command),
    /// Ids that are asked for most: from a ranker's cache to a file, and from a file to the nodes' memory.
    #[command(subcommand)]
    HotIds(commands::hot_ids::Command),
    /// Back up, restore or rebuild the durable state of the cluster.
    #[command(subcommand)]
    Metastore(commands::metastore::Command),
    /// Measure, beside what the machine would allow.
    #[command(subcommand)]
    Bench(commands::bench::Command),
    /// Try on a scratch cluster of real processes, under checked load, what may happen to releases: promote, rollback,
    /// ramp-bad, kill-controller, kill-node, kill-group, metastore-outage, store-outage, or all.
    Drill(commands::drill::Drill),
    /// Make an authority and certificates of it, for development.
    Certs(commands::certs::Args),
    /// Check configuration files.
    #[command(subcommand)]
    Config(commands::config::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    match run(cli, output) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::PromiseBroken) => ExitCode::from(PROMISE_BROKEN),
        Err(error) => {
            output::error(&error);
            ExitCode::from(FAILED)
        }
    }
}

fn run(cli: Cli, output: Output) -> anyhow::Result<Outcome> {
    let Cli { remote, command, .. } = cli;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Command::Node(args) = command {
        // Its configuration says how many threads the runtime has.
        let config = commands::role::node_config(&args)?;
        if let Some(threads) = config.io_threads {
            runtime.worker_threads(threads);
        }
        let node = Box::pin(commands::role::node(args, config, output));
        return runtime.enable_all().build()?.block_on(node);
    }
    if let Command::Ranker(args) = command {
        let args = args.into_role();
        let config = commands::role::ranker_config(&args)?;
        runtime.worker_threads(config.io_threads);
        let ranker = Box::pin(commands::role::ranker(args, config, output));
        return runtime.enable_all().build()?.block_on(ranker);
    }
    runtime.enable_all().build()?.block_on(async {
        match command {
            Command::Demo(args) => Box::pin(demo::run(args, output)).await,
            Command::Train(args) => Box::pin(commands::train::run(args, output)).await,
            Command::Controller(args) => Box::pin(commands::role::controller(args, output)).await,
            Command::Node(_) | Command::Ranker(_) => unreachable!("it has a runtime of its own"),
            Command::Cluster(command) => commands::cluster::run(command, &remote.read()?, output).await,
            Command::Table(command) => commands::table::run(command, &remote.read()?, output).await,
            Command::Store(command) => commands::store::run(command, &remote.read()?, output).await,
            Command::Release(command) => commands::release::run(command, &remote.read()?, output).await,
            Command::Quota(command) => commands::quota::run(command, &remote.read()?, output).await,
            Command::Lookup(args) => commands::lookup::run(args, &remote.read()?, output).await,
            Command::Rank(args) => commands::rank::run(args, &remote.read()?, output).await,
            Command::Why(args) => commands::why::run(args, &remote.read()?, output).await,
            Command::Trace(command) => commands::trace::run(command, &remote.read()?, output).await,
            Command::HotIds(command) => commands::hot_ids::run(command, &remote.read()?, output).await,
            Command::Bench(command) => commands::bench::run(command, remote, output).await,
            Command::Metastore(command) => commands::metastore::run(command, &remote.read()?, output).await,
            Command::Drill(args) => Box::pin(commands::drill::run(args, output)).await,
            Command::Certs(args) => commands::certs::run(args, output),
            Command::Config(command) => commands::config::run(command, output),
        }
    })
}
