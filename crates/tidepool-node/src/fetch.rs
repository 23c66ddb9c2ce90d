//! Where partition files come from: the artifact store itself when it is a directory, or copies in the node's own
//! directory of what lies in an object store. Copies are fetched, verified before they have their name, counted
//! against the node's disk, and taken away some time after nobody has assigned them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use prometheus::{IntCounter, IntGauge, Registry};
use serde_json::{Value, json};
use tidepool_runtime::{error::chain, idle};
use tidepool_store::{ArtifactStore, Artifacts, FetchEvent, Fetched, Fetcher};
use tidepool_table::OpenError;
use tidepool_types::{TableManifest, TableVersion, paths};
use tokio::{task::spawn_blocking, time};

use crate::{
    disk::{FileIdentity, VerifiedFiles},
    error::LoadError,
    partition::{Wanted, open_listed, open_verified},
};

/// How long a node that has copies of everything waits for the store's word on them.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two collections.
const COLLECT_PAUSE: Duration = Duration::from_millis(100);

/// What the configuration says of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) parallelism: usize,
    pub(crate) bytes_per_second: Option<u64>,
    /// Bytes of copies, those that are being fetched too.
    pub(crate) disk_capacity_bytes: Option<u64>,
    /// For how long a copy stays that is not assigned any more.
    pub(crate) collect_after: Duration,
}

/// What is counted.
#[derive(Clone, Debug)]
struct Counts {
    bytes: IntCounter,
    resumed_bytes: IntCounter,
    retries: IntCounter,
    copies_bytes: IntGauge,
}

impl Counts {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let name = |name: &str| format!("tidepool_node_{name}");
        let counts = Self {
            bytes: IntCounter::new(name("fetched_bytes_total"), "Bytes that came from the object store")?,
            resumed_bytes: IntCounter::new(
                name("fetch_resumed_bytes_total"),
                "Bytes that fetches found already there, from before they were broken off",
            )?,
            retries: IntCounter::new(
                name("fetch_retries_total"),
                "Requests for ranges that were made again",
            )?,
            copies_bytes: IntGauge::new(
                name("copies_bytes"),
                "Bytes on the node's disk of what lies in the object store",
            )?,
        };
        registry.register(Box::new(counts.bytes.clone()))?;
        registry.register(Box::new(counts.resumed_bytes.clone()))?;
        registry.register(Box::new(counts.retries.clone()))?;
        registry.register(Box::new(counts.copies_bytes.clone()))?;
        Ok(counts)
    }

    fn note(&self, event: FetchEvent) {
        match event {
            FetchEvent::Came(bytes) => self.bytes.inc_by(bytes),
            FetchEvent::Resumed(bytes) => self.resumed_bytes.inc_by(bytes),
            FetchEvent::Retried => self.retries.inc(),
        }
    }
}

/// The artifact store, as the loader sees it.
#[derive(Debug)]
pub(crate) struct Source {
    artifacts: Artifacts,
    limits: Limits,
    counts: Counts,
    /// Objects that were fetched and are not what they should be, by the path of their copies: which content of the
    /// object it was, and what is wrong with it. Such content is not fetched again.
    bad: Mutex<BTreeMap<PathBuf, (String, LoadError)>>,
    /// Copies that are not assigned, and since when.
    unassigned: Mutex<BTreeMap<PathBuf, Instant>>,
}

/// What the loader has to know before it plans.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Of each partition that is wanted: the bytes of its file, when anybody knows.
    pub(crate) sizes: Vec<Option<u64>>,
    /// Of each: bytes that its copy still needs on the disk.
    pub(crate) to_come: Vec<u64>,
    /// Bytes that copies take on the disk, and how many they may take.
    pub(crate) disk: Option<(u64, u64)>,
}

impl Source {
    /// # Errors
    /// A metric that cannot be registered.
    pub(crate) fn new(
        artifacts: Artifacts,
        limits: Limits,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let counts = Counts::new(registry)?;
        let noted = counts.clone();
        let fetcher = Fetcher::new(limits.parallelism, limits.bytes_per_second);
        let artifacts = artifacts.with_fetcher(fetcher.noting(move |event| noted.note(event)));
        let (bad, unassigned) = (Mutex::default(), Mutex::default());
        Ok(Self { artifacts, limits, counts, bad, unassigned })
    }

    /// The files: the store, or the copies.
    pub(crate) fn files(&self) -> &ArtifactStore {
        self.artifacts.files()
    }

    /// What `/status` shows of it.
    pub(crate) fn status(&self) -> Value {
        let Some((remote, _)) = self.artifacts.remote() else {
            return json!({ "location": self.files().root().to_string_lossy() });
        };
        json!({
            "location": remote.location(),
            "copies": self.files().root().to_string_lossy(),
            "copies_bytes": self.counts.copies_bytes.get(),
            "disk_capacity_bytes": self.limits.disk_capacity_bytes,
            "fetched_bytes": self.counts.bytes.get(),
            "fetch_retries": self.counts.retries.get(),
        })
    }

    /// Looks how large what is wanted is, and what there is of it. Makes room on a disk that would be too full, by
    /// taking away copies that are neither wanted nor `served`.
    pub(crate) async fn survey(&self, wanted: &[Wanted], served: BTreeSet<PathBuf>) -> Survey {
        let mut manifests: BTreeMap<TableVersion, TableManifest> = BTreeMap::new();
        if self.artifacts.remote().is_some() {
            let mut missing: BTreeMap<TableVersion, Vec<Wanted>> = BTreeMap::new();
            for wanted in wanted.iter().filter(|wanted| !served.contains(&wanted.path)) {
                missing.entry(wanted.schema.table_version.clone()).or_default().push(wanted.clone());
            }
            let ask = |(table, wanted)| async move { Some((self.manifest(&table, wanted).await?, table)) };
            let answers = join_all(missing.into_iter().map(ask)).await;
            manifests.extend(answers.into_iter().flatten().map(|(manifest, table)| (table, manifest)));
        }
        let listed = |wanted: &Wanted| {
            let manifest = manifests.get(&wanted.schema.table_version)?;
            let entry = manifest.files.iter().find(|file| file.partition == wanted.partition)?;
            Some(entry.file_bytes)
        };
        let listed: Vec<_> = wanted.iter().map(listed).collect();
        let paths: Vec<_> = wanted.iter().map(|wanted| wanted.path.clone()).collect();
        let is_remote = self.artifacts.remote().is_some();
        let (root, capacity) = (self.files().root().to_owned(), self.limits.disk_capacity_bytes);
        let looked =
            spawn_blocking(move || look(&paths, listed, is_remote.then_some((root, capacity)), &served));
        let (survey, used) = looked.await.unwrap_or_default();
        self.counts.copies_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
        survey
    }

    /// The manifest of a table version: as the store has it, or, when that does not answer, as it was copied. What
    /// cannot be read is said by whoever then tries to load it.
    async fn manifest(&self, table: &TableVersion, wanted: Vec<Wanted>) -> Option<TableManifest> {
        let (files, of) = (self.files().clone(), table.clone());
        let copied = spawn_blocking(move || {
            let (manifest, _) = files.table_manifest(&of).ok()?;
            let is_there = |wanted: &Wanted| {
                let entry = manifest.files.iter().find(|file| file.partition == wanted.partition);
                let length = fs::metadata(&wanted.path).ok().map(|metadata| metadata.len());
                length.is_some() && length == entry.map(|entry| entry.file_bytes)
            };
            wanted.iter().all(is_there).then_some(manifest)
        });
        let asked = self.artifacts.table_manifest(table);
        let answer = match copied.await.ok().flatten() {
            // There is nothing to fetch. Whether the copies are still of what has this name is worth a short wait.
            Some(copied) => match time::timeout(ASK_TIMEOUT, asked).await {
                Ok(answer) => answer.map(|(manifest, _)| manifest),
                Err(_) => Ok(copied),
            },
            None => asked.await.map(|(manifest, _)| manifest),
        };
        answer.ok()
    }

    /// Sees to it that the file of a partition is there, and that it is the one that the version's manifest lists.
    ///
    /// # Errors
    /// [`LoadError`] names the object. What has come of it by then is not fetched again.
    pub(crate) async fn bring(
        &self,
        wanted: &Wanted,
        verified: &Arc<VerifiedFiles>,
    ) -> Result<(), LoadError> {
        let Some((remote, fetcher)) = self.artifacts.remote() else { return Ok(()) };
        let (files, table) = (self.files().clone(), wanted.schema.table_version.clone());
        let copied = spawn_blocking(move || files.table_manifest(&table)).await;
        let manifest = match copied.map_err(|e| LoadError::Internal(e.to_string()))? {
            Ok((manifest, _)) => manifest,
            Err(_) => self.artifacts.table_manifest(&wanted.schema.table_version).await?.0,
        };
        let is_current = {
            let (wanted, manifest) = (wanted.clone(), manifest.clone());
            spawn_blocking(move || open_listed(&wanted.path, &wanted, &manifest).is_ok()).await
        };
        if is_current.unwrap_or(false) {
            return Ok(());
        }
        let known_bad = self.lock_bad().get(&wanted.path).map(|(identity, _)| identity.clone());
        if let Some(known_bad) = known_bad {
            if remote.partition_identity(&manifest, wanted.partition).await? == known_bad
                && let Some((_, error)) = self.lock_bad().get(&wanted.path)
            {
                return Err(error.again());
            }
            self.lock_bad().remove(&wanted.path);
        }
        let fetched = remote.fetch_partition(&manifest, wanted.partition, &wanted.path, fetcher).await?;
        let identity = fetched.identity().to_owned();
        let (of, verified) = (wanted.clone(), verified.clone());
        let taken = idle::run(move || take(fetched, &of, &manifest, &verified)).await;
        let taken = taken.unwrap_or_else(|e| Err(LoadError::Internal(chain(&e))));
        if let Err(error @ LoadError::BadObject { .. }) = &taken {
            self.lock_bad().insert(wanted.path.clone(), (identity, error.again()));
        }
        taken
    }

    /// Takes a copy away that turned out not to be what it should be, so that the next try fetches it anew.
    pub(crate) async fn distrust(&self, wanted: &Wanted, error: &LoadError) {
        let is_damage = match error {
            LoadError::Open(error) => !matches!(error, OpenError::Io { .. }),
            LoadError::Verify(_) | LoadError::NotListed { .. } | LoadError::Other { .. } => true,
            _ => false,
        };
        if self.artifacts.remote().is_some() && is_damage {
            let path = wanted.path.clone();
            // A panic there would be in the log already.
            let _ = spawn_blocking(move || remove(&path)).await;
        }
    }

    fn lock_bad(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, (String, LoadError)>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes copies away that have not been assigned for long enough.
    pub(crate) async fn collect(&self, wanted: &[Wanted]) {
        if self.artifacts.remote().is_none() {
            return;
        }
        let wanted: BTreeSet<PathBuf> = wanted.iter().map(|wanted| wanted.path.clone()).collect();
        let (root, keep) = (self.files().root().to_owned(), self.limits.collect_after);
        let known = std::mem::take(&mut *self.unassigned.lock().unwrap_or_else(PoisonError::into_inner));
        let collected = spawn_blocking(move || collect(&root, &wanted, known, keep)).await;
        match collected {
            Ok(Ok((unassigned, used))) => {
                *self.unassigned.lock().unwrap_or_else(PoisonError::into_inner) = unassigned;
                self.counts.copies_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
            }
            Ok(Err(error)) => tracing::warn!(%error, "copies that are not assigned could not be taken away"),
            Err(error) => tracing::error!(%error, "copies that are not assigned could not be taken away"),
        }
    }

    /// Waits until a copy has not been assigned for long enough.
    pub(crate) async fn collection_due(&self) {
        let first = self.unassigned.lock().unwrap_or_else(PoisonError::into_inner).values().min().copied();
        match first {
            // With a pause, for what could not be removed would be due at once again.
            Some(since) => {
                let due = (since + self.limits.collect_after).max(Instant::now() + COLLECT_PAUSE);
                time::sleep_until(due.into()).await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Looks into what has come, and gives it its name if it is what it should be. Blocks.
fn take(
    fetched: Fetched,
    wanted: &Wanted,
    manifest: &TableManifest,
    verified: &VerifiedFiles,
) -> Result<(), LoadError> {
    let object = fetched.object().to_owned();
    let footer_crc32c = match open_verified(fetched.path(), wanted, manifest) {
        Ok(file) => file.meta().footer_crc32c,
        Err(error) => {
            fetched.discard()?;
            return Err(LoadError::BadObject { object, problem: chain(&error) });
        }
    };
    fetched.keep()?;
    let path = &wanted.path;
    let identity = FileIdentity::of(path, footer_crc32c)
        .map_err(|source| LoadError::Io { path: path.clone(), source })?;
    verified.add(path, identity);
    Ok(())
}

/// A file below the copies, and what it takes on the disk.
struct Copy {
    path: PathBuf,
    disk_bytes: u64,
    modified: std::time::SystemTime,
}

/// Every file below `dir`.
fn copies(dir: &Path, found: &mut Vec<Copy>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let metadata = match fs::symlink_metadata(&path) {
            // Renamed or removed by who fetches it.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if metadata.is_dir() {
            copies(&path, found)?;
        } else {
            let disk_bytes = metadata.blocks() * 512;
            found.push(Copy { path, disk_bytes, modified: metadata.modified()? });
        }
    }
    Ok(())
}

/// The partition file that a copy is, or becomes: that of a fetch, by its hidden names.
fn partition_of(copy: &Path) -> Option<PathBuf> {
    let name = copy.file_name()?.to_str()?;
    let hidden = name.strip_prefix('.').and_then(|n| n.strip_suffix(".fetch").or(n.strip_suffix(".ranges")));
    let name = hidden.unwrap_or(name);
    name.ends_with(".tide").then(|| copy.with_file_name(name))
}

/// Sizes of what is wanted, and, of copies, what they take and still need.
fn look(
    paths: &[PathBuf],
    listed: Vec<Option<u64>>,
    copies_in: Option<(PathBuf, Option<u64>)>,
    served: &BTreeSet<PathBuf>,
) -> (Survey, u64) {
    let length = |path: &PathBuf| fs::metadata(path).ok().map(|metadata| metadata.len());
    let Some((root, capacity)) = copies_in else {
        let sizes: Vec<_> = paths.iter().map(length).collect();
        return (Survey { to_come: vec![0; sizes.len()], sizes, disk: None }, 0);
    };
    let mut found = Vec::new();
    if let Err(error) = copies(&root, &mut found) {
        tracing::warn!(path = %root.display(), %error, "could not be looked through; its bytes are not counted");
    }
    let mut taken: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for copy in &found {
        if let Some(partition) = partition_of(&copy.path) {
            *taken.entry(partition).or_default() += copy.disk_bytes;
        }
    }
    let mut sizes = Vec::with_capacity(paths.len());
    let mut to_come = Vec::with_capacity(paths.len());
    for (path, listed) in paths.iter().zip(listed) {
        let there = length(path);
        let size = listed.or(there);
        let needs = if there.is_some() && there == size { 0 } else { size.unwrap_or(0) };
        sizes.push(size);
        to_come.push(needs.saturating_sub(taken.get(path).copied().unwrap_or(0)));
    }
    let mut used: u64 = found.iter().map(|copy| copy.disk_bytes).sum();
    if let Some(capacity) = capacity {
        let needed: u64 = to_come.iter().sum();
        let wanted: BTreeSet<&PathBuf> = paths.iter().collect();
        let stays = |copy: &Copy| match partition_of(&copy.path) {
            Some(partition) => wanted.contains(&partition) || served.contains(&partition),
            None => true,
        };
        found.retain(|copy| !stays(copy));
        // Those that came first go first.
        found.sort_by_key(|copy| copy.modified);
        for copy in found {
            if used.saturating_add(needed) <= capacity {
                break;
            }
            if remove(&copy.path) {
                tracing::info!(path = %copy.path.display(), "a copy that is not assigned made room for others");
                used = used.saturating_sub(copy.disk_bytes);
            }
        }
    }
    (Survey { sizes, to_come, disk: capacity.map(|capacity| (used, capacity)) }, used)
}

/// Removes a file, and says whether it is gone.
fn remove(path: &Path) -> bool {
    match fs::remove_file(path) {
        Ok(()) => true,
        Err(error) => {
            let gone = error.kind() == ErrorKind::NotFound;
            if !gone {
                tracing::warn!(path = %path.display(), %error, "could not be removed");
            }
            gone
        }
    }
}

/// Takes away what has not been wanted for `keep`, and gives what is not wanted since when, and what all take now.
fn collect(
    root: &Path,
    wanted: &BTreeSet<PathBuf>,
    known: BTreeMap<PathBuf, Instant>,
    keep: Duration,
) -> io::Result<(BTreeMap<PathBuf, Instant>, u64)> {
    let mut found = Vec::new();
    copies(&root.join("tables"), &mut found)?;
    let (now, mut unassigned, mut used) = (Instant::now(), BTreeMap::new(), 0);
    let version_of = |partition: &Path| partition.parent().and_then(Path::parent).map(Path::to_owned);
    let mut versions: BTreeSet<PathBuf> = wanted.iter().filter_map(|path| version_of(path)).collect();
    let (partitions, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|copy| partition_of(&copy.path).is_some());
    for copy in partitions {
        let Some(partition) = partition_of(&copy.path) else { continue };
        if !wanted.contains(&partition) {
            let mut since = known.get(&copy.path).copied().unwrap_or(now);
            if now.duration_since(since) >= keep {
                if remove(&copy.path) {
                    tracing::info!(path = %copy.path.display(), "a copy that is not assigned any more was taken away");
                    continue;
                }
                // It is tried again, after as long.
                since = now;
            }
            unassigned.insert(copy.path, since);
        }
        used += copy.disk_bytes;
        versions.extend(version_of(&partition));
    }
    for copy in others {
        let of_nothing = copy.path.file_name().is_some_and(|name| name == paths::MANIFEST_FILE)
            && copy.path.parent().is_some_and(|version| !versions.contains(version));
        if of_nothing && remove(&copy.path) {
            // Only those that are empty by now go.
            for dir in copy.path.ancestors().skip(1).take_while(|dir| *dir != root) {
                let layouts = fs::read_dir(dir).into_iter().flatten().flatten();
                layouts.for_each(|layout| drop(fs::remove_dir(layout.path())));
                if fs::remove_dir(dir).is_err() {
                    break;
                }
            }
            continue;
        }
        used += copy.disk_bytes;
    }
    Ok((unassigned, used))
}

impl LoadError {
    /// The same once more, for who asks again.
    fn again(&self) -> Self {
        match self {
            Self::BadObject { object, problem } => {
                Self::BadObject { object: object.clone(), problem: problem.clone() }
            }
            other => Self::Internal(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
