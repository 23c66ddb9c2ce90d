//! [`Client`]: one lookup from request to vectors.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tidepool_cluster::ClusterMap;
use tidepool_types::{Epoch, Pooling, TableVersion};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::{
    channels::{Channels, Dial},
    config::ClientConfig,
    error::ClientError,
    fanout::{Fanout, Gathered},
    map_watch,
    merge::{merge, stored_rows},
    metrics::Metrics,
    request::{FeatureLookup, LookupOptions, LookupOutcome, LookupRequest, StoredRow},
    route::{Penalties, Router},
    split::Split,
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
    maps: watch::Receiver<Arc<ClusterMap>>,
    channels: Channels,
    penalties: Mutex<Penalties>,
    metrics: Option<Metrics>,
    tap: Arc<TapSlot>,
    /// Rotates the groups, so that requests without a preferred group spread over them.
    turn: AtomicUsize,
    /// Spreads ids in the deduplication table; a secret of this process.
    seed: u64,
    /// Ends with the last clone of the client.
    _watcher: Option<AbortOnDropHandle<()>>,
}

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
        Ok(Self::assemble(config, maps, Some(watcher)))
    }

    /// A client that follows a map which somebody else watches.
    #[must_use]
    pub fn with_map(config: ClientConfig, maps: watch::Receiver<Arc<ClusterMap>>) -> Self {
        Self::assemble(config, maps, None)
    }

    fn assemble(
        config: ClientConfig,
        maps: watch::Receiver<Arc<ClusterMap>>,
        watcher: Option<AbortOnDropHandle<()>>,
    ) -> Self {
        let metrics = config.registry.as_ref().and_then(|registry| {
            Metrics::new(registry)
                .inspect_err(|error| warn!(%error, "client metrics are not registered"))
                .ok()
        });
        let inner = Inner {
            channels: Channels::new(Dial::new(&config)),
            config,
            maps,
            penalties: Mutex::default(),
            metrics,
            tap: Arc::default(),
            turn: AtomicUsize::new(0),
            seed: RandomState::new().hash_one(0u64),
            _watcher: watcher,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The map that the next lookup is routed by; epoch 0 and empty before the first has come.
    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        self.inner.maps.borrow().clone()
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
        let mut maps = self.inner.maps.clone();
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
        let start = Instant::now();
        self.inner.tap.note(start, request, options.tenant.as_ref());
        let result = self
            .gather(request, options, |map, split, gathered| LookupOutcome {
                features: merge(split, &gathered.answers),
                epoch: map.epoch,
                nodes_touched: gathered.nodes_touched,
                fallbacks: gathered.fallbacks,
                rows_requested: gathered.rows_requested,
                wire_bytes: gathered.wire_bytes,
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
        let feature = FeatureLookup {
            table_version: table_version.clone(),
            pooling: Pooling::None,
            ids: ids.to_vec(),
            lengths: None,
            weights: None,
        };
        let request = LookupRequest { request_id: "stored-rows".into(), features: vec![feature] };
        let options = LookupOptions { timeout, ..self.default_options() };
        self.gather(&request, &options, |_, split, gathered| stored_rows(split, &gathered)).await
    }

    /// Has every needed partition answered, and lets `finish` make something of it.
    async fn gather<T>(
        &self,
        request: &LookupRequest,
        options: &LookupOptions,
        finish: impl Fn(&ClusterMap, &Split<'_>, Gathered<'_>) -> T,
    ) -> Result<T, ClientError> {
        let mut options = options.clone();
        options.exact |= self.inner.config.exact;
        // A budget that no clock can hold is a year.
        let year = Duration::from_secs(365 * 86_400);
        let deadline = Instant::now() + options.timeout.min(year);
        let map = self.map();
        let mut result = self.attempt(request, &options, deadline, &map, &finish).await;
        if let Err(error) = &result
            && self.newer_map(error, map.epoch, deadline).await
        {
            result = self.attempt(request, &options, deadline, &self.map(), &finish).await;
        }
        result
    }

    /// Whether `error` may be due to an old map, and a newer one is there or comes in time.
    async fn newer_map(&self, error: &ClientError, used: Epoch, deadline: Instant) -> bool {
        if !matches!(error, ClientError::Unavailable { .. }) {
            return false;
        }
        if self.map().epoch > used {
            return true;
        }
        let Some(told) = error.not_served_epoch().filter(|told| *told > used) else { return false };
        let wait = deadline.saturating_duration_since(Instant::now()).min(NEWER_MAP_WAIT);
        self.wait_for_map(|map| map.epoch >= told, wait).await.is_ok()
    }

    async fn attempt<T>(
        &self,
        request: &LookupRequest,
        options: &LookupOptions,
        deadline: Instant,
        map: &ClusterMap,
        finish: impl Fn(&ClusterMap, &Split<'_>, Gathered<'_>) -> T,
    ) -> Result<T, ClientError> {
        let inner = &*self.inner;
        if map.epoch == Epoch(0) {
            return Err(ClientError::NoMap);
        }
        inner.channels.follow(map);
        let split = Split::new(request, map, inner.seed)?;
        let turn = inner.turn.fetch_add(1, Ordering::Relaxed);
        let router = {
            let penalties = inner.penalties.lock().unwrap_or_else(PoisonError::into_inner);
            let preferred = inner.config.preferred_group.as_ref();
            Router::new(map, &split, preferred, turn, &penalties, Instant::now())
        };
        let fanout = Fanout {
            config: &inner.config,
            channels: &inner.channels,
            penalties: &inner.penalties,
            metrics: inner.metrics.as_ref(),
            map,
            split: &split,
            options,
            request_id: &request.request_id,
            deadline,
        };
        let gathered = fanout.run(&router).await?;
        Ok(finish(map, &split, gathered))
    }
}
