//! One partition file on its way in: opened, compared with what was asked for, verified.

use std::{fmt::Display, path::PathBuf, sync::Arc};

use tidepool_table::{PartitionFile, PartitionMeta};
use tidepool_types::{PartitionIndex, TableSchema};

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

/// Opens the file, and verifies it if that was not done before. Blocks.
///
/// # Errors
/// [`LoadError`] names the file.
pub(crate) fn load(wanted: &Wanted, verified: &VerifiedFiles) -> Result<PartitionFile, LoadError> {
    let path = &wanted.path;
    let file = PartitionFile::open(path)?;
    let differences = differences(file.meta(), &wanted.schema, wanted.partition);
    if !differences.is_empty() {
        return Err(LoadError::Other { path: path.clone(), differences: differences.join("; ") });
    }
    let identity = FileIdentity::of(path, file.meta().footer_crc32c)
        .map_err(|source| LoadError::Io { path: path.clone(), source })?;
    if !verified.has(path, &identity) {
        file.verify()?;
        verified.add(path, identity);
    }
    Ok(file)
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
