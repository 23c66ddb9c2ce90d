//! Requests of a model share batches: one lookup and one dense run for all that wait.
//!
//! A request goes at once while its model has a place: two batches per thread of the CPU pool. While all places are taken,
//! requests gather, and leave together as soon as one ends. So an idle ranker makes nobody wait, and a busy one makes
//! larger batches the busier it is. Where it is lookups that take long, and threads that have nothing to do, who has waited
//! long enough leaves all the same. Each batch is fetched on the threads that move bytes and run on the CPU pool, so that
//! the lookup of the next passes beside the dense run of this one (`run.rs`). docs/batching.md tells it whole.
//!
//! Where a model's scorer makes vectors by itself, on a GPU, a batch is looked up as stored rows, which go there as they are, and
//! what comes back is what each request wants of the outputs (`rows.rs`); batches then keep to the ids that there is room for.
//!
//! **Invariant:** a request fails by itself and not by those it shares a batch with; what waits, and what is under way, is
//! bounded; requests of two releases, or of two tenants, are never in one batch.

mod form;
mod memory;
mod metrics;
mod model;
mod options;
mod queue;
mod rows;
mod run;
mod share;
#[cfg(test)]
mod tests;

mod work;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidepool_client::OnUnavailable;
use tidepool_runtime::pool::CpuPool;
use tidepool_types::Name;
use tokio::{runtime::Handle, time};

pub(crate) use self::options::check;
use self::{
    form::Passenger,
    metrics::{Dropped, ModelMetrics},
    queue::{Entry, Limits, Part, Queue},
    run::Batch,
    work::Work,
};
pub use self::{
    memory::Reserved,
    metrics::BatchMetrics,
    model::{
        BatchInput, BatchModel, InPlaceOf, InputFrom, Looking, MAX_ELEMENTS, Replace, RowBags, RowBatch,
        RowLimits, RowScorer, Scorer, VectorSource,
    },
    options::{BatchOptions, ModelLimits, RawBatch, RawModel},
    share::{Counts, Progress, Share},
    work::{Job, Outputs, Results, SelectedPart, Ticket},
};
use crate::{RankError, request::InputRows};

/// The batchers of a ranker, one per model. Clones share them.
#[derive(Clone, Debug)]
pub struct Batchers {
    inner: Arc<All>,
    in_place_of: Option<InPlaceOf>,
}

#[derive(Debug)]
struct All {
    options: BatchOptions,
    models: BTreeMap<Name, ModelLimits>,
    pool: CpuPool,
    source: Arc<dyn VectorSource>,
    metrics: BatchMetrics,
    known: Mutex<BTreeMap<Name, Batcher>>,
}

/// Takes the requests of one model, of all its releases. Clones share it.
#[derive(Clone, Debug)]
pub struct Batcher {
    inner: Arc<Inner>,
}

/// What requests of one batch have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    /// The address of their [`BatchModel`], which each of them keeps alive.
    release: usize,
    /// Quotas are counted by it.
    tenant: Option<String>,
    /// Inputs whose ids have weights: ones in their place need not give the same bits as none.
    weighted: Vec<usize>,
    behind: bool,
}

/// What may wait behind the others: one part in so many of what they may have.
const BEHIND_SHARE: u32 = 4;
/// A tenant may have so many times as much waiting as is free.
const TENANT_FACTOR: u64 = 3;
/// How often those are looked for at most whom nobody waits for any more.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);
/// Into so many parts a batch is split that was refused. With four, one that is to blame among 64 is found in as many lookups
/// as with two, and if all are to blame it takes a third fewer.
const PARTIES: usize = 4;

/// What all batches of a model share.
pub(super) struct Inner {
    model: Name,
    options: BatchOptions,
    limits: ModelLimits,
    pool: CpuPool,
    source: Arc<dyn VectorSource>,
    metrics: ModelMetrics,
    /// Every lookup is exact.
    exact: bool,
    /// Batches that had several requests.
    shared: AtomicU64,
    /// Bytes of the releases that are loaded.
    loaded_bytes: Mutex<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: Queue<Key, Arc<Work>>,
    /// Batches that have left and not ended.
    under_way: usize,
    /// Those of them that have been fetched: they run, or wait for a thread.
    fetched: usize,
    /// Somebody will look again once the first of those who wait has waited long enough.
    watched: bool,
    /// When those were looked for last whom nobody waits for.
    swept: Option<Instant>,
    /// The number of the next party.
    parties: u64,
    fastest: Fastest,
}

/// The shortest time that a batch took, of the last ones.
#[derive(Debug, Default)]
struct Fastest {
    now: Option<Duration>,
    before: Option<Duration>,
    count: u32,
}

impl Fastest {
    /// Batches that are remembered: the last so many, and up to as many before.
    const WINDOW: u32 = 32;

    fn record(&mut self, took: Duration) {
        if self.count == Self::WINDOW {
            (self.before, self.now, self.count) = (self.now, None, 0);
        }
        self.now = Some(self.now.map_or(took, |now| now.min(took)));
        self.count += 1;
    }

    fn get(&self) -> Duration {
        self.now.into_iter().chain(self.before).min().unwrap_or_default()
    }
}

impl Batchers {
    /// Batchers that fetch from `source` and run on `pool`; models that `models` does not name have what `options` say.
    #[must_use]
    pub fn new(
        options: BatchOptions,
        models: BTreeMap<Name, ModelLimits>,
        pool: CpuPool,
        source: Arc<dyn VectorSource>,
        metrics: BatchMetrics,
    ) -> Self {
        let all = All { options, models, pool, source, metrics, known: Mutex::default() };
        Self { inner: Arc::new(all), in_place_of: None }
    }

    /// With something in the place of every model that is loaded from here on, if there is something.
    #[must_use]
    pub fn with_in_place_of(self, in_place_of: Option<InPlaceOf>) -> Self {
        Self { in_place_of, ..self }
    }

    /// What runs in the place of `model`: itself, if nothing else does.
    #[must_use]
    pub fn scorer(&self, model: Arc<dyn Scorer>) -> Arc<dyn Scorer> {
        match &self.in_place_of {
            Some(InPlaceOf(other)) => other(model),
            None => model,
        }
    }

    /// The batcher of a model. Those that nobody has any more are let go.
    #[must_use]
    pub fn of(&self, model: &Name) -> Batcher {
        let all = &*self.inner;
        let mut known = all.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, batcher| {
            let is_used = name == model || Arc::strong_count(&batcher.inner) > 1;
            if !is_used {
                all.metrics.forget(name);
            }
            is_used
        });
        let new = || {
            let limits = all.models.get(model).copied().unwrap_or_default();
            let options = all.options.with(limits);
            let inner = Inner {
                model: model.clone(),
                options,
                limits,
                pool: all.pool.clone(),
                source: all.source.clone(),
                metrics: all.metrics.of(model),
                exact: options.exact,
                shared: AtomicU64::new(0),
                loaded_bytes: Mutex::default(),
                state: Mutex::default(),
            };
            Batcher { inner: Arc::new(inner) }
        };
        known.entry(model.clone()).or_insert_with(new).clone()
    }
}

impl Batcher {
    /// Hands a request over. `finish` makes an answer of what its rows have given, on a thread of the CPU pool. It is called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// At once: [`RankError::Busy`] when too much waits already; [`RankError::TooManyIds`] when the user's bag, or that of one
    /// candidate, is more than there is room for where the model makes vectors of it.
    pub fn submit<T, F>(&self, job: Job, finish: F) -> Result<Ticket<T>, RankError>
    where
        T: Send + 'static,
        F: FnOnce(Results) -> Result<T, RankError> + Send + 'static,
    {
        let inner = &self.inner;
        let limits = inner.limits_of(&job.model);
        let key = inner.key(&job);
        let behind = key.behind;
        let (work, ticket) = Work::new(job, &limits, finish)?;
        let sizes = work.sizes();
        let (since, end, bytes) = (work.since, sizes.len(), work.bytes());
        let entry = Entry { item: work, sizes, next: 0, end, since, bytes, party: None };
        let mut over = Vec::new();
        let admitted = {
            let mut state = inner.lock();
            let admitted = inner.admit(&mut state, &key, (entry.rows(), bytes), &mut over);
            if admitted.is_ok() {
                state.queue.push(key, limits, behind, entry);
            }
            admitted
        };
        leave_behind(over);
        admitted?;
        inner.advance();
        Ok(ticket)
    }

    /// Rows that wait for a batch.
    #[must_use]
    pub fn waiting_rows(&self) -> u64 {
        self.inner.lock().queue.rows()
    }

    /// Batches that are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.inner.lock().under_way
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Inner {
    fn limits_of(&self, model: &BatchModel) -> Limits {
        let BatchOptions { max_rows, max_requests, max_ids, .. } = self.options;
        model.limits(Limits { rows: max_rows, requests: max_requests, ids: max_ids, room: Vec::new() })
    }

    fn key(&self, job: &Job) -> Key {
        let is_weighted = |rows: &InputRows| matches!(rows, InputRows::Bags { weights: Some(_), .. });
        let inputs = job.inputs.iter().enumerate();
        Key {
            release: Arc::as_ptr(&job.model).addr(),
            tenant: job.tenant.clone(),
            weighted: inputs.filter(|(_, rows)| is_weighted(rows)).map(|(at, _)| at).collect(),
            behind: job.background,
        }
    }

    /// Whether a request of so many rows and bytes may wait. Nobody is turned away for the sake of those whom nobody waits
    /// for: they are taken out first, as `over`. So are, now and then, those behind the others, whose turn may never come
    /// and who keep a whole release alive.
    fn admit(
        &self,
        state: &mut State,
        key: &Key,
        size: (u64, u64),
        over: &mut Vec<Arc<Work>>,
    ) -> Result<(), RankError> {
        let mut admitted = self.may_wait(&state.queue, key, size);
        let now = Instant::now();
        if (admitted.is_err() || state.queue.waiting(true).requests > 0)
            && state.swept.is_none_or(|swept| swept + SWEEP_INTERVAL <= now)
        {
            state.swept = Some(now);
            *over = state.queue.sweep(|work| work.job.deadline <= now || work.is_over());
            for work in over.iter() {
                self.metrics.dropped(if work.is_over() { Dropped::Gone } else { Dropped::Late });
            }
            admitted = self.may_wait(&state.queue, key, size);
        }
        if admitted.is_err() {
            self.metrics.dropped(Dropped::Refused);
        }
        admitted
    }

    /// Whether a request of so many rows and bytes may wait beside those that do.
    ///
    /// A tenant may have [`TENANT_FACTOR`] times what is left free, when all tenants together may have a third more than
    /// is configured for one: so one that is alone has what is configured, and there is room for others all the same.
    fn may_wait(
        &self,
        queue: &Queue<Key, Arc<Work>>,
        key: &Key,
        (rows, bytes): (u64, u64),
    ) -> Result<(), RankError> {
        let (all, own) =
            (queue.waiting(key.behind), queue.waiting_in(key.behind, |other| other.tenant == key.tenant));
        let share = if key.behind { BEHIND_SHARE } else { 1 };
        let of = |most: u64| (most / u64::from(share)).max(1);
        let (max_waiting_rows, max_waiting_bytes) =
            (of(self.options.max_waiting_rows), of(self.options.max_waiting_bytes));
        let max_waiting_requests = (self.options.max_waiting_requests / share as usize).max(1);
        let fits = |own: u64, all: u64, more: u64, most: u64| {
            let (own, all) = (own.saturating_add(more), all.saturating_add(more));
            own.saturating_add(all.saturating_mul(TENANT_FACTOR)) <= most.saturating_mul(TENANT_FACTOR + 1)
        };
        if fits(own.requests as u64, all.requests as u64, 1, max_waiting_requests as u64)
            && (all.rows == 0 || fits(own.rows, all.rows, rows, max_waiting_rows))
            && (all.bytes == 0 || fits(own.bytes, all.bytes, bytes, max_waiting_bytes))
        {
            return Ok(());
        }
        Err(RankError::Busy {
            model: self.model.clone(),
            waiting_rows: all.rows,
            waiting_bytes: all.bytes,
            waiting_requests: all.requests,
            own_rows: own.rows,
            own_requests: own.requests,
            max_waiting_rows,
            max_waiting_bytes,
            max_waiting_requests,
        })
    }

    /// Lets batches leave while they may.
    fn advance(self: &Arc<Self>) {
        // A runtime that ends has nobody left who waits.
        let Ok(runtime) = Handle::try_current() else { return };
        while let Some(batch) = self.next() {
            runtime.spawn(Box::pin(batch.run()));
        }
    }

    fn next(self: &Arc<Self>) -> Option<Batch> {
        let mut left_behind = Vec::new();
        let on_unavailable = self.source.default_options().on_unavailable;
        let mut state = self.lock();
        let batch = loop {
            let now = Instant::now();
            if !self.may_leave(&mut state, now) {
                break None;
            }
            // While nothing is under way it is not known how fast it would be now.
            let least = if state.under_way > 0 { state.fastest.get() } else { Duration::ZERO };
            let Some((key, parts)) = state.queue.take(alike(on_unavailable, now, least)) else { break None };
            if let Some(batch) = self.board(&mut state, key, parts, (now, least), &mut left_behind) {
                state.under_way += 1;
                break Some(batch);
            }
        };
        self.metrics.waiting(state.queue.rows(), state.under_way);
        drop(state);
        leave_behind(left_behind);
        batch
    }

    /// Whether a batch is to leave, if anybody waits. If not yet, somebody will look again.
    fn may_leave(self: &Arc<Self>, state: &mut State, now: Instant) -> bool {
        let Some(since) = state.queue.since() else { return false };
        let BatchOptions { places, max_concurrent_batches, max_delay, .. } = self.options;
        if state.under_way < places.min(max_concurrent_batches) {
            return true;
        }
        // More batches would not get a thread any sooner; when one ends, this is asked again.
        if state.fetched >= places || state.under_way >= max_concurrent_batches {
            return false;
        }
        let until = since + max_delay;
        if until <= now {
            return true;
        }
        if !state.watched {
            state.watched = true;
            let inner = self.clone();
            tokio::spawn(async move {
                time::sleep_until(until.into()).await;
                inner.lock().watched = false;
                inner.advance();
            });
        }
        false
    }

    /// Those of `parts` that are still waited for, and can be answered in time; None: nobody is left. The others are
    /// `left_behind`.
    fn board(
        self: &Arc<Self>,
        state: &mut State,
        key: Key,
        parts: Vec<Part<Arc<Work>>>,
        (now, least): (Instant, Duration),
        left_behind: &mut Vec<Arc<Work>>,
    ) -> Option<Batch> {
        let (mut passengers, mut rests) = (Vec::new(), Vec::new());
        for Part { item: work, piece, rest } in parts {
            let is_late = work.job.deadline <= now + least;
            let is_over = work.is_over();
            if is_over || is_late {
                self.metrics.dropped(if is_over { Dropped::Gone } else { Dropped::Late });
                rest.iter().for_each(|rest| state.queue.forget(key.behind, rest));
                left_behind.push(work);
                continue;
            }
            let user = work.user();
            if let Some(rest) = rest {
                if user.is_none() && work.job.model.pieces_wait_for_users() {
                    rests.push((passengers.len(), rest));
                } else {
                    let limits = self.limits_of(&work.job.model);
                    state.queue.put_back(key.clone(), limits, key.behind, Entry { since: now, ..rest });
                }
            }
            passengers.push(Passenger { work, at: piece, user });
        }
        let model = passengers.first()?.work.job.model.clone();
        Some(Batch { inner: self.clone(), key, model, passengers, rests })
    }

    /// A batch has come from its lookup.
    fn fetched(&self) {
        self.lock().fetched += 1;
    }

    /// A batch has ended, one way or another.
    fn ended(self: &Arc<Self>, fetched: bool) {
        {
            let mut state = self.lock();
            state.under_way = state.under_way.saturating_sub(1);
            state.fetched = state.fetched.saturating_sub(usize::from(fetched));
        }
        self.advance();
    }

    /// A batch has gone through in so much time.
    fn took(&self, took: Duration) {
        self.lock().fastest.record(took);
    }

    /// What is left of requests whose users are known now.
    fn put_back(self: &Arc<Self>, key: &Key, model: &BatchModel, rests: Vec<Entry<Arc<Work>>>) {
        if rests.is_empty() {
            return;
        }
        let (limits, since) = (self.limits_of(model), Instant::now());
        {
            let mut state = self.lock();
            for rest in rests {
                state.queue.put_back(key.clone(), limits.clone(), key.behind, Entry { since, ..rest });
            }
        }
        self.advance();
    }

    /// What is left of requests that are not gone on with.
    fn forget<'a>(&self, key: &Key, rests: impl Iterator<Item = &'a Entry<Arc<Work>>>) {
        let mut state = self.lock();
        rests.for_each(|rest| state.queue.forget(key.behind, rest));
    }

    /// Passengers whose batch failed, with what is left of their requests: once more, in smaller parties, and at last
    /// each alone. One by one at once they would be a lookup for each, though most of them may fit together.
    fn again(
        self: &Arc<Self>,
        key: &Key,
        model: &BatchModel,
        passengers: Vec<(Passenger, Option<Entry<Arc<Work>>>)>,
    ) {
        let (limits, since) = (self.limits_of(model), Instant::now());
        let size = passengers.len().div_ceil(PARTIES);
        let mut state = self.lock();
        let first = state.parties;
        state.parties += PARTIES as u64;
        let entries = passengers.into_iter().enumerate().map(|(n, (Passenger { work, at, .. }, rest))| {
            rest.iter().for_each(|rest| state.queue.forget(key.behind, rest));
            let end = rest.map_or(at + 1, |rest| rest.end);
            let (bytes, party) = (work.bytes(), Some(first + (n / size) as u64));
            Entry { sizes: work.sizes(), item: work, next: at, end, since, bytes, party }
        });
        let entries = entries.collect();
        state.queue.again(key.clone(), limits, key.behind, entries);
    }

    /// The name of a batch that has several requests.
    fn next_id(&self) -> String {
        format!("batch-{}-{}", self.model, self.shared.fetch_add(1, Ordering::Relaxed))
    }

    /// Nothing panics while it is held, so a poisoned lock guards a good state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says of each request whether it may share a batch with those before it. Where defaults stand in for what does not come in
/// time, the lookup has what the first deadline leaves it, so the times that they all have left `now`, and not when they
/// came, are within a factor of two: who has waited long does not leave a fresh one with defaults.
fn alike(on_unavailable: OnUnavailable, now: Instant, least: Duration) -> impl FnMut(&Arc<Work>) -> bool {
    let mut span: Option<(Duration, Duration)> = None;
    move |work: &Arc<Work>| {
        let left = work.job.deadline.saturating_duration_since(now);
        // Who is not answered any more is taken all the same, to be told, and has no say.
        if on_unavailable == OnUnavailable::Fail || left <= least || work.is_over() {
            return true;
        }
        let (shortest, longest) = span.map_or((left, left), |(s, l)| (s.min(left), l.max(left)));
        let goes_along = longest <= shortest.saturating_mul(2);
        if goes_along {
            span = Some((shortest, longest));
        }
        goes_along
    }
}

/// Ends requests that get no batch. What goes with them may be a whole release, so not while others wait for the lock.
fn leave_behind(works: Vec<Arc<Work>>) {
    works.into_iter().for_each(|work| work.fail(RankError::DeadlineExceeded(work.job.budget)));
}
