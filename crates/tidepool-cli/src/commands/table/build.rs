//! `tidepool table build`: files into a version.

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tidepool_store::ArtifactStore;
use tidepool_table::TableBuilder;
use tidepool_types::TableManifest;

use super::{
    Limits, composite, report,
    source::{Source, SourceArgs},
    spec::SpecArgs,
};
use crate::output::{Output, bar};

#[derive(Args)]
pub(crate) struct Build {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    source: SourceArgs,
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
    let store = ArtifactStore::open(&args.spec.store)?;
    let (rows, note) = args.source.open()?;
    if let Some(note) = note {
        output.line(note);
    }
    let (dim, hint) = rows.size();
    let spec = args.spec.spec(dim, args.source.stored.unwrap_or(args.spec.format));
    let dir = store.table_dir(&args.spec.table_version);
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
        .with_context(|| format!("building {} from {}", args.spec.table_version, args.source.from.display()))
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
