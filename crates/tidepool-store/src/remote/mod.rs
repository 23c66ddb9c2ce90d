//! The store in an object store: the same names as in a directory, as keys below a prefix. What is large is fetched
//! into a directory ([`fetch`]); what is published is uploaded with its manifest last ([`publish`]).

pub(crate) mod fetch;
mod partial;
mod publish;
mod pull;
mod s3;

pub(crate) use publish::CLAIM;
pub use publish::Uploaded;
pub use pull::Pulled;

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    Error as ObjectError, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path as Key,
};
use tidepool_types::{
    Name, PartitionCount, PartitionIndex, ReleaseManifest, TableManifest, TableVersion, paths,
};
use tokio::time::sleep;

use crate::{
    documents::{self, MAX_DOCUMENT_BYTES, RELEASE_MANIFEST, check_hash, release_words, table_words},
    error::StoreError,
};

/// How often something is tried that fails for reasons that may pass, and how long the waits in between are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// All tries, the first one too; at least 1.
    pub attempts: u32,
    /// The first wait; it doubles with each failure. Each wait is made longer by up to a half of it, by chance, so
    /// that nodes that lost their store together do not come back together.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Default for Retries {
    /// About ten seconds in all.
    fn default() -> Self {
        Self { attempts: 7, first: Duration::from_millis(200), longest: Duration::from_secs(4) }
    }
}

/// An artifact store in an object store. Any number of processes may read and write it at once.
#[derive(Clone)]
pub struct RemoteStore {
    objects: Arc<dyn ObjectStore>,
    /// What keys begin with: empty, or ending with a slash.
    prefix: String,
    /// The whole of it, as people write it.
    location: String,
    retries: Retries,
}

// By hand: the clients of object stores show their credentials.
impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStore").field("location", &self.location).finish_non_exhaustive()
    }
}

/// What an object store says when it says anything.
pub(crate) enum Answer<T> {
    Is(T),
    /// There is no such object.
    Absent,
    /// A condition does not hold: there is such an object already, or another one.
    Conflict,
}

impl RemoteStore {
    /// The store below `prefix` in an S3 bucket, by the variables that AWS's own tools read: `AWS_ENDPOINT_URL`,
    /// `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, or the role of the machine,
    /// the container or the web identity. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`StoreError::Settings`] when the variables do not do.
    pub fn s3(bucket: &str, prefix: &str) -> Result<Self, StoreError> {
        let location = crate::StoreLocation::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        let objects = s3::client(bucket, &location.to_string())?;
        Ok(Self::over(objects, prefix, location.to_string()))
    }

    /// The store below `prefix` in any object store; `location` is what it is called in messages.
    pub fn over(objects: Arc<dyn ObjectStore>, prefix: &str, location: impl Into<String>) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { objects, prefix, location: location.into(), retries: Retries::default() }
    }

    /// With other tries than the default ones.
    #[must_use]
    pub fn with_retries(mut self, retries: Retries) -> Self {
        self.retries = retries;
        self
    }

    /// Where it is, as people write it.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }

    /// What is called `relative` in the store, as messages call it.
    pub(crate) fn shown(&self, relative: &str) -> PathBuf {
        format!("{}/{relative}", self.location).into()
    }

    fn key(&self, relative: &str) -> Result<Key, StoreError> {
        let text = format!("{}{relative}", self.prefix);
        let problem = "it cannot be part of a key";
        Key::parse(&text).map_err(|_| StoreError::Location { text, problem })
    }

    /// What keys below the prefix are called in the store.
    fn relative<'a>(&self, key: &'a Key) -> Option<&'a str> {
        key.as_ref().strip_prefix(&self.prefix)
    }

    /// Asks until there is an answer, or until trying again does not help. `noted` hears of each further try.
    pub(crate) async fn ask<T, F>(
        &self,
        tried: &'static str,
        relative: &str,
        noted: &(dyn Fn() + Send + Sync),
        mut ask: impl FnMut() -> F,
    ) -> Result<Answer<T>, StoreError>
    where
        F: Future<Output = Result<T, ObjectError>>,
    {
        let (mut attempts, mut wait) = (1, self.retries.first);
        loop {
            let error = match ask().await {
                Ok(value) => return Ok(Answer::Is(value)),
                Err(error) => error,
            };
            let problem = told(&error);
            let path = self.shown(relative);
            let may_pass = match error {
                // Reads are told so by one kind of error, listings by another.
                _ if problem.contains("NoSuchBucket") => {
                    return Err(StoreError::NoStore { path: self.location.clone().into() });
                }
                ObjectError::NotFound { .. } => return Ok(Answer::Absent),
                ObjectError::AlreadyExists { .. }
                | ObjectError::Precondition { .. }
                | ObjectError::NotModified { .. } => return Ok(Answer::Conflict),
                ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. } => {
                    return Err(StoreError::Denied { tried, path, problem });
                }
                ObjectError::NotSupported { .. }
                | ObjectError::NotImplemented { .. }
                | ObjectError::InvalidPath { .. } => false,
                _ => true,
            };
            if !may_pass || attempts >= self.retries.attempts {
                return Err(StoreError::Unreachable { tried, path, attempts, problem });
            }
            tracing::debug!(path = %path.display(), tried, attempts, problem, "is tried again");
            noted();
            sleep(wait + jitter(wait)).await;
            (attempts, wait) = (attempts + 1, (wait * 2).min(self.retries.longest));
        }
    }

    /// What the store knows of an object; `None` when there is none.
    pub(crate) async fn head(&self, relative: &str) -> Result<Option<ObjectMeta>, StoreError> {
        let key = self.key(relative)?;
        let head = || {
            let options = GetOptions { head: true, ..GetOptions::default() };
            let key = &key;
            async move { Ok(self.objects.get_opts(key, options).await?.meta) }
        };
        Ok(match self.ask("look at", relative, &|| (), head).await? {
            Answer::Is(meta) => Some(meta),
            Answer::Absent | Answer::Conflict => None,
        })
    }

    /// The whole of a small object; `None` when there is none.
    pub(crate) async fn read_document(&self, relative: &str) -> Result<Option<Bytes>, StoreError> {
        let key = self.key(relative)?;
        let read = || async {
            let found = self.objects.get(&key).await?;
            let bytes = found.meta.size;
            if bytes > MAX_DOCUMENT_BYTES {
                return Ok(Err(bytes));
            }
            found.bytes().await.map(Ok)
        };
        match self.ask("read", relative, &|| (), read).await? {
            Answer::Is(Ok(bytes)) => Ok(Some(bytes)),
            Answer::Is(Err(bytes)) => {
                let path = self.shown(relative);
                Err(StoreError::TooLarge { path, bytes, limit: MAX_DOCUMENT_BYTES })
            }
            Answer::Absent | Answer::Conflict => Ok(None),
        }
    }

    /// The bytes of the manifest of a table version, which are sound.
    pub(crate) async fn table_document(
        &self,
        table: &TableVersion,
    ) -> Result<(TableManifest, String, Bytes), StoreError> {
        let relative = manifest_key(table);
        let path = self.shown(&relative);
        let bytes = self.read_document(&relative).await?;
        let bytes =
            bytes.ok_or_else(|| StoreError::NotFound { what: table_words(table), path: path.clone() })?;
        let (manifest, hash) = documents::table_manifest(&path, &bytes, table)?;
        Ok((manifest, hash, bytes))
    }

    /// The manifest of a table version, and its hash: the version's identity.
    ///
    /// # Errors
    /// As [`ArtifactStore::table_manifest`](crate::ArtifactStore::table_manifest), and what the object store says.
    pub async fn table_manifest(&self, table: &TableVersion) -> Result<(TableManifest, String), StoreError> {
        let (manifest, hash, _) = self.table_document(table).await?;
        Ok((manifest, hash))
    }

    /// `release.json`, which is sound, and its bytes. The tables that it pins are not looked at.
    pub(crate) async fn release_document(
        &self,
        model: &Name,
        release: &Name,
    ) -> Result<(ReleaseManifest, Bytes), StoreError> {
        let relative = format!("{}/{RELEASE_MANIFEST}", release_key(model, release));
        let path = self.shown(&relative);
        let bytes = self.read_document(&relative).await?.ok_or_else(|| StoreError::NotFound {
            what: release_words(model, release),
            path: path.clone(),
        })?;
        Ok((documents::release_manifest(&path, &bytes, (model, release))?, bytes))
    }

    /// The documents of the tables that a release pins, which are still those it was made with.
    pub(crate) async fn pinned_documents(
        &self,
        release: &ReleaseManifest,
    ) -> Result<Vec<(TableManifest, Bytes)>, StoreError> {
        let what = release_words(&release.model, &release.release);
        let mut documents = Vec::with_capacity(release.tables.len());
        for (table, expected) in release.tables.iter().zip(&release.table_manifest_hashes) {
            let (manifest, found, bytes) = self.table_document(table).await?;
            check_hash(&self.shown(&manifest_key(table)), &what, expected, found)?;
            documents.push((manifest, bytes));
        }
        Ok(documents)
    }

    /// Every object below `relative`, with what it is called in the store.
    pub(crate) async fn objects_below(
        &self,
        relative: &str,
    ) -> Result<Vec<(String, ObjectMeta)>, StoreError> {
        let key = self.key(relative)?;
        let list = || self.objects.list(Some(&key)).try_collect::<Vec<_>>();
        let found = match self.ask("list", relative, &|| (), list).await? {
            Answer::Is(found) => found,
            Answer::Absent | Answer::Conflict => Vec::new(),
        };
        let named = |meta: ObjectMeta| Some((self.relative(&meta.location)?.to_owned(), meta));
        Ok(found.into_iter().filter_map(named).collect())
    }

    /// Deletes an object; that there is none is as good.
    pub(crate) async fn delete(&self, relative: &str) -> Result<(), StoreError> {
        let key = self.key(relative)?;
        self.ask("delete", relative, &|| (), || self.objects.delete(&key)).await.map(|_| ())
    }

    /// Every table version by name, sorted: those whose manifest is there.
    ///
    /// # Errors
    /// What the object store says.
    pub async fn list_tables(&self) -> Result<Vec<TableVersion>, StoreError> {
        let pairs = self.list_pairs("tables", paths::MANIFEST_FILE).await?;
        Ok(pairs.into_iter().map(|(table, version)| TableVersion { table, version }).collect())
    }

    /// Every release by name, sorted: model, release. Those whose `release.json` is there.
    ///
    /// # Errors
    /// What the object store says.
    pub async fn list_releases(&self) -> Result<Vec<(Name, Name)>, StoreError> {
        self.list_pairs("releases", RELEASE_MANIFEST).await
    }

    async fn list_pairs(&self, dir: &str, document: &str) -> Result<Vec<(Name, Name)>, StoreError> {
        let objects = self.objects_below(dir).await?;
        let pair = |(relative, _): (String, _)| match relative.split('/').collect::<Vec<_>>()[..] {
            [_, first, second, last] if last == document => Some((first.parse().ok()?, second.parse().ok()?)),
            _ => None,
        };
        let mut pairs: Vec<_> = objects.into_iter().filter_map(pair).collect();
        pairs.sort_unstable();
        Ok(pairs)
    }
}

/// Where a table version lies, below the prefix.
pub(crate) fn table_key(table: &TableVersion) -> String {
    format!("tables/{}/{}", table.table, table.version)
}

pub(crate) fn manifest_key(table: &TableVersion) -> String {
    format!("{}/{}", table_key(table), paths::MANIFEST_FILE)
}

/// Where a partition file lies, below the prefix.
pub(crate) fn partition_key(
    table: &TableVersion,
    partitions: PartitionCount,
    partition: PartitionIndex,
) -> String {
    let (layout, file) = (paths::layout_dir_name(partitions), paths::partition_file_name(partition));
    format!("{}/{layout}/{file}", table_key(table))
}

/// Where a release lies, below the prefix.
pub(crate) fn release_key(model: &Name, release: &Name) -> String {
    format!("releases/{model}/{release}")
}

/// Up to half of a wait.
fn jitter(wait: Duration) -> Duration {
    // The nanoseconds of the clock are chance enough to keep nodes apart.
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wait / 2 * (clock.subsec_nanos() % 1000) / 1000
}

/// What a client says of a failure, with its causes, and without what must not be in a log: a store's own words are
/// cut down to code and message, for the rest of its answer may repeat the headers of the request, tokens among them.
fn told(error: &ObjectError) -> String {
    let first: &dyn std::error::Error = error;
    let mut text = String::new();
    for cause in std::iter::successors(Some(first), |error| error.source()) {
        let cause = cause.to_string();
        // Many repeat what their cause says.
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    if let Some(code) = element(&text, "Code") {
        let message = element(&text, "Message").unwrap_or_default();
        return format!("{code}: {message}").trim_end_matches([':', ' ']).to_owned();
    }
    // An answer that is no error document of S3 is of somebody else; the words before it say enough.
    match text.find('<') {
        Some(at) => text[..at].trim_end().to_owned(),
        None => text,
    }
}

/// What stands in the first element of this name.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stores_words_are_told_without_what_it_repeats_of_the_request() {
        let body = "Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?><Error>\
            <Code>SignatureDoesNotMatch</Code><Message>The signature does not match</Message>\
            <CanonicalRequest>x-amz-security-token:SECRET</CanonicalRequest></Error>";
        let error = ObjectError::Generic { store: "S3", source: body.into() };
        assert_eq!(told(&error), "SignatureDoesNotMatch: The signature does not match");
        let error = ObjectError::Generic { store: "S3", source: "gateway said <html>SECRET</html>".into() };
        assert_eq!(told(&error), "Generic S3 error: gateway said");
        let error = ObjectError::Generic { store: "S3", source: "connection refused".into() };
        assert_eq!(told(&error), "Generic S3 error: connection refused");
    }

    #[test]
    fn debug_shows_where_it_is_and_nothing_of_the_client() {
        let memory = Arc::new(object_store::memory::InMemory::new());
        let store = RemoteStore::over(memory, "p", "s3://b/p");
        assert_eq!(format!("{store:?}"), "RemoteStore { location: \"s3://b/p\", .. }");
        assert_eq!(store.key("tables/表/v1").unwrap().as_ref(), "p/tables/表/v1");
    }
}
