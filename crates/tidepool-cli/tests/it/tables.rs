//! Tables without a cluster: generated, looked into, verified, taken out and put back.

use std::{fs, path::Path};

use tempfile::TempDir;

use crate::command::{failure, json, tidepool};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The words of a command line, then `--store DIR`.
fn with_store<'a>(words: &'a str, store: &'a str) -> Vec<&'a str> {
    words.split(' ').chain(["--store", store]).collect()
}

#[test]
fn a_generated_table_is_inspected_verified_and_looked_up() {
    let dir = TempDir::new().unwrap();
    let store = &text(dir.path());
    let words =
        "table generate scale@v1 --rows 5000 --dim 8 --partitions 4 --seed 3 --format f32 --memory-mib 1";
    let (code, built) = json(&with_store(words, store));
    assert_eq!((code, &built["rows"]), (0, &5000.into()));
    assert!(built["index_bits_per_id"].as_f64().unwrap() < 4.0, "{built}");
    assert!(built["file_bytes_per_row"].as_f64().unwrap() > 40.0, "{built}");
    assert!(built["peak_anonymous_memory_bytes"].as_u64().unwrap() > 0, "{built}");

    let (code, seen) = json(&with_store("table inspect scale@v1", store));
    assert_eq!((code, &seen["manifest"]), (0, &built["manifest"]));
    let file = &seen["files"][2];
    assert_eq!((&file["partition"], &file["stride_bytes"]), (&2.into(), &36.into()));
    assert_eq!(file["sections"][0]["section"], "rows");
    let (code, alone) = json(&["table", "inspect", file["path"].as_str().unwrap()]);
    assert_eq!(
        (code, &alone),
        (0, &{
            let mut expected = file.clone();
            expected["schema_version"] = 1.into();
            expected
        })
    );

    let (code, verified) = json(&with_store("table verify scale@v1", store));
    assert_eq!((code, &verified["files"], &verified["bad"]), (0, &4.into(), &serde_json::json!([])));

    // f32 rows are exactly those of the function of (id, version), wherever it is written.
    let id = tidepool_types::synthetic::uniform_id(77, 3);
    let mut row = [0.0f32; 8];
    tidepool_types::synthetic::row(id, tidepool_types::synthetic::salt("v1"), &mut row);
    let id = id.to_string();
    let words = format!("table lookup scale@v1 {id} 5");
    let (code, found) = json(&with_store(&words, store));
    assert_eq!((code, &found["rows"][1]["found"]), (0, &false.into()));
    let values = found["rows"][0]["values"].as_array().unwrap();
    let values: Vec<f32> = values.iter().map(|value| value.as_f64().unwrap() as f32).collect();
    assert_eq!(values, row);
}

#[test]
fn every_damaged_file_is_named() {
    let dir = TempDir::new().unwrap();
    let store = &text(dir.path());
    let words = "table generate scale@v1 --rows 4000 --dim 64 --partitions 4 --keying dense --format f32";
    assert_eq!(json(&with_store(words, store)).0, 0);
    let file = |n: u32| dir.path().join(format!("tables/scale/v1/layout-4/part-0000{n}.tide"));
    let mut bytes = fs::read(file(1)).unwrap();
    bytes[4096 + 70_000] ^= 4;
    fs::write(file(1), bytes).unwrap();
    fs::remove_file(file(3)).unwrap();

    let (code, report) = json(&with_store("table verify scale@v1", store));
    assert_eq!((code, report["bad"].as_array().unwrap().len()), (1, 2), "{report}");
    let problem = report["bad"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("part-00001.tide: block 1 of section rows"), "{problem}");
    assert_eq!(
        (&report["bad"][1]["file"], &report["bad"][1]["kind"]),
        (&text(&file(3)).into(), &"missing".into())
    );
    let (code, said) = failure(&with_store("table verify scale@v1", store));
    assert!(code == 1 && said.contains("2 of 4 files"), "{said}");

    // All that is wrong, and not only the first of each file.
    let mut bytes = fs::read(file(1)).unwrap();
    bytes[4096 + 10] ^= 4;
    fs::write(file(1), &bytes).unwrap();
    let cut = fs::read(file(2)).unwrap();
    fs::write(file(2), &cut[..cut.len() - 1]).unwrap();
    fs::write(file(0), b"something else").unwrap();
    fs::create_dir(file(3)).unwrap();
    let (code, report) = json(&with_store("table verify scale@v1", store));
    let kinds: Vec<_> =
        report["bad"].as_array().unwrap().iter().map(|bad| bad["kind"].as_str().unwrap()).collect();
    assert_eq!((code, kinds), (1, vec!["size", "damaged", "size", "refused"]));
    assert_eq!(report["problems"], 5);
    let blocks: Vec<_> =
        report["bad"][1]["problems"].as_array().unwrap().iter().map(|problem| &problem["block"]).collect();
    assert_eq!(blocks, [0, 1]);
}

#[test]
fn what_is_not_there_is_said_and_nothing_is_made() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("nowhere");
    for words in
        ["table verify t@v1", "table inspect t@v1", "table lookup t@v1 7", "table export t@v1 --to x.csv"]
    {
        let (code, said) = failure(&with_store(words, &text(&store)));
        assert!(code == 1 && said.contains("no artifact store"), "{said}");
        assert!(!store.exists(), "{words}");
    }
    fs::write(&store, "a file").unwrap();
    let (code, said) = failure(&with_store("table verify t@v1", &text(&store)));
    assert!(code == 1 && said.contains("Not a directory"), "{said}");
    fs::remove_file(&store).unwrap();
    fs::create_dir(&store).unwrap();
    let (code, said) = failure(&with_store("table verify t@v1", &text(&store)));
    assert!(code == 1 && said.contains("there is no table t@v1"), "{said}");

    // A table without rows is a table.
    let store = &text(&store);
    assert_eq!(json(&with_store("table generate t@v1 --rows 0 --dim 8 --partitions 2", store)).0, 0);
    assert_eq!(json(&with_store("table verify t@v1", store)).1["bad"], serde_json::json!([]));
    assert_eq!(json(&with_store("table inspect t@v1", store)).1["manifest"]["schema"]["rows"], 0);
    let (code, found) = json(&with_store("table lookup t@v1 7", store));
    assert_eq!((code, &found["rows"][0]["found"]), (0, &false.into()));
}

#[cfg(unix)]
#[test]
fn names_that_are_not_unicode_are_names() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};

    let dir = TempDir::new().unwrap();
    let store = dir.path().join(OsString::from_vec(b"st\xffore".to_vec()));
    let run = |words: &[&str]| {
        let mut command = tidepool();
        command.args(words).arg("--store").arg(&store).arg("--json").output().unwrap()
    };
    assert!(
        run(&["table", "generate", "t@v1", "--rows", "9", "--dim", "8", "--partitions", "1"])
            .status
            .success()
    );
    for words in
        [&["table", "inspect", "t@v1"][..], &["table", "verify", "t@v1"], &["table", "lookup", "t@v1", "7"]]
    {
        let done = run(words);
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let file = store.join("tables/t/v1/layout-1/part-00000.tide");
    let alone = tidepool().args(["table", "inspect"]).arg(&file).output().unwrap();
    assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
}

#[test]
fn what_is_exported_is_imported_to_the_byte() {
    let dir = TempDir::new().unwrap();
    let store = &text(dir.path());
    assert_eq!(json(&with_store("table generate a@v1 --rows 3000 --dim 8 --partitions 2", store)).0, 0);
    let fused = text(&dir.path().join("fused"));
    let words = format!("table export a@v1 --fbgemm --to {fused}");
    assert_eq!(json(&with_store(&words, store)).0, 0);
    // The same name in another store: names are in the files.
    let other = &text(&dir.path().join("other"));
    let words = format!(
        "table build a@v1 --from {fused}/rows.npy --ids {fused}/ids.npy --stored int4 --partitions 2"
    );
    assert_eq!(json(&with_store(&words, other)).0, 0);
    for n in 0..2 {
        let file = |store: &str| fs::read(format!("{store}/tables/a/v1/layout-2/part-0000{n}.tide")).unwrap();
        assert!(file(store) == file(other));
    }

    for name in ["values.npy", "values.csv", "values.parquet"] {
        let to = text(&dir.path().join(name));
        assert_eq!(json(&with_store(&format!("table export a@v1 --to {to}"), store)).0, 0);
        let ids = dir.path().join("values.ids.npy");
        let ids = if name.ends_with("npy") { format!(" --ids {}", text(&ids)) } else { String::new() };
        let words = format!("table build {}@v1 --format f32 --from {to}{ids}", &name[7..]);
        assert_eq!(json(&with_store(&words, store)).1["manifest"]["schema"]["rows"], 3000);
        let (code, said) = failure(&with_store(&format!("table export a@v1 --to {to}"), store));
        assert!(code == 1 && said.contains("exists already"), "{said}");
    }
}

#[test]
fn strings_are_ids_by_a_stated_hash() {
    let dir = TempDir::new().unwrap();
    let store = &text(&dir.path().join("store"));
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tidepool-import/tests/golden/strings.parquet");
    let words = format!("table build t@v1 --format f32 --partitions 2 --from {}", text(&golden));
    let (code, said) = failure(&with_store(&words, store));
    assert!(code == 1 && said.contains("--string-ids xxh3"), "{said}");
    assert_eq!(json(&with_store(&format!("{words} --string-ids xxh3"), store)).0, 0);
    let (_, found) = json(&with_store("table lookup t@v1 user:42 user:9 --string-ids xxh3", store));
    assert_eq!(found["rows"][0]["values"], serde_json::json!([0.25, 0.0]));
    assert_eq!(
        (&found["rows"][0]["id"], &found["rows"][1]["found"]),
        (&11_511_735_035_886_662_826u64.into(), &false.into())
    );
    let (code, said) = failure(&with_store("table lookup t@v1 user:42", store));
    assert!(code == 1 && said.contains("--string-ids"), "{said}");
}

#[test]
fn ids_that_stand_twice_are_refused_or_the_last_stays() {
    let dir = TempDir::new().unwrap();
    let store = &text(&dir.path().join("store"));
    let csv = dir.path().join("rows.csv");
    fs::write(&csv, "7,1,1\n9,2,2\n7,3,3\n").unwrap();
    let words = format!("table build t@v1 --format f32 --partitions 2 --from {}", text(&csv));
    let (code, said) = failure(&with_store(&words, store));
    assert!(code == 1 && said.contains("id 7 stands twice"), "{said}");
    assert_eq!(json(&with_store(&format!("{words} --duplicates last"), store)).0, 0);
    let (_, found) = json(&with_store("table lookup t@v1 7 9", store));
    assert_eq!(found["rows"][0]["values"], serde_json::json!([3.0, 3.0]));
    assert_eq!(failure(&with_store("table build t@v2 --duplicates first --from x.csv", store)).0, 2);
    let uniform = failure(&with_store("table generate t@v3 --rows 5 --keying dense --ids uniform", store));
    assert!(uniform.0 == 1 && uniform.1.contains("sequential"), "{uniform:?}");
}
