//! `tidepool bench` on few rows: the one object it prints, what it keeps, refusals.

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

#[test]
fn rows_of_a_file_are_quantized_as_a_build_does() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (store, rows, fused, out) = (at("store"), at("rows.npy"), at("fused"), at("out"));
    let run = |words: &str| json(&words.split(' ').collect::<Vec<_>>());
    let generated = "table generate a@v1 --rows 500 --dim 8 --partitions 1 --keying dense --store";
    assert_eq!(run(&format!("{generated} {store} --format f32")).0, 0);
    assert_eq!(run(&format!("table export a@v1 --store {store} --to {rows}")).0, 0);
    for quantizer in ["min_max", "optimized"] {
        let built =
            format!("table build {quantizer}@v1 --from {rows} --keying dense --quantizer {quantizer}");
        let (_, built) = run(&format!("{built} --partitions 1 --store {store}"));
        assert_eq!(
            run(&format!("table export {quantizer}@v1 --store {store} --fbgemm --to {fused}/{quantizer}")).0,
            0
        );
        let benched = format!("bench quantize --from {rows} --quantizer {quantizer} --seconds 0 --out {out}");
        let (code, report) = run(&benched);
        assert_eq!((code, &report["rows"], &report["passes"]), (0, &500.into(), &3.into()));
        assert!(report["rows_per_second"].as_f64().unwrap() > 0.0 && report["machine"]["cpu"].is_string());
        let relative = built["manifest"]["quantization"]["relative_l2"].as_f64().unwrap();
        assert!((report["relative_l2"].as_f64().unwrap() - relative).abs() < 1e-5 * relative, "{report}");
        let exported = fs::read(format!("{fused}/{quantizer}/rows.npy")).unwrap();
        assert!(exported.ends_with(&fs::read(&out).unwrap()), "{quantizer}");
    }
    let (code, said) = failure(&["bench", "quantize", "--from", &at("none.npy")]);
    assert!(code == 1 && said.contains("none.npy"), "{said}");
}
