//! `tidepool table export`: a version into files that other programs read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use tidepool_import::{export_csv, export_npy, export_parquet, export_stored};
use tidepool_store::ArtifactStore;
use tidepool_table::LayoutReader;
use tidepool_types::{RowFormat, TableVersion};

use crate::{
    commands::control,
    output::{Output, bar},
};

#[derive(Args)]
pub(crate) struct Export {
    /// The table version.
    #[arg(value_name = "TABLE@VERSION", value_parser = control::table_version)]
    table_version: TableVersion,
    /// Folder of the artifact store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// A file for the values as f32: .parquet, .npy (ids go beside it, as NAME.ids.npy) or .csv. With --fbgemm a
    /// folder.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// What to write, when the name of the file does not say it.
    #[arg(long, value_name = "FORMAT", conflicts_with = "fbgemm")]
    format: Option<FileFormat>,
    /// Write the rows as they are stored: int4 and int8 rows are FBGEMM's. The folder gets rows.npy (uint8)
    /// and ids.npy.
    #[arg(long)]
    fbgemm: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FileFormat {
    /// Columns id (uint64) and embedding (list of float), zstd.
    Parquet,
    /// Two NPY files, of f4 and of u8.
    Npy,
    /// Lines `id,v0,v1,...`.
    Csv,
}

impl FileFormat {
    fn of(path: &Path) -> Option<Self> {
        <Self as ValueEnum>::from_str(path.extension()?.to_str()?, false).ok()
    }
}

pub(super) fn run(args: &Export, output: Output) -> Result<()> {
    let store = ArtifactStore::open_existing(&args.store)?;
    store.table_manifest(&args.table_version)?;
    let layout = LayoutReader::open(&store.table_dir(&args.table_version))?;
    let schema = &layout.manifest().schema;
    let writing = bar("writing", Some(schema.rows));
    let mut progress = |done| writing.set_position(done);
    let files = if args.fbgemm {
        if !matches!(schema.format, RowFormat::Int4 | RowFormat::Int8) {
            bail!("{} has {} rows; FBGEMM's are int4 and int8", args.table_version, schema.format);
        }
        fs::create_dir_all(&args.to).with_context(|| format!("creating {}", args.to.display()))?;
        let files = vec![args.to.join("rows.npy"), args.to.join("ids.npy")];
        export_stored(&layout, &files[0], &files[1], &mut progress)?;
        files
    } else {
        match args.format.or_else(|| FileFormat::of(&args.to)) {
            Some(FileFormat::Parquet) => {
                export_parquet(&layout, &args.to, &mut progress)?;
                vec![args.to.clone()]
            }
            Some(FileFormat::Npy) => {
                let files = vec![args.to.clone(), ids_path(&args.to)];
                export_npy(&layout, &files[0], &files[1], &mut progress)?;
                files
            }
            Some(FileFormat::Csv) => {
                export_csv(&layout, &args.to, &mut progress)?;
                vec![args.to.clone()]
            }
            None => bail!(
                "{}: a .parquet, .npy or .csv file is wanted, or --format; or --fbgemm with a folder",
                args.to.display()
            ),
        }
    };
    writing.finish_and_clear();
    let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    output.line(format!("wrote {} rows of {} to {}", schema.rows, args.table_version, names.join(" and ")));
    output.object(json!({
        "table_version": args.table_version, "rows": schema.rows, "dim": schema.dim, "format": schema.format,
        "files": files,
    }));
    Ok(())
}

/// `rows.npy` has its ids in `rows.ids.npy`.
fn ids_path(vectors: &Path) -> PathBuf {
    vectors.with_extension("ids.npy")
}
