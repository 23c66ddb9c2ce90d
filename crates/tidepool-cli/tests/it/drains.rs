//! What operators do before they stop a node or promote often: traffic leaves and comes back, a release stays.

use std::time::Instant;

use serde_json::json;
use tempfile::TempDir;

use crate::{
    command::{DEADLINE, Role, failure, http_get, json as run},
    models::{trained, until},
    operators::Site,
};

/// Lookups that a node has answered.
fn lookups(node: &Role) -> u64 {
    let metrics = http_get(&node.http_address, "/metrics");
    let of_it = |line: &&str| line.starts_with("tidepool_node_lookups_total{code=\"ok\"}");
    let line = metrics.lines().find(of_it).unwrap_or_else(|| panic!("{metrics}"));
    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
}

/// Ranks until a few rankings in a row have, or have not, asked node `at`: rankers take a map a moment after it
/// was answered.
fn until_asked(site: &Site, at: usize, is_asked: bool) {
    let begun = Instant::now();
    loop {
        let before = lookups(&site.nodes[at]);
        for of in 0..6 {
            let (status, answer) = site.rank(&site.request(&format!("{at}-{of}"), "k"));
            assert_eq!((status, &answer["partial"]), (200, &json!(false)), "{answer}");
        }
        if (lookups(&site.nodes[at]) > before) == is_asked {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "node {at} is asked: {}", !is_asked);
    }
}

#[test]
fn traffic_leaves_a_node_that_drains_and_comes_back() {
    let site = Site::start();
    site.until(&["cluster", "status", "--check"], |status| status["ok"] == json!(true));
    let drained = |args: &[&str]| site.ask(&[&["cluster", "drain"], args].concat());

    let (code, would) = drained(&["a-1", "--dry-run"]);
    assert_eq!((code, &would["dry_run"], &would["nodes"][0]["draining"]), (0, &json!(true), &json!(true)));
    let (code, undone) = drained(&["a-1", "--undo", "--dry-run"]);
    // There is nothing to undo, so there would be no other map than the one that there is.
    assert!(code == 0 && undone["epoch"].as_u64() < would["epoch"].as_u64(), "{undone} {would}");

    let (code, done) = drained(&["a-1"]);
    assert_eq!((code, &done["dry_run"], &done["missing"]), (0, &json!(false), &json!([])));
    assert_eq!(done["nodes"], json!([{ "node": "a-1", "group": "a", "up": true, "draining": true }]));
    until_asked(&site, 0, false);
    until_asked(&site, 1, true);

    // Now only b has what it serves.
    let (code, said) = site.refused(&["cluster", "drain", "--group", "b"]);
    assert!(code == 1 && said.contains("traffic cannot leave b-1") && said.contains("--force"), "{said}");
    let (code, forced) = drained(&["--group", "b", "--force"]);
    assert!(code == 0 && !forced["missing"].as_array().unwrap().is_empty(), "{forced}");
    let (status, answer) = site.rank(&site.request("both", "k"));
    assert_eq!((status, &answer["partial"]), (200, &json!(false)), "they go on answering: {answer}");

    assert_eq!(drained(&["--group", "b", "--undo"]).0, 0);
    assert_eq!(drained(&["a-1", "--undo"]).0, 0);
    until_asked(&site, 0, true);
    let (_, events) = site.ask(&["cluster", "events"]);
    let events = events.to_string();
    assert!(events.contains("\"drained\"") && events.contains("\"undrained\""), "{events}");
    let (code, said) = site.refused(&["cluster", "drain", "c-1"]);
    assert!(code == 1 && said.contains("c-1"), "{said}");
}

#[test]
fn a_pinned_release_stays_whatever_is_promoted() {
    let dir = TempDir::new().unwrap();
    let store = trained(dir.path(), &["r1", "r2", "r3"]);
    let controller = Role::controller(dir.path(), store.root());
    let _node = Role::node(dir.path(), store.root(), &controller);
    let address = controller.grpc_address.as_str();
    let of_release = |args: &[&'static str]| [&["--controller", address, "release"], args].concat();
    let release = |args: &[&'static str]| run(&of_release(args));
    for of in ["r1", "r2", "r3"] {
        assert_eq!(release(&["publish", of, "--model", "m"]).0, 0);
    }
    assert_eq!(release(&["promote", "m", "r1"]).0, 0);
    let (code, would) = release(&["pin", "m", "r1", "--dry-run"]);
    assert_eq!((code, &would["pinned"]), (0, &json!(["r1"])), "{would}");
    let (_, status) = release(&["status", "m"]);
    assert_eq!(status["models"][0]["pinned"], json!([]), "nothing was done: {status}");
    assert_eq!(release(&["pin", "m", "r1"]).0, 0);
    for of in ["r2", "r3"] {
        assert_eq!(release(&["promote", "m", of]).0, 0);
    }
    let (_, status) = release(&["status", "m"]);
    let model = &status["models"][0];
    assert_eq!((&model["pinned"], &model["retiring"]), (&json!(["r1"]), &json!([])), "{status}");

    let (code, said) = failure(&of_release(&["retire", "m", "r1", "--yes"]));
    assert!(code == 1 && said.contains("m@r1 is pinned") && said.contains("--undo"), "{said}");
    assert_eq!(release(&["pin", "m", "r1", "--undo"]).0, 0);
    assert_eq!(release(&["retire", "m", "r1", "--yes"]).0, 0);
    until(&of_release(&["list"]), |listed| {
        listed["releases"].as_array().unwrap().iter().all(|entry| entry["release"] != json!("r1"))
    });
}
