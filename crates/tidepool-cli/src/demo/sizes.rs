//! Bytes per table of a release, beside what f16 and f32 rows would take.

use anyhow::Result;
use serde::Serialize;
use tidepool_store::ArtifactStore;
use tidepool_table::LayoutReader;
use tidepool_types::{Name, ReleaseManifest, RowFormat};

/// One table. Sizes of all rows together, in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct TableSizes {
    pub(crate) table: Name,
    pub(crate) rows: u64,
    pub(crate) dim: u32,
    pub(crate) format: RowFormat,
    /// Of one stored row.
    pub(crate) row_bytes: usize,
    /// Rows with their fingerprints, and cold keys.
    pub(crate) rows_and_keys_bytes: u64,
    /// The perfect hash.
    pub(crate) index_bytes: u64,
    /// The partition files whole, with index, checksums, header pages and padding.
    pub(crate) file_bytes: u64,
    /// Bare rows in half precision.
    pub(crate) f16_bytes: u64,
    /// Bare rows in single precision.
    pub(crate) f32_bytes: u64,
    /// Relative L2 error of the stored rows.
    pub(crate) relative_l2: Option<f64>,
}

/// Reads the sizes of every table of a release from its files.
pub(crate) fn of_release(store: &ArtifactStore, release: &ReleaseManifest) -> Result<Vec<TableSizes>> {
    release
        .tables
        .iter()
        .map(|table_version| {
            let layout = LayoutReader::open(&store.table_dir(table_version))?;
            let manifest = layout.manifest();
            let schema = &manifest.schema;
            let (mut rows_and_keys_bytes, mut index_bytes) = (0, 0);
            for partition in schema.partitions.indexes() {
                let sections = layout.partition(partition).section_bytes();
                rows_and_keys_bytes += sections.rows + sections.cold_keys;
                index_bytes += sections.index;
            }
            let bare = |format: RowFormat| schema.rows * format.row_bytes(schema.dim) as u64;
            Ok(TableSizes {
                table: table_version.table.clone(),
                rows: schema.rows,
                dim: schema.dim,
                format: schema.format,
                row_bytes: schema.row_bytes(),
                rows_and_keys_bytes,
                index_bytes,
                file_bytes: manifest.file_bytes(),
                f16_bytes: bare(RowFormat::F16),
                f32_bytes: bare(RowFormat::F32),
                relative_l2: manifest.quantization.as_ref().map(|q| q.relative_l2),
            })
        })
        .collect()
}
