//! Follows the assignment: opens and verifies what is missing, serves it as soon as it is in, lets go of
//! what is no longer assigned once all of the new is settled, and says how far each partition is.
//!
//! Waiting for the disk happens on blocking threads, verifying at idle priority; the snapshot is swapped from
//! one place only, here.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::{StreamExt, stream};
use tidepool_cluster::{Assignment, PartitionState, PartitionStatus};
use tidepool_kernels::{Isa, RowKernel};
use tidepool_runtime::{error::chain, health::Health, idle};
use tidepool_table::{HUGE_WORTH_BYTES, MemoryUse, PartitionFile, Smaps};
use tidepool_types::{Name, TableSchema, TableVersion};
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinSet, spawn_blocking},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    budget::{Budgets, MemoryGauges},
    disk::{DataDir, LastAssignment, VerifiedFiles},
    error::LoadError,
    fetch::{Source, Survey},
    metrics::Metrics,
    partition::{Wanted, load, wanted_of},
    partitions::Snapshot,
    quota::TenantQuotas,
    residency::{Bringing, Policy, bring, log},
    state::{Held, NodeState, WarmUp, is_news},
};

/// What the loader works with.
pub(crate) struct Loader {
    pub(crate) source: Arc<Source>,
    pub(crate) verified: Arc<VerifiedFiles>,
    pub(crate) last: Arc<LastAssignment>,
    pub(crate) quotas: TenantQuotas,
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) state: watch::Sender<NodeState>,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    pub(crate) isa: Isa,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) memory: MemoryGauges,
    /// Kept while anything is loaded into it.
    pub(crate) _data_dir: DataDir,
    pub(crate) parallelism: usize,
    pub(crate) policy: Policy,
    /// Who brings a partition into memory: one after the other.
    pub(crate) one_at_a_time: Arc<Semaphore>,
    pub(crate) retry: Duration,
    pub(crate) shutdown: CancellationToken,
}

/// One file to load: its place in the state's list, and what it should be.
struct Job {
    at: usize,
    wanted: Wanted,
    warm_up: Arc<WarmUp>,
    version_bytes: u64,
}

/// What is to be done about an assignment.
struct Plan {
    jobs: Vec<Job>,
    /// Served from their maps, of versions that have become large enough to miss huge pages.
    grown: Vec<Unmeasured>,
    /// Whether something did not fit beside what is served.
    refused: bool,
}

/// A partition that is served, and of which it is to be read what memory it takes.
struct Unmeasured {
    wanted: Wanted,
    file: Arc<PartitionFile>,
    version_bytes: u64,
    /// Whether a copy is to be made if it turns out to miss huge pages.
    may_copy: bool,
}

/// A partition that was served from its map and has been brought to where it should lie meanwhile.
struct Brought {
    wanted: Wanted,
    file: Arc<PartitionFile>,
    version_bytes: u64,
    /// Whether it was to be copied and not just warmed.
    to_copy: bool,
    /// To be served instead; `None` when `file` stays.
    copy: Result<Option<Arc<PartitionFile>>, LoadError>,
}

/// What goes on while partitions are served, from one assignment to the next.
#[derive(Default)]
struct Background {
    tasks: JoinSet<Brought>,
    unmeasured: Vec<Unmeasured>,
    /// Not before this is memory measured while there is other work.
    measure_after: Option<Instant>,
    /// Whether it was said that memory cannot be measured.
    told: bool,
    /// The largest partition of which a copy is being made, or waits for its turn.
    copying_bytes: u64,
}

impl Background {
    fn is_due(&self) -> bool {
        self.measure_after.is_none_or(|after| Instant::now() >= after)
    }
}

/// No longer is memory measured at a time: what is done at idle priority can take long on a machine without a free core.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(2);
/// Reading what memory is taken walks all of the process's pages: of the time, at most one part in so many.
const MEASURE_SHARE: u32 = 50;

impl Loader {
    /// Works on the newest assignment until the node stops.
    pub(crate) async fn run(self, mut assignments: watch::Receiver<Option<Arc<Assignment>>>) {
        self.publish();
        let mut background = Background::default();
        while let Some(assignment) = self.next_assignment(&mut assignments).await {
            self.quotas.apply(&assignment.quotas);
            self.save(&assignment).await;
            // Until another comes. What fails is tried again after a while: a file may have been replaced.
            while self.work(&assignment, &mut assignments, &mut background).await.is_continue() {}
        }
    }

    /// The newest assignment; `None` when the node stops.
    async fn next_assignment(
        &self,
        assignments: &mut watch::Receiver<Option<Arc<Assignment>>>,
    ) -> Option<Arc<Assignment>> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            newest = assignments.wait_for(Option::is_some) => newest.ok()?.clone(),
        }
    }

    async fn save(&self, assignment: &Arc<Assignment>) {
        let (last, assignment) = (self.last.clone(), assignment.clone());
        let saved = spawn_blocking(move || last.save(&assignment)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(%error, "the assignment could not be saved; a restart would not know it");
        }
    }

    /// Loads what is missing of `assignment`. Breaks when there is another one, or the node stops.
    async fn work(
        &self,
        assignment: &Arc<Assignment>,
        assignments: &mut watch::Receiver<Option<Arc<Assignment>>>,
        background: &mut Background,
    ) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        if background.tasks.is_empty() {
            background.copying_bytes = 0;
        }
        let Plan { jobs, grown, refused } = self.plan(assignment, background.copying_bytes).await;
        background.unmeasured.extend(grown);
        let mut loads = stream::iter(jobs)
            .map(|job| async move {
                let loaded = match self.load(&job.wanted).await {
                    Ok(file) if !self.policy.in_background() => self.bring_in(&job, Arc::new(file)).await,
                    other => other.map(Arc::new),
                };
                (job, loaded)
            })
            .buffer_unordered(self.parallelism);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Break(()),
                // What is being loaded goes on in the background; that it was verified is remembered.
                _ = assignments.changed() => return Break(()),
                Some(Ok(brought)) = background.tasks.join_next() => self.swap(brought, background),
                loaded = loads.next() => match loaded {
                    Some((job, loaded)) => {
                        let file = loaded.as_ref().ok().cloned();
                        self.settle(&job, loaded);
                        self.after(job, file, background);
                    }
                    None => break,
                },
            }
            if background.is_due() {
                self.measure(background).await;
            }
        }
        let gone = self.let_go(assignment);
        let wanted = wanted_of(assignment, self.source.files());
        self.source.collect(&wanted).await;
        self.measure(background).await;
        if refused && gone > 0 {
            // There is more room now.
            return Continue(());
        }
        let failed = self.state.borrow().counts().failed > 0;
        let again = async {
            if failed {
                time::sleep(self.retry).await;
            } else {
                std::future::pending().await
            }
        };
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Break(()),
                _ = assignments.changed() => return Break(()),
                Some(Ok(brought)) = background.tasks.join_next() => self.swap(brought, background),
                () = &mut again => return Continue(()),
                () = self.source.collection_due() => self.source.collect(&wanted).await,
            }
            if background.is_due() || background.tasks.is_empty() {
                self.measure(background).await;
            }
        }
    }

    /// Brings the file of a partition here if it is elsewhere, and opens and verifies it.
    async fn load(&self, wanted: &Wanted) -> Result<PartitionFile, LoadError> {
        self.source.bring(wanted, &self.verified).await?;
        let (of, store, verified) = (wanted.clone(), self.source.files().clone(), self.verified.clone());
        let loaded = idle::run(move || load(&of, &store, &verified)).await;
        let loaded = loaded.unwrap_or_else(|e| Err(LoadError::Internal(chain(&e))));
        if let Err(error) = &loaded {
            self.source.distrust(wanted, error).await;
        }
        loaded
    }

    /// A loaded partition on its way to where it should lie.
    fn bringing(
        &self,
        job: &Job,
        file: Arc<PartitionFile>,
        is_wanted: Box<dyn Fn() -> bool + Send>,
    ) -> Bringing {
        job.warm_up.note(0, file.lookup_bytes());
        let (state, metrics) = (self.state.subscribe(), self.metrics.clone());
        let noted = Box::new(move || metrics.show_warm_up(&state.borrow()));
        Bringing { file, warm_up: Some(job.warm_up.clone()), to_copy: false, noted, is_wanted }
    }

    /// Brings a partition to where it should lie before it is served.
    async fn bring_in(&self, job: &Job, file: Arc<PartitionFile>) -> Result<Arc<PartitionFile>, LoadError> {
        // Dropped with this future when another assignment comes.
        let left = CancellationToken::new();
        let _guard = left.clone().drop_guard();
        let bringing = self.bringing(job, file.clone(), Box::new(move || !left.is_cancelled()));
        let copy = bring(self.policy.clone(), self.one_at_a_time.clone(), bringing).await?;
        if let Some(copy) = &copy {
            release(copy.clone());
        }
        Ok(copy.unwrap_or(file))
    }

    /// What remains to be done of a partition that has been loaded and is served.
    fn after(&self, job: Job, file: Option<Arc<PartitionFile>>, background: &mut Background) {
        let Some(file) = file else { return };
        if self.policy.in_background() {
            let bringing = self.bringing(&job, file.clone(), self.is_served(&job.wanted, &file));
            background.tasks.spawn(self.bring_later(job.wanted, job.version_bytes, bringing));
        } else {
            let (wanted, version_bytes) = (job.wanted, job.version_bytes);
            background.unmeasured.push(Unmeasured { wanted, file, version_bytes, may_copy: false });
        }
    }

    /// Asks whether a partition is still served, and from this file.
    fn is_served(&self, wanted: &Wanted, file: &Arc<PartitionFile>) -> Box<dyn Fn() -> bool + Send> {
        let (snapshot, wanted, file) = (self.snapshot.clone(), wanted.clone(), file.clone());
        Box::new(move || serves(&snapshot.load(), &wanted, &file))
    }

    /// Brings a partition to where it should lie while it is served.
    fn bring_later(
        &self,
        wanted: Wanted,
        version_bytes: u64,
        bringing: Bringing,
    ) -> impl Future<Output = Brought> + use<> {
        let (file, to_copy) = (bringing.file.clone(), bringing.to_copy);
        let bringing = bring(self.policy.clone(), self.one_at_a_time.clone(), bringing);
        async move { Brought { wanted, file, version_bytes, to_copy, copy: bringing.await } }
    }

    /// Serves a copy in place of what it is a copy of, if that is still served.
    fn swap(&self, brought: Brought, background: &mut Background) {
        let Brought { wanted, mut file, version_bytes, to_copy, copy } = brought;
        let old = self.snapshot.load();
        if !serves(&old, &wanted, &file) {
            return;
        }
        match copy {
            Ok(Some(copy)) => {
                let mut snapshot = Snapshot::clone(&old);
                self.insert(&mut snapshot, &wanted, copy.clone());
                self.snapshot.store(Arc::new(snapshot));
                release(copy.clone());
                file = copy;
            }
            Ok(None) => {}
            Err(error) if to_copy => {
                tracing::warn!(
                    path = %file.path().display(), error = chain(&error),
                    "a partition stays in its map, on small pages, which makes lookups slower"
                );
                return;
            }
            Err(error) => {
                tracing::error!(
                    path = %file.path().display(), error = chain(&error),
                    "a partition could not be brought into memory and is served as it is"
                );
                return;
            }
        }
        background.unmeasured.push(Unmeasured { wanted, file, version_bytes, may_copy: !to_copy });
    }

    /// Notes what memory partitions take, of all at once, and has those copied that miss huge pages.
    async fn measure(&self, background: &mut Background) {
        if background.unmeasured.is_empty() {
            return;
        }
        let unmeasured = std::mem::take(&mut background.unmeasured);
        let begun = Instant::now();
        // It walks the page tables of all that is mapped: some 20 ms a gigabyte of small pages.
        let smaps = time::timeout(MEASURE_TIMEOUT, idle::run(Smaps::read)).await;
        let end = Instant::now();
        let Ok(smaps) = smaps else {
            // Nothing is idle: assignments do not wait for what is only to be known.
            background.unmeasured.extend(unmeasured);
            background.measure_after = Some(end + MEASURE_TIMEOUT * MEASURE_SHARE);
            return;
        };
        let smaps = smaps.unwrap_or_else(|error| Err(io::Error::other(error)));
        background.measure_after = Some(end + (end - begun) * MEASURE_SHARE);
        let smaps = match smaps {
            Ok(smaps) => smaps,
            Err(error) => {
                if !std::mem::replace(&mut background.told, true) {
                    tracing::warn!(
                        %error, residency = %self.policy.residency,
                        "/proc/self/smaps cannot be read: it is not known what lies in memory and on huge pages, \
                         and residency auto copies nothing; if lookups are slow, set residency to copied"
                    );
                }
                return;
            }
        };
        let snapshot = self.snapshot.load_full();
        for Unmeasured { wanted, file, version_bytes, may_copy } in unmeasured {
            if !serves(&snapshot, &wanted, &file) {
                continue;
            }
            let memory = file.memory_use(&smaps);
            self.note(&wanted, memory);
            let copy = may_copy && self.policy.in_background() && !file.is_copied();
            if copy && memory.lacks_huge_pages(version_bytes) && self.may_copy(&snapshot, &file) {
                background.copying_bytes = background.copying_bytes.max(file.lookup_bytes());
                let (is_wanted, noted) = (self.is_served(&wanted, &file), Box::new(|| ()));
                let bringing = Bringing { file, warm_up: None, to_copy: true, noted, is_wanted };
                background.tasks.spawn(self.bring_later(wanted, version_bytes, bringing));
            } else {
                log(&file, version_bytes, memory);
            }
        }
        self.publish();
    }

    /// Whether there is room for a copy beside the map that is served.
    fn may_copy(&self, served: &Snapshot, file: &PartitionFile) -> bool {
        let checked = self.budgets.check_copy(served, file);
        if let Err(error) = &checked {
            tracing::warn!(%error, "a partition stays in its map, on small pages, which makes lookups slower");
        }
        checked.is_ok()
    }

    /// Notes what memory a partition takes.
    fn note(&self, wanted: &Wanted, memory: MemoryUse) {
        self.state.send_if_modified(|all| {
            let here = |held: &&mut Held| {
                held.status.table_version == wanted.schema.table_version
                    && held.status.partitions == wanted.schema.partitions.get()
                    && held.status.partition == wanted.partition
            };
            if let Some(held) = all.partitions.iter_mut().find(here) {
                held.memory = memory;
            }
            // It is no news for a report.
            false
        });
    }

    /// Decides what is kept, what is loaded and what does not fit, and shows it.
    async fn plan(&self, assignment: &Arc<Assignment>, copying_bytes: u64) -> Plan {
        let wanted = wanted_of(assignment, self.source.files());
        let served = self.snapshot.load().partitions().map(|file| file.path().to_owned()).collect();
        let Survey { sizes, to_come, disk } = self.source.survey(&wanted, served).await;

        let old = self.state.borrow().clone();
        let again = old.assigned && old.epoch == assignment.epoch;
        let mut snapshot = Snapshot::clone(&self.snapshot.load());
        snapshot.epoch = assignment.epoch;
        let held = |w: &Wanted| snapshot.partition(&w.schema, w.partition);
        let stay: u64 = wanted.iter().filter_map(|w| Some(held(w)?.file_bytes())).sum();
        let mut tally = self.budgets.tally(&snapshot, stay, disk, copying_bytes);
        let versions = version_bytes(&wanted, &sizes);
        let mut plan = Plan { jobs: Vec::new(), grown: Vec::new(), refused: false };
        let mut partitions = Vec::new();
        for (at, wanted) in wanted.into_iter().enumerate() {
            let mut status = PartitionStatus {
                table_version: wanted.schema.table_version.clone(),
                partitions: wanted.schema.partitions.get(),
                partition: wanted.partition,
                state: PartitionState::Loading,
                file_bytes: 0,
            };
            let (mut rows, mut memory) = (0, MemoryUse::default());
            let needed = sizes.get(at).copied().flatten().unwrap_or(0);
            let version_bytes = versions.get(&version_of(&wanted)).copied().unwrap_or(0);
            let before = old.partitions.iter().find(|old| same_place(&old.status, &status));
            let mut warm_up = WarmUp::of(0);
            if let Some(file) = held(&wanted) {
                (status.state, status.file_bytes) = (PartitionState::Ready, file.file_bytes());
                rows = file.meta().rows;
                if let Some(before) = before {
                    (memory, warm_up) = (before.memory, before.warm_up.clone());
                    let grown = before.version_bytes < HUGE_WORTH_BYTES && version_bytes >= HUGE_WORTH_BYTES;
                    if grown && self.policy.in_background() && !file.is_copied() {
                        let file = file.clone();
                        plan.grown.push(Unmeasured { wanted, file, version_bytes, may_copy: true });
                    }
                }
            } else {
                let to_come = to_come.get(at).copied().unwrap_or(0);
                match tally.take(&wanted, needed, to_come) {
                    Err(refused) => {
                        plan.refused = true;
                        if !again {
                            tracing::error!("{refused}");
                        }
                        status.state = PartitionState::Failed(refused.to_string());
                    }
                    Ok(()) => {
                        // A second try does not hide what was wrong at the first.
                        if let Some(Held { status: before, .. }) = before
                            && again
                        {
                            status.state = before.state.clone();
                        }
                        warm_up = WarmUp::of(needed);
                        plan.jobs.push(Job { at, wanted, warm_up: warm_up.clone(), version_bytes });
                    }
                }
            }
            partitions.push(Held { status, rows, memory, warm_up, version_bytes });
        }
        self.snapshot.store(Arc::new(snapshot));
        if !again {
            let (epoch, loading) = (assignment.epoch, plan.jobs.len());
            tracing::info!(%epoch, partitions = partitions.len(), loading, "working on an assignment");
        }
        let served = old.served || (old.is_whole() && !old.partitions.is_empty());
        let (epoch, memory) = (assignment.epoch, old.memory);
        self.state.send_replace(NodeState { epoch, assigned: true, served, partitions, memory });
        self.publish();
        plan
    }

    /// Takes a loaded partition in, or notes why there is none.
    fn settle(&self, job: &Job, loaded: Result<Arc<PartitionFile>, LoadError>) {
        let Job { at, wanted, .. } = job;
        let (state, file_bytes, rows) = match loaded {
            Ok(file) => {
                let (file_bytes, rows) = (file.file_bytes(), file.meta().rows);
                let mut snapshot = Snapshot::clone(&self.snapshot.load());
                self.insert(&mut snapshot, wanted, file);
                self.snapshot.store(Arc::new(snapshot));
                (PartitionState::Ready, file_bytes, rows)
            }
            Err(error) => {
                let problem = chain(&error);
                if self.state.borrow().partitions.get(*at).is_none_or(|p| is_news(&problem, &p.status.state))
                {
                    tracing::error!(
                        table = %wanted.schema.table_version, partition = %wanted.partition,
                        error = problem, "a partition could not be loaded"
                    );
                }
                job.warm_up.note(0, 0);
                (PartitionState::Failed(problem), 0, 0)
            }
        };
        self.state.send_modify(|all| {
            if let Some(held) = all.partitions.get_mut(*at) {
                (held.status.state, held.status.file_bytes) = (state, file_bytes);
                held.rows = rows;
            }
        });
        self.publish();
    }

    /// Serves from now on nothing but what is assigned. Gives how many partitions it has let go of.
    fn let_go(&self, assignment: &Assignment) -> usize {
        let old = self.snapshot.load();
        let mut snapshot = Snapshot::at(assignment.epoch);
        for wanted in wanted_of(assignment, self.source.files()) {
            if let Some(file) = old.partition(&wanted.schema, wanted.partition) {
                self.insert(&mut snapshot, &wanted, file.clone());
            }
        }
        let gone = old.partitions().count() - snapshot.partitions().count();
        if gone > 0 {
            tracing::info!(epoch = %assignment.epoch, partitions = gone, "let go of what is no longer assigned");
        }
        let left: Vec<_> = old.tables().filter(|t| snapshot.tables().all(|kept| kept != *t)).collect();
        self.metrics.forget(&left);
        self.snapshot.store(Arc::new(snapshot));
        self.publish();
        gone
    }

    fn insert(&self, snapshot: &mut Snapshot, wanted: &Wanted, file: Arc<PartitionFile>) {
        let kernel = self.kernel(&wanted.schema);
        let series = |table: &Name| self.metrics.table(table);
        snapshot.insert(&wanted.schema, kernel, series, (wanted.partition, file));
    }

    fn kernel(&self, schema: &TableSchema) -> RowKernel {
        RowKernel::with_isa(schema.format, schema.dim, self.isa)
            .unwrap_or_else(|| RowKernel::new(schema.format, schema.dim))
    }

    /// Brings readiness and gauges up to date.
    fn publish(&self) {
        let served = self.snapshot.load();
        let memory = self.budgets.host_memory(&served);
        self.state.send_if_modified(|state| {
            state.memory = memory;
            // The next report says it.
            false
        });
        let state = self.state.borrow();
        if !self.shutdown.is_cancelled() {
            match state.readiness() {
                Ok(()) => self.health.set_ready(true, ""),
                Err(why) => self.health.set_ready(false, why),
            }
        }
        let mapped = served.partitions().map(|file| file.file_bytes()).sum();
        self.metrics.show(&state, mapped);
        self.memory.show(&self.budgets, &served, &state);
    }
}

/// Whether this very file is what a partition is served from.
fn serves(snapshot: &Snapshot, wanted: &Wanted, file: &Arc<PartitionFile>) -> bool {
    snapshot.partition(&wanted.schema, wanted.partition).is_some_and(|held| Arc::ptr_eq(held, file))
}

/// Gives back the memory of a map that a copy has taken the place of. Nobody waits for it. Copies are made one after
/// the other, so it is seldom done twice at once.
fn release(copy: Arc<PartitionFile>) {
    drop(idle::run(move || copy.release_unread()));
}

/// What a partition is one of.
fn version_of(wanted: &Wanted) -> (TableVersion, u32) {
    (wanted.schema.table_version.clone(), wanted.schema.partitions.get())
}

/// Bytes of the files of each version, of those that are wanted and there.
fn version_bytes(wanted: &[Wanted], sizes: &[Option<u64>]) -> BTreeMap<(TableVersion, u32), u64> {
    let mut versions = BTreeMap::new();
    for (wanted, size) in wanted.iter().zip(sizes) {
        *versions.entry(version_of(wanted)).or_default() += size.unwrap_or(0);
    }
    versions
}

fn same_place(a: &PartitionStatus, b: &PartitionStatus) -> bool {
    (&a.table_version, a.partitions, a.partition) == (&b.table_version, b.partitions, b.partition)
}
