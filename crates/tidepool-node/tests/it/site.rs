//! A store and a data directory in a temporary place, and nodes on them.

use std::{path::PathBuf, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tidepool_cluster::{Assignment, TableAssignment};
use tidepool_node::{Config, RawConfig, Running, StartError, start};
use tidepool_proto::{
    pack::pack,
    v1::{self, embedding_client::EmbeddingClient},
};
use tidepool_store::ArtifactStore;
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_types::{
    Epoch, Keying, Name, PartitionCount, PartitionIndex, RowFormat, TableSchema, TableVersion,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    control::{DEADLINE, FakeController},
    oracle,
};

/// Where a test's files lie.
pub(crate) struct Site {
    dir: TempDir,
    pub(crate) store: ArtifactStore,
}

/// A node of a test.
pub(crate) struct TestNode {
    pub(crate) running: Running,
    pub(crate) stop: CancellationToken,
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn version(table: &str, version: &str) -> TableVersion {
    TableVersion { table: name(table), version: name(version) }
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    /// Builds a table version of the ids given, with the oracle's rows.
    pub(crate) fn table(
        &self,
        table_version: TableVersion,
        (format, dim): (RowFormat, u32),
        keying: Keying,
        partitions: u32,
        ids: impl IntoIterator<Item = u64>,
    ) -> TableSchema {
        let spec = TableSpec {
            table_version: table_version.clone(),
            dim,
            format,
            keying,
            partitions: PartitionCount::new(partitions).unwrap(),
            default_row: Vec::new(),
            composite: None,
            full_keys: false,
            seed: 1,
        };
        let mut builder = TableBuilder::new(spec).unwrap();
        for id in ids {
            builder.push(id, &oracle::row(id, dim)).unwrap();
        }
        let dir = self.store.table_dir(&table_version);
        builder.publish(&dir, &mut |_, _| {}).unwrap().schema
    }

    /// The file of a partition.
    pub(crate) fn file(&self, schema: &TableSchema, partition: u32) -> PathBuf {
        self.store.partition_path(&schema.table_version, schema.partitions, PartitionIndex(partition))
    }

    /// A configuration on free ports, without a controller.
    pub(crate) fn raw(&self) -> RawConfig {
        RawConfig {
            node: "n1".into(),
            group: "a".into(),
            controllers: Vec::new(),
            grpc_address: "127.0.0.1:0".into(),
            http_address: "127.0.0.1:0".into(),
            store: self.store.root().to_str().unwrap().into(),
            data_dir: self.dir.path().join("data").to_str().unwrap().into(),
            pool_threads: 2,
            load_retry_ms: 20,
            report_interval_ms: 50,
            reconnect_min_ms: 10,
            reconnect_max_ms: 50,
            ..RawConfig::default()
        }
    }

    /// The same with a controller.
    pub(crate) fn following(&self, controller: &FakeController) -> RawConfig {
        RawConfig { controllers: vec![controller.address.to_string()], ..self.raw() }
    }
}

/// Starts a node, or says why not.
pub(crate) async fn try_start(raw: RawConfig) -> Result<TestNode, StartError> {
    let stop = CancellationToken::new();
    let running = start(Config::try_from(raw).unwrap(), stop.clone()).await?;
    Ok(TestNode { running, stop })
}

impl TestNode {
    pub(crate) async fn start(raw: RawConfig) -> Self {
        try_start(raw).await.unwrap()
    }

    pub(crate) async fn ready(&self) {
        let ready = timeout(DEADLINE, self.running.health.wait_ready()).await;
        assert!(
            ready.is_ok(),
            "not ready: {:?}, {:#}",
            self.running.health.readiness(),
            self.running.status()
        );
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.running.wait()).await.expect("stops").unwrap();
    }

    pub(crate) async fn client(&self) -> EmbeddingClient<Channel> {
        EmbeddingClient::connect(format!("http://{}", self.running.grpc_address))
            .await
            .unwrap()
            .max_decoding_message_size(64 << 20)
    }

    /// The body and status line of a GET.
    pub(crate) async fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.running.http_address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().into(), body.into())
    }

    /// The partitions in `/status`.
    pub(crate) fn partitions(&self) -> Vec<Value> {
        self.running.status()["partitions"].as_array().unwrap().clone()
    }
}

/// An assignment of these partitions.
pub(crate) fn assignment(epoch: u64, tables: &[(&TableSchema, &[u32])]) -> Assignment {
    let table = |(schema, partitions): &(&TableSchema, &[u32])| TableAssignment {
        schema: (*schema).clone(),
        partitions: partitions.iter().map(|p| PartitionIndex(*p)).collect(),
    };
    Assignment { epoch: Epoch(epoch), tables: tables.iter().map(table).collect(), ..Assignment::default() }
}

/// Every partition of a layout.
pub(crate) fn all(schema: &TableSchema) -> Vec<u32> {
    (0..schema.partitions.get()).collect()
}

pub(crate) fn gather(schema: &TableSchema, ids: &[u64]) -> v1::FeatureRequest {
    v1::FeatureRequest {
        table_version: Some((&schema.table_version).into()),
        partitions: schema.partitions.get(),
        wire_form: v1::WireForm::Gather.into(),
        ids: pack(ids),
        ..v1::FeatureRequest::default()
    }
}

pub(crate) fn request(features: Vec<v1::FeatureRequest>) -> v1::LookupRequest {
    v1::LookupRequest { request_id: "test".into(), features, ..v1::LookupRequest::default() }
}
