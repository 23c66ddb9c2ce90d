//! Quotas of tenants, set by an operator and kept by controller and node through their restarts.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{Role, failure, http_get, json as run, node_keys};

const DEADLINE: Duration = Duration::from_secs(30);

fn start_node(dir: &Path, controllers: &[&str]) -> Role {
    let keys = [node_keys(dir, &dir.join("store"), controllers), vec![("io_threads", "1".into())]].concat();
    Role::start(dir, "node", &keys)
}

/// Waits until `/status` of the node has these quotas.
fn in_force(node: &Role, expected: &Value) {
    let until = Instant::now() + DEADLINE;
    loop {
        let answer = http_get(&node.http_address, "/status");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let status: Value = serde_json::from_str(body).unwrap();
        if status["quotas"] == *expected {
            return;
        }
        assert!(Instant::now() < until, "{} instead of {expected}", status["quotas"]);
    }
}

#[test]
fn quotas_are_set_listed_removed_and_outlive_restarts() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("store")).unwrap();
    let controller = Role::controller(dir.path(), &dir.path().join("store"));
    let node = start_node(dir.path(), &[&controller.grpc_address]);
    let address = controller.grpc_address.clone();
    let quota = |args: &[&str]| run(&[&["--controller", &address, "quota"], args].concat());

    assert_eq!(quota(&["list"]), (0, json!({ "schema_version": 1, "quotas": [] })));
    let (code, set) = quota(&["set", "ads", "--rows-per-second", "50000", "--bytes-per-second", "7"]);
    let ads = json!({ "tenant": "ads", "rows_per_second": 50000, "bytes_per_second": 7 });
    assert_eq!((code, &set["quotas"]), (0, &json!([ads])));
    quota(&["set", "feed", "--rows-per-second", "3"]);
    let (_, set) = quota(&["set", "--default", "--rows-per-second", "10"]);
    let default = json!({ "tenant": null, "rows_per_second": 10, "bytes_per_second": null });
    let feed = json!({ "tenant": "feed", "rows_per_second": 3, "bytes_per_second": null });
    assert_eq!(set["quotas"], json!([default, ads, feed]));
    let (_, left) = quota(&["remove", "feed"]);
    assert_eq!(left["quotas"], json!([default, ads]));

    let failed = |args: &[&str]| failure(&[&["--controller", &address, "quota"], args].concat());
    let (code, text) = failed(&["remove", "feed"]);
    assert!(code == 1 && text.contains("not_found") && text.contains("quota of tenant feed"), "{text}");
    let (code, text) = failed(&["set", "ads"]);
    assert!(code == 1 && text.contains("--rows-per-second"), "{text}");
    assert_eq!(failed(&["set", "--rows-per-second", "1"]).0, 2, "whose?");
    assert_eq!(failed(&["set", "ads", "--default", "--rows-per-second", "1"]).0, 2);
    assert_eq!(failed(&["set", "ads", "--rows-per-second", "0"]).0, 2);
    assert_eq!(failed(&["set", "a b", "--rows-per-second", "1"]).0, 2);

    let counted = |rule: &Value| {
        let mut rule = rule.clone();
        rule["refused"] = json!(0);
        rule
    };
    let expected = json!([counted(&default), counted(&ads)]);
    in_force(&node, &expected);
    assert_eq!(node.terminate(), 0);
    assert_eq!(controller.terminate(), 0);
    // Without a controller, from the last assignment.
    let node = start_node(dir.path(), &[]);
    in_force(&node, &expected);
    let controller = Role::controller(dir.path(), &dir.path().join("store"));
    let (_, kept) = run(&["--controller", &controller.grpc_address, "quota", "list"]);
    assert_eq!(kept["quotas"], json!([default, ads]));
}
