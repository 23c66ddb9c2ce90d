//! Bad days of a release: nodes without enough memory, and a file that was damaged after it was published. What was
//! served is served on, the operator reads why, and what was wrong is put right without anyone starting over.

use std::{fs, process::Command};

use tidepool_train::SyntheticSize;

use crate::{
    command::{Role, failure},
    trained::Trained,
};

fn signal(role: &Role, signal: &str) {
    assert!(Command::new("kill").args([signal, &role.pid().to_string()]).status().unwrap().success());
}

#[test]
fn a_release_that_does_not_fit_the_memory_of_a_node_is_refused_with_the_numbers() {
    // Enough users for rows and index to be most of their table's file.
    let site = Trained::of(SyntheticSize { users: 10_000, items: 60, events: 20_000 });
    let controller = Role::controller(site.path(), site.store.root());
    // Room for one release, and not for another beside it.
    let budget = site.bytes("r1");
    let small = [("memory_capacity_bytes", budget.to_string()), ("residency", "mapped".to_owned())];
    let node = site.node(&controller, &small);
    let ranker = site.ranker(&controller.grpc_address);
    site.serve(&controller, "r1");
    site.ranked_by(&ranker, "r1");

    site.publish(&controller, "r2");
    let of = format!("of {budget} bytes (memory_capacity_bytes)");
    let why = site.waits_for(&controller, "r2", &["does not fit in memory", &of, "@r2"]);
    for words in ["needs ", " locked", " copied", " mapped", "residency mapped", "retire a release"] {
        assert!(why.contains(words), "{words}: {why}");
    }
    let address = controller.grpc_address.as_str();
    let (code, said) =
        failure(&["--controller", address, "release", "promote", "m", "r2", "--wait-seconds", "1"]);
    assert!(code == 1 && said.contains("does not fit in memory"), "{said}");
    site.still(&ranker, "r1");

    // With more memory it comes, and r1 is served without a break by what the node has kept.
    assert_eq!(node.terminate(), 0);
    let budget = site.bytes("r1") + site.bytes("r2");
    let large = [("memory_capacity_bytes", budget.to_string()), ("residency", "mapped".to_owned())];
    let _node = site.node(&controller, &large);
    site.ranked_by(&ranker, "r1");
    site.serve(&controller, "r2");
    site.ranked_by(&ranker, "r2");
}

#[test]
fn a_file_that_was_damaged_after_it_was_published_is_named_until_a_good_one_takes_its_place() {
    let site = Trained::new();
    let controller = Role::controller(site.path(), site.store.root());
    let node = site.node(&controller, &[]);
    let ranker = site.ranker(&controller.grpc_address);
    site.serve(&controller, "r1");
    site.ranked_by(&ranker, "r1");

    let file = site.file("item", "r2");
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[4096] ^= 1;
    // The node sleeps while the release is published, so that the damage comes after it, and before the file is read.
    signal(&node, "-STOP");
    site.publish(&controller, "r2");
    replace(&file, &bad);
    signal(&node, "-CONT");
    let named = file.to_str().unwrap();
    let why = site.waits_for(&controller, "r2", &[named]);
    assert!(why.contains("crc32c") || why.contains("checksum") || why.contains("damaged"), "{why}");
    let address = controller.grpc_address.as_str();
    let (code, said) =
        failure(&["--controller", address, "release", "promote", "m", "r2", "--wait-seconds", "1"]);
    assert!(code == 1 && said.contains(named), "{said}");
    site.ranked_by(&ranker, "r1");

    replace(&file, &good);
    let promote = ["--controller", address, "release", "promote", "m", "r2"];
    crate::models::until(&promote, |_| true);
    site.ranked_by(&ranker, "r2");
}

/// Puts other bytes in the place of a file as a new file: the old one may be mapped.
fn replace(path: &std::path::Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).unwrap();
    fs::rename(beside, path).unwrap();
}
