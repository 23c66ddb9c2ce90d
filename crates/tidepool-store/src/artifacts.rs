//! What a role holds of its store: the directory itself, or copies of what lies in an object store, in a directory of
//! the same shape. So whoever reads artifacts reads files, wherever they came from.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use tidepool_types::{Name, TableManifest, TableVersion, paths};

use crate::{
    Store, StoreLocation,
    documents::{self, GOLDEN_JSON, MODEL_ONNX, MODEL_TOML, RELEASE_MANIFEST, check_hash, release_words},
    error::StoreError,
    gc::References,
    hash::file_hash,
    local::{ArtifactStore, ReleaseFiles, read_document},
    publish::{TEMP_PREFIX, create_dirs, sync_dir},
    remote::{
        RemoteStore,
        fetch::{Fetcher, blocking},
        release_key,
    },
};

/// The directory below a role's own one in which copies lie.
const COPIES_DIR: &str = "artifacts";

/// For how long a copy of a release stays that is not known to the cluster: it may be about to be.
const COPY_GRACE: Duration = Duration::from_secs(3600);

/// A role's view of its store.
#[derive(Clone, Debug)]
pub struct Artifacts {
    files: ArtifactStore,
    remote: Option<RemoteStore>,
    fetcher: Fetcher,
}

impl Artifacts {
    /// Opens the store at `location`. Copies of what lies in an object store go below `data_dir`, which no other
    /// process uses.
    ///
    /// # Errors
    /// What [`ArtifactStore::open`] and [`RemoteStore::s3`] say.
    pub fn open(location: &StoreLocation, data_dir: &Path) -> Result<Self, StoreError> {
        match location {
            StoreLocation::Directory(root) => Ok(Self::in_place(ArtifactStore::open(root)?)),
            StoreLocation::S3 { bucket, prefix } => Self::of(RemoteStore::s3(bucket, prefix)?, data_dir),
        }
    }

    /// A directory, used where it is.
    #[must_use]
    pub fn in_place(files: ArtifactStore) -> Self {
        Self { files, remote: None, fetcher: Fetcher::default() }
    }

    /// Copies of `remote`, below `data_dir`.
    ///
    /// # Errors
    /// [`StoreError::Io`] when there can be none.
    pub fn of(remote: RemoteStore, data_dir: &Path) -> Result<Self, StoreError> {
        let files = ArtifactStore::open(data_dir.join(COPIES_DIR))?;
        Ok(Self { files, remote: Some(remote), fetcher: Fetcher::default() })
    }

    /// With these limits on what is fetched.
    #[must_use]
    pub fn with_fetcher(self, fetcher: Fetcher) -> Self {
        Self { fetcher, ..self }
    }

    /// The files: the store, or the copies.
    #[must_use]
    pub fn files(&self) -> &ArtifactStore {
        &self.files
    }

    /// The object store that the files are copies of, if they are.
    #[must_use]
    pub fn remote(&self) -> Option<(&RemoteStore, &Fetcher)> {
        Some((self.remote.as_ref()?, &self.fetcher))
    }

    /// Sees to it that [`files`](Self::files) has the manifest of a table version as the store has it, and gives it.
    /// When the object store does not answer, a copy from before does.
    ///
    /// # Errors
    /// What [`ArtifactStore::table_manifest`] and the object store say.
    pub async fn table_manifest(&self, table: &TableVersion) -> Result<(TableManifest, String), StoreError> {
        let files = self.files.clone();
        let path = files.table_dir(table).join(paths::MANIFEST_FILE);
        let copied = {
            let table = table.clone();
            blocking(&path, move || Ok(files.table_manifest(&table))).await?
        };
        let Some(remote) = &self.remote else { return copied };
        match remote.table_document(table).await {
            Ok((manifest, hash, bytes)) => {
                if !copied.is_ok_and(|(_, same)| same == hash) {
                    write_whole(path, bytes.into()).await?;
                }
                Ok((manifest, hash))
            }
            Err(error @ StoreError::Unreachable { .. }) => copied.map_or(Err(error), |copied| {
                tracing::warn!(%table, store = remote.location(), "the store does not answer; its manifest is a copy");
                Ok(copied)
            }),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that [`files`](Self::files) has a release as the store has it: its documents, its dense model, and the
    /// manifests of its tables. When the object store does not answer, a whole copy from before is as good.
    ///
    /// # Errors
    /// As [`ArtifactStore::release`], what the object store says, and what fetching says.
    pub async fn bring_release(&self, model: &Name, release: &Name) -> Result<(), StoreError> {
        let Some(remote) = &self.remote else { return Ok(()) };
        match self.copy_release(remote, model, release).await {
            Err(error @ StoreError::Unreachable { .. }) => {
                let (files, of) = (self.files.clone(), (model.clone(), release.clone()));
                let whole =
                    blocking(self.files.root(), move || Ok(files.release(&of.0, &of.1).is_ok())).await?;
                if !whole {
                    return Err(error);
                }
                tracing::warn!(%model, %release, store = remote.location(), "the store does not answer; the release is a copy");
                Ok(())
            }
            other => other,
        }
    }

    /// A release, brought here and verified.
    ///
    /// # Errors
    /// As [`bring_release`](Self::bring_release).
    pub async fn release(&self, model: &Name, release: &Name) -> Result<ReleaseFiles, StoreError> {
        self.bring_release(model, release).await?;
        let (files, of) = (self.files.clone(), (model.clone(), release.clone()));
        blocking(self.files.root(), move || files.release(&of.0, &of.1)).await
    }

    /// Has copies of releases taken away, in the background, that are not among `known` and that came an hour ago or
    /// more. A store that is a directory is left alone.
    pub fn forget_releases_but(&self, known: BTreeSet<(Name, Name)>) {
        if self.remote.is_none() {
            return;
        }
        let copies = Store::Directory(self.files.clone());
        tokio::spawn(async move {
            let references = References { releases: known, ..References::default() };
            match copies.collect(&references, COPY_GRACE, false).await {
                Ok(report) => {
                    for gone in report.collected {
                        tracing::info!(copy = %gone.artifact, bytes = gone.bytes, "a copy that nobody needs was taken away");
                    }
                }
                Err(error) => tracing::warn!(%error, "copies that nobody needs could not be taken away"),
            }
        });
    }

    async fn copy_release(
        &self,
        remote: &RemoteStore,
        model: &Name,
        release: &Name,
    ) -> Result<(), StoreError> {
        let (manifest, content) = remote.release_document(model, release).await?;
        for (table, bytes) in remote.pinned_documents(&manifest).await? {
            let table_dir = self.files.table_dir(&table.schema.table_version);
            write_whole(table_dir.join(paths::MANIFEST_FILE), bytes.into()).await?;
        }
        let (what, dir) = (release_words(model, release), self.files.release_dir(model, release));
        let relative = |file| format!("{}/{file}", release_key(model, release));
        let missing = |file| StoreError::Missing { what: what.clone(), path: remote.shown(&relative(file)) };

        let toml = remote.read_document(&relative(MODEL_TOML)).await?.ok_or_else(|| missing(MODEL_TOML))?;
        documents::contract(&remote.shown(&relative(MODEL_TOML)), &toml, &manifest)?;
        if let Some(promised) = &manifest.golden_json_hash {
            let golden =
                remote.read_document(&relative(GOLDEN_JSON)).await?.ok_or_else(|| missing(GOLDEN_JSON))?;
            documents::golden(&remote.shown(&relative(GOLDEN_JSON)), &golden, &manifest, promised)?;
            write_whole(dir.join(GOLDEN_JSON), golden.into()).await?;
        }
        let onnx_path = dir.join(MODEL_ONNX);
        let promised = manifest.model_onnx_hash.clone();
        let has = {
            let (path, promised) = (onnx_path.clone(), promised.clone());
            blocking(&onnx_path, move || Ok(file_hash(&path).is_ok_and(|hash| hash == promised))).await?
        };
        if !has {
            let meta = remote.head(&relative(MODEL_ONNX)).await?.ok_or_else(|| missing(MODEL_ONNX))?;
            let fetched = remote.fetch(&relative(MODEL_ONNX), meta, &onnx_path, &self.fetcher).await?;
            blocking(&onnx_path, move || {
                let found = file_hash(fetched.path()).map_err(StoreError::io("read", fetched.path()))?;
                match check_hash(fetched.object(), &what, &promised, found) {
                    Ok(()) => fetched.keep(),
                    Err(error) => fetched.discard().and(Err(error)),
                }
            })
            .await?;
        }
        write_whole(dir.join(MODEL_TOML), toml.into()).await?;
        write_whole(dir.join(RELEASE_MANIFEST), content.into()).await
    }
}

/// Writes a small file whole, on the disk, unless it is there as it is.
pub(crate) async fn write_whole(path: PathBuf, content: Vec<u8>) -> Result<(), StoreError> {
    let at = path.clone();
    blocking(&at, move || {
        if read_document(&path).is_ok_and(|there| there.as_deref() == Some(&content[..])) {
            return Ok(());
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        create_dirs(dir)?;
        let mut file = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempfile_in(dir)
            .map_err(StoreError::io("create a temporary file in", dir))?;
        file.write_all(&content)
            .and_then(|()| file.as_file().sync_all())
            .map_err(StoreError::io("write", &path))?;
        file.persist(&path).map_err(|e| StoreError::io("rename the written file to", &path)(e.error))?;
        sync_dir(dir)
    })
    .await
}
