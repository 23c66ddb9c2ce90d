//! A release that is checked against an object store, written into it, and served from it.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;
use tidepool_types::Name;

use super::peer::{BUCKET, Moto, run, variables};
use crate::{
    command::{Role, keys, node_keys},
    models::{REQUEST, text, trained},
};

#[test]
fn a_release_is_published_into_the_bucket_and_answers() {
    let dir = TempDir::new().unwrap();
    let moto = Moto::start();
    let location = format!("s3://{BUCKET}/ads/prod");
    let built = trained(&dir.path().join("built"), &["v1"]);
    let named = |text: &str| Name::new(text).unwrap();
    let release = built.release_dir(&named("m"), &named("v1"));
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
    fs::write(&request, REQUEST).unwrap();
    let (code, said, ranked) = tell(&["rank", &text(&request), "--ranker", &ranker.http_address]);
    assert_eq!((code, ranked["release"].as_str()), (0, Some("r1")), "{said}");
}
