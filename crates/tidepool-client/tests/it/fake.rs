//! Fake peers. Each runs in a runtime of its own, so that killing it closes its sockets as a process's end
//! would.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tidepool_client::{FeatureLookup, LookupOutcome, LookupRequest};
use tidepool_cluster::{ClusterMap, NodeEntry, Placement, TableLayout};
use tidepool_proto::{
    StandIn, pack,
    v1::{
        self,
        control_server::{Control, ControlServer},
        embedding_server::EmbeddingServer,
    },
};
use tidepool_types::{
    Epoch, Keying, Name, NodeId, PartitionCount, Pooling, RowFormat, TableSchema, TableVersion,
};
use tokio::{runtime::Runtime, sync::watch};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

/// What a node does with a request; None: it never answers.
pub(crate) type Behaviour =
    dyn Fn(&v1::LookupRequest) -> Option<Result<v1::LookupResponse, Status>> + Send + Sync;

/// A table of two f32 columns: the row of `id` is `[id, 1]`; ids from 1000 on are missing.
pub(crate) const DIM: u32 = 2;
pub(crate) const ROWS: u64 = 1000;
pub(crate) const PARTITIONS: u32 = 4;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn version() -> TableVersion {
    TableVersion { table: name("film"), version: name("v1") }
}

/// The answer of an honest node.
pub(crate) fn honest(request: &v1::LookupRequest) -> v1::LookupResponse {
    let row = |id: u64| [id as f32, 1.0];
    let features = request.features.iter().map(|f| {
        let ids: Vec<u64> = pack::unpack(&f.ids).unwrap().collect();
        let mut missing = vec![0u8; ids.len().div_ceil(8)];
        let mut out = v1::FeatureResponse { table_version: f.table_version.clone(), ..Default::default() };
        for at in (0..ids.len()).filter(|at| ids[*at] >= ROWS) {
            missing[at / 8] |= 1 << (at % 8);
            out.missing_ids += 1;
        }
        out.missing = missing.into();
        if f.wire_form() == v1::WireForm::Gather {
            out.rows = pack::pack(&ids.iter().flat_map(|id| row(*id)).collect::<Vec<_>>());
            return out;
        }
        let mut members: Vec<u32> = pack::unpack(&f.members).unwrap().collect();
        if members.is_empty() {
            members = (0..ids.len() as u32).collect();
        }
        let mut members = members.into_iter();
        let (mut sums, mut counts) = (Vec::new(), Vec::new());
        for length in pack::unpack::<u32>(&f.bag_lengths).unwrap() {
            let found: Vec<_> = members
                .by_ref()
                .take(length as usize)
                .map(|m| ids[m as usize])
                .filter(|id| *id < ROWS)
                .map(row)
                .collect();
            sums.extend([found.iter().map(|r| r[0]).sum::<f32>(), found.iter().map(|r| r[1]).sum()]);
            counts.push(found.len() as u32);
        }
        out.sums = pack::pack(&sums);
        out.counts = pack::pack(&counts);
        out
    });
    v1::LookupResponse { features: features.collect(), epoch: 1, ..Default::default() }
}

/// A node whose manners can be changed.
pub(crate) struct FakeNode {
    pub(crate) address: SocketAddr,
    behaviour: Arc<Mutex<Arc<Behaviour>>>,
    calls: Arc<Mutex<Vec<v1::LookupRequest>>>,
    cancelled: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

#[derive(Clone)]
struct NodeService {
    behaviour: Arc<Mutex<Arc<Behaviour>>>,
    calls: Arc<Mutex<Vec<v1::LookupRequest>>>,
    cancelled: Arc<AtomicUsize>,
}

/// Counts when it is dropped.
struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl NodeService {
    async fn answer(&self, request: v1::LookupRequest) -> Result<v1::LookupResponse, Status> {
        let behaviour = self.behaviour.lock().unwrap().clone();
        self.calls.lock().unwrap().push(request.clone());
        match behaviour(&request) {
            Some(answer) => answer,
            None => {
                let _cancelled = OnDrop(self.cancelled.clone());
                std::future::pending().await
            }
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn listen(runtime: &Runtime, address: &str) -> (SocketAddr, TcpIncoming) {
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let _inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    (address, TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// Ends a peer: afterwards its sockets are closed. A runtime must not be dropped within another, so a thread
/// does it.
fn end(runtime: Option<Runtime>) {
    if let Some(runtime) = runtime {
        std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
    }
}

impl FakeNode {
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    pub(crate) fn start_at(address: &str) -> Self {
        Self::start_with(address, usize::MAX)
    }

    /// A node that takes no message of more than so many bytes.
    pub(crate) fn start_with(address: &str, max_request_bytes: usize) -> Self {
        let runtime = runtime();
        let (address, incoming) = listen(&runtime, address);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let incoming = incoming.map(move |connection| {
            counted.fetch_add(1, Ordering::SeqCst);
            connection
        });
        let behaviour: Arc<Behaviour> = Arc::new(|request| Some(Ok(honest(request))));
        let behaviour = Arc::new(Mutex::new(behaviour));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let cancelled = Arc::new(AtomicUsize::new(0));
        let service =
            NodeService { behaviour: behaviour.clone(), calls: calls.clone(), cancelled: cancelled.clone() };
        let answer = move |request| {
            let node = service.clone();
            async move { node.answer(request).await }
        };
        let service = EmbeddingServer::new(StandIn(answer)).max_decoding_message_size(max_request_bytes);
        let server = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(server.serve_with_incoming(incoming));
        Self { address, behaviour, calls, cancelled, connections, runtime: Some(runtime) }
    }

    /// Calls that were given up by the caller while they hung.
    pub(crate) fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Connections that were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn behave(
        &self,
        how: impl Fn(&v1::LookupRequest) -> Option<Result<v1::LookupResponse, Status>> + Send + Sync + 'static,
    ) {
        *self.behaviour.lock().unwrap() = Arc::new(how);
    }

    /// Answers honestly, then has the answer changed.
    pub(crate) fn lie(&self, change: fn(&mut v1::LookupResponse)) {
        self.behave(move |request| {
            let mut response = honest(request);
            change(&mut response);
            Some(Ok(response))
        });
    }

    pub(crate) fn calls(&self) -> Vec<v1::LookupRequest> {
        self.calls.lock().unwrap().clone()
    }

    pub(crate) fn kill(&mut self) {
        end(self.runtime.take());
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A controller that only sends maps.
pub(crate) struct FakeController {
    pub(crate) address: SocketAddr,
    pub(crate) maps: watch::Sender<v1::ClusterMap>,
    have_epochs: Arc<Mutex<Vec<u64>>>,
    runtime: Option<Runtime>,
}

struct ControlService {
    maps: watch::Receiver<v1::ClusterMap>,
    have_epochs: Arc<Mutex<Vec<u64>>>,
}

type Maps = Pin<Box<dyn Stream<Item = Result<v1::ClusterMap, Status>> + Send>>;
type Assignments = Pin<Box<dyn Stream<Item = Result<v1::Assignment, Status>> + Send>>;

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this controller only sends maps"))
}

#[tonic::async_trait]
impl Control for ControlService {
    type NodeSessionStream = Assignments;
    type RankerSessionStream = Maps;
    type WatchMapStream = Maps;

    async fn watch_map(&self, request: Request<v1::WatchMapRequest>) -> Result<Response<Maps>, Status> {
        self.have_epochs.lock().unwrap().push(request.into_inner().have_epoch);
        // Whatever the caller has: the client must cope with maps that are not newer.
        Ok(Response::new(Box::pin(WatchStream::new(self.maps.clone()).map(Ok))))
    }
    async fn node_session(
        &self,
        _: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Assignments>, Status> {
        unused()
    }
    async fn ranker_session(
        &self,
        _: Request<Streaming<v1::RankerReport>>,
    ) -> Result<Response<Maps>, Status> {
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
    pub(crate) fn start(address: &str, map: &ClusterMap) -> Self {
        let runtime = runtime();
        let (address, incoming) = listen(&runtime, address);
        let (maps, receiver) = watch::channel(map.into());
        let have_epochs = Arc::new(Mutex::new(Vec::new()));
        let service = ControlService { maps: receiver, have_epochs: have_epochs.clone() };
        let server = tonic::transport::Server::builder().add_service(ControlServer::new(service));
        runtime.spawn(server.serve_with_incoming(incoming));
        Self { address, maps, have_epochs, runtime: Some(runtime) }
    }

    /// The epochs with which watchers came.
    pub(crate) fn have_epochs(&self) -> Vec<u64> {
        self.have_epochs.lock().unwrap().clone()
    }
}

impl Drop for FakeController {
    fn drop(&mut self) {
        end(self.runtime.take());
    }
}

/// Groups a and b of two nodes each.
pub(crate) struct Cluster {
    pub(crate) a: [FakeNode; 2],
    pub(crate) b: [FakeNode; 2],
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let two = || [FakeNode::start(), FakeNode::start()];
        Self { a: two(), b: two() }
    }

    pub(crate) fn map(&self, epoch: u64) -> ClusterMap {
        let addresses = |group: &[FakeNode; 2]| -> [SocketAddr; 2] { [group[0].address, group[1].address] };
        map(epoch, &[("a", &addresses(&self.a)), ("b", &addresses(&self.b))])
    }

    pub(crate) fn calls(&self) -> [usize; 4] {
        [&self.a[0], &self.a[1], &self.b[0], &self.b[1]].map(|node| node.calls().len())
    }
}

/// A map of the film table: `groups` as group name and the addresses of its nodes; partition p of a group
/// of n nodes is on node p mod n, whose name is `GROUP-N`.
pub(crate) fn map(epoch: u64, groups: &[(&str, &[SocketAddr])]) -> ClusterMap {
    let mut map = ClusterMap { epoch: Epoch(epoch), ..Default::default() };
    let mut placement = Placement::default();
    for (group, addresses) in groups {
        let ids: Vec<_> = (0..addresses.len()).map(|n| NodeId(name(&format!("{group}-{n}")))).collect();
        for (id, address) in ids.iter().zip(*addresses) {
            let entry = NodeEntry {
                draining: false,
                group: name(group),
                grpc_address: address.to_string(),
                http_address: String::new(),
                up: true,
            };
            map.nodes.insert(id.clone(), entry);
        }
        let nodes = (0..PARTITIONS as usize).map(|p| ids[p % ids.len()].clone()).collect();
        placement.groups.insert(name(group), nodes);
    }
    let schema = TableSchema {
        table_version: version(),
        dim: DIM,
        format: RowFormat::F32,
        keying: Keying::Dense,
        partitions: PartitionCount::new(PARTITIONS).unwrap(),
        rows: ROWS,
        default_row: vec![-1.0, 0.5],
        composite: None,
    };
    map.layouts.push(TableLayout { schema, placement });
    map.validate().unwrap();
    map
}

/// Two features on every partition, and what must come back.
pub(crate) fn request() -> (LookupRequest, [Vec<f32>; 2]) {
    let bag = FeatureLookup {
        table_version: version(),
        pooling: Pooling::Sum,
        ids: vec![1, 2, 3, 4, 4, 5000, 6000],
        lengths: Some(vec![6, 1, 0]),
        weights: None,
    };
    let rows = FeatureLookup { pooling: Pooling::None, ids: vec![7, 9000, 3], lengths: None, ..bag.clone() };
    let request = LookupRequest { request_id: "request-1".into(), features: vec![bag, rows] };
    (request, [vec![14.0, 5.0, -1.0, 0.5, -1.0, 0.5], vec![7.0, 1.0, -1.0, 0.5, 3.0, 1.0]])
}

pub(crate) fn assert_right(outcome: &LookupOutcome) {
    let (_, [sums, rows]) = request();
    assert_eq!(outcome.features[0].values, sums);
    assert_eq!(outcome.features[1].values, rows);
    assert_eq!(outcome.features[0].found, [5, 0, 0]);
    assert_eq!((outcome.features[0].missing_ids, outcome.features[0].defaulted_bags), (2, 2));
    assert_eq!((outcome.features[1].missing_ids, outcome.features[1].defaulted_bags), (1, 1));
    assert!(!outcome.partial(), "{outcome:?}");
}

/// Waits until `ok`, for as long as a slow machine may take.
pub(crate) async fn wait_until(what: &str, ok: impl Fn() -> bool) {
    let waiting = async {
        while !ok() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "{what}");
}
