//! A node whose store is an object store: it serves copies, keeps within its disk, and goes on when the store does
//! not answer, or has something else than what was published.

use std::{fs, sync::Arc};

use object_store::{ObjectStoreExt, memory::InMemory, path::Path as Key};
use tidepool_cluster::PartitionState;
use tidepool_node::{Config, RawConfig, start_on};
use tidepool_proto::code_of;
use tidepool_store::{Artifacts, RemoteStore, Retries};
use tidepool_types::{Keying, RowFormat, TableSchema};
use tokio_util::sync::CancellationToken;

use crate::{
    control::FakeController,
    site::{Site, TestNode, all, assignment, gather, request, version},
};

/// Tables of a site, pushed to an object store.
struct Cloud {
    site: Site,
    objects: Arc<InMemory>,
}

impl Cloud {
    fn new() -> Self {
        Self { site: Site::new(), objects: Arc::new(InMemory::new()) }
    }

    fn remote(&self) -> RemoteStore {
        let retries = Retries { attempts: 1, ..Retries::default() };
        RemoteStore::over(self.objects.clone(), "p", "s3://bucket/p").with_retries(retries)
    }

    async fn table(&self, name: &str) -> TableSchema {
        let version = version("pin", name);
        let schema = self.site.table(version.clone(), (RowFormat::Int4, 16), Keying::Hashed, 4, 0..2000);
        self.remote().push_table(&self.site.store, &version, &|_| ()).await.unwrap();
        schema
    }

    async fn start(&self, raw: RawConfig) -> TestNode {
        let stop = CancellationToken::new();
        let config = Config::try_from(raw).unwrap();
        let artifacts = Artifacts::of(self.remote(), &config.data_dir).unwrap();
        TestNode { running: start_on(config, artifacts, stop.clone()).await.unwrap(), stop }
    }

    fn key(version: &str, partition: u32) -> Key {
        Key::parse(format!("p/tables/pin/{version}/layout-4/part-{partition:05}.tide")).unwrap()
    }
}

/// Whether a row of the partition is found.
async fn serves(node: &TestNode, schema: &TableSchema, partition: u32) -> bool {
    let here = |id: &u64| schema.keying.locate(*id, schema.partitions).partition.0 == partition;
    let ids: Vec<u64> = (0..2000).filter(here).take(5).collect();
    match node.client().await.lookup(request(vec![gather(schema, &ids)])).await {
        Ok(answer) => answer.into_inner().features[0].missing_ids == 0,
        Err(status) => panic!("{:?}: {status}", code_of(&status)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_served_and_after_a_restart_without_the_store() {
    let cloud = Cloud::new();
    let schema = cloud.table("v1").await;
    let mut controller = FakeController::start(&assignment(1, &[(&schema, &all(&schema))])).await;
    let node = cloud.start(cloud.site.following(&controller)).await;
    controller.ready(1).await;
    for partition in 0..4 {
        assert!(serves(&node, &schema, partition).await);
    }
    let bytes: u64 = (0..4).map(|p| fs::metadata(cloud.site.file(&schema, p)).unwrap().len()).sum();
    let store = node.running.status()["store"].clone();
    assert_eq!(
        (store["location"].as_str(), store["fetched_bytes"].as_u64()),
        (Some("s3://bucket/p"), Some(bytes))
    );
    assert!(node.get("/metrics").await.1.contains(&format!("tidepool_node_fetched_bytes_total {bytes}\n")));
    node.stop().await;

    let gone = Cloud { objects: Arc::new(InMemory::new()), ..cloud };
    let node = gone.start(gone.site.raw()).await;
    node.ready().await;
    assert!(serves(&node, &schema, 3).await);
    assert_eq!(node.running.status()["store"]["fetched_bytes"], 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_keeps_the_old_version_serving_and_is_named() {
    let cloud = Cloud::new();
    let (old, new) = (cloud.table("v1").await, cloud.table("v2").await);
    let good = fs::read(cloud.site.file(&new, 2)).unwrap();
    let mut bad = good.clone();
    bad[4096] ^= 1;
    cloud.objects.put(&Cloud::key("v2", 2), bad.into()).await.unwrap();
    let mut controller = FakeController::start(&assignment(1, &[(&old, &all(&old))])).await;
    let node = cloud.start(cloud.site.following(&controller)).await;
    controller.ready(1).await;
    controller.assign(&assignment(2, &[(&old, &all(&old)), (&new, &all(&new))]));
    let partitions = controller.settled(2).await;
    let failed: Vec<_> = partitions.iter().filter(|p| p.state != PartitionState::Ready).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    let PartitionState::Failed(problem) = &failed[0].state else { panic!("{failed:?}") };
    let object = "s3://bucket/p/tables/pin/v2/layout-4/part-00002.tide is not what was published";
    assert!(problem.contains(object), "{problem}");
    for partition in 0..4 {
        assert!(serves(&node, &old, partition).await, "the old version serves on");
    }
    // A good object heals, without anyone's help.
    cloud.objects.put(&Cloud::key("v2", 2), good.into()).await.unwrap();
    controller
        .report(|r| r.partitions.iter().all(|p| p.state() == tidepool_proto::v1::PartitionState::Ready))
        .await;
    assert!(serves(&node, &new, 2).await);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_not_fit_on_the_disk_is_refused_with_the_numbers_and_the_rest_is_served() {
    let cloud = Cloud::new();
    let (old, new) = (cloud.table("v1").await, cloud.table("v2").await);
    let bytes = fs::metadata(cloud.site.file(&new, 1)).unwrap().len();
    let mut controller = FakeController::start(&assignment(1, &[(&old, &all(&old))])).await;
    // Room for four partitions and two manifests, in whole blocks, and for one and a half partitions more.
    let limit = 4 * bytes.next_multiple_of(4096) + 2 * 4096 + bytes * 3 / 2;
    let raw = RawConfig { disk_capacity_bytes: limit, ..cloud.site.following(&controller) };
    let node = cloud.start(raw).await;
    controller.ready(1).await;
    controller.assign(&assignment(2, &[(&old, &all(&old)), (&new, &[0, 1])]));
    let partitions = controller.settled(2).await;
    let states: Vec<_> = partitions.iter().map(|p| p.state == PartitionState::Ready).collect();
    assert_eq!(states, [true, true, true, true, true, false], "{partitions:#?}");
    let PartitionState::Failed(problem) = &partitions[5].state else { panic!("{partitions:?}") };
    for words in
        [format!("needs {bytes} bytes"), format!("of {limit} bytes"), "disk_capacity_bytes".to_owned()]
    {
        assert!(problem.contains(&words), "{words} is not in {problem}");
    }
    assert!(serves(&node, &old, 1).await && serves(&node, &new, 0).await);

    // What is not assigned any more makes room at once.
    controller.assign(&assignment(3, &[(&new, &all(&new))]));
    let ready =
        |p: &tidepool_proto::v1::PartitionStatus| p.state() == tidepool_proto::v1::PartitionState::Ready;
    controller.report(|r| r.epoch == 3 && r.partitions.iter().all(ready)).await;
    assert!(serves(&node, &new, 3).await);
    node.stop().await;
}
