//! The topology of the newest map, and the background task that connects to its nodes before they are needed.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::StreamExt;
use tidepool_cluster::{ClusterMap, NodeEntry};
use tokio::sync::watch;
use tracing::debug;

use crate::{
    channels::Dial, config::ClientConfig, metrics::Metrics, peer::Peer, topology::Topology,
    transport::Connection,
};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(10);

/// Follows the map.
#[derive(Debug)]
pub(crate) struct Follow {
    maps: watch::Receiver<Arc<ClusterMap>>,
    dial: Dial,
    config: ClientConfig,
    metrics: Option<Arc<Metrics>>,
    topology: ArcSwap<Topology>,
    /// Held while a topology is made, so that it is made once.
    making: Mutex<()>,
}

impl Follow {
    pub(crate) fn new(
        maps: watch::Receiver<Arc<ClusterMap>>,
        config: ClientConfig,
        metrics: Option<Arc<Metrics>>,
    ) -> Self {
        let dial = Dial::new(&config);
        let nothing = Arc::new(ClusterMap::default());
        let nothing = Topology::new(nothing, None, Instant::now(), |entry| connect(entry, &dial, &config));
        Self { maps, dial, config, metrics, topology: ArcSwap::from_pointee(nothing), making: Mutex::new(()) }
    }

    pub(crate) fn maps(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.maps.clone()
    }

    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.maps.borrow().clone()
    }

    /// The topology that was made last.
    pub(crate) fn newest(&self) -> Arc<Topology> {
        self.topology.load_full()
    }

    /// The topology of the newest map; made now when it is new.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        let known = self.topology.load_full();
        if Arc::ptr_eq(&known.map, &self.maps.borrow()) {
            return known;
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, map) = (self.topology.load_full(), self.map());
        if Arc::ptr_eq(&known.map, &map) {
            return known;
        }
        let connect = |entry: &NodeEntry| connect(entry, &self.dial, &self.config);
        let mut topology = Topology::new(map, Some(&known), Instant::now(), connect);
        if let Some(metrics) = &self.metrics {
            topology.metrics = metrics.tables(&topology.map);
        }
        let topology = Arc::new(topology);
        self.topology.store(Arc::clone(&topology));
        topology
    }

    /// Connects to the nodes of each new map, and again to those that could not be reached.
    pub(crate) async fn connect_ahead(self: Arc<Self>) {
        let mut maps = self.maps();
        loop {
            maps.mark_unchanged();
            let topology = self.topology();
            let changed = tokio::select! {
                changed = maps.changed() => changed,
                () = self.connect_all(&topology) => maps.changed().await,
            };
            if changed.is_err() {
                // No other map will come. Not all nodes of this one need have been reached.
                return self.connect_all(&topology).await;
            }
        }
    }

    async fn connect_all(&self, topology: &Topology) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let missing: Vec<&Peer> = topology
                .nodes
                .iter()
                .filter(|node| node.up && !node.peer.connected.load(Ordering::Relaxed))
                .map(|node| &*node.peer)
                .collect();
            let try_one = |peer| self.connect_one(peer);
            futures::stream::iter(missing).for_each_concurrent(self.config.connects_at_once, try_one).await;
            let all = topology.nodes.iter().filter(|node| node.up && node.peer.connection.is_ok());
            if all.into_iter().all(|node| node.peer.connected.load(Ordering::Relaxed)) {
                return;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    async fn connect_one(&self, peer: &Peer) {
        let Ok(connection) = &peer.connection else { return };
        match connection.connect(self.dial.connect_timeout * 2).await {
            Ok(()) => peer.connected.store(true, Ordering::Relaxed),
            Err(problem) => debug!(address = peer.address, %problem, "connecting ahead"),
        }
    }
}

fn connect(entry: &NodeEntry, dial: &Dial, config: &ClientConfig) -> Peer {
    let address = entry.grpc_address.as_str();
    Peer::new(address, dial.channel(address).map(Connection::new), config.breaker)
}
