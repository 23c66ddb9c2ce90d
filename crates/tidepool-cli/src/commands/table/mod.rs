//! `tidepool table`: build or generate versions, look into them, take them out again, and have them served.

mod build;
mod composite;
mod export;
mod generate;
mod look;
mod report;
mod source;
mod spec;
mod verify;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use tidepool_table::{BuildOptions, Duplicates};
use tidepool_types::{PartitionCount, Quantizer, TableVersion};

use super::control;
use crate::{
    output::{Outcome, Output},
    remote::Remote,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Build a table version from Parquet, NPY, NPZ, safetensors or CSV files into the artifact store.
    Build(build::Build),
    /// Build a table version of any size whose rows are a function of id and version: for tests of scale.
    Generate(generate::Generate),
    /// Show what a table version, or one partition file, consists of.
    Inspect(look::Inspect),
    /// Read every byte of a table version and say which files are bad.
    Verify(verify::Verify),
    /// Look ids up in the files of a table version; no cluster is needed.
    Lookup(look::Lookup),
    /// Write a table version as Parquet, NPY or CSV, or its stored rows as they are.
    Export(export::Export),
    /// Have a table version served, and wait until every partition is ready.
    Serve(Serve),
    /// Stop serving a table version that no release pins.
    Unserve(Serve),
}

#[derive(Args)]
pub(crate) struct Serve {
    /// The table version.
    #[arg(value_name = "TABLE@VERSION", value_parser = control::table_version)]
    table_version: TableVersion,
    /// How long to wait until every partition is ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait_seconds: u64,
}

/// How a build quantizes, how much it may take, and what it does with ids that stand twice.
#[derive(Args)]
pub(crate) struct Limits {
    /// How int4 rows get scale and bias: min_max (FBGEMM's rule, to the byte) or optimized (less error, more work).
    /// Rows of other formats are the same with both.
    #[arg(long, value_name = "QUANTIZER", default_value = "min_max")]
    quantizer: Quantizer,
    /// An id that stands twice: `error` refuses the build, `last` keeps the row that comes last.
    #[arg(long, value_name = "POLICY", default_value = "error")]
    duplicates: Duplicates,
    /// How much memory the build may use, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory_mib: u64,
}

impl Limits {
    fn options(&self) -> BuildOptions {
        BuildOptions {
            duplicates: self.duplicates,
            quantizer: self.quantizer,
            memory_bytes: self.memory_mib.saturating_mul(1 << 20),
            ..BuildOptions::default()
        }
    }
}

fn partition_count(text: &str) -> Result<PartitionCount, String> {
    let count: u32 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    PartitionCount::try_from(count)
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<Outcome> {
    match command {
        Command::Serve(args) => serve(&args, true, remote, output).await?,
        Command::Unserve(args) => serve(&args, false, remote, output).await?,
        offline => {
            // They read and write files for as long as it takes.
            return tokio::task::spawn_blocking(move || run_offline(offline, output)).await?;
        }
    }
    Ok(Outcome::Done)
}

fn run_offline(command: Command, output: Output) -> Result<Outcome> {
    match command {
        Command::Build(args) => build::run(&args, output)?,
        Command::Generate(args) => generate::run(&args, output)?,
        Command::Inspect(args) => look::inspect(&args, output)?,
        Command::Verify(args) => verify::run(&args, output)?,
        Command::Lookup(args) => look::lookup(&args, output)?,
        Command::Export(args) => export::run(&args, output)?,
        Command::Serve(_) | Command::Unserve(_) => unreachable!("they are not offline"),
    }
    Ok(Outcome::Done)
}

async fn serve(args: &Serve, serve: bool, remote: &Remote, output: Output) -> Result<()> {
    let mut control = remote.control().await?;
    let wait = Duration::from_secs(args.wait_seconds);
    let epoch = control::serve_table(&mut control, &args.table_version, serve, wait).await?;
    let verb = if serve { "serving" } else { "no longer serving" };
    output.line(format!("{verb} {} (epoch {epoch})", args.table_version));
    output.object(json!({ "table_version": args.table_version, "serving": serve, "epoch": epoch }));
    Ok(())
}
