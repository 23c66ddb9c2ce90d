//! One partition file on its way in: opened, compared with what was asked for and with the manifest of its
//! version, verified.

use std::{
    collections::BTreeSet,
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidepool_cluster::Assignment;
use tidepool_store::ArtifactStore;
use tidepool_table::{PartitionFile, PartitionMeta};
use tidepool_types::{PartitionIndex, TableManifest, TableSchema};

use crate::{
    disk::{FileIdentity, VerifiedFiles},
    error::LoadError,
};

/// A partition that should be served.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) partition: PartitionIndex,
    /// Where its file lies.
    pub(crate) path: PathBuf,
}

/// Every partition of the assignment once, in its order. Of two schemas for the same layout the first counts.
pub(crate) fn wanted_of(assignment: &Assignment, store: &ArtifactStore) -> Vec<Wanted> {
    let mut seen: BTreeSet<(_, _, PartitionIndex)> = BTreeSet::new();
    let mut all = Vec::new();
    for table in &assignment.tables {
        let schema = Arc::new(table.schema.clone());
        let version = &schema.table_version;
        for &partition in &table.partitions {
            if !seen.insert((version.clone(), schema.partitions, partition)) {
                tracing::warn!(table = %version, %partition, "stands twice in the assignment");
                continue;
            }
            let path = store.partition_path(version, schema.partitions, partition);
            all.push(Wanted { schema: schema.clone(), partition, path });
        }
    }
    all
}

/// Opens the file. If that was not done before, makes sure that it is the one that the version's manifest
/// lists, and not the same partition of another build, and verifies it. Blocks.
///
/// # Errors
/// [`LoadError`] names the file.
pub(crate) fn load(
    wanted: &Wanted,
    store: &ArtifactStore,
    verified: &VerifiedFiles,
) -> Result<PartitionFile, LoadError> {
    let path = &wanted.path;
    let file = open(path, wanted)?;
    let identity = FileIdentity::of(path, file.meta().footer_crc32c)
        .map_err(|source| LoadError::Io { path: path.clone(), source })?;
    if !verified.has(path, &identity) {
        let (manifest, _) = store.table_manifest(&file.meta().table_version)?;
        check_listed(&file, &manifest)?;
        file.verify()?;
        verified.add(path, identity);
    }
    Ok(file)
}

/// Opens the file at `path`, which is what was asked for and what the version's manifest lists. Blocks.
///
/// # Errors
/// [`LoadError`] names the file.
pub(crate) fn open_listed(
    path: &Path,
    wanted: &Wanted,
    manifest: &TableManifest,
) -> Result<PartitionFile, LoadError> {
    let file = open(path, wanted)?;
    check_listed(&file, manifest)?;
    Ok(file)
}

/// The same, and every byte of it verified. Blocks.
///
/// # Errors
/// [`LoadError`] names the file.
pub(crate) fn open_verified(
    path: &Path,
    wanted: &Wanted,
    manifest: &TableManifest,
) -> Result<PartitionFile, LoadError> {
    let file = open_listed(path, wanted, manifest)?;
    file.verify()?;
    Ok(file)
}

fn open(path: &Path, wanted: &Wanted) -> Result<PartitionFile, LoadError> {
    let file = PartitionFile::open(path)?;
    let differences = differences(file.meta(), &wanted.schema, wanted.partition);
    if differences.is_empty() {
        return Ok(file);
    }
    Err(LoadError::Other { path: path.to_owned(), differences: differences.join("; ") })
}

/// Compares the file with its entry in the manifest. The footer's checksum speaks for the whole file.
fn check_listed(file: &PartitionFile, manifest: &TableManifest) -> Result<(), LoadError> {
    let meta = file.meta();
    let listed = manifest.files.iter().find(|f| f.partition == meta.partition).map(|f| f.footer_crc32c);
    if manifest.schema.partitions == meta.partitions && listed == Some(meta.footer_crc32c) {
        return Ok(());
    }
    Err(LoadError::NotListed {
        path: file.path().to_owned(),
        table: meta.table_version.clone(),
        footer_crc32c: meta.footer_crc32c,
    })
}

/// What the file says of itself that is not what was asked for.
fn differences(meta: &PartitionMeta, schema: &TableSchema, partition: PartitionIndex) -> Vec<String> {
    let mut all = Vec::new();
    let mut compare = |what: &str, file: &dyn Display, asked: &dyn Display| {
        let (file, asked) = (file.to_string(), asked.to_string());
        if file != asked {
            all.push(format!("{what} {file} instead of {asked}"));
        }
    };
    compare("table", &meta.table_version, &schema.table_version);
    compare("dimension", &meta.dim, &schema.dim);
    compare("row format", &meta.format, &schema.format);
    compare("keying", &meta.keying, &schema.keying);
    compare("partitions", &meta.partitions, &schema.partitions);
    compare("partition", &meta.partition, &partition);
    compare("rows of the table", &meta.table_rows, &schema.rows);
    all
}
