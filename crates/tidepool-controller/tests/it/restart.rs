//! Starting: after a stop, beside another controller, and on a damaged state.

use std::{error::Error, fs};

use tidepool_cluster::Quotas;
use tidepool_controller::{RawConfig, StartError};
use tidepool_proto::v1;
use tidepool_types::{ErrorCode, NodeId};

use crate::fixture::*;

#[tokio::test]
async fn a_restart_keeps_the_map_and_nodes_come_back() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let mut client = controller.client().await;
    let nodes = controller.two_nodes().await;
    client.publish_release(publish("r1")).await.unwrap();
    let before = controller.map(|map| map.layouts.iter().all(|l| l.placement.groups.len() == 2)).await;
    controller.stop().await;
    drop(nodes);
    let assigned = before.assignment(&NodeId(name("a-1")));

    let raw = RawConfig { reconnect_grace_ms: 2000, ..fixture.raw_config() };
    let controller = fixture.try_start(raw).await.unwrap();
    assert_eq!(controller.map(|_| true).await, before, "to the epoch, and with every node up");
    let mut client = controller.client().await;
    let mut a = Node::open(controller.client().await, Node::introduction("a-1")).await;
    assert_eq!(a.next().await.unwrap().unwrap().tables, assigned.tables);
    // Who has not come back after the grace is down.
    let down = |node: &str| NodeId(name(node));
    let after = controller.map(|map| !map.nodes[&down("b-1")].up).await;
    assert!(after.nodes[&down("a-1")].up && after.epoch > before.epoch);
    let (code, text) = refused(client.promote_release(promote("r1")).await);
    assert_eq!(code, ErrorCode::Conflict);
    assert!(text.contains("node b-1 is down"), "{text}");
    let mut b = Node::open(controller.client().await, Node::introduction("b-1")).await;
    a.ready(&assigned).await;
    let of_b = b.assigned(2).await;
    b.ready(&of_b).await;
    let get = v1::GetReleaseRequest { model: "m".into(), release: "r1".into() };
    controller
        .map(|map| map.release("m", "r1").unwrap().state == tidepool_cluster::ReleaseState::Ready)
        .await;
    assert!(client.get_release(get).await.unwrap().into_inner().waiting_for.is_empty());
    controller.stop().await;
}

#[tokio::test]
async fn quotas_reach_the_nodes_and_outlive_the_controller() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let mut node = Node::open(controller.client().await, Node::introduction("a-1")).await;
    assert_eq!(node.next().await.unwrap().unwrap().quotas, Quotas::default());
    let before = controller.map(|_| true).await.epoch;
    let rule = |tenant: &str, rows_per_second| v1::QuotaRule {
        tenant: tenant.into(),
        quota: Some(v1::Quota { rows_per_second, bytes_per_second: 0 }),
    };
    let mut client = controller.client().await;
    client.set_quota(rule("ads", 70)).await.unwrap();
    let all = client.set_quota(rule("", 7)).await.unwrap().into_inner();
    assert_eq!(all.rules, [rule("", 7), rule("ads", 70)]);
    let assigned = loop {
        let assigned = node.next().await.unwrap().unwrap();
        if assigned.quotas.default.is_some() {
            break assigned;
        }
    };
    assert_eq!(assigned.quotas.tenants[&name("ads")].rows_per_second, Some(70));
    assert_eq!(assigned.epoch, before, "the map is the same");
    let (code, text) = refused(client.set_quota(rule("a b", 1)).await);
    assert_eq!(code, ErrorCode::InvalidRequest, "{text}");
    let (code, text) = refused(client.set_quota(rule("ads", 0)).await);
    assert_eq!(code, ErrorCode::InvalidRequest, "{text}");
    controller.stop().await;
    drop(node);

    let controller = fixture.start().await;
    let kept = controller.client().await.list_quotas(v1::ListQuotasRequest {}).await.unwrap().into_inner();
    assert_eq!(kept, all);
    let mut node = Node::open(controller.client().await, Node::introduction("a-1")).await;
    assert_eq!(node.next().await.unwrap().unwrap().quotas, assigned.quotas);
    controller.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let taken = controller.running.grpc_address.to_string();
    let elsewhere = fixture.dir.path().join("other").to_str().unwrap().to_owned();
    let raw = RawConfig { data_dir: elsewhere, ..fixture.raw_config() };
    for raw in [
        RawConfig { grpc_address: taken.clone(), ..raw.clone() },
        RawConfig { http_address: taken.clone(), ..raw },
    ] {
        let error = fixture.try_start(raw).await.err().unwrap();
        assert!(matches!(error, StartError::Listen { .. }), "{error}");
        assert!(error.source().unwrap().to_string().contains(&taken), "{error:?}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn one_controller_at_a_time_has_a_directory() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    let error = fixture.try_start(fixture.raw_config()).await.err().unwrap();
    assert!(matches!(error, StartError::Metastore(_)), "{error}");
    let text = error.source().unwrap().to_string();
    assert!(text.contains("another controller") && text.contains("controller/lock"), "{text}");
    controller.stop().await;
    fixture.start().await.stop().await;
}

#[tokio::test]
async fn a_damaged_state_is_an_error_and_never_an_empty_cluster() {
    let fixture = Fixture::new();
    let controller = fixture.start().await;
    drop(controller.two_nodes().await);
    controller.stop().await;
    let path = fixture.dir.path().join("controller").join("state");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, bytes).unwrap();
    let error = fixture.try_start(fixture.raw_config()).await.err().unwrap();
    let text = error.source().unwrap().to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("damaged"), "{text}");
}
