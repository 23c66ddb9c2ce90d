//! A store with manifests in it, a controller on free ports, and nodes and rankers that say what they are told.

use std::{fmt::Debug, fs, path::PathBuf, time::Duration};

use tempfile::TempDir;
use tidepool_cluster::{Assignment, ClusterMap, PartitionState, PartitionStatus};
use tidepool_controller::{Config, RawConfig, Running, StartError, start};
use tidepool_proto::v1::{self, control_client::ControlClient};
use tidepool_store::{ArtifactStore, content_hash};
use tidepool_types::{
    Keying, Name, PartitionCount, PartitionEntry, RowFormat, TableManifest, TableSchema, TableVersion,
};
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};

/// Nothing here takes so long, whatever else the machine does.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    time::timeout(DEADLINE, what).await.unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn table(table: &str, version: &str) -> TableVersion {
    TableVersion { table: name(table), version: name(version) }
}

/// Directories, and what is in them.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) store: ArtifactStore,
}

impl Fixture {
    /// Tables user@v1 and item@v1 of four partitions, and release m@r1 of both.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path().join("store")).unwrap();
        let fixture = Self { dir, store };
        let tables = [table("user", "v1"), table("item", "v1")];
        tables.iter().for_each(|t| fixture.add_table(t));
        fixture.add_release("r1", &tables);
        fixture
    }

    pub(crate) fn add_table(&self, table: &TableVersion) {
        let partitions = PartitionCount::new(4).unwrap();
        let entry = |partition| PartitionEntry { partition, rows: 3, file_bytes: 10, footer_crc32c: 7 };
        let manifest = TableManifest {
            schema_version: 1,
            schema: TableSchema {
                table_version: table.clone(),
                dim: 4,
                format: RowFormat::Int4,
                keying: Keying::Hashed,
                partitions,
                rows: 12,
                default_row: vec![0.5; 4],
                composite: None,
            },
            files: partitions.indexes().map(entry).collect(),
            quantization: None,
            bytes: None,
        };
        for file in &manifest.files {
            let path = self.store.partition_path(table, partitions, file.partition);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, [0; 10]).unwrap();
        }
        let path = self.store.table_dir(table).join("manifest.json");
        fs::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    pub(crate) fn add_release(&self, release: &str, tables: &[TableVersion]) {
        let mut contract =
            "schema_version = 1\nmodel = \"m\"\nscore = \"p\"\n[[outputs]]\nname = \"p\"\n".to_owned();
        for table in tables {
            let table = &table.table;
            contract += &format!("[[inputs]]\nname = \"{table}\"\nside = \"user\"\ntable = \"{table}\"\n");
        }
        self.store.write_release(&name("m"), &name(release), tables, &contract, b"graph").unwrap();
    }

    /// Makes the release say that `model.onnx` has another content than it has.
    pub(crate) fn spoil_release(&self, release: &str) {
        let path = self.store.release_dir(&name("m"), &name(release)).join("release.json");
        let text = fs::read_to_string(&path).unwrap();
        let spoiled = text.replace(&content_hash(b"graph"), &content_hash(b"another graph"));
        assert_ne!(text, spoiled);
        fs::write(path, spoiled).unwrap();
    }

    pub(crate) fn raw_config(&self) -> RawConfig {
        let path = |p: PathBuf| p.to_str().unwrap().to_owned();
        RawConfig {
            grpc_address: "127.0.0.1:0".into(),
            http_address: "127.0.0.1:0".into(),
            store: path(self.store.root().to_owned()),
            data_dir: path(self.dir.path().join("controller")),
            reconnect_grace_ms: 500,
            group_settle_ms: 50,
            retire_grace_ms: 50,
            keepalive_interval_ms: 200,
            keepalive_timeout_ms: 500,
            ..RawConfig::default()
        }
    }

    pub(crate) async fn start(&self) -> Controller {
        self.try_start(self.raw_config()).await.unwrap()
    }

    pub(crate) async fn try_start(&self, raw: RawConfig) -> Result<Controller, StartError> {
        let token = CancellationToken::new();
        let running = start(Config::try_from(raw).unwrap(), token.clone()).await?;
        Ok(Controller { running, token })
    }
}

pub(crate) struct Controller {
    pub(crate) running: Running,
    token: CancellationToken,
}

pub(crate) type Client = ControlClient<Channel>;

impl Controller {
    pub(crate) async fn client(&self) -> Client {
        connect(self.running.grpc_address.to_string()).await
    }

    pub(crate) async fn stop(self) {
        self.token.cancel();
        soon(self.running.wait()).await.unwrap();
    }

    /// The first map that is as it should be, of those that a client is sent.
    pub(crate) async fn map(&self, good: impl Fn(&ClusterMap) -> bool) -> ClusterMap {
        let mut client = self.client().await;
        let watch = client.watch_map(v1::WatchMapRequest { have_epoch: u64::MAX }).await.unwrap();
        first_map(watch.into_inner(), good).await
    }

    /// Two nodes, of groups a and b, that hold nothing yet.
    pub(crate) async fn two_nodes(&self) -> [Node; 2] {
        let nodes =
            [Node::join(self.client().await, "a-1").await, Node::join(self.client().await, "b-1").await];
        self.map(|map| map.nodes.values().filter(|n| n.up).count() == 2).await;
        nodes
    }
}

pub(crate) async fn connect(address: String) -> Client {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    ControlClient::new(soon(endpoint.tcp_nodelay(true).connect()).await.unwrap())
}

pub(crate) async fn first_map(
    mut maps: Streaming<v1::ClusterMap>,
    good: impl Fn(&ClusterMap) -> bool,
) -> ClusterMap {
    soon(async {
        let mut before = None;
        loop {
            let map = ClusterMap::try_from(maps.message().await.unwrap().unwrap()).unwrap();
            assert!(before.is_none_or(|epoch| map.epoch > epoch), "epochs grow");
            before = Some(map.epoch);
            if good(&map) {
                return map;
            }
        }
    })
    .await
}

/// A node that reports what the test says.
pub(crate) struct Node {
    report: v1::NodeReport,
    reports: mpsc::Sender<v1::NodeReport>,
    assignments: Streaming<v1::Assignment>,
}

impl Node {
    /// The group is the part of the name before the dash.
    pub(crate) fn introduction(node: &str) -> v1::NodeReport {
        v1::NodeReport {
            node: node.into(),
            group: node.split('-').next().unwrap().into(),
            grpc_address: format!("{node}:7410"),
            http_address: format!("{node}:7411"),
            ..v1::NodeReport::default()
        }
    }

    pub(crate) async fn join(client: Client, node: &str) -> Self {
        let mut node = Self::open(client, Self::introduction(node)).await;
        soon(node.assignments.message()).await.unwrap().unwrap();
        node
    }

    /// A session of which only the first report was sent.
    pub(crate) async fn open(mut client: Client, report: v1::NodeReport) -> Self {
        let (reports, outgoing) = mpsc::channel(4);
        reports.send(report.clone()).await.unwrap();
        let assignments =
            soon(client.node_session(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
        Self { report, reports, assignments }
    }

    pub(crate) async fn send(&self, report: v1::NodeReport) {
        self.reports.send(report).await.unwrap();
    }

    /// The next assignment, or why there is none.
    pub(crate) async fn next(&mut self) -> Result<Option<Assignment>, Status> {
        Ok(soon(self.assignments.message()).await?.map(|a| a.try_into().unwrap()))
    }

    /// The first assignment with so many tables.
    pub(crate) async fn assigned(&mut self, tables: usize) -> Assignment {
        loop {
            let assignment = self.next().await.unwrap().unwrap();
            if assignment.tables.len() == tables {
                return assignment;
            }
        }
    }

    /// Reports everything of an assignment as loaded.
    pub(crate) async fn ready(&mut self, assignment: &Assignment) {
        let status = |t: &tidepool_cluster::TableAssignment| {
            let schema = t.schema.clone();
            t.partitions.clone().into_iter().map(move |partition| PartitionStatus {
                table_version: schema.table_version.clone(),
                partitions: schema.partitions.get(),
                partition,
                state: PartitionState::Ready,
                file_bytes: 10,
            })
        };
        self.report.epoch = assignment.epoch.0;
        self.report.partitions = assignment.tables.iter().flat_map(status).map(|s| (&s).into()).collect();
        self.send(self.report.clone()).await;
    }
}

pub(crate) fn publish(release: &str) -> v1::PublishReleaseRequest {
    v1::PublishReleaseRequest { model: "m".into(), release: release.into() }
}

pub(crate) fn promote(release: &str) -> v1::PromoteReleaseRequest {
    v1::PromoteReleaseRequest { model: "m".into(), release: release.into(), dry_run: false }
}

pub(crate) fn serve(table: &TableVersion, serve: bool) -> v1::ServeTableRequest {
    v1::ServeTableRequest { table_version: Some(table.into()), serve }
}

/// The error's code and text.
pub(crate) fn refused<T: Debug>(answer: Result<T, Status>) -> (tidepool_types::ErrorCode, String) {
    let status = answer.unwrap_err();
    (tidepool_proto::code_of(&status), status.message().to_owned())
}
