//! What `tidepool table build` and `generate` are told of the version that they make.

use std::path::PathBuf;

use clap::Args;
use tidepool_table::TableSpec;
use tidepool_types::{Keying, PartitionCount, RowFormat, TableVersion};

use super::{composite::CompositeArgs, partition_count};
use crate::commands::control;

#[derive(Args)]
pub(crate) struct SpecArgs {
    /// What to build.
    #[arg(value_name = "TABLE@VERSION", value_parser = control::table_version)]
    pub(crate) table_version: TableVersion,
    /// Folder of the artifact store.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// How rows are stored: int4, int8, f16 or f32.
    #[arg(long, default_value = "int4")]
    pub(crate) format: RowFormat,
    /// Which ids there may be: hashed (any) or dense (0 to N-1).
    #[arg(long, default_value = "hashed")]
    pub(crate) keying: Keying,
    /// Into how many partitions the version is cut: a power of two.
    #[arg(long, default_value = "16", value_parser = partition_count)]
    partitions: PartitionCount,
    /// Store whole 64-bit keys instead of 32-bit fingerprints.
    #[arg(long)]
    full_keys: bool,
    /// Seed of the index and of generated ids. The same rows and the same seed give the same bytes.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    composite: CompositeArgs,
}

impl SpecArgs {
    /// For rows of `dim` elements that are stored as `format`.
    pub(crate) fn spec(&self, dim: u32, format: RowFormat) -> TableSpec {
        TableSpec {
            table_version: self.table_version.clone(),
            dim,
            format,
            keying: self.keying,
            partitions: self.partitions,
            default_row: Vec::new(),
            composite: self.composite.composite(self.seed),
            full_keys: self.full_keys,
            seed: self.seed,
        }
    }
}
