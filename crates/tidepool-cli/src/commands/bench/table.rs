//! `tidepool bench table`: a table whose answers benches can check, and the arguments that name one.

use std::path::PathBuf;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde_json::json;
use tidepool_bench::{BenchTable, Step};
use tidepool_store::ArtifactStore;
use tidepool_types::{Keying, PartitionCount, RowFormat};

use super::{partition_count, rows};
use crate::output::{Outcome, Output, bar};

/// Which bench table. Rows and ids are functions of their numbers, so these say everything about it.
#[derive(clap::Args)]
pub(crate) struct TableArgs {
    /// Rows of the table.
    #[arg(long, value_parser = rows, default_value = "10_000_000")]
    pub(super) rows: u64,
    /// Elements of a row.
    #[arg(long, default_value_t = 64)]
    pub(super) dim: u32,
    /// How rows are stored: int4, int8, f16 or f32.
    #[arg(long, default_value = "int4")]
    pub(super) format: RowFormat,
    /// Which ids the rows have: dense or hashed.
    #[arg(long, default_value = "hashed")]
    pub(super) keys: Keying,
    /// Artifact store of the tables of benches. They are kept, and used again by a bench with the same
    /// parameters.
    #[arg(long, value_name = "DIR", default_value = "data/bench")]
    pub(super) dir: PathBuf,
}

impl TableArgs {
    /// The table, cut into `partitions`.
    pub(super) fn bench_table(&self, partitions: PartitionCount) -> BenchTable {
        let Self { rows, dim, format, keys: keying, .. } = *self;
        BenchTable { rows, dim, format, keying, partitions }
    }
}

#[derive(clap::Args)]
pub(crate) struct Table {
    #[command(flatten)]
    table: TableArgs,
    /// Into how many partitions the table is cut: a power of two.
    #[arg(long, default_value = "16", value_parser = partition_count)]
    partitions: PartitionCount,
}

pub(super) fn run(args: &Table, output: Output) -> Result<Outcome> {
    let table = args.table.bench_table(args.partitions);
    let table_version = table.table_version()?;
    let dir = args.table.dir.display();
    let store = ArtifactStore::open(&args.table.dir)?;
    let mut shown = Shown::default();
    let built = table.ensure(&store, &mut |step, done, total| shown.step(step, done, total));
    shown.end();
    let built = built.with_context(|| format!("building {table_version} in {dir}"))?;
    output.line(format!("{table_version} {} in {dir}", if built { "is built" } else { "was there already" }));
    output.object(json!({ "table_version": table_version, "rows": table.rows, "built": built }));
    Ok(Outcome::Done)
}

/// The progress bar of the step that a bench is at.
#[derive(Default)]
pub(super) struct Shown(Option<(&'static str, ProgressBar)>);

impl Shown {
    /// A table is being made, opened or measured.
    pub(super) fn step(&mut self, step: Step, done: u64, total: u64) {
        let what = match step {
            Step::Rows => "making rows",
            Step::Building => "building",
            Step::Verifying => "verifying",
            Step::Timing => "measuring (ms)",
        };
        self.set(what, done, total);
    }

    /// So much of `what` is done.
    pub(super) fn set(&mut self, what: &'static str, done: u64, total: u64) {
        if self.0.as_ref().is_none_or(|(of, _)| *of != what) {
            self.end();
            self.0 = Some((what, bar(what, Some(total))));
        }
        if let Some((_, bar)) = &self.0 {
            bar.set_position(done.min(total));
        }
    }

    /// Nothing is being done any more.
    pub(super) fn end(&mut self) {
        if let Some((_, bar)) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}
