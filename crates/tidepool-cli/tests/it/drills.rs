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
    assert!(code == 2 && said.contains("partition or soak"), "{said}");
    assert_eq!(failure(&["bench", "drill", "kill", "--rate", "0"]).0, 2);
}
