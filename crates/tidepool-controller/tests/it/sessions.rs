//! Sessions: who is there, under which name, and how their end is noticed.

use tidepool_cluster::ClusterMap;
use tidepool_types::{ErrorCode, NodeId};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::fixture::*;

fn is_up(map: &ClusterMap, node: &str) -> Option<bool> {
    map.nodes.get(&NodeId(name(node))).map(|n| n.up)
}

#[tokio::test]
async fn a_node_is_up_as_long_as_its_session() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let node = Node::join(controller.client().await, "a-1").await;
    controller.map(|map| is_up(map, "a-1") == Some(true)).await;
    let gauge = |name: &str| {
        let families = controller.running.registry.gather();
        let family = families.iter().find(|f| f.name() == name).unwrap();
        family.get_metric().iter().map(|m| m.get_gauge().get_value()).sum::<f64>()
    };
    assert_eq!(gauge("tidepool_controller_sessions"), 1.0);
    drop(node);
    let map = controller.map(|map| is_up(map, "a-1") == Some(false)).await;
    let _back = Node::join(controller.client().await, "a-1").await;
    let back = controller.map(|map| is_up(map, "a-1") == Some(true)).await;
    assert!(back.epoch > map.epoch);
    assert_eq!(gauge("tidepool_controller_epoch"), back.epoch.0 as f64);
    controller.stop().await;
}

#[tokio::test]
async fn a_name_belongs_to_the_process_that_has_a_session() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let first = Node::join(controller.client().await, "a-1").await;
    let mut elsewhere = Node::introduction("a-1");
    elsewhere.grpc_address = "elsewhere:1".into();
    let mut second = Node::open(controller.client().await, elsewhere.clone()).await;
    let (code, text) = refused(second.next().await);
    assert_eq!(code, ErrorCode::Conflict);
    assert!(text.contains("a-1:7410") && text.contains("elsewhere:1"), "{text}");
    // The same process may come again, and its older session then ends without harm.
    let again = Node::join(controller.client().await, "a-1").await;
    drop(first);
    let mut renamed = Node::introduction("a-2");
    renamed.grpc_address = "a-1:7410".into();
    let mut again = again;
    again.send(renamed).await;
    let ended = loop {
        if let Err(status) = again.next().await {
            break status;
        }
    };
    let (code, text) = refused(Err::<(), _>(ended));
    assert_eq!(code, ErrorCode::InvalidRequest);
    assert!(text.contains("a-1") && text.contains("a-2"), "{text}");
    // The name is free now.
    controller.map(|map| is_up(map, "a-1") == Some(false)).await;
    let _second = Node::open(controller.client().await, elsewhere).await;
    let map = controller.map(|map| is_up(map, "a-1") == Some(true)).await;
    assert_eq!(map.nodes[&NodeId(name("a-1"))].grpc_address, "elsewhere:1");
    controller.stop().await;
}

#[tokio::test]
async fn a_malformed_report_is_refused_by_field() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let mut nameless = Node::introduction("a-1");
    nameless.node = "a/1".into();
    let mut addressless = Node::introduction("a-1");
    addressless.grpc_address = String::new();
    for (report, field) in [(nameless, "field node"), (addressless, "grpc_address")] {
        let mut node = Node::open(controller.client().await, report).await;
        let (code, text) = refused(node.next().await);
        assert_eq!(code, ErrorCode::InvalidRequest);
        assert!(text.contains(field), "{text}");
    }
    assert!(controller.map(|_| true).await.nodes.is_empty());
    controller.stop().await;
}

/// The node's machine vanishes: no packet of it arrives any more, and nobody closes the connection.
#[tokio::test]
async fn a_silent_node_is_noticed() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap();
    let (target, cut) = (controller.running.grpc_address, CancellationToken::new());
    let silent = cut.clone();
    tokio::spawn(async move {
        let (mut node, _) = proxy.accept().await.unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut node, &mut server) => {}
            () = silent.cancelled() => std::future::pending().await,
        }
    });
    let _node = Node::join(connect(address.to_string()).await, "a-1").await;
    controller.map(|map| is_up(map, "a-1") == Some(true)).await;
    cut.cancel();
    controller.map(|map| is_up(map, "a-1") == Some(false)).await;
    controller.stop().await;
}
