//! `tidepool bench rank` on small tables: a real ranker and real nodes, checked answers, and all that is said of them.

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{failure, json};

fn number(of: &Value, key: &str) -> f64 {
    of[key].as_f64().unwrap_or_else(|| panic!("{key} of {of:#}"))
}

#[test]
fn bench_rank_measures_every_way_and_checks_what_they_answer() {
    let dir = TempDir::new().unwrap();
    let kept = dir.path().to_str().unwrap();
    let small = ["--model", "two-tower", "--rows", "2_000", "--candidates", "20", "--nodes", "2"];
    // 200 requests each way, or about: enough for a p99.
    let load = ["--rate", "200", "--seconds", "1", "--seed", "3", "--dir", kept];
    let asked = [&["bench", "rank", "--no-timing", "--inference"], &small[..], &load].concat();
    let (code, report) = json(&asked);
    assert_eq!(code, 0, "{report:#}");
    for (key, expected) in
        [("candidates", 20), ("nodes", 2), ("table_rows", 2000), ("seed", 3), ("rounds", 1)]
    {
        assert_eq!(report[key], expected, "{key}");
    }
    for above_zero in [
        "p50_us",
        "p99_us",
        "in_process_p99_us",
        "requests_per_second",
        "lookup_us",
        "dense_us",
        "kernel_us",
        "rows_looked_up",
    ] {
        assert!(number(&report, above_zero) > 0.0, "{above_zero} of {report:#}");
    }
    assert!(number(&report, "queue_us") >= 0.0 && number(&report, "p99_us") >= number(&report, "p50_us"));
    assert!(number(&report, "added_p99_us") >= number(&report, "added_p50_us"), "{report:#}");

    let ways = ["in_process", "timed", "floor", "inference"].map(|way| &report[way]);
    for way in [&report].into_iter().chain(ways) {
        assert_eq!(number(way, "failed_requests"), 0.0, "{report:#}");
        assert_eq!(number(way, "requests"), number(&report, "requests"), "the same arrivals: {report:#}");
    }
    // The first 16 of the round, asked natively and for tensors.
    assert_eq!(
        (number(&report, "checked_answers"), number(&report, "wrong_answers")),
        (32.0, 0.0),
        "{report:#}"
    );
    let oracle = &report["oracle"];
    assert!(number(oracle, "checked_scores") >= 32.0, "some of each: {report:#}");
    assert_eq!(number(oracle, "wrong_scores"), 0.0, "{report:#}");
    assert!(number(oracle, "largest_error") <= number(oracle, "largest_bound"), "{report:#}");
    for stage in ["check", "split", "nodes_wire", "nodes", "merge", "finish"] {
        assert!(number(&report["added_us"][stage], "mean_us") >= 0.0, "{stage} of {report:#}");
    }
    assert!(dir.path().join("rank/tables").is_dir(), "the tables stay");
}

#[test]
fn bench_rank_refuses_a_time_too_short_for_a_p99() {
    let (code, said) = failure(&["bench", "rank", "--rate", "10", "--seconds", "5"]);
    assert!(code == 1 && said.contains("give --seconds at least 12"), "{said}");
}
