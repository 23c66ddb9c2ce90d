//! `tidepool drill` on few rows: where nothing is mixed, where versions are mixed on purpose, and where it cannot be.

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{failure, json};

/// Few rows and requests; promises about time are not for a machine on which other tests run.
fn drill(name: &str, more: &[&str]) -> (i32, Value) {
    let dir = TempDir::new().unwrap();
    let small =
        ["--rows", "20_000", "--rate", "40", "--requests-during", "80", "--pairs", "2", "--no-timing"];
    let args = [&["drill", name], &small[..], &["--dir", dir.path().to_str().unwrap()], more].concat();
    let (code, mut report) = json(&args);
    assert_eq!(report["drills"].as_array().unwrap().len(), 1, "{report:#}");
    (code, report["drills"][0].take())
}

fn number(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report:#}"))
}

/// No answer is other than it should be, and none fails. That another test held the processor for the quarter of a
/// second which a request has is not for this one to judge.
fn nobody_noticed(code: i32, report: &Value) {
    for none in ["mixed_versions", "wrong_answers", "stale_answers"] {
        assert_eq!(number(report, none), 0.0, "{none}: {report:#}");
    }
    let failures = report["failures"].as_object().unwrap();
    assert!(failures.keys().all(|code| code == "deadline_exceeded"), "{report:#}");
    let late = number(report, "failed_requests");
    assert_eq!(code, if late > 0.0 { 3 } else { 0 }, "{report:#}");
    assert!(number(report, "requests_during") + late >= 80.0, "{report:#}");
    for figure in ["p99_before_us", "p99_during_us", "p999_during_us", "duration_seconds"] {
        assert!(number(report, figure) > 0.0, "{figure}: {report:#}");
    }
    assert!(report["retries"].is_u64() && report["pairs"].as_array().unwrap().len() == 2, "{report:#}");
}

#[test]
fn releases_are_promoted_and_nobody_notices() {
    let (code, report) = drill("promote", &[]);
    nobody_noticed(code, &report);
    assert_eq!((&report["drill"], &report["tables_built"]), (&"promote".into(), &6.into()));
}

#[test]
fn the_controller_is_killed_in_a_promotion_and_nobody_notices() {
    let (code, report) = drill("kill-controller", &[]);
    nobody_noticed(code, &report);
}

#[test]
fn versions_that_are_mixed_on_purpose_are_found() {
    let (code, report) = drill("promote", &["--mutate", "mix-versions"]);
    assert_eq!(code, 3, "{report:#}");
    assert!(number(&report, "mixed_versions") > 0.0, "{report:#}");
    assert_eq!(number(&report, "wrong_answers"), 0.0, "{report:#}");
}

#[test]
fn a_drill_that_cannot_be_says_why() {
    let (code, said) = failure(&["drill", "fire"]);
    assert!(code == 2 && said.contains("metastore-outage, store-outage, or all"), "{said}");
    assert_eq!(failure(&["drill", "promote", "--deadline-ms", "251"]).0, 2);
    let dir = TempDir::new().unwrap();
    let small = ["--rows", "2_000", "--etcd", "/nowhere/etcd", "--dir", dir.path().to_str().unwrap()];
    let (code, said) = failure(&[&["drill", "metastore-outage"], &small[..]].concat());
    assert!(code == 1 && said.contains("/nowhere/etcd") && said.contains("etcd-server"), "{said}");
}
