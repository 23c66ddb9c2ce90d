//! `tidepool table build`: files into a version.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tidepool_store::ArtifactStore;
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_types::{Keying, PartitionCount, RowFormat, TableManifest, TableVersion};

use super::{
    Limits,
    composite::{self, CompositeArgs},
    partition_count, report,
    source::{Source, SourceArgs},
};
use crate::{
    commands::control,
    output::{Output, bar},
};

#[derive(Args)]
pub(crate) struct Build {
    /// What to build.
    #[arg(value_name = "TABLE@VERSION", value_parser = control::table_version)]
    table_version: TableVersion,
    #[command(flatten)]
    source: SourceArgs,
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
    #[command(flatten)]
    composite: CompositeArgs,
    #[command(flatten)]
    limits: Limits,
}

pub(super) fn run(args: &Build, output: Output) -> Result<()> {
    let manifest = build(args, output)?;
    show(&manifest, output);
    output.object(json!({ "manifest": manifest }));
    Ok(())
}

fn build(args: &Build, output: Output) -> Result<TableManifest> {
    let store = ArtifactStore::open(&args.store)?;
    let (rows, note) = args.source.open()?;
    if let Some(note) = note {
        output.line(note);
    }
    let (dim, hint) = rows.size();
    let spec = TableSpec {
        table_version: args.table_version.clone(),
        dim,
        format: args.source.stored.unwrap_or(args.format),
        keying: args.keying,
        partitions: args.partitions,
        default_row: Vec::new(),
        composite: args.composite.composite(args.seed),
        full_keys: args.full_keys,
        seed: args.seed,
    };
    let dir = store.table_dir(&args.table_version);
    let mut builder = TableBuilder::staged(spec, args.limits.options(), &dir)?;
    let reading = bar("reading", hint);
    let mut progress = |done| reading.set_position(done);
    match rows {
        Source::Values(mut rows) => tidepool_import::import(rows.as_mut(), &mut builder, &mut progress),
        Source::Stored(rows) => tidepool_import::import_stored(*rows, &mut builder, &mut progress),
    }
    .with_context(|| format!("reading {}", args.source.from.display()))?;
    reading.finish_and_clear();
    publish(builder, &dir)
        .with_context(|| format!("building {} from {}", args.table_version, args.source.from.display()))
}

/// Builds and publishes, with a progress bar.
pub(super) fn publish(builder: TableBuilder, dir: &Path) -> Result<TableManifest> {
    let writing = bar("building", None);
    let manifest = builder.publish(dir, &mut |done, total| {
        writing.set_length(total);
        writing.set_position(done);
    })?;
    writing.finish_and_clear();
    Ok(manifest)
}

/// What was built, for people.
pub(super) fn show(manifest: &TableManifest, output: Output) {
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
    composite::describe(schema, output);
    report::short(manifest, output);
}
