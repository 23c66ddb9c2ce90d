//! Drains and pins, over the wire.

use tidepool_proto::v1;
use tidepool_types::ErrorCode;

use crate::fixture::{Fixture, refused, serve, table};

#[tokio::test]
async fn a_node_drains_where_another_group_has_the_same() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let mut client = controller.client().await;
    let [mut a, mut b] = controller.two_nodes().await;
    client.serve_table(serve(&table("user", "v1"), true)).await.unwrap();
    let map = controller.map(|map| map.layouts[0].placement.groups.len() == 2).await;
    let ids: Vec<_> = map.nodes.keys().cloned().collect();
    a.ready(&map.assignment(&ids[0])).await;
    let drain = |node: &str, draining, dry_run| v1::DrainNodeRequest {
        node: node.into(),
        draining,
        dry_run,
        ..v1::DrainNodeRequest::default()
    };
    let first = ids[0].to_string();
    let (code, text) = refused(client.drain_node(drain(&first, true, false)).await);
    assert_eq!(code, ErrorCode::Conflict);
    assert!(text.contains("user@v1") && text.contains("--force"), "{text}");
    b.ready(&map.assignment(&ids[1])).await;
    let tried = loop {
        match client.drain_node(drain(&first, true, true)).await {
            Ok(tried) => break tried.into_inner(),
            Err(status) => assert!(status.message().contains("user@v1"), "{status}"),
        }
    };
    assert_eq!((tried.nodes[0].draining, tried.missing.len()), (true, 0));
    assert!(!controller.map(|_| true).await.nodes[&ids[0]].draining, "it was only tried");
    client.drain_node(drain(&first, true, false)).await.unwrap();
    controller.map(|map| map.nodes[&ids[0]].draining).await;
    let group = map.nodes[&ids[0]].group.to_string();
    let back = v1::DrainNodeRequest { group, ..v1::DrainNodeRequest::default() };
    let undone = client.drain_node(back).await.unwrap().into_inner();
    assert!(undone.nodes.iter().all(|node| !node.draining));
    let both = v1::DrainNodeRequest { group: "a".into(), ..drain("a-1", true, false) };
    assert_eq!(refused(client.drain_node(both).await).0, ErrorCode::InvalidRequest);
    assert_eq!(refused(client.drain_node(drain("", true, false)).await).0, ErrorCode::InvalidRequest);
    assert_eq!(refused(client.drain_node(drain("c-9", true, false)).await).0, ErrorCode::NotFound);
    controller.stop().await;
}
