//! `tidepool table`: build versions from files, and have them served.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use tidepool_import::{CsvSource, NpySource, RowSource};
use tidepool_store::ArtifactStore;
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_types::{Keying, PartitionCount, RowFormat, TableManifest, TableVersion};

use super::control;
use crate::output::{Outcome, Output, bar};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Build a table version from a CSV or NPY file into the artifact store.
    Build(Build),
    /// Have a table version served, and wait until every partition is ready.
    Serve(Serve),
    /// Stop serving a table version that no release pins.
    Unserve(Serve),
}

#[derive(Args)]
pub(crate) struct Build {
    /// What to build.
    #[arg(value_name = "TABLE@VERSION", value_parser = control::table_version)]
    table_version: TableVersion,
    /// A .csv file (an id, then the vector) or a .npy file (vectors as rows).
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// With .npy: a file of one id per row. Without it the ids are the row numbers.
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// Folder of the artifact store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// How rows are stored: int4, int8, f16 or f32.
    #[arg(long, default_value = "int4")]
    format: RowFormat,
    /// Which ids there may be: hashed (any) or dense (0 to N-1).
    #[arg(long, default_value = "hashed")]
    keying: Keying,
    /// Into how many partitions the version is cut: a power of two.
    #[arg(long, default_value = "16", value_parser = partition_count)]
    partitions: PartitionCount,
    /// Store whole 64-bit keys instead of 32-bit fingerprints.
    #[arg(long)]
    full_keys: bool,
    /// Seed of the index. The same rows and the same seed give the same bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
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

fn partition_count(text: &str) -> Result<PartitionCount, String> {
    let count: u32 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    PartitionCount::try_from(count)
}

pub(crate) async fn run(command: Command, controller: &str, output: Output) -> Result<Outcome> {
    match command {
        Command::Build(args) => {
            let manifest = tokio::task::spawn_blocking(move || build(&args)).await??;
            show(&manifest, output);
        }
        Command::Serve(args) => serve(&args, true, controller, output).await?,
        Command::Unserve(args) => serve(&args, false, controller, output).await?,
    }
    Ok(Outcome::Done)
}

fn source(from: &Path, ids: Option<&Path>) -> Result<Box<dyn RowSource>> {
    match (from.extension().and_then(|e| e.to_str()), ids) {
        (Some("csv"), None) => Ok(Box::new(CsvSource::open(from)?)),
        (Some("csv"), Some(_)) => {
            bail!("--ids goes with a .npy file; a .csv file has the ids in its first column")
        }
        (Some("npy"), ids) => Ok(Box::new(NpySource::open(from, ids)?)),
        _ => bail!("{}: a .csv or .npy file is wanted", from.display()),
    }
}

fn build(args: &Build) -> Result<TableManifest> {
    let store = ArtifactStore::open(&args.store)?;
    let mut rows = source(&args.from, args.ids.as_deref())?;
    let mut builder = TableBuilder::new(TableSpec {
        table_version: args.table_version.clone(),
        dim: rows.dim(),
        format: args.format,
        keying: args.keying,
        partitions: args.partitions,
        default_row: Vec::new(),
        full_keys: args.full_keys,
        seed: args.seed,
    })?;
    let reading = bar("reading", rows.rows_hint());
    tidepool_import::import(rows.as_mut(), &mut builder, &mut |done| reading.set_position(done))
        .with_context(|| format!("reading {}", args.from.display()))?;
    reading.finish_and_clear();
    let writing = bar("building", None);
    let manifest = builder
        .publish(&store.table_dir(&args.table_version), &mut |done, total| {
            writing.set_length(total);
            writing.set_position(done);
        })
        .with_context(|| format!("building {} from {}", args.table_version, args.from.display()))?;
    writing.finish_and_clear();
    Ok(manifest)
}

fn show(manifest: &TableManifest, output: Output) {
    let schema = &manifest.schema;
    output.line(format!(
        "built {}: {} rows of dim {}, {}, {}, {} partitions, {} bytes ({} a row)",
        schema.table_version,
        schema.rows,
        schema.dim,
        schema.format,
        schema.keying,
        schema.partitions,
        manifest.file_bytes(),
        schema.row_bytes(),
    ));
    if let Some(report) = &manifest.quantization {
        output.line(format!(
            "quantization: relative L2 error {:.4}, worst row {:.4} (id {})",
            report.relative_l2, report.worst_row_relative_l2, report.worst_row_id
        ));
    }
    output.object(json!({ "manifest": manifest }));
}

async fn serve(args: &Serve, serve: bool, controller: &str, output: Output) -> Result<()> {
    let mut control = control::connect(controller).await?;
    let wait = Duration::from_secs(args.wait_seconds);
    let epoch = control::serve_table(&mut control, &args.table_version, serve, wait).await?;
    let verb = if serve { "serving" } else { "no longer serving" };
    output.line(format!("{verb} {} (epoch {epoch})", args.table_version));
    output.object(json!({ "table_version": args.table_version, "serving": serve, "epoch": epoch }));
    Ok(())
}
