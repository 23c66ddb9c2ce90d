//! `tidepool bench kernel` on a small table: the one object it prints, the table it keeps, refusals.

use std::fs;

use tempfile::TempDir;

use crate::command::{failure, json};

#[test]
fn a_small_table_is_benched_and_kept() {
    let dir = TempDir::new().unwrap();
    let kept = dir.path().to_str().unwrap();
    let args =
        ["--rows", "5_000", "--dim", "32", "--keys", "hashed", "--skew", "zipf:1.05", "--threads", "2"];
    let short = ["--pass-mib", "1", "--seconds", "0", "--isa", "scalar", "--seed", "9", "--dir", kept];
    let (code, report) = json(&[["bench", "kernel"].as_slice(), &args, &short].concat());
    assert_eq!((code, &report["wrong_answers"], &report["schema_version"]), (0, &0.into(), &1.into()));
    assert_eq!(
        (&report["isa"], &report["seed"], &report["skew"]),
        (&"scalar".into(), &9.into(), &"zipf:1.05".into())
    );
    assert!(report["checked_answers"].as_u64().unwrap() >= 1000);
    for above_zero in [
        "rows_per_second",
        "gather_limit_rows_per_second",
        "bytes_per_second",
        "ns_per_row",
        "ns_per_line",
        "table_bytes",
        "index_bytes",
    ] {
        assert!(report[above_zero].as_f64().unwrap() > 0.0, "{above_zero}: {report}");
    }
    for key in ["median", "low", "high"] {
        assert!(report["ratio_to_gather_limit"][key].is_f64(), "{report}");
    }
    assert!(report["huge_page_bytes"].is_u64() && report["machine"]["cpu"].is_string(), "{report}");
    assert_eq!((fs::read_dir(kept).unwrap().count(), &report["built"]), (1, &true.into()));

    let (code, again) = json(&[["bench", "kernel"].as_slice(), &args, &short].concat());
    assert_eq!((code, &again["built"]), (0, &false.into()));
}

#[test]
fn wrong_parameters_are_refused() {
    let (code, said) = failure(&["bench", "kernel", "--rows", "10", "--skew", "zipf:x"]);
    assert!(code == 2 && said.contains("zipf:1.05"), "{said}");
    let (code, said) = failure(&["bench", "kernel", "--rows", "10", "--dim", "7"]);
    assert!(code == 1 && said.contains("dimension 7"), "{said}");
}
