//! Full disks: of a node, of the controller, of a ranker.

use std::fs;

use tempfile::TempDir;

use super::{Disk, alone};
use crate::{
    command::{Role, failure, json},
    s3::{ROWS, Site, log, status, until},
    trained::Trained,
};

#[test]
fn disk_of_a_node_that_is_full_keeps_the_old_version_serving() {
    if !alone(concat!(module_path!(), "::disk_of_a_node_that_is_full_keeps_the_old_version_serving")) {
        return;
    }
    let site = Site::new("20000");
    site.push("v2", ROWS);
    let whole = site.bytes("v2");
    // Room for v1, and for one of the two files of v2.
    let disk = Disk::of(whole * 3 / 4 + (4 << 20), &site.dir.path().join("node"));
    let controller = site.controller();
    let node = site.node(&controller, site.moto.address, &[]);
    assert_eq!(site.serve(&controller, "v1", "30").0, 0);
    let (code, said) = site.serve(&controller, "v2", "5");
    assert_eq!(code, 1);
    for words in ["big@v2", "does not fit on its disk", "bytes are needed", "are free"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    site.check(&controller, "v1");
    let problems: Vec<String> = status(&node)["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|partition| partition["problem"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(problems.len(), 1, "one file fits: {problems:?}");
    // It is tried five times a second, and told once of each file, however many bytes are free each time.
    let told = log(&node).matches("does not fit on its disk").count();
    assert!((1..=2).contains(&told), "told {told} times");

    // Not even room for the assignment: it serves on, and says that a restart would not know it.
    disk.fill();
    assert_eq!(json(&["--controller", &controller.grpc_address, "table", "unserve", "big@v2"]).0, 0);
    until("it is told", || log(&node).contains("the assignment could not be saved"));
    site.check(&controller, "v1");

    disk.empty();
    disk.grow(whole * 2 + (8 << 20));
    let (code, said) = site.serve(&controller, "v2", "60");
    assert_eq!(code, 0, "{said}");
    site.check(&controller, "v2");
    site.check(&controller, "v1");
}

#[test]
fn disk_of_the_controller_that_is_full_refuses_changes_and_loses_none() {
    if !alone(concat!(module_path!(), "::disk_of_the_controller_that_is_full_refuses_changes_and_loses_none"))
    {
        return;
    }
    let dir = TempDir::new().unwrap();
    let disk = Disk::of(1 << 20, &dir.path().join("controller"));
    let store = dir.path().join("store");
    let controller = Role::controller(dir.path(), &store);
    let set = |controller: &Role, tenant: &str| {
        let args =
            ["--controller", &controller.grpc_address, "quota", "set", tenant, "--rows-per-second", "5"];
        args.map(str::to_owned)
    };
    let texts = |args: &[String]| args.iter().map(String::as_str).map(str::to_owned).collect::<Vec<_>>();
    let tenants = |controller: &Role| -> Vec<String> {
        let (code, said) = json(&["--controller", &controller.grpc_address, "quota", "list"]);
        assert_eq!(code, 0, "it can be read: {said}");
        said["quotas"].as_array().unwrap().iter().map(|q| q["tenant"].as_str().unwrap().to_owned()).collect()
    };
    let ask = |args: &[String]| json(&texts(args).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ask(&set(&controller, "before")).0, 0);
    disk.fill();
    for _ in 0..3 {
        let args = set(&controller, "refused");
        let (code, said) = failure(&texts(&args).iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(code, 1);
        for words in ["could not be written down", "controller", "No space left"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert_eq!(tenants(&controller), ["before"]);
    }
    // What nodes report is not written down either, and nobody is told of a map that is not: it starts, and stops.
    let node = Role::node(dir.path(), &store, &controller);
    let (_, waits) = failure(&["--controller", &controller.grpc_address, "table", "serve", "no@table"]);
    assert!(waits.contains("no@table"), "{waits}");
    disk.empty();
    assert_eq!(ask(&set(&controller, "after")).0, 0);
    assert_eq!(tenants(&controller), ["after", "before"]);
    // Killed in place of a stop: what is on the disk is what was acknowledged.
    drop(controller);
    let controller = Role::controller(dir.path(), &store);
    assert_eq!(tenants(&controller), ["after", "before"]);
    assert_eq!(node.terminate(), 0);
}

#[test]
fn disk_of_a_ranker_that_is_full_is_told_of_and_ranking_goes_on() {
    if !alone(concat!(module_path!(), "::disk_of_a_ranker_that_is_full_is_told_of_and_ranking_goes_on")) {
        return;
    }
    let site = Trained::new();
    let disk = Disk::of(1 << 20, &site.path().join("ranker"));
    let controller = Role::controller(site.path(), site.store.root());
    let _node = site.node(&controller, &[]);
    let ranker = site.ranker(&controller.grpc_address);
    site.serve(&controller, "r1");
    site.ranked_by(&ranker, "r1");
    disk.fill();
    site.serve(&controller, "r2");
    site.ranked_by(&ranker, "r2");
    let said = fs::read_to_string(&ranker.log).unwrap();
    assert!(said.contains("the cluster map could not be saved") && said.contains("No space left"), "{said}");
    disk.empty();
    // The next map is saved again: with it the ranker comes up when there is no controller.
    let (code, said) = json(&["--controller", &controller.grpc_address, "release", "rollback", "m"]);
    assert_eq!(code, 0, "{said}");
    site.ranked_by(&ranker, "r1");
    assert_eq!(controller.terminate(), 0);
    assert_eq!(ranker.terminate(), 0);
    let ranker = site.ranker("127.0.0.1:1");
    site.ranked_by(&ranker, "r1");
}
