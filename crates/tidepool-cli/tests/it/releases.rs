//! Releases from the command line: checked, ramped, rolled back with and without a controller, retired.

use std::fs;

use serde_json::json;
use tempfile::TempDir;
use tidepool_types::Name;

use crate::{
    command::{Role, failure, json, keys},
    models::{REQUEST, text, trained, until},
};

#[test]
fn releases_get_traffic_and_lose_it() {
    let dir = TempDir::new().unwrap();
    let store = trained(dir.path(), &["r1", "r2"]);
    let name = |text: &str| Name::new(text).unwrap();
    let controller = Role::controller(dir.path(), store.root());
    let _node = Role::node(dir.path(), store.root(), &controller);
    let mut of_ranker = keys(dir.path(), store.root(), "ranker");
    of_ranker.push(("controllers", format!("{:?}", [&controller.grpc_address])));
    of_ranker.push(("ranker", "r-1".into()));
    let ranker = Role::start(dir.path(), "ranker", &of_ranker);
    let address = controller.grpc_address.clone();
    let release = |args: &[&'static str]| {
        let all = [&["--controller", address.as_str(), "release"], args].concat();
        json(&all)
    };
    let refused = |args: &[&str]| failure(&[&["--controller", address.as_str(), "release"], args].concat());

    // Everything that is wrong is told at once, and nothing is written.
    let built = store.release_dir(&name("m"), &name("r1"));
    let (model_toml, onnx, root) =
        (text(&built.join("model.toml")), text(&built.join("model.onnx")), text(store.root()));
    let files = ["--model-toml", &model_toml, "--onnx", &onnx, "--store", &root];
    let bad =
        [&["check", "--release", "r1"][..], &files, &["--table", "user@v9", "--table", "item@r1"]].concat();
    let (code, said) = refused(&bad);
    assert_eq!(code, 1);
    for problem in ["no table user@v9", "--table genre@VERSION", "m@r1 is in the store already"] {
        assert!(said.contains(problem), "{problem}: {said}");
    }
    let tables = ["user@r1", "item@r1", "genre@r1", "occupation@r1"].map(|t| ["--table", t]).concat();
    let good = [&["release", "check", "--release", "r3"][..], &files, &tables].concat();
    assert_eq!(json(&good).1["model"], "m");

    for of in ["r1", "r2"] {
        let published =
            [&["--controller", address.as_str()], &["release", "publish", of, "--model", "m"][..]].concat();
        assert_eq!(json(&published).0, 0);
    }
    let (code, said) = refused(&["ramp", "m", "r2", "5%"]);
    assert!(code == 1 && said.contains("promote one first"), "{said}");
    assert_eq!(release(&["promote", "m", "r1"]).0, 0);
    let status = ["--controller", address.as_str(), "release", "status"];
    let list = ["--controller", address.as_str(), "release", "list"];
    until(&list, |v| v["releases"][1]["state"] == "ready");

    assert_eq!(refused(&["ramp", "m", "r2", "5"]).0, 2, "a share ends with %");
    let (_, tried) = release(&["ramp", "m", "r2", "5%", "--dry-run"]);
    assert_eq!((&tried["dry_run"], &tried["arms"][0]["share"]), (&json!(true), &json!(0.05)));
    assert_eq!(json(&status).1["models"][0]["arms"], json!([]), "it was only tried");
    let (_, ramped) = release(&["ramp", "m", "r2", "100%", "--min-requests", "50"]);
    assert_eq!(
        (&ramped["current_share"], &ramped["arms"][0]["guards"]["min_requests"]),
        (&json!(0.0), &json!(50))
    );
    let (code, said) = refused(&["retire", "m", "r2", "--yes"]);
    assert!(code == 1 && said.contains("10000 of 10000 buckets"), "{said}");

    // The answer says why it came from r2.
    let request = dir.path().join("request.json");
    fs::write(&request, REQUEST).unwrap();
    let request = text(&request);
    let rank = ["rank", request.as_str(), "--ranker", ranker.http_address.as_str()];
    let ranked = until(&rank, |v| v["choice"] == "arm");
    assert_eq!(ranked["release"], "r2");

    // Without a controller the ranker is told itself.
    assert_eq!(controller.terminate(), 0);
    let away = [&["release", "rollback", "m", "--ranker"][..], &[ranker.http_address.as_str()]].concat();
    let (code, told) = json(&away);
    assert_eq!((code, &told["rankers"][0]["answers"]), (0, &json!("r1")));
    let (_, ranked) = json(&rank);
    assert_eq!((&ranked["release"], &ranked["choice"]), (&json!("r1"), &json!("rolled_back")));
    // It is undone, and done again for a release that is named.
    let (code, undone) = json(&[away.as_slice(), &["--undo"]].concat());
    assert_eq!((code, &undone["rankers"][0]["answers"]), (0, &json!("r1")));
    assert_eq!(json(&rank).1["choice"], "arm");
    let (code, said) = failure(&[away.as_slice(), &["--release", "r9"]].concat());
    assert!(code == 1 && said.contains("not rolled back at"), "{said}");
    assert_eq!(json(&[away.as_slice(), &["--release", "r2"]].concat()).0, 0);
    assert_eq!(json(&rank).1["choice"], "rolled_back");
    let nobody = failure(&["release", "rollback", "m", "--ranker", "127.0.0.1:1"]);
    assert!(nobody.0 == 1 && nobody.1.contains("not rolled back at 127.0.0.1:1"), "{nobody:?}");

    // The controller comes back, and hears of it; its own rollback then is what the map says.
    let controller = Role::controller(dir.path(), store.root());
    of_ranker[2] = ("controllers", format!("{:?}", [&controller.grpc_address]));
    assert_eq!(ranker.terminate(), 0);
    let ranker = Role::start(dir.path(), "ranker", &of_ranker);
    let status = ["--controller", controller.grpc_address.as_str(), "release", "status", "m"];
    until(&status, |v| v["models"][0]["rolled_back_at"] == json!(["r-1"]));
    let of_cluster = |args: &[&'static str]| {
        json(&[&["--controller", controller.grpc_address.as_str(), "release"], args].concat())
    };
    let (code, back) = of_cluster(&["rollback", "m"]);
    assert_eq!((code, &back["arms"], &back["current"]), (0, &json!([]), &json!("r1")));
    until(&status, |v| v["models"][0]["rolled_back_at"] == json!([]));
    let rank = ["rank", request.as_str(), "--ranker", ranker.http_address.as_str()];
    until(&rank, |v| v["release"] == "r1" && v["choice"] == "current");
    let (code, _) = of_cluster(&["retire", "m", "r2", "--yes"]);
    assert_eq!(code, 0);
    let unsure =
        failure(&["--controller", &controller.grpc_address, "release", "retire", "m", "r1", "--yes"]);
    assert!(unsure.0 == 1 && unsure.1.contains("is the current one"), "{unsure:?}");
}
