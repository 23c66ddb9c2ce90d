//! A release that is checked against an object store, written into it, and served from it.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;
use tidepool_store::ArtifactStore;
use tidepool_train::{ExportOptions, SyntheticSize, TrainOptions, export_release, synthetic, train};
use tidepool_types::Name;

use super::peer::{BUCKET, Moto, run, variables};
use crate::command::{Role, keys, node_keys};

#[test]
fn a_release_is_published_into_the_bucket_and_answers() {
    let dir = TempDir::new().unwrap();
    let moto = Moto::start();
    let location = format!("s3://{BUCKET}/ads/prod");
    let data = synthetic(3, SyntheticSize { users: 40, items: 60, events: 1_200 });
    let mut options = TrainOptions { resamples: 2, ..TrainOptions::default() };
    (options.pretrain.epochs, options.ranker.max_epochs) = (1, 1);
    let model = train(&data, &options, &mut |_| {}).unwrap().model;
    let name = |text: &str| Name::new(text).unwrap();
    let built = ArtifactStore::open(dir.path().join("built")).unwrap();
    export_release(&built, &model, &ExportOptions::new(name("m"), name("r0"), name("v1"))).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let release = built.release_dir(&name("m"), &name("r0"));
    let (model_toml, onnx) = (text(&release.join("model.toml")), text(&release.join("model.onnx")));
    let names = ["user@v1", "item@v1", "genre@v1", "occupation@v1"];
    let tables = names.map(|table| ["--table", table]).concat();
    let files = ["--model-toml", &model_toml, "--onnx", &onnx, "--store", &location];
    let tell = |args: &[&str]| run(moto.address, args);

    let root = text(built.root());
    let push =
        |tables: &[&str]| tell(&[&["store", "push", "--from", &root, "--store", &location], tables].concat());
    assert_eq!(push(&tables[..6]).0, 0);
    let check = [&["release", "check", "--release", "r1"], &files[..], &tables].concat();
    let (code, said, _) = tell(&check);
    assert!(code == 1 && said.contains("no table occupation@v1"), "{said}");
    assert_eq!(push(&tables[6..]).0, 0);
    let (code, said, checked) = tell(&check);
    assert_eq!((code, &checked["problems"]), (0, &Value::Array(Vec::new())), "{said}");

    let elsewhere = variables(moto.address);
    let store = Path::new(&location);
    let of_controller =
        [keys(dir.path(), store, "controller"), vec![("group_settle_ms", "0".into())]].concat();
    let controller = Role::start_in(dir.path(), "controller", &of_controller, &elsewhere);
    let of_node = node_keys(dir.path(), store, &[&controller.grpc_address]);
    let _node = Role::start_in(dir.path(), "node", &of_node, &elsewhere);
    let mut of_ranker = keys(dir.path(), store, "ranker");
    of_ranker.push(("controllers", format!("{:?}", [&controller.grpc_address])));
    of_ranker.push(("ranker", "r-1".into()));
    let ranker = Role::start_in(dir.path(), "ranker", &of_ranker, &elsewhere);

    let of_cluster = ["--controller", controller.grpc_address.as_str()];
    let publish = [&of_cluster[..], &["release", "publish", "r1"], &files, &tables].concat();
    let (code, said, published) = tell(&publish);
    assert_eq!((code, published["release"].as_str()), (0, Some("r1")), "{said}");
    let (code, said, promoted) = tell(&[&of_cluster[..], &["release", "promote", "m", "r1"]].concat());
    assert_eq!((code, promoted["state"].as_str()), (0, Some("current")), "{said}");
    let (code, said, _) = tell(&publish);
    assert!(code == 1 && said.contains("m@r1 is in the store already"), "{said}");

    let request = dir.path().join("request.json");
    let asked = r#"{"model": "m", "user": {"user": 1, "occupation": 0, "age": 30, "gender": 1},
        "candidates": {"item": [1, 2], "genres": [[0], [1, 2]]}}"#;
    fs::write(&request, asked).unwrap();
    let (code, said, ranked) = tell(&["rank", &text(&request), "--ranker", &ranker.http_address]);
    assert_eq!((code, ranked["release"].as_str()), (0, Some("r1")), "{said}");
}
