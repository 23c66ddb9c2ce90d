//! Large objects, fetched into files: ranges side by side, at a bounded rate, again when they fail, and from where
//! they were when the process died.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::{Error as ObjectError, GetOptions, GetRange, ObjectMeta, path::Path as Key};
use tidepool_types::{PartitionIndex, TableManifest};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    Answer, RemoteStore,
    partial::{Object, Partial},
    partition_key,
};
use crate::{documents::table_words, error::StoreError, throttle::Throttle};

/// Bytes of a range: large enough that asking costs little, small enough that little comes twice after a crash, and
/// that a few of them in memory are nothing.
const RANGE_BYTES: u64 = 8 << 20;

/// What fetches tell whoever counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchEvent {
    /// Bytes came from the store.
    Came(u64),
    /// Bytes were there already, from a fetch that was broken off.
    Resumed(u64),
    /// Something is tried again.
    Retried,
}

/// What all fetches of a process share: how many ranges come at the same time, and how fast.
#[derive(Clone)]
pub struct Fetcher {
    turns: Arc<Semaphore>,
    parallelism: usize,
    throttle: Option<Arc<Throttle>>,
    range_bytes: u64,
    noted: Arc<dyn Fn(FetchEvent) + Send + Sync>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parallelism, throttle, range_bytes, .. } = self;
        f.debug_struct("Fetcher")
            .field("parallelism", parallelism)
            .field("throttle", throttle)
            .field("range_bytes", range_bytes)
            .finish_non_exhaustive()
    }
}

impl Default for Fetcher {
    /// Four ranges at a time, as fast as they come.
    fn default() -> Self {
        Self::new(4, None)
    }
}

impl Fetcher {
    /// At most `parallelism` (at least 1) ranges at the same time, each in memory until it is whole (8 MiB), and at most
    /// `bytes_per_second` of all of them together.
    #[must_use]
    pub fn new(parallelism: usize, bytes_per_second: Option<u64>) -> Self {
        let parallelism = parallelism.max(1);
        Self {
            turns: Arc::new(Semaphore::new(parallelism)),
            parallelism,
            throttle: bytes_per_second.map(|rate| Arc::new(Throttle::new(rate))),
            range_bytes: RANGE_BYTES,
            noted: Arc::new(|_| ()),
        }
    }

    /// With somebody who hears of what happens.
    #[must_use]
    pub fn noting(self, noted: impl Fn(FetchEvent) + Send + Sync + 'static) -> Self {
        Self { noted: Arc::new(noted), ..self }
    }

    /// With ranges of so many bytes (at least 1).
    #[must_use]
    pub fn with_range_bytes(self, range_bytes: u64) -> Self {
        Self { range_bytes: range_bytes.max(1), ..self }
    }
}

/// A file that has come whole, as long as it should be, and has not got its name yet: whoever knows what should be in
/// it looks, and then [keeps](Self::keep) or [discards](Self::discard) it. Dropped, it stays as it is, and the next
/// fetch of it asks for nothing.
#[derive(Debug)]
pub struct Fetched {
    partial: Partial,
    object: PathBuf,
    identity: String,
}

impl Fetched {
    /// Where it lies for now.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.partial.path()
    }

    /// The object that it came from, as messages call it.
    #[must_use]
    pub fn object(&self) -> &Path {
        &self.object
    }

    /// What this content of the object is told from others by.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Gives it its name, on the disk. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn keep(self) -> Result<(), StoreError> {
        self.partial.keep()
    }

    /// Takes it away, so that the next fetch begins anew. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn discard(self) -> Result<(), StoreError> {
        self.partial.discard()
    }
}

/// What this content of an object is told from others by.
fn identity(meta: &ObjectMeta) -> String {
    let changed = meta.last_modified.timestamp_millis();
    meta.e_tag.clone().unwrap_or_else(|| format!("{} bytes at {changed}", meta.size))
}

impl RemoteStore {
    /// What the content of a partition's object is told from others by, without fetching it.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Size`], [`StoreError::NotFound`] when the manifest lists no such
    /// partition; what the object store says.
    pub async fn partition_identity(
        &self,
        manifest: &TableManifest,
        partition: PartitionIndex,
    ) -> Result<String, StoreError> {
        let (relative, what, file_bytes) = self.listed(manifest, partition)?;
        Ok(identity(&self.sized(&relative, &what, file_bytes).await?))
    }

    /// Fetches a partition file of a version to (beside) `target`. What is in it is for `tidepool-table` to verify,
    /// before it is kept.
    ///
    /// # Errors
    /// As [`partition_identity`](Self::partition_identity), and [`StoreError::DiskFull`], [`StoreError::Changed`],
    /// [`StoreError::Busy`], [`StoreError::Io`]. What has come by then is not asked for again.
    pub async fn fetch_partition(
        &self,
        manifest: &TableManifest,
        partition: PartitionIndex,
        target: &Path,
        fetcher: &Fetcher,
    ) -> Result<Fetched, StoreError> {
        let (relative, what, file_bytes) = self.listed(manifest, partition)?;
        let meta = self.sized(&relative, &what, file_bytes).await?;
        self.fetch(&relative, meta, target, fetcher).await
    }

    /// A partition's object, whose it is, and how long.
    fn listed(
        &self,
        manifest: &TableManifest,
        partition: PartitionIndex,
    ) -> Result<(String, String, u64), StoreError> {
        let schema = &manifest.schema;
        let relative = partition_key(&schema.table_version, schema.partitions, partition);
        let Some(entry) = manifest.files.iter().find(|f| f.partition == partition) else {
            let what = format!("partition {partition} of table {}", schema.table_version);
            return Err(StoreError::NotFound { what, path: self.shown(&relative) });
        };
        Ok((relative, table_words(&schema.table_version), entry.file_bytes))
    }

    /// What the store knows of an object that `what` lists with so many bytes.
    async fn sized(&self, relative: &str, what: &str, expected: u64) -> Result<ObjectMeta, StoreError> {
        let (what, path) = (what.to_owned(), self.shown(relative));
        match self.head(relative).await? {
            Some(meta) if meta.size == expected => Ok(meta),
            Some(meta) => Err(StoreError::Size { path, what, expected, found: meta.size }),
            None => Err(StoreError::Missing { what, path }),
        }
    }

    /// Fetches any object.
    pub(crate) async fn fetch(
        &self,
        relative: &str,
        meta: ObjectMeta,
        target: &Path,
        fetcher: &Fetcher,
    ) -> Result<Fetched, StoreError> {
        let (key, path) = (self.key(relative)?, self.shown(relative));
        let identity = identity(&meta);
        let object =
            Object { identity: identity.clone(), file_bytes: meta.size, range_bytes: fetcher.range_bytes };
        let opened = {
            let (target, object) = (target.to_owned(), object.clone());
            blocking(&path, move || Partial::open(&target, object)).await?
        };
        let (partial, missing) = (Arc::new(opened.0), opened.1);
        let to_come: u64 = missing.iter().map(|&index| object.range(index)).map(|r| r.end - r.start).sum();
        if to_come < meta.size {
            (fetcher.noted)(FetchEvent::Resumed(meta.size - to_come));
        }
        let ranges = stream::iter(missing).map(|index| {
            let (partial, key, meta, path) = (partial.clone(), &key, &meta, &path);
            let range = object.range(index);
            async move {
                // Of a semaphore that is never closed.
                let _turn = fetcher.turns.acquire().await;
                let bytes = self.range(relative, key, meta, range, fetcher).await?;
                blocking(path, move || partial.write(index, &bytes)).await
            }
        });
        ranges.buffer_unordered(fetcher.parallelism).try_collect::<()>().await?;
        let aborted =
            || StoreError::Aborted { path: path.clone(), problem: "it is still being written".into() };
        let partial = Arc::into_inner(partial).ok_or_else(aborted)?;
        Ok(Fetched { partial, object: path, identity })
    }

    /// The bytes of a range, all of them.
    async fn range(
        &self,
        relative: &str,
        key: &Key,
        meta: &ObjectMeta,
        range: std::ops::Range<u64>,
        fetcher: &Fetcher,
    ) -> Result<Vec<u8>, StoreError> {
        let expected = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let get = || {
            let options = GetOptions {
                // That what comes is all of one object.
                if_match: meta.e_tag.clone(),
                range: Some(GetRange::Bounded(range.clone())),
                ..GetOptions::default()
            };
            async move {
                let mut pieces = self.objects.get_opts(key, options).await?.into_stream();
                let mut bytes = Vec::with_capacity(expected);
                while let Some(piece) = pieces.try_next().await? {
                    if let Some(throttle) = &fetcher.throttle {
                        throttle.take(piece.len() as u64).await;
                    }
                    (fetcher.noted)(FetchEvent::Came(piece.len() as u64));
                    bytes.extend_from_slice(&piece);
                }
                if bytes.len() == expected {
                    return Ok(bytes);
                }
                let source = format!("the answer ended after {} of {expected} bytes", bytes.len()).into();
                Err(ObjectError::Generic { store: "range", source })
            }
        };
        match self.ask("fetch", relative, &|| (fetcher.noted)(FetchEvent::Retried), get).await? {
            Answer::Is(bytes) => Ok(bytes),
            Answer::Absent | Answer::Conflict => Err(StoreError::Changed { path: self.shown(relative) }),
        }
    }
}

/// Waits for the disk on a thread made for that.
pub(crate) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let aborted =
        |e: tokio::task::JoinError| StoreError::Aborted { path: path.to_owned(), problem: e.to_string() };
    spawn_blocking(work).await.map_err(aborted)?
}
