//! `tidepool bench drill` on few rows, where a promise is kept and where it cannot be.

use tempfile::TempDir;

use crate::command::{failure, json};

#[test]
fn a_node_is_killed_and_nobody_notices() {
    let dir = TempDir::new().unwrap();
    let small = ["--rows", "5_000", "--rate", "40", "--phase-seconds", "0.5", "--no-timing", "--dir"];
    let args = [&["bench", "drill", "kill"], &small[..], &[dir.path().to_str().unwrap()]].concat();
    let (code, report) = json(&args);
    assert_eq!((code, &report["kept"]), (0, &true.into()), "{report:#}");
    let drill = &report["drills"][0];
    assert_eq!(drill["drill"], "kill");
    let promises = drill["promises"].as_array().unwrap();
    assert!(promises.len() > 4 && promises.iter().all(|promise| promise["kept"] == true), "{report:#}");
    assert!(drill["figures"]["p99_during_ms"].as_f64().unwrap() > 0.0);
    assert!(report["seed"] == 1 && report["machine"]["cpu"].is_string());
}

#[test]
fn what_is_no_drill_is_wrong_usage() {
    let (code, said) = failure(&["bench", "drill", "fire"]);
    assert!(code == 2 && said.contains("soak, or all"), "{said}");
    assert_eq!(failure(&["bench", "drill", "kill", "--rate", "0"]).0, 2);
}

#[test]
fn a_soak_shows_how_nodes_and_client_grow() {
    let dir = TempDir::new().unwrap();
    let small = ["--rows", "5_000", "--lookups", "320", "--no-timing", "--dir", dir.path().to_str().unwrap()];
    let (code, report) = json(&[&["bench", "drill", "soak"], &small[..]].concat());
    assert_eq!((code, &report["kept"]), (0, &true.into()), "{report:#}");
    let drill = &report["drills"][0];
    let number = |name: &str| drill["figures"][name].as_f64().unwrap_or_else(|| panic!("{name}: {drill:#}"));
    assert!(number("warm_up_lookups") > 0.0 && number("checked_vectors") > 320.0, "{drill:#}");
    assert!(number("nodes_growth_bytes_per_lookup").is_finite(), "{drill:#}");
    for series in ["nodes_anonymous_bytes", "nodes_file_bytes", "client_anonymous_bytes"] {
        let samples = drill["series"][series].as_array().unwrap();
        assert_eq!(samples.len(), 20, "one after each round of 16: {drill:#}");
        assert!(samples.iter().all(|bytes| bytes.as_f64().unwrap() > 1e6), "{series} of {drill:#}");
    }
}
