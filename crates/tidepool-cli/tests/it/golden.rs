//! Golden vectors from the command line: frozen from samples once, and refused where training says otherwise.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    command::{failure, json},
    models::text,
};

const MODEL_TOML: &str = r#"
schema_version = 1
model = "ads"
score = "utility"
utility = "ctr * bid"
utility_inputs = [{ name = "bid", side = "candidate" }]
outputs = [{ name = "ctr" }]
[[inputs]]
name = "item"
feature = "sku"
side = "candidate"
table = "item"
transform = [{ op = "hash", seed = 7 }, { op = "modulo", n = 1_000_000 }]
"#;

#[test]
fn samples_are_frozen_once_and_what_training_says_is_kept() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path)
    };
    let model_toml = file("model.toml", MODEL_TOML);
    let samples = file(
        "samples.json",
        r#"{"schema_version": 1, "inputs": {"item": [{"raw": ["sku-1", "sku-2"]}, {"raw": []}]},
            "scores": [{"outputs": {"ctr": 0.25}, "inputs": {"bid": 4}}]}"#,
    );
    let out = text(&dir.path().join("golden.json"));
    let freeze = |samples: &str| {
        let args = ["release", "golden", "--model-toml", &model_toml, "--samples", samples, "--out", &out];
        args.map(str::to_owned)
    };
    let args = freeze(&samples);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (code, said) = json(&args);
    assert_eq!((code, &said["model"], &said["golden_vectors"]), (0, &json!("ads"), &json!(3)), "{said}");
    let golden: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    // The hashes are those of Python's xxhash.
    assert_eq!(golden["inputs"]["item"][0]["ids"], json!([658_016, 624_634]));
    assert_eq!(
        (&golden["inputs"]["item"][1]["ids"], &golden["scores"][0]["score"]),
        (&json!([]), &json!(1.0))
    );
    let (code, said) = failure(&args);
    assert!(code == 1 && said.contains("creating") && said.contains("golden.json"), "{said}");

    fs::remove_file(&out).unwrap();
    let other = file(
        "other.json",
        r#"{"schema_version": 1, "inputs": {"item": [{"raw": ["sku-1"], "ids": [7]}], "sku": []}}"#,
    );
    let args = freeze(&other);
    let (code, said) = failure(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 1, "{said}");
    for problem in [
        "[\"sku-1\"] gives ids [658016], training gave [7]",
        "model.toml has no input \"sku\" that takes ids",
    ] {
        assert!(said.contains(problem), "{problem}: {said}");
    }
    assert!(fs::metadata(&out).is_err(), "nothing is written");
}
