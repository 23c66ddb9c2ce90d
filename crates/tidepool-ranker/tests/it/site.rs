//! A site around a ranker: an artifact store, a fake embedding node whose rows are a function of the id, and
//! a fake controller.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use tidepool_proto::{
    StandIn,
    pack::{pack, unpack},
    v1::{
        self,
        control_server::{Control, ControlServer},
        embedding_server::EmbeddingServer,
        ranker_client::RankerClient,
    },
};
use tidepool_ranker::{Config, RawConfig, Running, start};
use tidepool_store::ArtifactStore;
use tidepool_types::{
    Combine, Composite, Keying, Name, PartitionCount, PartitionEntry, PartitionIndex, RowFormat,
    TableManifest, TableSchema, TableVersion,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{
        Channel,
        server::{Server, TcpIncoming},
    },
};

/// Every wait of these tests ends here.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// Ids from here on are in no table.
pub(crate) const ROWS: u64 = 1000;

const TABLES: [&str; 4] = ["user", "item", "genre", "pair"];

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn version(table: &str, version: &str) -> TableVersion {
    TableVersion { table: name(table), version: name(version) }
}

/// The row of an id: in version v1 `[id, 1]`, in v2 `[10 id, 1]`.
fn row(version: &str, id: u64) -> [f32; 2] {
    let factor = if version == "v2" { 10.0 } else { 1.0 };
    [id as f32 * factor, 1.0]
}

/// What makes the table `pair` composite: its vectors have 4 elements.
pub(crate) fn pair() -> Composite {
    Composite { seeds: vec![1, 2], combine: Combine::Concat }
}

fn schema(table_version: TableVersion) -> TableSchema {
    TableSchema {
        composite: (table_version.table.as_str() == "pair").then(pair),
        table_version,
        dim: 2,
        format: RowFormat::F32,
        keying: Keying::Dense,
        partitions: PartitionCount::ONE,
        rows: ROWS,
        default_row: Vec::new(),
    }
}

/// A directory of artifacts. Partition files are empty of meaning: only their length is looked at here.
pub(crate) struct Store {
    _dir: TempDir,
    pub(crate) artifacts: ArtifactStore,
}

impl Store {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = ArtifactStore::open(dir.path().join("store")).unwrap();
        for table in TABLES {
            for v in ["v1", "v2"] {
                let table_version = version(table, v);
                let entry = PartitionEntry {
                    partition: PartitionIndex(0),
                    rows: ROWS,
                    file_bytes: 8,
                    footer_crc32c: 0,
                };
                let manifest = TableManifest {
                    schema_version: 1,
                    schema: schema(table_version.clone()),
                    files: vec![entry],
                    quantization: None,
                    bytes: None,
                };
                let file = artifacts.partition_path(&table_version, PartitionCount::ONE, PartitionIndex(0));
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, [0; 8]).unwrap();
                let text = serde_json::to_vec(&manifest).unwrap();
                fs::write(artifacts.table_dir(&table_version).join("manifest.json"), text).unwrap();
            }
        }
        Self { _dir: dir, artifacts }
    }

    pub(crate) fn release(
        &self,
        model: &str,
        release: &str,
        tables: &[TableVersion],
        toml: &str,
        onnx: &[u8],
    ) {
        self.artifacts.write_release(&name(model), &name(release), tables, toml, onnx).unwrap();
    }
}

/// What the fake node does: answers, and remembers what it was asked. Without `answers` it never does.
#[derive(Clone)]
pub(crate) struct FakeNode {
    pub(crate) address: SocketAddr,
    pub(crate) calls: Arc<Mutex<Vec<v1::LookupRequest>>>,
    answers: bool,
}

impl FakeNode {
    async fn answer(&self, request: v1::LookupRequest) -> v1::LookupResponse {
        self.calls.lock().unwrap().push(request.clone());
        if !self.answers {
            std::future::pending::<()>().await;
        }
        let features = request.features.iter().map(answer).collect();
        v1::LookupResponse { features, epoch: 1, node: "node".into(), ..Default::default() }
    }
}

fn answer(feature: &v1::FeatureRequest) -> v1::FeatureResponse {
    let version = &feature.table_version.as_ref().unwrap().version;
    let ids: Vec<u64> = unpack(&feature.ids).unwrap().collect();
    let mut missing = vec![0u8; ids.len().div_ceil(8)];
    let gone: Vec<usize> = (0..ids.len()).filter(|at| ids[*at] >= ROWS).collect();
    gone.iter().for_each(|at| missing[at / 8] |= 1 << (at % 8));
    let mut out = v1::FeatureResponse {
        table_version: feature.table_version.clone(),
        missing_ids: gone.len() as u32,
        missing: if gone.is_empty() { Vec::new().into() } else { missing.into() },
        ..v1::FeatureResponse::default()
    };
    if feature.wire_form() == v1::WireForm::Gather {
        let rows = ids.iter().flat_map(|id| if *id < ROWS { row(version, *id) } else { [0.0, 0.0] });
        out.rows = pack(&rows.collect::<Vec<f32>>());
        return out;
    }
    let mut members: Vec<u32> = unpack(&feature.members).unwrap().collect();
    if members.is_empty() {
        members = (0..ids.len() as u32).collect();
    }
    let weights: Vec<f32> = unpack(&feature.weights).unwrap().collect();
    let (mut at, mut sums, mut counts, mut weight_sums) = (0, Vec::new(), Vec::new(), Vec::new());
    for length in unpack::<u32>(&feature.bag_lengths).unwrap() {
        let (mut sum, mut count, mut weight_sum) = ([0.0f32; 2], 0u32, 0.0f32);
        for member in at..at + length as usize {
            let id = ids[members[member] as usize];
            let weight = weights.get(member).copied().unwrap_or(1.0);
            if id < ROWS {
                let row = row(version, id);
                sum = [sum[0] + weight * row[0], sum[1] + weight * row[1]];
                count += 1;
                weight_sum += weight;
            }
        }
        at += length as usize;
        sums.extend(sum);
        counts.push(count);
        weight_sums.push(weight_sum);
    }
    out.sums = pack(&sums);
    out.counts = pack(&counts);
    if !weights.is_empty() {
        out.weight_sums = pack(&weight_sums);
    }
    out
}

impl FakeNode {
    pub(crate) async fn start(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let node = Self { address, calls: Arc::default(), answers };
        let answering = node.clone();
        let answer = move |request| {
            let node = answering.clone();
            async move { Ok(node.answer(request).await) }
        };
        let server = Server::builder().add_service(EmbeddingServer::new(StandIn(answer)));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(server.serve_with_incoming(incoming));
        node
    }
}

/// A controller that sends maps to rankers and keeps their last report.
#[derive(Clone)]
pub(crate) struct FakeController {
    pub(crate) address: SocketAddr,
    maps: Arc<watch::Sender<v1::ClusterMap>>,
    reports: Arc<watch::Sender<v1::RankerReport>>,
    stop: CancellationToken,
}

type Maps = Pin<Box<dyn Stream<Item = Result<v1::ClusterMap, Status>> + Send>>;
type Assignments = Pin<Box<dyn Stream<Item = Result<v1::Assignment, Status>> + Send>>;

fn unused<T>() -> Result<T, Status> {
    Err(Status::unimplemented("this controller knows rankers only"))
}

#[tonic::async_trait]
impl Control for FakeController {
    type NodeSessionStream = Assignments;
    type RankerSessionStream = Maps;
    type WatchMapStream = Maps;

    async fn ranker_session(
        &self,
        request: Request<Streaming<v1::RankerReport>>,
    ) -> Result<Response<Maps>, Status> {
        let mut reports = request.into_inner();
        let seen = self.reports.clone();
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                seen.send_replace(report);
            }
        });
        Ok(Response::new(Box::pin(WatchStream::new(self.maps.subscribe()).map(Ok))))
    }
    async fn node_session(
        &self,
        _: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Assignments>, Status> {
        unused()
    }
    async fn watch_map(&self, _: Request<v1::WatchMapRequest>) -> Result<Response<Maps>, Status> {
        unused()
    }
    async fn publish_release(
        &self,
        _: Request<v1::PublishReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        unused()
    }
    async fn promote_release(
        &self,
        _: Request<v1::PromoteReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        unused()
    }
    async fn get_release(
        &self,
        _: Request<v1::GetReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        unused()
    }
    async fn serve_table(
        &self,
        _: Request<v1::ServeTableRequest>,
    ) -> Result<Response<v1::ServeTableResponse>, Status> {
        unused()
    }
    async fn drain_node(
        &self,
        _: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainStatus>, Status> {
        unused()
    }
    async fn set_quota(&self, _: Request<v1::QuotaRule>) -> Result<Response<v1::Quotas>, Status> {
        unused()
    }
    async fn remove_quota(&self, _: Request<v1::RemoveQuotaRequest>) -> Result<Response<v1::Quotas>, Status> {
        unused()
    }
    async fn list_quotas(&self, _: Request<v1::ListQuotasRequest>) -> Result<Response<v1::Quotas>, Status> {
        unused()
    }
    async fn get_cluster(
        &self,
        _: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::ClusterReport>, Status> {
        unused()
    }
}

impl FakeController {
    pub(crate) async fn start(map: v1::ClusterMap) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let controller = Self {
            address: listener.local_addr().unwrap(),
            maps: Arc::new(watch::Sender::new(map)),
            reports: Arc::new(watch::Sender::new(v1::RankerReport::default())),
            stop: CancellationToken::new(),
        };
        let server = Server::builder().add_service(ControlServer::new(controller.clone()));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let stop = controller.stop.clone().cancelled_owned();
        tokio::spawn(async move {
            tokio::select! {
                ended = server.serve_with_incoming(incoming) => ended.unwrap(),
                () = stop => {}
            }
        });
        controller
    }

    pub(crate) fn send(&self, map: v1::ClusterMap) {
        self.maps.send_replace(map);
    }

    /// Waits for a report that is as `ok` wants it.
    pub(crate) async fn report(&self, ok: impl FnMut(&v1::RankerReport) -> bool) -> v1::RankerReport {
        let mut reports = self.reports.subscribe();
        timeout(DEADLINE, reports.wait_for(ok)).await.expect("no such report").unwrap().clone()
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

/// A map with every table on one node, and releases as (model, release, version of its tables, its tables,
/// state).
pub(crate) fn map(epoch: u64, node: SocketAddr, releases: Vec<v1::ReleaseEntry>) -> v1::ClusterMap {
    let nodes = vec![v1::NodeEntry {
        node: "node".into(),
        group: "a".into(),
        grpc_address: node.to_string(),
        http_address: String::new(),
        up: true,
        draining: false,
    }];
    let layout = |table: &str, v: &str| v1::TableLayout {
        schema: Some((&schema(version(table, v))).into()),
        placement: vec![v1::GroupPlacement { group: "a".into(), nodes: vec!["node".into()] }],
    };
    let layouts = TABLES.iter().flat_map(|t| [layout(t, "v1"), layout(t, "v2")]).collect();
    v1::ClusterMap { epoch, nodes, layouts, releases, traffic: Vec::new() }
}

pub(crate) fn entry(
    model: &str,
    release: &str,
    tables: &[TableVersion],
    state: v1::ReleaseState,
) -> v1::ReleaseEntry {
    v1::ReleaseEntry {
        model: model.into(),
        release: release.into(),
        tables: tables.iter().map(Into::into).collect(),
        state: state.into(),
        pinned: false,
    }
}

/// A ranker under test.
pub(crate) struct TestRanker {
    pub(crate) running: Running,
    pub(crate) client: RankerClient<Channel>,
    token: CancellationToken,
}

pub(crate) fn raw_config(store: &Store, controller: SocketAddr, data_dir: PathBuf) -> RawConfig {
    RawConfig {
        ranker: "ranker-1".into(),
        grpc_address: "127.0.0.1:0".into(),
        http_address: "127.0.0.1:0".into(),
        controllers: vec![controller.to_string()],
        store: store.artifacts.root().display().to_string(),
        audit_log: data_dir.join("audit.log").display().to_string(),
        data_dir: data_dir.display().to_string(),
        pool_threads: 2,
        default_deadline_ms: 20_000,
        load_retry_ms: 50,
        max_candidates: 100,
        max_request_bytes: 1 << 16,
        ..RawConfig::default()
    }
}

impl TestRanker {
    /// Starts one and waits until it is ready.
    pub(crate) async fn start(raw: RawConfig) -> Self {
        let token = CancellationToken::new();
        let running = start(Config::try_from(raw).unwrap(), token.clone()).await.unwrap();
        let ready = timeout(DEADLINE, running.health.wait_ready()).await;
        assert!(ready.is_ok(), "it did not become ready: {:?}", running.health.readiness());
        let client = RankerClient::connect(format!("http://{}", running.grpc_address)).await.unwrap();
        Self { running, client, token }
    }

    pub(crate) async fn rank(&mut self, request: v1::RankRequest) -> Result<v1::RankResponse, Status> {
        self.client.rank(request).await.map(Response::into_inner)
    }

    /// One HTTP exchange: status and body.
    pub(crate) async fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.http_with(method, path, "", body).await
    }

    /// The same with more headers, each a line.
    pub(crate) async fn http_with(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String) {
        let mut stream = TcpStream::connect(self.running.http_address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).await.unwrap();
        let mut text = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Ends it and waits for the end.
    pub(crate) async fn stop(self) {
        drop(self.client);
        self.token.cancel();
        timeout(DEADLINE, self.running.wait()).await.expect("it did not end").unwrap();
    }
}
