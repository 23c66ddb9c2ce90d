//! Where a drill takes place: the table, the cluster that serves it, and clients of it.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tidepool_client::{Client, ClientConfig};
use tidepool_store::ArtifactStore;
use tidepool_types::{Keying, PartitionCount, RowFormat, TableVersion};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use super::{Params, Proxy};
use crate::{
    BenchError, BenchTable,
    cluster::{ClusterSpec, LocalCluster},
    process::Process,
};

/// Elements of a row.
const DIM: u32 = 32;
/// How long a table may take to be loaded.
const SERVE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long traffic may take to come back.
pub(super) const RETURN_TIMEOUT: Duration = Duration::from_secs(30);
/// Lookups that a silent node or link may have kept, and answers late.
const ON_THEIR_WAY: f64 = 10.0;
/// How often a wait looks again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A cluster that serves the table of the drills.
pub(super) struct Site {
    pub(super) table: BenchTable,
    pub(super) version: TableVersion,
    pub(super) cluster: LocalCluster,
}

impl Site {
    /// Starts `groups` groups of `nodes` nodes that have these keys set, and waits until all serve the table.
    pub(super) async fn start(
        params: &Params,
        (groups, nodes): (usize, usize),
        node_config: toml::Table,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Self, BenchError> {
        let partitions = PartitionCount::new(16).ok_or(BenchError::Parameters("a power of two"))?;
        let table = BenchTable {
            rows: params.rows,
            dim: DIM,
            format: RowFormat::Int4,
            keying: Keying::Hashed,
            partitions,
        };
        let root = params.dir.join("store");
        let store = ArtifactStore::open(&root)?;
        progress(&format!("a table of {} rows, {groups} groups of {nodes} nodes", params.rows));
        let made = tokio::task::spawn_blocking(move || table.ensure(&store, &mut |_, _, _| {})).await;
        made.map_err(|error| BenchError::io("building the table")(error.into()))??;
        let version = table.table_version()?;
        let mut spec = ClusterSpec::new(params.dir.join("drills"), root, groups, nodes);
        spec.program.clone_from(&params.program);
        spec.node_config = node_config;
        let cluster = LocalCluster::start(spec).await?;
        cluster.serve_table(&version, SERVE_TIMEOUT).await?;
        Ok(Self { table, version, cluster })
    }

    /// A client with this configuration.
    pub(super) async fn client(&self, config: ClientConfig) -> Result<Client, BenchError> {
        self.cluster.client(config, &self.version).await
    }

    /// A client that reaches every node through a proxy, and the proxies, in the order of
    /// [`LocalCluster::nodes`].
    pub(super) async fn proxied_client(
        &self,
        config: ClientConfig,
    ) -> Result<(Client, Vec<Proxy>), BenchError> {
        let direct = self.client(ClientConfig::default()).await?;
        let mut map = (*direct.map()).clone();
        let mut proxies = Vec::new();
        for node in self.cluster.nodes() {
            let proxy = Proxy::start(node.grpc_address()).await?;
            for entry in map.nodes.values_mut() {
                if entry.grpc_address == node.grpc_address().to_string() {
                    entry.grpc_address = proxy.address().to_string();
                }
            }
            proxies.push(proxy);
        }
        // A drill changes no placement: this map is good as long as it lasts.
        let (_, maps) = watch::channel(Arc::new(map));
        Ok((Client::with_map(config, maps)?, proxies))
    }

    /// Ends the cluster. What was paused or killed may be so still.
    pub(super) async fn stop(self) -> Result<(), BenchError> {
        self.cluster.stop().await
    }
}

/// A sample of a process's `/metrics`, by its name and labels as they stand there; 0 when it is not there yet.
pub(super) async fn metric(process: &Process, sample: &str) -> Result<f64, BenchError> {
    let page = http_get(process.http_address(), "/metrics")
        .await
        .map_err(BenchError::io(format!("reading the metrics of {}", process.label())))?;
    let value = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok());
    Ok(value.unwrap_or(0.0))
}

/// What a small server says to a GET, its headers first.
pub(super) async fn http_get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

/// Lookups that a node has answered.
pub(super) async fn answered_lookups(node: &Process) -> Result<f64, BenchError> {
    metric(node, "tidepool_node_lookups_total{code=\"ok\"}").await
}

/// Waits until a node has answered more lookups than `before`, while somebody asks, and not only those that were
/// on their way when it went silent; gives how long it took.
pub(super) async fn traffic_returns(node: &Process, before: f64) -> Result<Option<Duration>, BenchError> {
    let began = Instant::now();
    while began.elapsed() < RETURN_TIMEOUT {
        if answered_lookups(node).await? > before + ON_THEIR_WAY {
            return Ok(Some(began.elapsed()));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(None)
}
