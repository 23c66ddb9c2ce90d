//! A whole table version out of an object store into a directory, where it shows when all of it is there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use futures::{StreamExt, TryStreamExt, stream};
use tidepool_types::{TableVersion, paths};

use super::{
    RemoteStore,
    fetch::{Fetcher, blocking},
};
use crate::{
    artifacts::write_whole,
    documents::table_words,
    error::StoreError,
    local::ArtifactStore,
    publish::{TEMP_PREFIX, create_dirs, sync_dir},
};

/// Files that come at the same time; their ranges share the turns of the fetcher.
const FILES_AT_ONCE: usize = 2;

/// A table version that has come whole, and has not got its name yet. Dropped, it stays beside its place, and the next
/// pull of it fetches nothing again.
#[derive(Debug)]
pub struct Pulled {
    dir: PathBuf,
    target: PathBuf,
    what: String,
    bytes: u64,
}

impl Pulled {
    /// The directory of the version for now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Bytes of its partition files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives it its name. Blocks.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when the name was taken meanwhile; [`StoreError::Io`].
    pub fn keep(self) -> Result<(), StoreError> {
        if self.target.symlink_metadata().is_ok() {
            return Err(StoreError::AlreadyExists { what: self.what, path: self.target });
        }
        fs::rename(&self.dir, &self.target)
            .map_err(StoreError::io("rename the pulled directory to", &self.target))?;
        self.target.parent().map_or(Ok(()), sync_dir)
    }

    /// Takes it away. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn discard(self) -> Result<(), StoreError> {
        fs::remove_dir_all(&self.dir).map_err(StoreError::io("remove", &self.dir))
    }
}

impl RemoteStore {
    /// Fetches a table version to (beside) its place in a directory. What is in its files is for `tidepool-table` to
    /// verify, before it is kept.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when the directory has the name already; as
    /// [`fetch_partition`](Self::fetch_partition) otherwise. What has come by then is not fetched again.
    pub async fn pull_table(
        &self,
        to: &ArtifactStore,
        table: &TableVersion,
        fetcher: &Fetcher,
    ) -> Result<Pulled, StoreError> {
        let (target, what) = (to.table_dir(table), table_words(table));
        if target.symlink_metadata().is_ok() {
            return Err(StoreError::AlreadyExists { what, path: target });
        }
        let (manifest, _, document) = self.table_document(table).await?;
        let dir = target.with_file_name(format!("{TEMP_PREFIX}pull-{}", table.version));
        let fetch = |entry: &tidepool_types::PartitionEntry| {
            let (partition, manifest) = (entry.partition, &manifest);
            let path = paths::partition_path(&dir, manifest.schema.partitions, partition);
            let bytes = entry.file_bytes;
            async move {
                let there = fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes);
                if there {
                    return Ok(());
                }
                let fetched = self.fetch_partition(manifest, partition, &path, fetcher).await?;
                blocking(&path, move || fetched.keep()).await
            }
        };
        let files: Vec<_> = manifest.files.iter().map(fetch).collect();
        stream::iter(files).buffer_unordered(FILES_AT_ONCE).try_collect::<()>().await?;
        create_dirs(&dir)?;
        write_whole(dir.join(paths::MANIFEST_FILE), document.into()).await?;
        Ok(Pulled { dir, target, what, bytes: manifest.file_bytes() })
    }
}
