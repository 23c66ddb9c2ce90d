//! An object store in memory that does what object stores do on bad days.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, stream, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory,
    path::Path,
};

/// What is to happen, once a number of ranges has been served.
type Event = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct Faulty {
    pub(crate) inner: InMemory,
    /// Nothing is answered.
    pub(crate) down: AtomicBool,
    /// There is no bucket.
    pub(crate) nowhere: AtomicBool,
    /// Who asks may not.
    pub(crate) denies: AtomicBool,
    /// So many answers to requests for ranges end early.
    pub(crate) cuts: AtomicI64,
    /// So many requests of any kind fail.
    pub(crate) failures: AtomicI64,
    /// Bytes of ranges that were served.
    pub(crate) served_bytes: AtomicU64,
    /// After so many ranges, this happens.
    after: Mutex<Option<(u64, Event)>>,
    /// Every change, in order: "put KEY", "delete KEY".
    pub(crate) changes: Mutex<Vec<String>>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

fn takes_one(of: &AtomicI64) -> bool {
    of.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 0).then(|| left - 1)).is_ok()
}

impl Faulty {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn after_ranges(&self, ranges: u64, event: impl FnOnce() + Send + 'static) {
        *self.after.lock().unwrap() = Some((ranges, Box::new(event)));
    }

    /// Goes down after so many ranges.
    pub(crate) fn down_after(self: &Arc<Self>, ranges: u64) {
        let store = self.clone();
        self.after_ranges(ranges, move || store.down.store(true, Ordering::SeqCst));
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn check(&self, path: &Path) -> Result<()> {
        if self.down.load(Ordering::SeqCst) || takes_one(&self.failures) {
            return Err(Error::Generic { store: "faulty", source: "connection refused".into() });
        }
        if self.nowhere.load(Ordering::SeqCst) {
            let source = "404: <Error><Code>NoSuchBucket</Code><Message>no</Message></Error>".into();
            return Err(Error::Generic { store: "faulty", source });
        }
        if self.denies.load(Ordering::SeqCst) {
            let source = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>".into();
            return Err(Error::PermissionDenied { path: path.to_string(), source });
        }
        Ok(())
    }

    fn note(&self, what: &str, path: &Path) {
        self.changes.lock().unwrap().push(format!("{what} {path}"));
    }

    /// One range less until something happens.
    fn count(&self) {
        let mut after = self.after.lock().unwrap();
        match after.take() {
            Some((0 | 1, event)) => {
                drop(after);
                event();
            }
            Some((left, event)) => *after = Some((left - 1, event)),
            None => {}
        }
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check(path)?;
        let put = self.inner.put_opts(path, payload, options).await?;
        self.note("put", path);
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check(path)?;
        self.note("put", path);
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.check(path)?;
        let is_range = options.range.is_some();
        let mut got = self.inner.get_opts(path, options).await?;
        if is_range {
            let Range { start, end } = got.range.clone();
            let GetResultPayload::Stream(pieces) = got.payload;
            let bytes: Vec<_> = pieces.try_collect().await?;
            let mut bytes = bytes.concat();
            if takes_one(&self.cuts) {
                bytes.truncate(bytes.len() / 2);
            }
            self.served_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            assert!(start < end, "nobody asks for nothing");
            got.payload = GetResultPayload::Stream(stream::iter([Ok(bytes.into())]).boxed());
            self.count();
        }
        Ok(got)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        // Checked here, for what the stream borrows ends before it does.
        if let Err(error) = self.check(&Path::default()) {
            return stream::iter([Err(error)]).boxed();
        }
        let paths: Vec<_> = paths.collect().now_or_never().expect("they are there");
        for path in paths.iter().flatten() {
            self.note("delete", path);
        }
        self.inner.delete_stream(stream::iter(paths).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.check(&Path::default()) {
            Ok(()) => self.inner.list(prefix),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
