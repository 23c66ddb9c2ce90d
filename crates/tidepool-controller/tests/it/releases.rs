//! Releases and tables: from the store into the map.

use std::fs;

use tidepool_cluster::{ClusterMap, ReleaseState};
use tidepool_proto::v1;
use tidepool_types::{ErrorCode, NodeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::*;

#[tokio::test]
async fn a_served_table_is_assigned_loaded_and_let_go() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let mut client = controller.client().await;
    let [mut a, mut b] = controller.two_nodes().await;
    let users = table("user", "v1");
    client.serve_table(serve(&users, true)).await.unwrap();
    let assigned = [a.assigned(1).await, b.assigned(1).await];
    for assignment in &assigned {
        assert_eq!(assignment.tables[0].schema.default_row, [0.5; 4]);
        assert_eq!(assignment.tables[0].partitions.len(), 4, "one node holds all of a group");
    }
    a.ready(&assigned[0]).await;
    b.ready(&assigned[1]).await;
    soon(async {
        while !client.serve_table(serve(&users, true)).await.unwrap().into_inner().waiting_for.is_empty() {}
    })
    .await;
    let status = controller.running.status();
    assert_eq!(status["partitions"], serde_json::json!({ "placed": 8, "ready": 8 }));
    client.serve_table(serve(&users, false)).await.unwrap();
    assert!(a.assigned(0).await.epoch > assigned[0].epoch);
    assert_eq!(refused(client.serve_table(serve(&users, false)).await).0, ErrorCode::NotFound);
    controller.stop().await;
}

#[tokio::test]
async fn promote_is_refused_until_nodes_and_rankers_have_loaded() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let mut client = controller.client().await;
    let [mut a, mut b] = controller.two_nodes().await;
    let ranker = |ready| v1::RankerReport {
        ranker: "r-1".into(),
        grpc_address: "r-1:7420".into(),
        releases: vec![v1::RankerRelease {
            model: "m".into(),
            release: "r1".into(),
            ready,
            problem: String::new(),
            ..v1::RankerRelease::default()
        }],
        ..v1::RankerReport::default()
    };
    let (rankers, outgoing) = mpsc::channel(4);
    rankers.send(ranker(false)).await.unwrap();
    let session = controller.client().await.ranker_session(ReceiverStream::new(outgoing)).await;
    let mut maps = session.unwrap().into_inner();
    soon(maps.message()).await.unwrap().unwrap();

    let published = client.publish_release(publish("r1")).await.unwrap().into_inner();
    assert_eq!(published.release.unwrap().state(), v1::ReleaseState::Loading);
    let (code, text) = refused(client.promote_release(promote("r1")).await);
    assert_eq!(code, ErrorCode::Conflict);
    assert!(text.contains("user@v1") && text.contains("item@v1") && text.contains("ranker r-1"), "{text}");

    let of_a = a.assigned(2).await;
    a.ready(&of_a).await;
    let of_b = b.assigned(2).await;
    b.ready(&of_b).await;
    rankers.send(ranker(true)).await.unwrap();
    let state = |map: &ClusterMap| map.release("m", "r1").map(|r| r.state);
    let ready = controller.map(|map| state(map) == Some(ReleaseState::Ready)).await;
    let promoted = client.promote_release(promote("r1")).await.unwrap().into_inner();
    assert_eq!(promoted.release.unwrap().state(), v1::ReleaseState::Current);
    assert!(promoted.epoch > ready.epoch.0);
    let seen = first_map(maps, |map| state(map) == Some(ReleaseState::Current)).await;
    assert_eq!(seen.current_release("m").unwrap().tables.len(), 2);

    // Again, both are nothing.
    let again = client.publish_release(publish("r1")).await.unwrap().into_inner();
    assert_eq!((again.epoch, again.waiting_for), (promoted.epoch, vec![]));
    assert_eq!(client.promote_release(promote("r1")).await.unwrap().into_inner().epoch, promoted.epoch);
    let report = client.get_cluster(v1::GetClusterRequest {}).await.unwrap().into_inner();
    assert_eq!((report.nodes.len(), report.rankers.len(), report.releases.len()), (2, 1, 1));
    let (code, text) = refused(client.serve_table(serve(&table("user", "v1"), false)).await);
    assert_eq!(code, ErrorCode::Conflict);
    assert!(text.contains("release m@r1"), "{text}");
    controller.stop().await;
}

#[tokio::test]
async fn what_is_not_in_the_store_or_not_as_published_is_refused() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let mut client = controller.client().await;
    let (code, text) = refused(client.publish_release(publish("r9")).await);
    assert_eq!(code, ErrorCode::NotFound);
    assert!(text.contains("m@r9"), "{text}");
    assert_eq!(refused(client.promote_release(promote("r9")).await).0, ErrorCode::NotFound);
    let get = v1::GetReleaseRequest { model: "m".into(), release: "r9".into() };
    assert_eq!(refused(client.get_release(get).await).0, ErrorCode::NotFound);
    let (code, text) = refused(client.serve_table(serve(&table("user", "v9"), true)).await);
    assert_eq!(code, ErrorCode::NotFound);
    assert!(text.contains("user@v9"), "{text}");
    assert_eq!(refused(client.publish_release(publish("../r1")).await).0, ErrorCode::InvalidRequest);
    let nameless = v1::ServeTableRequest { table_version: None, serve: true };
    let (code, text) = refused(client.serve_table(nameless).await);
    assert_eq!(code, ErrorCode::InvalidRequest);
    assert!(text.contains("table_version"), "{text}");

    // The graph is not the one the release was published with.
    fixture.spoil_release("r1");
    let (code, text) = refused(client.publish_release(publish("r1")).await);
    assert_eq!(code, ErrorCode::Corrupt);
    assert!(text.contains("model.onnx"), "{text}");
    // A table is not the one the release was made with.
    fixture.add_release("r2", &[table("user", "v1")]);
    let manifest = fixture.store.table_dir(&table("user", "v1")).join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text + "\n").unwrap();
    let (code, text) = refused(client.publish_release(publish("r2")).await);
    assert_eq!(code, ErrorCode::Corrupt);
    assert!(text.contains("user") && text.contains("manifest.json"), "{text}");
    let map = controller.map(|_| true).await;
    assert_eq!((map.epoch.0, map.layouts.len(), map.releases.len()), (0, 0, 0), "nothing came of it");
    controller.stop().await;
}

#[tokio::test]
async fn nodes_that_come_one_by_one_share_a_group() {
    let fixture = Fixture::new();
    let raw = tidepool_controller::RawConfig { group_settle_ms: 300, ..fixture.raw_config() };
    let controller = fixture.try_start(raw).await.unwrap();
    let mut client = controller.client().await;
    let response = client.serve_table(serve(&table("user", "v1"), true)).await.unwrap().into_inner();
    assert_eq!(response.waiting_for, ["user@v1 is placed on no node yet"]);
    let _first = Node::join(controller.client().await, "a-1").await;
    let _second = Node::join(controller.client().await, "a-2").await;
    let map = controller.map(|map| !map.layouts[0].placement.groups.is_empty()).await;
    for node in ["a-1", "a-2"] {
        assert_eq!(map.assignment(&NodeId(name(node))).tables[0].partitions.len(), 2);
    }
    controller.stop().await;
}
