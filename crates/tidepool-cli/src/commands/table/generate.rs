//! `tidepool table generate`: versions of any size without a source file.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use tidepool_store::ArtifactStore;
use tidepool_table::{LayoutReader, TableBuilder};
use tidepool_types::{Keying, TableManifest, synthetic};

use super::{Limits, build, spec::SpecArgs};
use crate::{
    memory::PeakMemory,
    output::{Output, bar},
};

/// Rows that are made and quantized at once, by all threads.
const BATCH_ROWS: u64 = 1 << 16;

#[derive(Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    spec: SpecArgs,
    /// How many rows.
    #[arg(long)]
    rows: u64,
    /// Elements of a row.
    #[arg(long, default_value_t = 32)]
    dim: u32,
    /// Which ids: sequential (0 to N-1) or uniform (spread over all 64 bits). The default is uniform for hashed
    /// keying; dense ids are sequential.
    #[arg(long)]
    ids: Option<Ids>,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ids {
    Uniform,
    Sequential,
}

pub(super) fn run(args: &Generate, output: Output) -> Result<()> {
    let ids = match (args.spec.keying, args.ids) {
        (Keying::Dense, Some(Ids::Uniform)) => bail!("dense ids are 0 to N-1: --ids sequential"),
        (Keying::Dense, _) => Ids::Sequential,
        (Keying::Hashed, ids) => ids.unwrap_or(Ids::Uniform),
    };
    let memory = PeakMemory::watch();
    let began = Instant::now();
    let store = ArtifactStore::open(&args.spec.store)?;
    let dir = store.table_dir(&args.spec.table_version);
    let spec = args.spec.spec(args.dim, args.spec.format);
    let mut builder = TableBuilder::staged(spec, args.limits.options(), &dir)?;
    push_rows(args, ids, &mut builder).context("generating rows")?;
    let pushed_seconds = began.elapsed().as_secs_f64();
    let manifest =
        build::publish(builder, &dir).with_context(|| format!("building {}", args.spec.table_version))?;
    let seconds = began.elapsed().as_secs_f64();
    let peak_memory_bytes = memory.peak_bytes();

    let rows = manifest.schema.rows;
    let per_row = |bytes: u64| bytes as f64 / rows.max(1) as f64;
    let index_bits_per_id = 8.0 * per_row(index_bytes(&dir)?);
    let file_bytes_per_row = per_row(manifest.file_bytes());
    build::show(&manifest, output);
    output.line(format!(
        "{seconds:.1} s ({pushed_seconds:.1} s of it rows), {:.0} rows/s, {file_bytes_per_row:.2} file bytes a row, \
         {index_bits_per_id:.2} index bits an id, at most {} MiB of anonymous memory",
        rows as f64 / seconds,
        peak_memory_bytes.map_or_else(|| "?".into(), |bytes| (bytes >> 20).to_string()),
    ));
    output.object(object(&manifest, seconds, pushed_seconds, peak_memory_bytes, index_bits_per_id));
    Ok(())
}

fn push_rows(args: &Generate, ids: Ids, builder: &mut TableBuilder) -> Result<()> {
    let salt = synthetic::salt(args.spec.table_version.version.as_str());
    let making = bar("rows", Some(args.rows));
    let mut batch = Vec::with_capacity(BATCH_ROWS as usize);
    let mut first = 0;
    while first < args.rows {
        let end = args.rows.min(first + BATCH_ROWS);
        batch.clear();
        batch.extend((first..end).map(|n| match ids {
            Ids::Sequential => n,
            Ids::Uniform => synthetic::uniform_id(n, args.spec.seed),
        }));
        builder.push_many(&batch, |id, values| synthetic::row(id, salt, values))?;
        making.set_position(end);
        first = end;
    }
    making.finish_and_clear();
    Ok(())
}

/// Bytes of the index in all partitions.
fn index_bytes(dir: &std::path::Path) -> Result<u64> {
    let layout = LayoutReader::open(dir)?;
    Ok(layout.partitions().iter().map(|file| file.section_bytes().index).sum())
}

fn object(
    manifest: &TableManifest,
    seconds: f64,
    pushed_seconds: f64,
    peak_memory_bytes: Option<u64>,
    index_bits_per_id: f64,
) -> serde_json::Value {
    let rows = manifest.schema.rows;
    json!({
        "table_version": manifest.schema.table_version,
        "rows": rows,
        "seconds": seconds,
        "row_seconds": pushed_seconds,
        "rows_per_second": rows as f64 / seconds,
        "peak_anonymous_memory_bytes": peak_memory_bytes,
        "file_bytes": manifest.file_bytes(),
        "file_bytes_per_row": manifest.file_bytes() as f64 / rows.max(1) as f64,
        "index_bits_per_id": index_bits_per_id,
        "manifest": manifest,
    })
}
