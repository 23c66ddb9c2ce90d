//! `tidepool store` on a directory, beside a cluster that serves some of what lies there.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{Role, failure, json};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn names(object: &Value, list: &str) -> Vec<String> {
    object[list].as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_nobody_refers_to_is_listed_and_collected_and_what_is_served_stays() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    for version in ["big@v1", "big@v2"] {
        let built = json(&["table", "generate", version, "--rows", "500", "--store", &text(&store)]);
        assert_eq!(built.0, 0, "{built:?}");
    }
    let controller = Role::controller(dir.path(), &store);
    let _node = Role::node(dir.path(), &store, &controller);
    let with_controller = |args: &[&str]| json(&[&["--controller", &controller.grpc_address], args].concat());
    assert_eq!(with_controller(&["table", "serve", "big@v1"]).0, 0);
    // Of a writer that was killed.
    fs::create_dir_all(store.join("tables/big/.tmp-x")).unwrap();

    let (code, listed) = with_controller(&["store", "list", "--store", &text(&store)]);
    assert_eq!(
        (code, names(&listed, "artifacts")),
        (0, vec!["big@v1".to_owned(), "big@v2".to_owned(), "tables/big/.tmp-x".to_owned()])
    );
    let referenced: Vec<_> =
        listed["artifacts"].as_array().unwrap().iter().map(|a| &a["referenced"]).collect();
    assert_eq!(referenced, [&json!(true), &json!(false), &json!(false)]);
    let (_, offline) = json(&["store", "list", "--offline", "--store", &text(&store)]);
    assert_eq!(offline["artifacts"][0]["referenced"], Value::Null);

    // All of it is young.
    let (code, young) = with_controller(&["store", "gc", "--dry-run", "--store", &text(&store)]);
    assert_eq!((code, &young["collected"], &young["young"]), (0, &json!([]), &json!(2)));
    let gc = ["store", "gc", "--grace-hours", "0", "--store"];
    let (_, would) = with_controller(&[&gc[..], &[&text(&store), "--dry-run"]].concat());
    assert_eq!(names(&would, "collected"), ["big@v2", "tables/big/.tmp-x"]);
    assert_eq!((&would["dry_run"], &would["referenced"]), (&json!(true), &json!(1)));

    // Nobody was asked: standard input is no terminal. And without a controller nothing is known to be garbage.
    let refused = failure(&[&["--controller", &controller.grpc_address], &gc[..], &[&text(&store)]].concat());
    assert!(refused.0 == 1 && refused.1.contains("--yes"), "{refused:?}");
    let nobody = failure(&[&["--controller", "127.0.0.1:1"], &gc[..], &[&text(&store), "--yes"]].concat());
    assert!(nobody.0 == 1 && nobody.1.contains("127.0.0.1:1"), "{nobody:?}");
    assert!(store.join("tables/big/v2/manifest.json").exists());

    let (code, done) = with_controller(&[&gc[..], &[&text(&store), "--yes"]].concat());
    assert_eq!((code, names(&done, "collected")), (0, names(&would, "collected")));
    assert_eq!((&done["bytes"], &done["dry_run"]), (&would["bytes"], &json!(false)));
    assert!(!store.join("tables/big/v2").exists() && !store.join("tables/big/.tmp-x").exists());
    assert_eq!(with_controller(&["lookup", "big@v1", "1"]).0, 0);
}

#[test]
fn a_place_in_an_object_store_is_refused_where_files_are_worked_on_in_place() {
    for args in [
        &["table", "generate", "big@v1", "--rows", "10", "--store", "s3://bucket/x"][..],
        &["table", "verify", "big@v1", "--store", "s3://bucket/x"],
    ] {
        let (code, said) = failure(args);
        assert!(code == 1 && said.contains("tidepool store p"), "{args:?}: {said}");
    }
    let (code, said) = failure(&["store", "list", "--offline", "--store", "s3://key:secret@bucket/x"]);
    assert!(code == 2 && said.contains("credentials"), "{said}");
    let (code, said) = failure(&["store", "push", "--from", "/tmp", "--store", "/tmp", "--table", "a@b"]);
    assert!(code == 1 && said.contains("s3://BUCKET/PREFIX"), "{said}");
    assert!(!Path::new("s3:").exists());
}
