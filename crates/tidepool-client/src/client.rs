//! [`Client`]: one lookup from request to vectors.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::Arc,
    time::{Duration, Instant},
};

use tidepool_cluster::ClusterMap;
use tidepool_types::{Epoch, Pooling, TableVersion};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::{
    account::LookupAccount,
    cache::RowCache,
    channels::Dial,
    config::ClientConfig,
    error::ClientError,
    fanout::{Fanout, Gathered},
    follow::Follow,
    map_watch,
    merge::{merge, stored_rows},
    metrics::{Metrics, NodeMetrics},
    pacing::Pacing,
    request::{
        Counted, FeatureCounts, FeatureLookup, LookupOptions, LookupOutcome, LookupRequest, OnUnavailable,
        Stages, StoredRow,
    },
    route::{Choice, Router},
    split::{Ahead, Ids, Split},
    topology::Topology,
    trace::{Tap, TapError, TapOptions, TapSlot},
};

/// How long a lookup waits for the newer map that a node has told of, at most.
const NEWER_MAP_WAIT: Duration = Duration::from_millis(250);

/// Looks ids up in a cluster. Cheap to clone; clones share connections and the map.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    follow: Arc<Follow>,
    pacing: Pacing,
    metrics: Option<Arc<Metrics>>,
    tap: Arc<TapSlot>,
    /// Spreads ids in the deduplication table; a secret of this process.
    seed: u64,
    /// Rows that are asked for often; None: no cache is wanted.
    cache: Option<Arc<RowCache>>,
    /// End with the last clone of the client.
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// What an attempt brought, and where its time went so far.
pub(crate) struct Attempt<'s, 'm> {
    topology: &'m Topology,
    /// Its rows are there for whoever finishes the lookup to take.
    pub(crate) split: &'s mut Split<'m>,
    pub(crate) gathered: Gathered,
    stages: Stages,
}

/// How a lookup is done, beside its options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner<'a> {
    /// What they know is not asked for.
    pub(crate) ahead: Ahead<'a>,
    /// Whether only stored rows will do, whatever the options say.
    pub(crate) only_rows: bool,
    /// What the ids are.
    pub(crate) ids: Ids,
    /// Where it is noted what becomes of the lookup.
    pub(crate) account: Option<&'a LookupAccount>,
}

/// With defaults the waiting ends a little before the deadline, so that what has come is made an answer in
/// time: a share of the time there is, up to so much.
const MERGE_SHARE: u32 = 20;
const MERGE_TIME: Duration = Duration::from_millis(10);

impl Client {
    /// A client that watches the map at `config.controllers` in the background. It begins with the saved
    /// map when there is one, and does not wait for a controller: see [`wait_for_map`](Self::wait_for_map).
    ///
    /// # Errors
    /// [`ClientError::Config`] lists what cannot work.
    pub async fn start(config: ClientConfig) -> Result<Self, ClientError> {
        config.check()?;
        let saved = map_watch::load(config.map_file.clone()).await.unwrap_or_else(|error| {
            warn!(error = %error, cause = ?std::error::Error::source(&error).map(ToString::to_string),
                "starting without the saved map");
            None
        });
        let (sender, maps) = watch::channel(Arc::new(saved.unwrap_or_default()));
        let watcher = map_watch::MapWatch {
            controllers: config.controllers.clone(),
            dial: Dial::new(&config),
            max_message_bytes: config.max_message_bytes,
            file: config.map_file.clone(),
            maps: sender,
        };
        let watcher = AbortOnDropHandle::new(tokio::spawn(watcher.run()));
        Ok(Self::assemble(config, maps, vec![watcher]))
    }

    /// A client that follows a map which somebody else watches. Within a tokio runtime it connects to the
    /// nodes of each new map before they are needed.
    ///
    /// # Errors
    /// [`ClientError::Config`] lists what cannot work; `config.controllers` is not looked at.
    pub fn with_map(
        config: ClientConfig,
        maps: watch::Receiver<Arc<ClusterMap>>,
    ) -> Result<Self, ClientError> {
        config.check_asking(Vec::new())?;
        Ok(Self::assemble(config, maps, Vec::new()))
    }

    fn assemble(
        config: ClientConfig,
        maps: watch::Receiver<Arc<ClusterMap>>,
        mut tasks: Vec<AbortOnDropHandle<()>>,
    ) -> Self {
        let metrics =
            config.registry.as_ref().and_then(|registry| Some(Arc::new(told(Metrics::new(registry))?)));
        let follow = Arc::new(Follow::new(maps, config.clone(), metrics.clone()));
        if let Some(registry) = &config.registry {
            told(NodeMetrics::register(registry, Arc::downgrade(&follow)));
        }
        if let Ok(runtime) = Handle::try_current()
            && config.connects_at_once > 0
        {
            tasks.push(AbortOnDropHandle::new(runtime.spawn(Arc::clone(&follow).connect_ahead())));
        }
        let random = RandomState::new();
        let seed = random.hash_one(0u64);
        let inner = Inner {
            cache: RowCache::new(config.cache_bytes, seed, config.registry.as_ref()).map(Arc::new),
            pacing: Pacing::new(&config, random.hash_one(1u64)),
            config,
            follow,
            metrics,
            tap: Arc::default(),
            seed,
            _tasks: tasks,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The map that the next lookup is routed by; epoch 0 and empty before the first has come.
    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        self.inner.follow.map()
    }

    /// Waits until the map is as `ok` wants it.
    ///
    /// # Errors
    /// [`ClientError::MapTimeout`] names the epoch there is after `deadline`.
    pub async fn wait_for_map(
        &self,
        ok: impl Fn(&ClusterMap) -> bool,
        deadline: Duration,
    ) -> Result<Arc<ClusterMap>, ClientError> {
        let mut maps = self.inner.follow.maps();
        let found = tokio::time::timeout(deadline, maps.wait_for(|map| ok(map))).await;
        match found {
            Ok(Ok(map)) => Ok(map.clone()),
            // Past the deadline, or nobody is left who could send another map.
            _ => Err(ClientError::MapTimeout { epoch: self.map().epoch, waited: deadline }),
        }
    }

    /// The options that the configuration asks for.
    #[must_use]
    pub fn default_options(&self) -> LookupOptions {
        LookupOptions {
            timeout: self.inner.config.default_timeout,
            exact: self.inner.config.exact,
            wire_form: None,
            tenant: None,
            on_unavailable: self.inner.config.on_unavailable,
            traceparent: None,
        }
    }

    /// Looks up every feature of `request`, all from the table versions that it names.
    ///
    /// A node that says it does not serve what was asked, and knows a newer map, is believed: when nobody
    /// else answers either, the lookup waits for that map a moment and is tried once more by it.
    ///
    /// # Errors
    /// [`ClientError`]; its [`code`](ClientError::code) says which kind.
    pub async fn lookup(
        &self,
        request: &LookupRequest,
        options: &LookupOptions,
    ) -> Result<LookupOutcome, ClientError> {
        self.lookup_noting(request, options, None).await
    }

    /// As [`lookup`](Self::lookup); what becomes of it is noted in `account` as it goes on, however it ends.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub async fn lookup_noting(
        &self,
        request: &LookupRequest,
        options: &LookupOptions,
        account: Option<&LookupAccount>,
    ) -> Result<LookupOutcome, ClientError> {
        let ahead = Ahead { held: None, cache: self.cache() };
        let manner = Manner { ahead, only_rows: false, ids: Ids::Asked, account };
        let vectors = |split: &mut Split<'_>, gathered: &Gathered| {
            merge(split, &gathered.answers, &gathered.unavailable)
        };
        self.look_up(request, options, manner, vectors).await
    }

    /// One lookup: gathers, fills the cache, has `make` make something of each feature, and counts and notes all of it.
    pub(crate) async fn look_up<T: Counted>(
        &self,
        request: &LookupRequest,
        options: &LookupOptions,
        manner: Manner<'_>,
        make: impl Fn(&mut Split<'_>, &Gathered) -> Vec<T>,
    ) -> Result<LookupOutcome<T>, ClientError> {
        let start = Instant::now();
        self.inner.tap.note(start, request, options.tenant.as_ref());
        let result = self
            .gather(request, options, manner, |attempt| {
                let Attempt { topology, split, gathered, mut stages } = attempt;
                let begun = Instant::now();
                if let Some(cache) = manner.ahead.cache {
                    cache.fill(split, &gathered.answers);
                }
                let features = make(split, &gathered);
                stages.merge = begun.elapsed();
                let counts: Vec<FeatureCounts> = features.iter().map(Counted::counts).collect();
                if let Some(account) = manner.account {
                    account.looked_up(split, &gathered, &counts, stages);
                }
                count(request, split, topology, &counts);
                LookupOutcome {
                    features,
                    epoch: topology.map.epoch,
                    nodes_touched: gathered.nodes_touched,
                    fallbacks: gathered.fallbacks,
                    retries: gathered.retries,
                    hedges: gathered.hedges,
                    hedges_won: gathered.hedges_won,
                    rows_requested: gathered.rows_requested,
                    cache_hits: split.cache_hits(),
                    held_ids: split.held_ids(),
                    wire_bytes: gathered.wire_bytes,
                    stages,
                }
            })
            .await;
        if let Some(metrics) = &self.inner.metrics {
            metrics.lookup(&result, start.elapsed());
        }
        result
    }

    /// Opens the tap: lookups are copied aside as they arrive, whatever becomes of them, to be written down
    /// ([`TraceWriter`](crate::trace::TraceWriter)) and asked again. Lookups never wait for it.
    ///
    /// # Errors
    /// [`TapError::Busy`]: one at a time.
    pub fn tap(&self, options: TapOptions) -> Result<Tap, TapError> {
        self.inner.tap.open(options)
    }

    /// Where each id lives and its row as stored there, for people who look into a table. In the order of
    /// `ids`; of a composite table all rows of each id, in the order of its seeds.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub async fn stored_rows(
        &self,
        table_version: &TableVersion,
        ids: &[u64],
        timeout: Duration,
    ) -> Result<Vec<StoredRow>, ClientError> {
        let (request, options) = self.asking_for("stored-rows", table_version, ids.to_vec(), timeout);
        let manner = Manner { ahead: Ahead::default(), only_rows: true, ids: Ids::Asked, account: None };
        self.gather(&request, &options, manner, |attempt| {
            stored_rows(attempt.topology, attempt.split, &attempt.gathered)
        })
        .await
    }

    /// A request for the rows of `ids`, one by one: all of them, or an error.
    pub(crate) fn asking_for(
        &self,
        request_id: &str,
        table_version: &TableVersion,
        ids: Vec<u64>,
        timeout: Duration,
    ) -> (LookupRequest, LookupOptions) {
        let table_version = table_version.clone();
        let feature =
            FeatureLookup { table_version, pooling: Pooling::None, ids, lengths: None, weights: None };
        let request = LookupRequest { request_id: request_id.into(), features: vec![feature] };
        let on_unavailable = OnUnavailable::Fail;
        (request, LookupOptions { timeout, on_unavailable, ..self.default_options() })
    }

    /// The secret that spreads ids.
    pub(crate) fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// The cache of rows, if there is one.
    pub(crate) fn cache(&self) -> Option<&RowCache> {
        self.inner.cache.as_deref()
    }

    /// Has the cache let go what `map` no longer has.
    fn follow_with_cache(&self, map: &ClusterMap) {
        let Some(cache) = &self.inner.cache else { return };
        if let Some(gone) = cache.follow(map) {
            let cache = cache.clone();
            tokio::task::spawn_blocking(move || cache.drop_rows(&gone));
        }
    }

    /// Has every needed partition answered, or given up, and lets `finish` make something of it.
    pub(crate) async fn gather<T>(
        &self,
        request: &LookupRequest,
        options: &LookupOptions,
        manner: Manner<'_>,
        finish: impl Fn(Attempt<'_, '_>) -> T,
    ) -> Result<T, ClientError> {
        let mut options = options.clone();
        // An exact lookup is one of stored rows.
        options.exact |= self.inner.config.exact || manner.only_rows;
        // A time that no clock can hold is a year.
        let year = Duration::from_secs(365 * 86_400);
        let mut timeout = options.timeout.min(year);
        if options.on_unavailable == OnUnavailable::Default {
            timeout -= (timeout / MERGE_SHARE).min(MERGE_TIME);
        }
        let deadline = Instant::now() + timeout;
        let mut first = true;
        loop {
            let attempt = self.attempt(request, &options, deadline, first, manner, &finish);
            match attempt.await? {
                Some(done) => return Ok(done),
                None => first = false,
            }
        }
    }

    /// One attempt, by the newest map. None: it has failed for want of a newer map, which is there now; only
    /// of the `first`.
    async fn attempt<T>(
        &self,
        request: &LookupRequest,
        options: &LookupOptions,
        deadline: Instant,
        first: bool,
        manner: Manner<'_>,
        finish: impl Fn(Attempt<'_, '_>) -> T,
    ) -> Result<Option<T>, ClientError> {
        let inner = &*self.inner;
        let begun = Instant::now();
        let topology = inner.follow.topology();
        let epoch = topology.map.epoch;
        if epoch == Epoch(0) {
            return Err(ClientError::NoMap);
        }
        if let Some(account) = manner.account {
            account.routed_by(epoch);
        }
        self.follow_with_cache(&topology.map);
        let mut split = Split::with(request, &topology.map, inner.seed, manner.ahead, manner.ids)?;
        let choice = Choice {
            preferred: inner.config.preferred_group.as_ref().map(|group| group.as_str()),
            spill_factor: inner.config.spill_factor,
            random: inner.pacing.random(),
            skip_sick: options.on_unavailable == OnUnavailable::Default,
        };
        let mut router = Router::new(&topology, &split, choice, begun);
        let fanout = Fanout {
            config: &inner.config,
            pacing: &inner.pacing,
            metrics: inner.metrics.as_deref(),
            topology: &topology,
            split: &split,
            options,
            request_id: &request.request_id,
            lot: inner.pacing.random() | 1,
            deadline,
            first,
            account: manner.account,
        };
        let asking = Instant::now();
        let ended = fanout.run(&mut router).await;
        match ended {
            Ok(gathered) => {
                let partial = !gathered.unavailable.is_empty();
                if first && partial && self.newer_map(gathered.told, epoch, begun, deadline).await {
                    return Ok(None);
                }
                let (split_time, node) = (asking - begun, gathered.slowest);
                let stages =
                    Stages { split: split_time, wait: asking.elapsed(), node, merge: Duration::ZERO };
                Ok(Some(finish(Attempt { topology: &topology, split: &mut split, gathered, stages })))
            }
            Err(error @ ClientError::Unavailable { .. })
                if first && self.newer_map(error.not_served_epoch(), epoch, begun, deadline).await =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the map `used` is old, and a newer one is there or, when a node has `told` of it, comes in time
    /// for another attempt as long as the one that has `begun` then.
    async fn newer_map(&self, told: Option<Epoch>, used: Epoch, begun: Instant, deadline: Instant) -> bool {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now).saturating_sub(now - begun);
        if left.is_zero() {
            return false;
        }
        if self.map().epoch > used {
            return true;
        }
        let Some(told) = told.filter(|told| *told > used) else { return false };
        let wait = (left / 2).min(NEWER_MAP_WAIT);
        self.wait_for_map(|map| map.epoch >= told, wait).await.is_ok()
    }
}

/// Counts, by table, what came of the features of a lookup.
fn count(request: &LookupRequest, split: &Split<'_>, topology: &Topology, counts: &[FeatureCounts]) {
    for ((asked, feature), counts) in request.features.iter().zip(&split.features).zip(counts) {
        if let Some(metrics) = topology.metrics.get(split.tables[feature.table].at) {
            metrics.feature(asked.ids.len(), *counts);
        }
    }
    for table in &split.tables {
        if let Some(metrics) = topology.metrics.get(table.at) {
            metrics.held(table.known.held());
        }
    }
}

/// Metrics that cannot be registered are no reason not to serve.
fn told<T>(result: Result<T, prometheus::Error>) -> Option<T> {
    result.inspect_err(|error| warn!(%error, "client metrics are not registered")).ok()
}
