//! What builds make of values: the quantizer asked for, the report on it, and what is refused.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{failure, json, tidepool};

const FORMATS: [&str; 4] = ["int4", "int8", "f16", "f32"];
const QUANTIZERS: [&str; 2] = ["min_max", "optimized"];

/// An array file as numpy writes it.
fn npy(path: &Path, descr: &str, shape: &str, elements: &[u8]) {
    let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    dict.extend(std::iter::repeat_n(' ', 63 - (10 + dict.len()) % 64));
    dict.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((dict.len() as u16).to_le_bytes());
    file.extend(dict.as_bytes());
    file.extend(elements);
    fs::write(path, file).unwrap();
}

fn words<'a>(words: &'a str, store: &'a str) -> Vec<&'a str> {
    words.split(' ').chain(["--store", store]).collect()
}

#[test]
fn what_is_not_finite_is_refused_with_id_and_column() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (store, vectors, ids, csv) = (at("store"), at("x.npy"), at("ids.npy"), at("x.csv"));
    npy(Path::new(&ids), "<u8", "(3,)", &[5u64, 6, 77].map(u64::to_le_bytes).concat());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = [0.5f32; 12];
        values[10] = bad;
        npy(Path::new(&vectors), "<f4", "(3, 4)", &values.map(f32::to_le_bytes).concat());
        fs::write(&csv, format!("5,1,2,3,4\n77,1,2,{bad},4\n")).unwrap();
        for format in FORMATS {
            for quantizer in QUANTIZERS {
                let how = format!("--format {format} --quantizer {quantizer} --partitions 2");
                let from_npy = format!("table build t@v1 --from {vectors} --ids {ids} {how}");
                let (code, said) = failure(&words(&from_npy, &store));
                assert!(code == 1 && said.contains("id 77") && said.contains("column 2 is"), "{how}: {said}");
                let from_csv = format!("table build t@v1 --from {csv} {how}");
                let (code, said) = failure(&words(&from_csv, &store));
                assert!(code == 1 && said.contains("id 77") && said.contains("column 4"), "{how}: {said}");
            }
        }
    }
    let left = fs::read_dir(Path::new(&store).join("tables/t")).unwrap().count();
    assert_eq!(left, 0, "nothing of the refused builds is left");
}

#[test]
fn the_report_says_what_the_quantizer_cost_and_what_a_row_takes() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let generate = |store: &str, quantizer: &str| {
        let built =
            format!("table generate t@v1 --rows 3000 --dim 32 --partitions 2 --quantizer {quantizer}");
        assert_eq!(json(&words(&built, store)).0, 0);
        let (code, seen) = json(&words("table inspect t@v1", store));
        assert_eq!(code, 0);
        seen
    };
    let [min_max, optimized] = QUANTIZERS.map(|quantizer| generate(&at(quantizer), quantizer));
    let report = |seen: &Value| seen["manifest"]["quantization"].clone();
    let relative = |seen: &Value| report(seen)["relative_l2"].as_f64().unwrap();
    assert!(relative(&optimized) < relative(&min_max) && relative(&optimized) > 0.0);
    assert_eq!(report(&optimized)["quantizer"], "optimized");
    let worst = report(&min_max)["worst_rows"].as_array().unwrap().clone();
    assert_eq!(worst.len(), 10);
    assert!(worst.iter().all(|row| row["largest_absolute_error"].as_f64().unwrap() > 0.0), "{worst:?}");
    let bytes = &min_max["manifest"]["bytes"];
    assert_eq!(
        (&bytes["row"]["bytes_per_row"], &bytes["row"]["ratio_to_f16"]),
        (&20.0.into(), &0.3125.into())
    );
    assert!(bytes["file_with_index"]["ratio_to_f32"].as_f64() > bytes["file"]["ratio_to_f32"].as_f64());
    assert_eq!(min_max["manifest_hash"], generate(&at("again"), "min_max")["manifest_hash"]);

    let shown = tidepool().args(words("table inspect t@v1", &at("optimized"))).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for expected in
        ["quantization: optimized, relative L2 error 0.0", "worst rows", "31.25 %", "file with index"]
    {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let id = worst[9]["id"].as_u64().unwrap().to_string();
    let shown = tidepool().args(words("table inspect t@v1", &at("min_max"))).output().unwrap();
    assert!(String::from_utf8(shown.stdout).unwrap().contains(&id), "the tenth worst row is shown");
}

#[test]
fn quantizers_are_not_for_rows_that_are_stored_already() {
    let of_stored = "table build t@v1 --from x.npy --stored int4 --quantizer optimized";
    assert_eq!(failure(&words(of_stored, "store")).0, 2);
    let (code, said) = failure(&words("table generate t@v1 --rows 5 --quantizer greedy", "store"));
    assert!(code == 2 && said.contains("min_max or optimized"), "{said}");
}
