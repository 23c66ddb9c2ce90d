//! `tidepool table verify`: every byte of every partition against its checksums, every id against the index.

use std::{
    error::Error,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use tidepool_store::ArtifactStore;
use tidepool_table::{BadFile, SectionKind, VerifyError, verify_version};
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
    let store = ArtifactStore::open_existing(&args.store)?;
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
    for (path, bad) in &verified.bad {
        describe(path, bad, output);
    }
    let problems: u64 = verified.bad.iter().map(|(_, bad)| problem_count(bad)).sum();
    let objects: Vec<_> = verified.bad.iter().map(|(path, bad)| object_of(path, bad)).collect();
    output.object(json!({
        "table_version": args.table_version, "files": files, "file_bytes": verified.manifest.file_bytes(),
        "rows": verified.manifest.schema.rows, "problems": problems, "bad": objects,
    }));
    if !verified.bad.is_empty() {
        bail!(
            "{} of {files} files of {} are bad, with {problems} problems; build or copy the version again, and put \
             good files in place of the bad ones by renaming",
            verified.bad.len(),
            args.table_version
        );
    }
    output.line(format!(
        "{}: {files} files, {} rows, {} bytes: all as they were written",
        args.table_version,
        verified.manifest.schema.rows,
        verified.manifest.file_bytes()
    ));
    Ok(())
}

fn problem_count(bad: &BadFile) -> u64 {
    match bad {
        BadFile::Damaged(damage) => damage.count(),
        BadFile::Missing { .. } | BadFile::Size { .. } | BadFile::Open(_) => 1,
    }
}

/// The file, then a line for each problem.
fn describe(path: &Path, bad: &BadFile, output: Output) {
    let BadFile::Damaged(damage) = bad else {
        output.line(format!("bad: {}", problem_of(bad)));
        return;
    };
    output.line(format!("bad: {}: {} problems", path.display(), damage.count()));
    output.line(format!("  {:<16} {:>10}  {}", "section", "block", "problem"));
    for problem in &damage.problems {
        let Place { section, block, what } = place_of(problem);
        let block = block.map_or_else(|| "-".to_owned(), |block| block.to_string());
        output.line(format!("  {section:<16} {block:>10}  {what}"));
    }
    if damage.unlisted > 0 {
        output.line(format!("  and {} more", damage.unlisted));
    }
}

fn object_of(path: &Path, bad: &BadFile) -> Value {
    let (kind, problems, unlisted) = match bad {
        BadFile::Damaged(damage) => {
            let problems = damage.problems.iter().map(|problem| {
                let Place { section, block, what } = place_of(problem);
                json!({ "section": section, "block": block, "problem": what })
            });
            ("damaged", problems.collect(), damage.unlisted)
        }
        BadFile::Missing { .. } => ("missing", Vec::new(), 0),
        BadFile::Size { .. } => ("size", Vec::new(), 0),
        BadFile::Open(_) => ("refused", Vec::new(), 0),
    };
    json!({
        "file": path.to_string_lossy(), "kind": kind, "problem": problem_of(bad), "problems": problems,
        "unlisted_problems": unlisted,
    })
}

/// Where in a file a problem is.
struct Place {
    section: String,
    /// Which 64 KiB of the section.
    block: Option<u64>,
    what: String,
}

fn place_of(problem: &VerifyError) -> Place {
    let checksums = |stored: &u32, computed: &u32| format!("crc32c {computed:08x}, written as {stored:08x}");
    match problem {
        VerifyError::Block { section, block, stored, computed, .. } => {
            Place { section: section.to_string(), block: Some(*block), what: checksums(stored, computed) }
        }
        VerifyError::Section { section, stored, computed, .. } => {
            Place { section: section.to_string(), block: None, what: checksums(stored, computed) }
        }
        VerifyError::Padding { before, offset, .. } => Place {
            section: format!("before {before}"),
            block: None,
            what: format!("byte {offset} of the file only fills space, and is not zero"),
        },
        VerifyError::TailPad { offset, .. } => Place {
            section: SectionKind::Rows.to_string(),
            block: None,
            what: format!("byte {offset} of the file is in the pad after the last row, and is not zero"),
        },
        VerifyError::Key { row, id, problem, .. } => Place {
            section: SectionKind::Rows.to_string(),
            block: None,
            what: format!("row {row} holds id {id}: {problem}"),
        },
    }
}

/// An error with its causes, on one line.
fn problem_of(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
