//! What a node does with assignments and with files: damaged ones, too many, none at all, and restarts.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use tidepool_cluster::{Assignment, PartitionState};
use tidepool_node::{RawConfig, StartError};
use tidepool_proto::{code_of, v1};
use tidepool_types::{Epoch, ErrorCode, Keying, RowFormat, TableSchema};

use crate::{
    control::FakeController,
    site::{Site, TestNode, all, assignment, gather, request, try_start, version},
};

/// A hashed table of four partitions.
fn table(site: &Site, name: &str) -> TableSchema {
    site.table(version("pin", name), (RowFormat::Int4, 16), Keying::Hashed, 4, 0..2000)
}

/// Ids of one partition, first some that are there.
fn ids_of(schema: &TableSchema, partition: u32) -> Vec<u64> {
    let here = |id: &u64| schema.keying.locate(*id, schema.partitions).partition.0 == partition;
    (0..2000).filter(here).take(10).collect()
}

/// How many rows of a partition a node finds, or the code of its refusal.
async fn found(node: &TestNode, schema: &TableSchema, partition: u32) -> Result<usize, ErrorCode> {
    let ids = ids_of(schema, partition);
    let answer = node.client().await.lookup(request(vec![gather(schema, &ids)])).await;
    let feature = answer.map_err(|status| code_of(&status))?.into_inner().features.remove(0);
    Ok(ids.len() - feature.missing_ids as usize)
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Puts other bytes in place of a file as a new file: the old one may be mapped.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_fail_by_name_the_rest_is_served_and_good_files_heal() {
    let site = Site::new();
    let schema = table(&site, "v1");
    let (cut, flipped) = (site.file(&schema, 1), site.file(&schema, 2));
    let (cut_bytes, mut flipped_bytes) = (read(&cut), read(&flipped));
    replace(&cut, &cut_bytes[..cut_bytes.len() / 2]);
    // The first byte after the header page is that of a row.
    flipped_bytes[4096] ^= 1;
    replace(&flipped, &flipped_bytes);
    flipped_bytes[4096] ^= 1;
    let missing = site.file(&schema, 3);
    let missing_bytes = read(&missing);
    fs::remove_file(&missing).unwrap();

    let mut controller = FakeController::start(&assignment(1, &[(&schema, &all(&schema))])).await;
    let node = TestNode::start(site.following(&controller)).await;
    let partitions = controller.settled(1).await;
    assert_eq!(partitions[0].state, PartitionState::Ready);
    for (at, file) in [(1, &cut), (2, &flipped), (3, &missing)] {
        let PartitionState::Failed(problem) = &partitions[at].state else { panic!("{:?}", partitions[at]) };
        assert!(problem.contains(file.to_str().unwrap()), "{problem}");
        assert_eq!(found(&node, &schema, at as u32).await, Err(ErrorCode::NotServed));
    }
    let PartitionState::Failed(problem) = &partitions[2].state else { unreachable!() };
    assert!(problem.contains("section rows") || problem.contains("Rows"), "{problem}");
    assert_eq!(found(&node, &schema, 0).await, Ok(10));
    let (line, why) = node.get("/readyz").await;
    assert_eq!(line, "HTTP/1.1 503 Service Unavailable");
    assert!(why.contains("1 of 4 partitions are ready, 3 failed"), "{why}");

    for (path, bytes) in [(&cut, &cut_bytes), (&flipped, &flipped_bytes), (&missing, &missing_bytes)] {
        replace(path, bytes);
    }
    let ready = |p: &v1::PartitionStatus| p.state() == v1::PartitionState::Ready;
    controller.report(|report| report.partitions.iter().all(ready)).await;
    for partition in 0..4 {
        assert_eq!(found(&node, &schema, partition).await, Ok(10));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_the_numbers() {
    let site = Site::new();
    let schema = table(&site, "v1");
    let bytes: Vec<u64> = (0..4).map(|p| fs::metadata(site.file(&schema, p)).unwrap().len()).collect();
    let mut controller = FakeController::start(&assignment(1, &[(&schema, &[0, 1, 2])])).await;
    let capacity = bytes[0] + bytes[1] + bytes[2] - 1;
    let raw = RawConfig { capacity_bytes: capacity, ..site.following(&controller) };
    let node = TestNode::start(raw).await;
    let partitions = controller.settled(1).await;
    assert_eq!(partitions[0].state, PartitionState::Ready);
    assert_eq!(partitions[0].file_bytes, bytes[0]);
    let PartitionState::Failed(problem) = &partitions[2].state else { panic!("{partitions:?}") };
    for number in [bytes[2], bytes[0] + bytes[1], capacity] {
        assert!(problem.contains(&number.to_string()), "{number} is not in {problem}");
    }
    assert_eq!(found(&node, &schema, 2).await, Err(ErrorCode::NotServed));
    assert_eq!(controller.report(|_| true).await.capacity_bytes, capacity);

    // With less assigned, the same partition fits.
    controller.assign(&assignment(2, &[(&schema, &[0, 2])]));
    controller.ready(2).await;
    assert_eq!(found(&node, &schema, 2).await, Ok(10));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_comes_in_before_the_old_one_goes() {
    let site = Site::new();
    let (old, new) = (table(&site, "v1"), table(&site, "v2"));
    let mut controller = FakeController::start(&assignment(1, &[(&old, &all(&old))])).await;
    let node = TestNode::start(site.following(&controller)).await;
    controller.ready(1).await;
    controller.assign(&assignment(2, &[(&old, &[0]), (&new, &all(&new))]));
    assert_eq!(controller.ready(2).await.len(), 5);
    assert_eq!(found(&node, &old, 0).await, Ok(10));
    assert_eq!(found(&node, &new, 3).await, Ok(10));
    // What is not assigned any more goes as soon as the rest is in: wait for that.
    let deadline = std::time::Instant::now() + crate::control::DEADLINE;
    while found(&node, &old, 1).await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the old version is still served");
    }
    assert_eq!(found(&node, &old, 1).await, Err(ErrorCode::NotServed));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_serves_stays_ready_when_a_new_assignment_does_not_load() {
    let site = Site::new();
    let (old, new) = (table(&site, "v1"), table(&site, "v2"));
    fs::remove_file(site.file(&new, 1)).unwrap();
    let mut controller = FakeController::start(&Assignment::default()).await;
    let node = TestNode::start(site.following(&controller)).await;
    node.ready().await;
    // Nothing was served by the empty one: the first with partitions is waited for.
    controller.assign(&assignment(1, &[(&new, &[0, 1])]));
    controller.settled(1).await;
    assert_eq!(node.get("/readyz").await.0, "HTTP/1.1 503 Service Unavailable");
    controller.assign(&assignment(2, &[(&old, &all(&old))]));
    controller.ready(2).await;
    node.ready().await;
    controller.assign(&assignment(3, &[(&old, &all(&old)), (&new, &[0, 1])]));
    let partitions = controller.settled(3).await;
    assert!(partitions.iter().any(|p| matches!(p.state, PartitionState::Failed(_))), "{partitions:?}");
    assert_eq!(node.get("/readyz").await, ("HTTP/1.1 200 OK".into(), "ready\n".into()));
    assert_eq!(node.running.status()["ready"], true);
    assert_eq!(found(&node, &old, 1).await, Ok(10));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_schema_is_refused_and_the_difference_named() {
    let site = Site::new();
    let schema = table(&site, "v1");
    let wrong = TableSchema { dim: 32, rows: 7, ..schema.clone() };
    let mut controller = FakeController::start(&assignment(1, &[(&wrong, &[0])])).await;
    let node = TestNode::start(site.following(&controller)).await;
    let partitions = controller.settled(1).await;
    let PartitionState::Failed(problem) = &partitions[0].state else { panic!("{partitions:?}") };
    assert!(problem.contains("dimension 16 instead of 32"), "{problem}");
    assert!(problem.contains("rows of the table 2000 instead of 7"), "{problem}");
    assert_eq!(found(&node, &wrong, 0).await, Err(ErrorCode::NotServed));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_file_of_another_build_of_the_version_is_refused() {
    let (site, elsewhere) = (Site::new(), Site::new());
    let schema = table(&site, "v1");
    // The same names and numbers, other rows.
    let ids = 10_000..12_000;
    let other = elsewhere.table(version("pin", "v1"), (RowFormat::Int4, 16), Keying::Hashed, 4, ids);
    assert_eq!(other, schema);
    let good = read(&site.file(&schema, 1));
    replace(&site.file(&schema, 1), &read(&elsewhere.file(&other, 1)));

    let mut controller = FakeController::start(&assignment(1, &[(&schema, &all(&schema))])).await;
    let node = TestNode::start(site.following(&controller)).await;
    let partitions = controller.settled(1).await;
    let PartitionState::Failed(problem) = &partitions[1].state else { panic!("{:?}", partitions[1]) };
    assert!(problem.contains("part-00001.tide") && problem.contains("manifest of pin@v1"), "{problem}");
    assert_eq!(found(&node, &schema, 1).await, Err(ErrorCode::NotServed));
    assert_eq!(found(&node, &schema, 0).await, Ok(10));

    replace(&site.file(&schema, 1), &good);
    let ready = |p: &v1::PartitionStatus| p.state() == v1::PartitionState::Ready;
    controller.report(|report| report.partitions.iter().all(ready)).await;
    assert_eq!(found(&node, &schema, 1).await, Ok(10));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_a_controller_serves_the_last_assignment_without_verifying_again() {
    let site = Site::new();
    let schema = table(&site, "v1");
    let mut controller = FakeController::start(&assignment(5, &[(&schema, &[0, 2])])).await;
    let node = TestNode::start(site.following(&controller)).await;
    controller.ready(5).await;
    node.stop().await;
    drop(controller);

    let node = TestNode::start(site.raw()).await;
    node.ready().await;
    assert_eq!(found(&node, &schema, 2).await, Ok(10));
    assert_eq!(found(&node, &schema, 1).await, Err(ErrorCode::NotServed));
    assert_eq!(node.running.status()["epoch"].as_u64(), Some(5));
    node.stop().await;

    // A changed byte under the same length and time is not seen: the file is known to be verified.
    let path = site.file(&schema, 2);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = read(&path);
    bytes[4096] ^= 1;
    replace(&path, &bytes);
    File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let node = TestNode::start(site.raw()).await;
    node.ready().await;
    node.stop().await;

    // Under another time it is.
    let later = modified + std::time::Duration::from_secs(1);
    File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    let node = TestNode::start(site.raw()).await;
    let deadline = std::time::Instant::now() + crate::control::DEADLINE;
    while !node.partitions().iter().any(|p| p["state"] == "failed") {
        assert!(std::time::Instant::now() < deadline, "the file was not verified again");
        tokio::task::yield_now().await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_assignment_is_not_ready_and_one_with_an_empty_one_is() {
    let site = Site::new();
    let node = TestNode::start(site.raw()).await;
    let (line, why) = node.get("/readyz").await;
    assert_eq!(line, "HTTP/1.1 503 Service Unavailable");
    assert!(why.contains("no assignment yet") || why.contains("starting"), "{why}");
    node.stop().await;

    let controller = FakeController::start(&Assignment::default()).await;
    let node = TestNode::start(site.following(&controller)).await;
    node.ready().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_is_begun_again_and_lookups_go_on_meanwhile() {
    let site = Site::new();
    let schema = table(&site, "v1");
    let first = assignment(1, &[(&schema, &[0])]);
    let mut controller = FakeController::start(&first).await;
    let address = controller.address;
    let mut raw = site.following(&controller);
    // The first controller of the list never answers.
    raw.controllers.insert(0, "127.0.0.1:1".into());
    raw.advertise_address = "node-1.example:7410".into();
    let node = TestNode::start(raw).await;
    controller.ready(1).await;
    let report = controller.report(|r| r.epoch == 1).await;
    assert_eq!((report.node.as_str(), report.group.as_str()), ("n1", "a"));
    assert_eq!(report.grpc_address, "node-1.example:7410");
    assert_eq!(report.http_address, node.running.http_address.to_string());
    drop(controller);
    assert_eq!(found(&node, &schema, 0).await, Ok(10));

    let mut controller = FakeController::start_at(address, &assignment(2, &[(&schema, &[0, 3])])).await;
    controller.ready(2).await;
    assert_eq!(found(&node, &schema, 3).await, Ok(10));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named_and_so_is_its_purpose() {
    let site = Site::new();
    let first = TestNode::start(site.raw()).await;
    let taken = first.running.grpc_address.to_string();
    let second = Site::new();
    let tries = [
        ("grpc_address", RawConfig { grpc_address: taken.clone(), ..second.raw() }),
        ("http_address", RawConfig { http_address: taken.clone(), ..second.raw() }),
    ];
    for (key, raw) in tries {
        let Err(StartError::Listen { what, source }) = try_start(raw).await.map(drop) else {
            panic!("it started");
        };
        assert!(what.contains(key), "{what}");
        assert!(source.to_string().contains(&taken), "{source}");
    }
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_is_named() {
    let site = Site::new();
    let file = site.store.root().join("file");
    fs::write(&file, "").unwrap();
    let raw = RawConfig { data_dir: file.join("data").to_str().unwrap().into(), ..site.raw() };
    let Err(StartError::DataDir { path, .. }) = try_start(raw).await.map(drop) else { panic!("it started") };
    assert!(path.starts_with(&file));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_answers_wherever_rows_lie_and_status_says_what_is_in_memory() {
    let site = Site::new();
    let schema = table(&site, "v1");
    for residency in ["auto", "mapped", "locked", "copied"] {
        let controller = FakeController::start(&assignment(1, &[(&schema, &all(&schema))])).await;
        let raw = RawConfig {
            residency: residency.into(),
            warm_up_bytes_per_second: 1 << 30,
            ..site.following(&controller)
        };
        let node = TestNode::start(raw).await;
        node.ready().await;
        for partition in 0..4 {
            assert_eq!(found(&node, &schema, partition).await, Ok(10), "{residency}");
        }
        // With auto they are brought into memory while they are served.
        let resident = |p: &serde_json::Value| p["resident_bytes"].as_u64().unwrap() > 0;
        let all_resident = async {
            while !node.partitions().iter().all(resident) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(crate::control::DEADLINE, all_resident).await;
        assert!(waited.is_ok(), "{residency}: {:?}", node.partitions());
        for partition in node.partitions() {
            assert!(partition["huge_page_bytes"].as_u64() <= partition["resident_bytes"].as_u64());
        }
        let metrics = node.get("/metrics").await.1;
        assert!(!metrics.contains("tidepool_node_resident_bytes 0\n"), "{residency}");
        let status = node.running.status();
        let warm_up = &status["warm_up"][0];
        assert_eq!((&warm_up["table"], &warm_up["partitions"]), (&"pin".into(), &4.into()));
        let bytes = warm_up["bytes_in_all"].as_u64().unwrap();
        assert!(bytes > 2000 * 12 && warm_up["bytes_done"] == bytes, "{residency}: {status:#}");
        for line in [
            format!("tidepool_node_warm_up_bytes{{state=\"done\"}} {bytes}\n"),
            "tidepool_node_warm_up_bytes{state=\"waiting\"} 0\n".to_owned(),
        ] {
            assert!(metrics.contains(&line), "{residency}: {metrics}");
        }
        node.stop().await;
    }
}

/// A controller that was deposed, or that has lost its state, takes nothing back.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_assignment_is_passed_over_and_a_new_incarnation_is_not() {
    let site = Site::new();
    let schema = table(&site, "v1");
    let of =
        |epoch, term, partitions: &[u32]| Assignment { term, ..assignment(epoch, &[(&schema, partitions)]) };
    let mut controller = FakeController::start(&of(9, 4, &[0, 1])).await;
    let node = TestNode::start(site.following(&controller)).await;
    controller.ready(9).await;
    for stale in [of(9, 3, &[0]), of(8, 4, &[0]), of(1, 1, &[])] {
        controller.assign(&stale);
        controller.beats(3).await;
        assert_eq!(node.running.status()["epoch"].as_u64(), Some(9));
        assert_eq!(found(&node, &schema, 1).await, Ok(10));
    }
    controller.assign(&of(10, 4, &[0, 1, 2]));
    controller.ready(10).await;
    let restored = Epoch::before(1).0 + 1;
    controller.assign(&of(restored, 1, &[2]));
    controller.ready(restored).await;
    // It says what it has, then lets go of the rest.
    let gone = async {
        while found(&node, &schema, 1).await != Err(ErrorCode::NotServed) {
            controller.beats(1).await;
        }
    };
    tokio::time::timeout(crate::control::DEADLINE, gone).await.unwrap();

    // A controller that knows of nothing: the node goes on as it was.
    controller.assign(&of(1, 1, &[]));
    controller.beats(3).await;
    assert_eq!(node.running.status()["epoch"].as_u64(), Some(restored));
    assert_eq!(found(&node, &schema, 2).await, Ok(10));
    node.stop().await;
}
