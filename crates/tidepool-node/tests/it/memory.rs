//! A node with too little memory for all that it is given, and two nodes that were given one directory.

use std::fs;

use tidepool_cluster::PartitionState;
use tidepool_node::{RawConfig, StartError};
use tidepool_types::{Keying, RowFormat, TableSchema};

use crate::{
    control::FakeController,
    site::{Site, TestNode, all, assignment, gather, request, try_start, version},
};

fn table(site: &Site, name: &str) -> (TableSchema, u64) {
    // Rows are most of a dense table's files.
    let schema = site.table(version("pin", name), (RowFormat::Int4, 64), Keying::Dense, 4, 0..20_000);
    let bytes = (0..4).map(|p| fs::metadata(site.file(&schema, p)).unwrap().len()).sum();
    (schema, bytes)
}

/// Whether every row of a version is found.
async fn serves(node: &TestNode, schema: &TableSchema) -> bool {
    let ids: Vec<u64> = (0..20_000).collect();
    let answer = node.client().await.lookup(request(vec![gather(schema, &ids)])).await;
    answer.is_ok_and(|answer| answer.into_inner().features[0].missing_ids == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_fit_beside_the_one_that_is_served_is_refused_and_nothing_is_lost() {
    let site = Site::new();
    let ((old, bytes), (new, _)) = (table(&site, "v1"), table(&site, "v2"));
    let mut controller = FakeController::start(&assignment(1, &[(&old, &all(&old))])).await;
    // Room for one version and one partition.
    let small = RawConfig {
        memory_capacity_bytes: bytes * 5 / 4,
        residency: "mapped".into(),
        ..site.following(&controller)
    };
    let node = TestNode::start(small.clone()).await;
    controller.ready(1).await;
    controller.assign(&assignment(2, &[(&old, &all(&old)), (&new, &all(&new))]));
    let partitions = controller.settled(2).await;
    let problem = |at: usize| match &partitions[at].state {
        PartitionState::Failed(problem) => problem.clone(),
        other => panic!("{other:?}"),
    };
    assert!(partitions[..4].iter().all(|p| p.state == PartitionState::Ready), "{partitions:#?}");
    let memory = node.running.status()["memory"].clone();
    let needed = fs::metadata(site.file(&new, 3)).unwrap().len();
    for part in [
        site.file(&new, 3).display().to_string(),
        format!("needs {needed} bytes (residency mapped)"),
        format!("of {} bytes (memory_capacity_bytes)", bytes * 5 / 4),
        "0 locked, 0 copied".to_owned(),
    ] {
        assert!(problem(7).contains(&part), "{part}: {}", problem(7));
    }
    assert!(serves(&node, &old).await, "the old version serves on");
    let report = controller.report(|report| report.memory.is_some_and(|m| m.mapped_bytes > 0)).await;
    let told = report.memory.unwrap();
    assert_eq!((told.budget_bytes, told.locked_bytes, told.copied_bytes), (bytes * 5 / 4, 0, 0));
    assert_eq!(memory["mapped_bytes"], told.mapped_bytes);
    assert!(memory["largest_that_fits_bytes"].as_u64().unwrap() < needed, "{memory}");
    let (_, metrics) = node.get("/metrics").await;
    for line in [
        format!("tidepool_node_memory_budget_bytes {}", bytes * 5 / 4),
        format!("tidepool_node_memory_held_bytes{{kind=\"mapped\"}} {}", told.mapped_bytes),
        "tidepool_node_memory_held_bytes{kind=\"locked\"} 0".to_owned(),
        "tidepool_node_memory_charged_bytes ".to_owned(),
        "tidepool_node_memory_room_bytes ".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }

    // With the old version given up there is room, which is used at once and not only after the retry.
    controller.assign(&assignment(3, &[(&new, &all(&new))]));
    let is_new = |p: &tidepool_proto::v1::PartitionStatus| p.problem.is_empty() && p.file_bytes > 0;
    controller.report(|r| r.epoch == 3 && r.partitions.iter().all(is_new)).await;
    assert!(serves(&node, &new).await);
    node.stop().await;

    // With more memory both fit.
    controller.assign(&assignment(4, &[(&old, &all(&old)), (&new, &all(&new))]));
    let node = TestNode::start(RawConfig { memory_capacity_bytes: bytes * 2, ..small }).await;
    controller.ready(4).await;
    assert!(serves(&node, &old).await && serves(&node, &new).await);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_count_once_more_while_they_are_made_and_are_told_apart() {
    let site = Site::new();
    let (schema, bytes) = table(&site, "v1");
    let mut controller = FakeController::start(&assignment(1, &[(&schema, &all(&schema))])).await;
    let copied = |memory_capacity_bytes| RawConfig {
        memory_capacity_bytes,
        residency: "copied".into(),
        ..site.following(&controller)
    };
    let (tight, roomy) = (copied(bytes + 1), copied(bytes * 2));
    let node = TestNode::start(tight).await;
    let partitions = controller.settled(1).await;
    let PartitionState::Failed(problem) = &partitions[3].state else { panic!("{partitions:#?}") };
    assert!(problem.contains("for a copy beside its map"), "{problem}");
    assert_eq!(partitions[0].state, PartitionState::Ready);
    node.stop().await;
    let node = TestNode::start(roomy).await;
    let all_copied = |m: &tidepool_proto::v1::HostMemory| m.copied_bytes > 0 && m.mapped_bytes == 0;
    controller.report(|r| r.memory.is_some_and(|m| all_copied(&m)) && r.epoch == 1).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_has_one_node() {
    let site = Site::new();
    let node = TestNode::start(site.raw()).await;
    let refused = try_start(RawConfig { node: "n2".into(), ..site.raw() }).await.err().unwrap();
    assert!(matches!(refused, StartError::DataDirTaken { .. }), "{refused}");
    for part in [&site.raw().data_dir, "another node", "data_dir"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    node.stop().await;
    TestNode::start(site.raw()).await.stop().await;
}
