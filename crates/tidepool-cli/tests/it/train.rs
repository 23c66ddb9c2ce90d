//! `tidepool train`, on a small folder of ratings, and what `release check` says of what it wrote.

use std::fs;

use tempfile::TempDir;
use tidepool_store::ArtifactStore;
use tidepool_types::Name;

use crate::{
    command::{failure, json},
    demo::ratings,
};

/// Ratings of which a part of the liked ones, by far not all, have five stars.
fn ratings_of_both_kinds(dir: &TempDir) -> String {
    let folder = ratings(dir);
    let file = dir.path().join("ratings/ml-100k.inter");
    let text = fs::read_to_string(&file).unwrap();
    let turned = text.lines().enumerate().map(|(at, line)| {
        if at % 3 == 0 { format!("{}\n", line.replace("\t5\t", "\t4\t")) } else { format!("{line}\n") }
    });
    fs::write(&file, turned.collect::<String>()).unwrap();
    folder
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[test]
fn every_model_is_trained_and_stands_in_the_store_as_a_release() {
    let dir = TempDir::new().unwrap();
    let data = ratings_of_both_kinds(&dir);
    let store = dir.path().join("store");
    let at = store.to_str().unwrap();
    for (model, heads) in [("dcn-mmoe", 3), ("two-tower", 1), ("dlrm", 1), ("ranker", 0)] {
        let args = ["train", "--model", model, "--data", &data, "--store", at, "--release", "r1"];
        let sample = dir.path().join(format!("{model}.jsonl"));
        let sample = sample.to_str().unwrap();
        let (code, said) = json(&[&args[..], &["--test-sample", sample]].concat());
        assert_eq!((code, &said["model"], &said["release"]), (0, &model.into(), &"r1".into()), "{said:#}");
        let reported = said["report"]["heads"].as_array().map_or(0, Vec::len);
        assert_eq!(reported, heads, "{said:#}");
        let files = ArtifactStore::open_existing(&store).unwrap().release(&name(model), &name("r1")).unwrap();
        let version = name(&format!("{model}-r1"));
        assert!(files.manifest.tables.iter().all(|table| table.version == version), "{said:#}");
        // Only one of them is ranked by a formula; what it gives is frozen, by training's own arithmetic.
        let golden = files.golden.map(|golden| (golden.check(&files.spec), golden.cases()));
        assert_eq!(golden, (model == "dcn-mmoe").then_some((Vec::new(), 5)), "{said:#}");
        if model == "dcn-mmoe" {
            // Replayed, it is as good as the training said of INT4 rows.
            let (code, replayed) = json(&["release", "skew", model, "r1", "--store", at, "--sample", sample]);
            assert_eq!(code, 0, "{replayed:#}");
            let found = &replayed["releases"][0]["cells"][0]["outputs"];
            for (head, output) in ["ctr", "cvr", "utility"].into_iter().enumerate() {
                let told = &said["report"]["heads"][head]["int4"]["log_loss"];
                let (told, found) = (told.as_f64().unwrap(), &found[output]["log_loss"]["value"]);
                assert!(
                    (found.as_f64().unwrap() - told).abs() < 1e-4,
                    "{output}: {found}, training said {told}"
                );
            }
        }
        let taken = failure(&[
            "train",
            "--model",
            model,
            "--data",
            &data,
            "--store",
            at,
            "--release",
            "r2",
            "--test-sample",
            sample,
        ]);
        assert!(taken.0 == 1 && taken.1.contains("creating") && taken.1.contains("exists"), "{taken:?}");
        let again = failure(&args);
        assert!(again.0 == 1 && again.1.contains("already"), "{again:?}");
        let taken = version.as_str();
        let no_data = ["train", "--model", model, "--data", "/nowhere", "--store", at, "--release", "r2"];
        let said = failure(&[&no_data[..], &["--table-version", taken]].concat());
        assert!(
            said.0 == 1 && said.1.contains(&format!("table user@{taken} is in")),
            "before data: {said:?}"
        );
        // What fails leaves no sample behind: the same command can be given again.
        let lost = dir.path().join("lost.jsonl");
        let said = failure(&[&no_data[..], &["--test-sample", lost.to_str().unwrap()]].concat());
        assert!(said.0 == 1 && !said.1.contains("creating") && !lost.exists(), "{said:?}");
    }
}

#[test]
fn untrained_models_say_so_and_the_demos_model_has_no_sizes() {
    let dir = TempDir::new().unwrap();
    let data = ratings(&dir);
    let store = dir.path().join("store");
    let at = store.to_str().unwrap();
    let base = ["train", "--data", &data, "--store", at, "--release", "r1", "--size", "large", "--untrained"];
    let (code, said) = json(&[&base[..], &["--model", "dcn-mmoe", "--name", "speed"]].concat());
    assert_eq!((code, &said["model"]), (0, &"speed".into()), "{said:#}");
    let report = &said["report"];
    assert_eq!((&report["trained"], &report["size"]), (&false.into(), &"large".into()));
    assert!(report["parameters"].as_u64().unwrap() > 1_900_000, "{said:#}");
    let graph = fs::metadata(store.join("releases/speed/r1/model.onnx")).unwrap().len();
    assert!(graph > 4 * 1_900_000, "{graph}");

    let (code, said) = failure(&[&base[..], &["--model", "ranker"]].concat());
    assert!(code == 1 && said.contains("reference models"), "{said}");
}
