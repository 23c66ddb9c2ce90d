//! `tidepool table inspect` and `tidepool table lookup`: into the files of a version, without a cluster.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use tidepool_import::StringIds;
use tidepool_store::ArtifactStore;
use tidepool_table::{KeyCheck, LayoutReader, PartitionFile};
use tidepool_types::TableVersion;

use super::{composite, report};
use crate::{
    commands::{
        control,
        vectors::{Row, Vectors},
    },
    output::Output,
};

#[derive(Args)]
pub(crate) struct Inspect {
    /// A table version of the store, or the path of a partition file.
    #[arg(value_name = "TABLE@VERSION|FILE")]
    what: OsString,
    /// Folder of the artifact store; goes with TABLE@VERSION.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Lookup {
    /// The table version.
    #[arg(value_name = "TABLE@VERSION", value_parser = control::table_version)]
    table_version: TableVersion,
    /// The ids: numbers, or with --string-ids strings.
    #[arg(required = true)]
    ids: Vec<String>,
    /// What makes ids of strings, as when the table was built: xxh3 (XXH3, 64 bits, seed 0, of the UTF-8 bytes).
    #[arg(long, value_name = "HASH")]
    string_ids: Option<StringIds>,
    /// Folder of the artifact store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
}

pub(super) fn inspect(args: &Inspect, output: Output) -> Result<()> {
    let Some(store) = &args.store else {
        let file = PartitionFile::open(Path::new(&args.what))
            .context("without --store, the path of a partition file is wanted")?;
        describe_file(&file, output);
        output.object(file_object(&file));
        return Ok(());
    };
    let table_version = control::table_version(&args.what.to_string_lossy()).map_err(anyhow::Error::msg)?;
    let store = ArtifactStore::open_existing(store)?;
    let (manifest, manifest_hash) = store.table_manifest(&table_version)?;
    let layout = LayoutReader::open(&store.table_dir(&table_version))?;
    let schema = &manifest.schema;
    output.line(format!(
        "{table_version}: {} rows of dim {}, {} ({} bytes a row), {}, {} partitions, {} bytes",
        schema.rows,
        schema.dim,
        schema.format,
        schema.row_bytes(),
        schema.keying,
        schema.partitions,
        manifest.file_bytes()
    ));
    composite::describe(schema, output);
    output.line(format!("manifest hash {manifest_hash}"));
    report::whole(&manifest, output);
    let index_bytes: u64 = layout.partitions().iter().map(|file| file.section_bytes().index).sum();
    let bits = bits_per_id(index_bytes, schema.rows);
    if let Some(bits) = bits {
        output.line(format!("index: {index_bytes} bytes, {bits:.3} bits an id"));
    }
    layout.partitions().iter().for_each(|file| describe_file(file, output));
    let files: Vec<_> = layout.partitions().iter().map(file_object).collect();
    output.object(json!({
        "manifest": manifest, "manifest_hash": manifest_hash, "vector_dim": schema.vector_dim(),
        "index_bytes": index_bytes,
        "index_bits_per_id": bits, "files": files,
    }));
    Ok(())
}

fn bits_per_id(index_bytes: u64, rows: u64) -> Option<f64> {
    (index_bytes > 0 && rows > 0).then(|| 8.0 * index_bytes as f64 / rows as f64)
}

const fn key_check_word(check: KeyCheck) -> &'static str {
    match check {
        KeyCheck::None => "none",
        KeyCheck::Fingerprint32 => "fingerprint",
        KeyCheck::FullKeys => "full keys",
    }
}

fn describe_file(file: &PartitionFile, output: Output) {
    let meta = file.meta();
    output.line(format!(
        "{}: partition {} of {} of {}, {} rows of {} bytes (stride {}), key check {}, {} bytes, footer {:08x}",
        file.path().display(),
        meta.partition,
        meta.partitions,
        meta.table_version,
        meta.rows,
        meta.row_bytes(),
        meta.stride(),
        key_check_word(meta.key_check),
        file.file_bytes(),
        meta.footer_crc32c,
    ));
    for section in file.sections() {
        output
            .line(format!("  {:<16} at {:>12}  {:>12} bytes", section.kind, section.offset, section.length));
    }
    if let Some(index) = file.index_info() {
        output.line(format!(
            "  index: seed {:016x}, {} parts of {} buckets and {} slots, {:.3} bits an id",
            index.seed,
            index.parts,
            index.buckets_per_part,
            index.slots_per_part,
            bits_per_id(file.section_bytes().index, meta.rows).unwrap_or(0.0),
        ));
    }
}

fn file_object(file: &PartitionFile) -> Value {
    let meta = file.meta();
    let sections: Vec<_> = file
        .sections()
        .map(|section| {
            let kind = section.kind.to_string();
            json!({ "section": kind, "offset": section.offset, "bytes": section.length })
        })
        .collect();
    let index = file.index_info().map(|index| {
        json!({
            "seed": index.seed, "parts": index.parts, "buckets_per_part": index.buckets_per_part,
            "slots_per_part": index.slots_per_part,
            "bits_per_id": bits_per_id(file.section_bytes().index, meta.rows),
        })
    });
    json!({
        "path": file.path().to_string_lossy(), "table_version": meta.table_version, "partition": meta.partition,
        "partitions": meta.partitions, "rows": meta.rows, "table_rows": meta.table_rows, "dim": meta.dim,
        "format": meta.format, "keying": meta.keying, "key_check": key_check_word(meta.key_check),
        "row_bytes": meta.row_bytes(), "stride_bytes": meta.stride(), "build_seed": meta.build_seed,
        "file_bytes": file.file_bytes(), "footer_crc32c": meta.footer_crc32c, "sections": sections,
        "index": index,
    })
}

pub(super) fn lookup(args: &Lookup, output: Output) -> Result<()> {
    let store = ArtifactStore::open_existing(&args.store)?;
    store.table_manifest(&args.table_version)?;
    let layout = LayoutReader::open(&store.table_dir(&args.table_version))?;
    let schema = &layout.manifest().schema;
    let vectors = Vectors::new(schema);
    let row = |row_id| {
        let partition = schema.keying.locate(row_id, schema.partitions).partition;
        Row { row_id, partition, node: None, stored: layout.find(row_id) }
    };
    let show = |id: &u64| {
        let rows: Vec<_> = match &schema.composite {
            Some(composite) => composite.rows(*id, schema.rows).map(row).collect(),
            None => vec![row(*id)],
        };
        vectors.show(*id, &rows, output)
    };
    let ids = args.ids.iter().map(|id| match args.string_ids {
        Some(hash) => Ok(hash.id(id.as_bytes())),
        None => {
            id.parse().with_context(|| format!("{id:?} is no number; of a string, --string-ids makes one"))
        }
    });
    let ids: Vec<u64> = ids.collect::<Result<_>>()?;
    let objects: Vec<_> = ids.iter().map(show).collect();
    output.object(json!({
        "table_version": args.table_version, "format": schema.format, "dim": schema.dim,
        "vector_dim": schema.vector_dim(), "rows": objects,
    }));
    Ok(())
}
