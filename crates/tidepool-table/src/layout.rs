//! [`LayoutReader`]: a whole version opened from its directory.

use std::{fs, path::Path, sync::Arc};

use tidepool_kernels::RowKernel;
use tidepool_types::{
    PartitionEntry, PartitionIndex, TableManifest, TableSchema,
    paths::{MANIFEST_FILE, partition_path},
};

use crate::{error::OpenError, lookup::LayoutView, partition::PartitionFile, verify::Damage};

/// Manifest and every partition of a version. For tools, training and tests: a node opens the partitions
/// that it serves one by one.
#[derive(Debug)]
pub struct LayoutReader {
    manifest: TableManifest,
    partitions: Vec<PartitionFile>,
}

impl LayoutReader {
    /// Opens `manifest.json` and the partition files that it lists, and checks that they are those.
    ///
    /// # Errors
    /// [`OpenError`] names the file that is missing, damaged, or another than the manifest lists.
    pub fn open(version_dir: &Path) -> Result<Self, OpenError> {
        let manifest = read_manifest(version_dir)?;
        let open = |entry: &PartitionEntry| {
            let path = partition_path(version_dir, manifest.schema.partitions, entry.partition);
            open_listed(&path, &manifest.schema, entry)
        };
        let partitions = manifest.files.iter().map(open).collect::<Result<_, OpenError>>()?;
        Ok(Self { manifest, partitions })
    }

    /// What the version says of itself.
    #[must_use]
    pub fn manifest(&self) -> &TableManifest {
        &self.manifest
    }

    /// The stored row of `id`, as [`PartitionFile::find`].
    #[must_use]
    pub fn find(&self, id: u64) -> Option<&[u8]> {
        let schema = &self.manifest.schema;
        self.partition(schema.keying.locate(id, schema.partitions).partition).find(id)
    }

    /// One partition.
    ///
    /// # Panics
    /// When the layout has no such partition.
    #[must_use]
    pub fn partition(&self, partition: PartitionIndex) -> &PartitionFile {
        &self.partitions[partition.0 as usize]
    }

    /// Every partition, in order.
    #[must_use]
    pub fn partitions(&self) -> &[PartitionFile] {
        &self.partitions
    }

    /// All of it as a view to look up in, with the kernel for its rows.
    #[must_use]
    pub fn into_view(self, kernel: RowKernel) -> LayoutView {
        let mut view = LayoutView::new(self.manifest.schema, kernel);
        for file in self.partitions {
            view.insert(file.meta().partition, Arc::new(file));
        }
        view
    }

    /// Every id with its stored row, partition by partition, each in row order.
    pub fn entries(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.partitions.iter().flat_map(PartitionFile::entries)
    }

    /// Verifies every partition.
    ///
    /// # Errors
    /// [`Damage`] of the first that is damaged; [`verify_version`](crate::verify_version) finds all.
    pub fn verify(&self) -> Result<(), Damage> {
        self.partitions.iter().try_for_each(PartitionFile::verify)
    }
}

/// Reads `manifest.json` of a version.
pub(crate) fn read_manifest(version_dir: &Path) -> Result<TableManifest, OpenError> {
    let path = version_dir.join(MANIFEST_FILE);
    let json = fs::read(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
    let manifest: TableManifest = serde_json::from_slice(&json)
        .map_err(|source| OpenError::ManifestSyntax { path: path.clone(), source })?;
    manifest.validate().map_err(|source| OpenError::Manifest { path, source })?;
    Ok(manifest)
}

/// Opens a partition file and checks that it is the one that the manifest lists.
pub(crate) fn open_listed(
    path: &Path,
    schema: &TableSchema,
    entry: &PartitionEntry,
) -> Result<PartitionFile, OpenError> {
    let file = PartitionFile::open(path)?;
    check_listed(schema, entry, &file)
        .map_err(|problem| OpenError::NotListed { path: path.to_owned(), problem })?;
    Ok(file)
}

/// Compares what the manifest says of a file with what the file says of itself.
fn check_listed(schema: &TableSchema, entry: &PartitionEntry, file: &PartitionFile) -> Result<(), String> {
    let meta = file.meta();
    let differs = |what: &str, listed: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        let (listed, found) = (listed.to_string(), found.to_string());
        if listed == found { Ok(()) } else { Err(format!("{what} is {found}, listed as {listed}")) }
    };
    differs("its version", &schema.table_version, &meta.table_version)?;
    differs("its layout", &schema.partitions, &meta.partitions)?;
    differs("its partition", &entry.partition, &meta.partition)?;
    differs("its keying", &schema.keying, &meta.keying)?;
    differs("its row format", &schema.format, &meta.format)?;
    differs("its dimension", &schema.dim, &meta.dim)?;
    differs("its row count", &entry.rows, &meta.rows)?;
    differs("the table's row count", &schema.rows, &meta.table_rows)?;
    differs("its length", &entry.file_bytes, &file.file_bytes())?;
    differs("the footer's crc32c", &entry.footer_crc32c, &meta.footer_crc32c)
}
