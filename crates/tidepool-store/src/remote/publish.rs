//! Into an object store: the files first, the document that names them last. It is put only where none is, so a name
//! that is taken stays what it was; until then, readers see nothing.
//!
//! Files have no condition on them that all object stores keep, so an upload first puts a **claim**: which content is
//! coming. Whoever comes with the same content may help or go on where somebody died; with other content they are
//! turned away before they overwrite anything.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use object_store::{MultipartUpload, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tidepool_types::{Name, ReleaseManifest, TableVersion, paths};

use super::{Answer, RemoteStore, fetch::blocking, partition_key, release_key, table_key, told};
use crate::{
    documents::{
        GOLDEN_JSON, MODEL_ONNX, MODEL_TOML, NewRelease, RELEASE_MANIFEST, release_words, table_words,
    },
    error::StoreError,
    hash::content_hash,
    local::{ArtifactStore, read_document},
};

/// What says which content is coming.
pub(crate) const CLAIM: &str = "upload.claim";

/// Bytes of a part of an upload; S3 takes at least 5 MiB and at most 10,000 parts.
const PART_BYTES: u64 = 16 << 20;
const MAX_PARTS: u64 = 9_000;
/// Parts on their way at the same time.
const PARTS_IN_FLIGHT: usize = 3;

/// Whether something had to be uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// It was not there, and is now.
    Now,
    /// The same content was there.
    Before,
}

/// What is to be published under one name.
struct Publication<'a> {
    /// "table user@v1".
    what: String,
    /// Where it lies, below the prefix.
    dir: String,
    /// The document that makes it visible.
    document: &'a str,
    content: Bytes,
}

impl RemoteStore {
    /// Uploads a table version out of a directory: all of it, or nothing that anyone sees.
    ///
    /// # Errors
    /// What [`table_manifest`](ArtifactStore::table_manifest) and
    /// [`partition_file`](ArtifactStore::partition_file) say of the version that is to be uploaded;
    /// [`StoreError::AlreadyExists`] when the name is taken by another content, [`StoreError::Claimed`] when it is about
    /// to be; what the object store says.
    pub async fn push_table(
        &self,
        from: &ArtifactStore,
        table: &TableVersion,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Uploaded, StoreError> {
        let (manifest, _) = from.table_manifest(table)?;
        let publication = Publication {
            what: table_words(table),
            dir: table_key(table),
            document: paths::MANIFEST_FILE,
            content: document(&from.table_dir(table).join(paths::MANIFEST_FILE), &table_words(table))?,
        };
        if self.claim(&publication).await? == Uploaded::Before {
            return Ok(Uploaded::Before);
        }
        for entry in &manifest.files {
            let path = from.partition_file(&manifest, entry.partition)?;
            let relative = partition_key(table, manifest.schema.partitions, entry.partition);
            // By the claim, what lies there is a part of the same content, and puts are whole.
            let there = self.head(&relative).await?.is_some_and(|meta| meta.size == entry.file_bytes);
            if !there {
                self.upload(&relative, &path).await?;
            }
            progress(entry.file_bytes);
        }
        self.show(publication).await
    }

    /// Uploads a release out of a directory. The tables that it pins must be in this store, and the same.
    ///
    /// # Errors
    /// What [`release`](ArtifactStore::release) says of it; [`StoreError::NotFound`] or [`StoreError::Hash`] for its
    /// tables here; as [`push_table`](Self::push_table) otherwise.
    pub async fn push_release(
        &self,
        from: &ArtifactStore,
        model: &Name,
        release: &Name,
    ) -> Result<Uploaded, StoreError> {
        let files = from.release(model, release)?;
        self.pinned_documents(&files.manifest).await?;
        let (dir, what) = (from.release_dir(model, release), release_words(model, release));
        let toml = document(&dir.join(MODEL_TOML), &what)?;
        let promised = files.manifest.golden_json_hash.is_some();
        let golden = promised.then(|| document(&dir.join(GOLDEN_JSON), &what)).transpose()?;
        let content = document(&dir.join(RELEASE_MANIFEST), &what)?;
        let publication =
            Publication { what, dir: release_key(model, release), document: RELEASE_MANIFEST, content };
        if self.claim(&publication).await? == Uploaded::Before {
            return Ok(Uploaded::Before);
        }
        self.put(&format!("{}/{MODEL_TOML}", publication.dir), toml).await?;
        if let Some(golden) = golden {
            self.put(&format!("{}/{GOLDEN_JSON}", publication.dir), golden).await?;
        }
        self.upload(&format!("{}/{MODEL_ONNX}", publication.dir), &files.onnx_path).await?;
        self.show(publication).await
    }

    /// Writes a release, all of it or nothing. The table versions must lie in this store.
    ///
    /// # Errors
    /// As [`ArtifactStore::write`]; what the object store says.
    pub async fn write_release(&self, new: NewRelease<'_>) -> Result<ReleaseManifest, StoreError> {
        new.check()?;
        let mut hashes = Vec::with_capacity(new.tables.len());
        for table in new.tables {
            hashes.push(self.table_manifest(table).await?.1);
        }
        let dir = release_key(new.model, new.release);
        let path = self.shown(&format!("{dir}/{RELEASE_MANIFEST}"));
        let (manifest, content) = new.manifest(&path, hashes)?;
        let publication =
            Publication { what: new.words(), dir, document: RELEASE_MANIFEST, content: content.into() };
        if self.claim(&publication).await? == Uploaded::Before {
            return Err(StoreError::AlreadyExists { what: new.words(), path });
        }
        let file = |name| format!("{}/{name}", publication.dir);
        self.put(&file(MODEL_TOML), Bytes::copy_from_slice(new.model_toml.as_bytes())).await?;
        if let Some(golden) = new.golden {
            self.put(&file(GOLDEN_JSON), Bytes::copy_from_slice(golden.as_bytes())).await?;
        }
        self.put(&file(MODEL_ONNX), Bytes::copy_from_slice(new.onnx)).await?;
        // Shown before by now: by a put of ours whose answer was lost, or by a writer of the same content.
        self.show(publication).await?;
        Ok(manifest)
    }

    /// Says which content is coming, or that it is there already.
    async fn claim(&self, publication: &Publication<'_>) -> Result<Uploaded, StoreError> {
        let relative = format!("{}/{CLAIM}", publication.dir);
        let mine = content_hash(&publication.content);
        if !self.put_new(&relative, mine.clone().into()).await? {
            let claim = self.read_document(&relative).await?;
            // Gone by now: its upload has ended, and what is there says how.
            if claim.is_some_and(|theirs| theirs != mine.as_bytes()) {
                let what = publication.what.clone();
                return Err(StoreError::Claimed { what, path: self.shown(&relative) });
            }
        }
        // Only now, under the claim, is it certain that nobody shows another content in the meantime.
        let before = self.shown_before(publication).await;
        if !matches!(before, Ok(None)) {
            self.delete(&relative).await?;
        }
        Ok(before?.unwrap_or(Uploaded::Now))
    }

    /// Whether the same content is shown already.
    async fn shown_before(&self, publication: &Publication<'_>) -> Result<Option<Uploaded>, StoreError> {
        let relative = format!("{}/{}", publication.dir, publication.document);
        match self.read_document(&relative).await? {
            None => Ok(None),
            Some(theirs) if theirs == publication.content => Ok(Some(Uploaded::Before)),
            Some(_) => {
                let (what, path) = (publication.what.clone(), self.shown(&relative));
                Err(StoreError::AlreadyExists { what, path })
            }
        }
    }

    /// Puts the document that makes everything visible.
    async fn show(&self, publication: Publication<'_>) -> Result<Uploaded, StoreError> {
        let relative = format!("{}/{}", publication.dir, publication.document);
        let uploaded = if self.put_new(&relative, publication.content.clone()).await? {
            Uploaded::Now
        } else {
            self.shown_before(&publication).await?.unwrap_or(Uploaded::Now)
        };
        self.delete(&format!("{}/{CLAIM}", publication.dir)).await?;
        Ok(uploaded)
    }

    async fn put(&self, relative: &str, content: Bytes) -> Result<(), StoreError> {
        let key = self.key(relative)?;
        let put = || self.objects.put(&key, PutPayload::from_bytes(content.clone()));
        self.ask("write", relative, &|| (), put).await.map(|_| ())
    }

    /// Puts an object where there is none, and says whether there was none.
    async fn put_new(&self, relative: &str, content: Bytes) -> Result<bool, StoreError> {
        let key = self.key(relative)?;
        let put = || {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            self.objects.put_opts(&key, PutPayload::from_bytes(content.clone()), options)
        };
        Ok(matches!(self.ask("write", relative, &|| (), put).await?, Answer::Is(_)))
    }

    /// Uploads a file, in parts when it is large.
    async fn upload(&self, relative: &str, path: &Path) -> Result<(), StoreError> {
        let io = |tried| StoreError::io(tried, path);
        let file = File::open(path).map_err(io("open"))?;
        let bytes = file.metadata().map_err(io("look at"))?.len();
        let file = Arc::new(file);
        let file = Source { file, path: path.to_owned() };
        let part_bytes = PART_BYTES.max(bytes.div_ceil(MAX_PARTS));
        if bytes <= part_bytes {
            return self.put(relative, file.read(0, bytes).await?).await;
        }
        let key = self.key(relative)?;
        let begin = || self.objects.put_multipart(&key);
        let Answer::Is(mut upload) = self.ask("begin to upload", relative, &|| (), begin).await? else {
            let (path, problem) = (self.shown(relative), "it was refused".to_owned());
            return Err(StoreError::Unreachable { tried: "begin to upload", path, attempts: 1, problem });
        };
        let done = send(upload.as_mut(), &file, (bytes, part_bytes)).await;
        let done = done.map_err(|failure| match failure {
            Failure::Here(error) => error,
            Failure::There(error) => {
                let (path, problem) = (self.shown(relative), told(&error));
                StoreError::Unreachable { tried: "upload", path, attempts: 1, problem }
            }
        });
        if done.is_err() {
            abort(upload.as_mut(), relative).await;
        }
        done
    }
}

/// On which side an upload broke off.
enum Failure {
    Here(StoreError),
    There(object_store::Error),
}

/// Sends a file in parts, a few at the same time, and has them put together.
async fn send(
    upload: &mut dyn MultipartUpload,
    file: &Source,
    (bytes, part_bytes): (u64, u64),
) -> Result<(), Failure> {
    let mut flying = FuturesUnordered::new();
    let mut start = 0;
    while start < bytes || !flying.is_empty() {
        if start < bytes && flying.len() < PARTS_IN_FLIGHT {
            let end = (start + part_bytes).min(bytes);
            let part = file.read(start, end).await.map_err(Failure::Here)?;
            flying.push(upload.put_part(PutPayload::from_bytes(part)));
            start = end;
        } else if let Some(part) = flying.next().await {
            part.map_err(Failure::There)?;
        }
    }
    upload.complete().await.map(drop).map_err(Failure::There)
}

/// Has the store forget the parts of an upload that failed; what it does not forget costs room until its own rules
/// for unfinished uploads take it away.
async fn abort(upload: &mut dyn MultipartUpload, relative: &str) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(
            relative,
            problem = told(&error),
            "the parts of a failed upload could not be taken back"
        );
    }
}

/// A file that is uploaded.
struct Source {
    file: Arc<File>,
    path: PathBuf,
}

impl Source {
    async fn read(&self, start: u64, end: u64) -> Result<Bytes, StoreError> {
        let (file, path) = (self.file.clone(), self.path.clone());
        blocking(&self.path, move || read_range(&file, start, end).map_err(StoreError::io("read", &path)))
            .await
    }
}

fn read_range(file: &File, start: u64, end: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes.into())
}

/// A small file that is known to be there.
fn document(path: &Path, what: &str) -> Result<Bytes, StoreError> {
    let missing = || StoreError::Missing { what: what.to_owned(), path: path.to_owned() };
    Ok(read_document(path)?.ok_or_else(missing)?.into())
}
