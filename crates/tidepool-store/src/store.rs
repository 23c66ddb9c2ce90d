//! A store wherever it is, for whoever works on it as a whole: operators who publish, list and collect. The roles have
//! [`Artifacts`](crate::Artifacts) instead.

use futures::{StreamExt, stream};
use tidepool_types::{Name, TableManifest, TableVersion};

use crate::{
    ArtifactStore, NewRelease, RemoteStore, StoreError, StoreLocation,
    documents::RELEASE_MANIFEST,
    remote::{fetch::blocking, release_key},
};

/// Objects that are asked after at the same time.
const CONCURRENT_LOOKS: usize = 16;

/// A store, wherever it is.
#[derive(Clone, Debug)]
pub enum Store {
    /// In a directory.
    Directory(ArtifactStore),
    /// In an object store.
    Remote(RemoteStore),
}

impl Store {
    /// Opens the store at `location`; a directory must be there.
    ///
    /// # Errors
    /// What [`ArtifactStore::open_existing`] and [`RemoteStore::s3`] say.
    pub fn open_existing(location: &StoreLocation) -> Result<Self, StoreError> {
        match location {
            StoreLocation::Directory(root) => ArtifactStore::open_existing(root).map(Self::Directory),
            StoreLocation::S3 { bucket, prefix } => RemoteStore::s3(bucket, prefix).map(Self::Remote),
        }
    }

    /// The manifest of a table version, and what is wrong with the files that it lists: one that is missing, or of
    /// another length. Their content is not read.
    ///
    /// # Errors
    /// What [`ArtifactStore::table_manifest`] and the object store say.
    pub async fn look_at_table(
        &self,
        table: &TableVersion,
    ) -> Result<(TableManifest, Vec<StoreError>), StoreError> {
        match self {
            Self::Directory(store) => {
                let (store, table) = (store.clone(), table.clone());
                let root = store.root().to_owned();
                blocking(&root, move || {
                    let (manifest, _) = store.table_manifest(&table)?;
                    let files = manifest.schema.partitions.indexes();
                    let problems = files.filter_map(|p| store.partition_file(&manifest, p).err()).collect();
                    Ok((manifest, problems))
                })
                .await
            }
            Self::Remote(store) => {
                let (manifest, _) = store.table_manifest(table).await?;
                let look = |partition| store.partition_identity(&manifest, partition);
                let looks = stream::iter(manifest.schema.partitions.indexes()).map(look);
                let looked: Vec<_> = looks.buffered(CONCURRENT_LOOKS).collect().await;
                let problems = looked.into_iter().filter_map(Result::err).collect();
                Ok((manifest, problems))
            }
        }
    }

    /// Whether there is something under the name of a release.
    ///
    /// # Errors
    /// What the object store says.
    pub async fn has_release(&self, model: &Name, release: &Name) -> Result<bool, StoreError> {
        match self {
            Self::Directory(store) => Ok(store.release_dir(model, release).exists()),
            Self::Remote(store) => Ok(store
                .head(&format!("{}/{RELEASE_MANIFEST}", release_key(model, release)))
                .await?
                .is_some()),
        }
    }

    /// Writes a release, all of it or nothing. The table versions must lie in this store.
    ///
    /// # Errors
    /// As [`ArtifactStore::write`]; what the object store says.
    pub async fn write_release(&self, new: NewRelease<'_>) -> Result<(), StoreError> {
        match self {
            Self::Directory(store) => store.write(new).map(|_| ()),
            Self::Remote(store) => store.write_release(new).await.map(|_| ()),
        }
    }
}
