//! `tidepool table verify`: every byte of every partition against its checksums, every id against the index.

use std::{error::Error, path::PathBuf, thread};

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use tidepool_store::ArtifactStore;
use tidepool_table::verify_version;
use tidepool_types::TableVersion;

use crate::{
    commands::control,
    output::{Output, bar},
};

#[derive(Args)]
pub(crate) struct Verify {
    /// The table version.
    #[arg(value_name = "TABLE@VERSION", value_parser = control::table_version)]
    table_version: TableVersion,
    /// Folder of the artifact store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
}

pub(super) fn run(args: &Verify, output: Output) -> Result<()> {
    let store = ArtifactStore::open(&args.store)?;
    // Names the version when it is not there, or when another lies in its place.
    store.table_manifest(&args.table_version)?;
    let reading = bar("verifying bytes", None);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let verified = verify_version(&store.table_dir(&args.table_version), threads, &mut |done, total| {
        reading.set_length(total);
        reading.set_position(done);
    })?;
    reading.finish_and_clear();
    let files = verified.manifest.files.len();
    let bad: Vec<_> = verified.bad.iter().map(|(path, problem)| (path, problem_of(problem))).collect();
    for (_, problem) in &bad {
        output.line(format!("bad: {problem}"));
    }
    let objects: Vec<_> =
        bad.iter().map(|(path, problem)| json!({ "file": path, "problem": problem })).collect();
    output.object(json!({
        "table_version": args.table_version, "files": files, "file_bytes": verified.manifest.file_bytes(),
        "rows": verified.manifest.schema.rows, "bad": objects,
    }));
    if !bad.is_empty() {
        bail!("{} of {files} files of {} are bad", bad.len(), args.table_version);
    }
    output.line(format!(
        "{}: {files} files, {} rows, {} bytes: all as they were written",
        args.table_version,
        verified.manifest.schema.rows,
        verified.manifest.file_bytes()
    ));
    Ok(())
}

/// An error with its causes, on one line.
fn problem_of(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
