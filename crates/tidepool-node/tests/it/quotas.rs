//! Tenants over their quota, and nodes over what they take on: who is turned away, with which code, and that the
//! others are answered.

use tidepool_cluster::{Assignment, Quota, Quotas};
use tidepool_proto::{code_of, v1};
use tidepool_types::{ErrorCode, Keying, RowFormat, TableSchema};
use tokio::time::{Instant, timeout_at};

use crate::{
    control::{DEADLINE, FakeController},
    site::{Site, TestNode, all, assignment, gather, name, request, version},
};

fn users(site: &Site) -> TableSchema {
    site.table(version("user", "v1"), (RowFormat::Int4, 8), Keying::Dense, 1, 0..100)
}

/// A quota that one lookup uses up for longer than any test takes.
const TINY: Quota = Quota { rows_per_second: Some(1), bytes_per_second: None };

fn limited(schema: &TableSchema, epoch: u64, tenants: &[&str]) -> Assignment {
    let tenants = tenants.iter().map(|tenant| (name(tenant), TINY)).collect();
    let quotas = Quotas { default: None, tenants };
    Assignment { quotas, ..assignment(epoch, &[(schema, &all(schema))]) }
}

/// What becomes of a lookup of 50 rows of a tenant.
async fn ask(node: &TestNode, schema: &TableSchema, tenant: &str) -> Result<(), (ErrorCode, String)> {
    let ids: Vec<u64> = (0..50).collect();
    let lookup = v1::LookupRequest { tenant: tenant.into(), ..request(vec![gather(schema, &ids)]) };
    let answer = node.client().await.lookup(lookup).await;
    answer.map(drop).map_err(|status| (code_of(&status), status.message().to_owned()))
}

/// Waits until rules for so many tenants are in force.
async fn in_force(node: &TestNode, rules: usize) {
    let until = Instant::now() + DEADLINE;
    let seen = async {
        while node.running.status()["quotas"].as_array().unwrap().len() != rules {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout_at(until, seen).await.is_ok(), "{}", node.running.status()["quotas"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_over_its_quota_is_turned_away_and_the_others_are_answered() {
    let site = Site::new();
    let schema = users(&site);
    let mut controller = FakeController::start(&limited(&schema, 3, &["ads"])).await;
    let node = TestNode::start(site.following(&controller)).await;
    controller.ready(3).await;
    ask(&node, &schema, "ads").await.unwrap();
    for _ in 0..3 {
        let (code, text) = ask(&node, &schema, "ads").await.unwrap_err();
        assert_eq!(code, ErrorCode::QuotaExceeded);
        assert!(text.contains("\"ads\"") && text.contains("1 rows per second"), "{text}");
        ask(&node, &schema, "feed").await.unwrap();
        ask(&node, &schema, "").await.unwrap();
    }
    assert_eq!(node.running.status()["quotas"][0]["refused"], 3);
    let (_, metrics) = node.get("/metrics").await;
    assert!(metrics.contains("tidepool_node_shed_total{reason=\"quota\"} 3\n"), "{metrics}");
    let (code, _) = ask(&node, &schema, "no name").await.unwrap_err();
    assert_eq!(code, ErrorCode::InvalidRequest);

    // New rules come at the same epoch, for the map has not changed, and hold at once.
    controller.assign(&limited(&schema, 3, &["ads", "feed"]));
    in_force(&node, 2).await;
    assert_eq!(ask(&node, &schema, "ads").await.unwrap_err().0, ErrorCode::QuotaExceeded, "it stays used up");
    ask(&node, &schema, "feed").await.unwrap();
    assert_eq!(ask(&node, &schema, "feed").await.unwrap_err().0, ErrorCode::QuotaExceeded);
    controller.assign(&limited(&schema, 3, &[]));
    in_force(&node, 0).await;
    ask(&node, &schema, "ads").await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_hold_after_a_restart_without_a_controller() {
    let site = Site::new();
    let schema = users(&site);
    let mut controller = FakeController::start(&limited(&schema, 3, &["ads"])).await;
    let node = TestNode::start(site.following(&controller)).await;
    controller.ready(3).await;
    node.stop().await;
    let node = TestNode::start(site.raw()).await;
    node.ready().await;
    in_force(&node, 1).await;
    ask(&node, &schema, "ads").await.unwrap();
    assert_eq!(ask(&node, &schema, "ads").await.unwrap_err().0, ErrorCode::QuotaExceeded);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_on_what_it_is_set_to() {
    let site = Site::new();
    let schema = users(&site);
    let mut controller = FakeController::start(&assignment(3, &[(&schema, &all(&schema))])).await;
    let mut raw = site.following(&controller);
    raw.admission_max_rows = 50;
    let node = TestNode::start(raw.clone()).await;
    controller.ready(3).await;
    // Fifty ids and their feature.
    let (code, text) = ask(&node, &schema, "").await.unwrap_err();
    assert_eq!(code, ErrorCode::InvalidRequest);
    assert!(text.contains("51 rows") && text.contains("admission_max_rows"), "{text}");
    node.stop().await;

    (raw.admission_max_rows, raw.admission_rows_per_second) = (51, 1);
    let node = TestNode::start(raw).await;
    node.ready().await;
    ask(&node, &schema, "").await.unwrap();
    let (code, text) = ask(&node, &schema, "").await.unwrap_err();
    assert_eq!(code, ErrorCode::Overloaded);
    assert!(text.contains("1 rows per second"), "{text}");
    let (_, metrics) = node.get("/metrics").await;
    for line in ["tidepool_node_shed_total{reason=\"rate\"} 1", "tidepool_node_in_flight_rows 0"] {
        assert!(metrics.lines().any(|l| l == line), "no {line} in\n{metrics}");
    }
    node.stop().await;
}
