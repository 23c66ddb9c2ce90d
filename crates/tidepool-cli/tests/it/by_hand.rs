//! A cluster by hand, from the command line alone: configuration, tables from files, lookups, refusals.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidepool_store::ArtifactStore;
use tidepool_train::{ExportOptions, SyntheticSize, TrainOptions, export_release, synthetic, train};
use tidepool_types::Name;

use crate::command::{Role, failure, http_get, json, keys, node_keys, tidepool};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_table_from_csv_is_built_served_and_looked_up() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("störe");
    let csv = dir.path().join("vektörs.csv");
    fs::write(&csv, "id,a,b,c,d,e,f,g,h\n42,-1,-0.5,0,0.25,0.5,1,2,3\n7,0,0,0,0,0,0,0,0\n").unwrap();

    let (code, built) = json(&[
        "table",
        "build",
        "user@v1",
        "--from",
        &text(&csv),
        "--store",
        &text(&store),
        "--partitions",
        "4",
    ]);
    assert_eq!(code, 0);
    assert_eq!(built["manifest"]["schema"]["rows"], 2);
    let again = failure(&["table", "build", "user@v1", "--from", &text(&csv), "--store", &text(&store)]);
    assert!(again.0 == 1 && again.1.contains("user") && again.1.contains("v1"), "{again:?}");

    let controller = Role::controller(dir.path(), &store);
    let node = Role::node(dir.path(), &store, &controller);

    let with_controller = |args: &[&str]| json(&[&["--controller", &controller.grpc_address], args].concat());
    let (code, served) = with_controller(&["table", "serve", "user@v1"]);
    assert_eq!((code, &served["serving"]), (0, &json!(true)));
    let (code, found) = with_controller(&["lookup", "user", "42", "7", "99"]);
    assert_eq!(code, 0);
    assert_eq!(found["table_version"], json!({ "table": "user", "version": "v1" }));
    let row = &found["rows"][0];
    assert_eq!(row["stored_row"], "205486fb443400bc");
    assert_eq!(row["node"], "a-1");
    assert_eq!(found["rows"][1]["values"], json!([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]));
    assert_eq!((&found["rows"][2]["found"], &found["rows"][2]["stored_row"]), (&json!(false), &json!(null)));

    let unknown = failure(&["--controller", &controller.grpc_address, "lookup", "nobody", "1"]);
    assert!(unknown.0 == 1 && unknown.1.contains("nobody") && unknown.1.contains("user@v1"), "{unknown:?}");

    for (role, metric) in [(&controller, "tidepool_controller_epoch"), (&node, "tidepool_node_lookups_total")]
    {
        assert!(http_get(&role.http_address, "/metrics").contains(metric));
        assert!(http_get(&role.http_address, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(http_get(&role.http_address, "/readyz").starts_with("HTTP/1.1 200"));
        assert!(http_get(&role.http_address, "/status").contains("epoch"));
    }

    // A second process on a taken port says which, and ends; the first lives on.
    let mut taken = vec!["node".to_owned()];
    let other = node_keys(&dir.path().join("other"), &store, &[&controller.grpc_address]);
    for (key, value) in other.iter().chain(&[("grpc_address", node.grpc_address.clone())]) {
        taken.extend(["--set".to_owned(), format!("{key}={value}")]);
    }
    let taken = failure(&taken.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(taken.0 == 1 && taken.1.contains(&node.grpc_address), "{taken:?}");
    assert_eq!(with_controller(&["lookup", "user@v1", "42"]).0, 0);

    let log = node.log.clone();
    assert_eq!(node.terminate(), 0, "{}", fs::read_to_string(&log).unwrap());
    assert_eq!(controller.terminate(), 0);
}

#[test]
fn the_samples_are_valid_once_their_required_keys_are_given() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    for role in ["controller", "node", "ranker"] {
        let sample = text(&samples.join(format!("{role}.toml")));
        let (code, checked) = json(&["config", "check", &sample]);
        assert_eq!((code, &checked["role"]), (0, &json!(role)));
    }
}

#[test]
fn a_bad_configuration_is_refused_with_all_its_problems() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("node-1.toml");
    fs::write(&file, "node = \"a/b\"\ngroup = \"\"\ngrpc_address = \"nowhere\"\n").unwrap();
    let (code, said) = failure(&["config", "check", &text(&file)]);
    assert_eq!(code, 1);
    for key in ["node", "group", "grpc_address"] {
        assert!(said.contains(key), "{said}");
    }
    fs::write(&file, "nodee = \"a\"\n").unwrap();
    assert!(failure(&["config", "check", &text(&file)]).1.contains("nodee"));
    let unnamed = dir.path().join("x.toml");
    fs::write(&unnamed, "").unwrap();
    assert!(failure(&["config", "check", &text(&unnamed)]).1.contains("--role"));
}

#[test]
fn wrong_usage_is_2_and_an_absent_controller_is_named() {
    assert_eq!(failure(&["lookup"]).0, 2);
    assert_eq!(failure(&["table", "build", "no-version", "--from", "x.csv", "--store", "s"]).0, 2);
    let (code, said) = failure(&["--controller", "127.0.0.1:1", "release", "list"]);
    assert!(code == 1 && said.contains("127.0.0.1:1") && said.contains("--controller"), "{said}");
    assert!(tidepool().arg("--version").output().unwrap().status.success());
}

#[test]
fn bad_table_files_are_refused_and_leave_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let cases = [
        ("nan.csv", "1,0.5,NaN\n", "nan.csv"),
        ("twice.csv", "1,0.5,1\n1,0.5,2\n", "1"),
        ("short.csv", "1,0.5,1\n2,0.5\n", "short.csv"),
        ("id.csv", "-1,0.5,1\n", "id.csv"),
        ("empty.csv", "", "empty.csv"),
        ("odd.csv", "1,0.5,1,2\n", "3"),
        ("cut.npy", "\u{93}NUMPY", "cut.npy"),
        ("kind.txt", "1,2\n", "kind.txt"),
    ];
    for (name, content, named) in cases {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        let (code, said) =
            failure(&["table", "build", "t@v1", "--from", &text(&file), "--store", &text(&store)]);
        assert!(code == 1 && said.contains(named), "{name}: {said}");
        assert!(!store.join("tables/t/v1").exists(), "{name} left a version");
    }
}

#[test]
fn wrong_addresses_and_wrong_usage_are_told_apart() {
    let dir = TempDir::new().unwrap();
    let controller = Role::controller(dir.path(), &dir.path().join("store"));

    let nobody = failure(&["--controller", "127.0.0.1:1", "release", "list"]);
    assert!(
        nobody.0 == 1 && nobody.1.starts_with("error: the controller at 127.0.0.1:1 cannot"),
        "{nobody:?}"
    );
    let http_port = failure(&["--controller", &controller.http_address, "release", "list"]);
    assert!(http_port.0 == 1 && http_port.1.contains("gRPC port"), "{http_port:?}");
    let request = dir.path().join("request.json");
    fs::write(&request, r#"{"model": "m", "user": {}, "candidates": {"item": [1]}}"#).unwrap();
    let no_ranker = failure(&["rank", &text(&request), "--ranker", &controller.grpc_address]);
    assert!(no_ranker.0 == 1 && no_ranker.1.contains("HTTP address"), "{no_ranker:?}");

    assert_eq!(failure(&["demo", "--users", "0"]).0, 2);
    let neither = failure(&["release", "publish", "r1"]);
    assert!(neither.0 == 2 && neither.1.contains("--model-toml"), "{neither:?}");
    assert_eq!(controller.terminate(), 0);
}

#[test]
fn a_release_is_published_promoted_and_asked() {
    let dir = TempDir::new().unwrap();
    let data = synthetic(3, SyntheticSize { users: 40, items: 60, events: 1_200 });
    let mut options = TrainOptions { resamples: 2, ..TrainOptions::default() };
    (options.pretrain.epochs, options.ranker.max_epochs) = (1, 1);
    let model = train(&data, &options, &mut |_| {}).unwrap().model;
    // Built elsewhere: the cluster's own store gets the tables, and the release from the command line.
    let name = |text: &str| Name::new(text).unwrap();
    let store = ArtifactStore::open(dir.path().join("store")).unwrap();
    let export = ExportOptions::new(name("synthetic"), name("built"), name("v1"));
    export_release(&store, &model, &export).unwrap();
    let built = store.release_dir(&name("synthetic"), &name("built"));
    let (model_toml, onnx) = (text(&built.join("model.toml")), text(&built.join("model.onnx")));
    let root = text(store.root());

    let controller = Role::controller(dir.path(), store.root());
    let _node = Role::node(dir.path(), store.root(), &controller);
    let mut of_ranker = keys(dir.path(), store.root(), "ranker");
    of_ranker.push(("controllers", format!("{:?}", [&controller.grpc_address])));
    of_ranker.push(("ranker", "r-1".into()));
    let ranker = Role::start(dir.path(), "ranker", &of_ranker);

    let of_cluster = ["--controller", controller.grpc_address.as_str()];
    let tables = ["user@v1", "item@v1", "genre@v1", "occupation@v1"].map(|t| ["--table", t]).concat();
    let files = ["--model-toml", &model_toml, "--onnx", &onnx, "--store", &root];
    let publish = |release: &'static str, tables: &[&'static str]| {
        [&of_cluster[..], &["release", "publish", release], &files, tables].concat()
    };
    let said = failure(&publish("r1", &tables[..2]));
    assert!(said.0 == 1 && said.1.contains("--table item@VERSION"), "{said:?}");
    let (code, published) = json(&publish("r1", &tables));
    assert_eq!((code, &published["release"]), (0, &json!("r1")));
    let (code, promoted) = json(&[&of_cluster[..], &["release", "promote", "synthetic", "r1"]].concat());
    assert_eq!((code, &promoted["state"]), (0, &json!("current")));
    let (_, listed) = json(&[&of_cluster[..], &["release", "list"]].concat());
    assert_eq!(listed["releases"][0]["state"], "current");

    // Whole numbers may be values: the contract knows which is which.
    let request = dir.path().join("request.json");
    let asked = r#"{"model": "synthetic", "top_k": 2,
        "user": {"user": 1, "occupation": 0, "age": 30, "gender": 1},
        "candidates": {"item": [1, 2, 99999], "genres": [[0], [1, 2], []]}}"#;
    fs::write(&request, asked).unwrap();
    let (code, ranked) = json(&[&of_cluster[..], &["rank", &text(&request)]].concat());
    assert_eq!((code, ranked["results"].as_array().map(Vec::len)), (0, Some(2)), "{ranked:#}");
    assert_eq!(ranked["release"], "r1");
    fs::write(&request, "{").unwrap();
    let cut_off = failure(&["rank", &text(&request), "--ranker", &ranker.http_address]);
    assert!(
        cut_off.0 == 1 && cut_off.1.contains("invalid_request") && cut_off.1.contains("EOF"),
        "{cut_off:?}"
    );
    fs::write(&request, asked).unwrap();
    traced(dir.path(), &controller.grpc_address, &request, ranker);
}

/// What the ranker looks up is recorded, looked at, and asked again.
fn traced(dir: &Path, controller: &str, request: &Path, ranker: Role) {
    let recording = |file: &Path| {
        let mut command = tidepool();
        command.args(["--json", "trace", "record", "--ranker", &ranker.http_address, "--seconds", "3600"]);
        let mut child = command
            .args(["--out", &text(file)])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        // Kept open, for the other lines.
        (child, line, stderr)
    };
    let ended = |child: Child| -> Value {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (child, line, _stderr) = recording(&dir.join("interrupted.trace"));
    assert!(line.contains("recording r-1"), "{line}");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(ended(child)["ended_by"], "interrupted");

    let file = dir.join("day.trace");
    let deadline = Instant::now() + Duration::from_secs(30);
    let (child, _stderr) = loop {
        let (mut child, line, stderr) = recording(&file);
        if line.contains("recording r-1") {
            break (child, stderr);
        }
        // Until the ranker has noticed that nobody reads the first one.
        assert!(line.contains("conflict") && Instant::now() < deadline, "{line}");
        child.wait().unwrap();
    };
    let mut missing = 0;
    for _ in 0..3 {
        let (code, ranked) = json(&["rank", &text(request), "--ranker", &ranker.http_address]);
        assert_eq!(code, 0);
        missing += ranked["missing_ids"].as_u64().unwrap();
    }
    assert!(!file.exists(), "it appears when it is whole");
    assert_eq!(ranker.terminate(), 0);
    let recorded = ended(child);
    assert_eq!((&recorded["requests"], &recorded["dropped"]), (&json!(3), &json!(0)), "{recorded:#}");
    assert_eq!((&recorded["lookups"], &recorded["ended_by"]), (&json!(3), &json!("ranker")));

    let file = text(&file);
    let (code, inspected) = json(&["trace", "inspect", &file]);
    assert_eq!((code, &inspected["requests"], &inspected["complete"]), (0, &json!(3), &json!(true)));
    assert_eq!(inspected["ids"], recorded["ids"]);
    assert_eq!(inspected["tables"].as_array().map(Vec::len), Some(4), "{inspected:#}");
    let replay = ["--controller", controller, "trace", "replay", &file, "--speed", "1000"];
    let (code, replayed) = json(&[&replay[..], &["--timeout-ms", "20000"]].concat());
    assert_eq!((code, &replayed["answered_requests"]), (0, &json!(3)), "{replayed:#}");
    assert_eq!((&replayed["failed_requests"], &replayed["missing_ids"]), (&json!(0), &json!(missing)));
    assert_eq!((&replayed["checked_tables"], &replayed["wrong_answers"]), (&json!([]), &json!(0)));
    assert_eq!(replayed["unchecked_tables"].as_array().map(Vec::len), Some(4));
    let page = text(&dir.join("replay.html"));
    let several = ["--speed", "500,1000", "--timeout-ms", "20000", "--html", &page];
    let (code, replayed) = json(&[&replay[..replay.len() - 2], &several].concat());
    let runs = replayed["runs"].as_array().unwrap();
    assert_eq!((code, runs.len(), &runs[1]["speed"]), (0, 2, &json!(1000.0)), "{replayed:#}");
    assert!(
        runs.iter().all(|run| run["answered_requests"] == 3 && run["offered_rate"].is_f64()),
        "{replayed:#}"
    );
    let page = fs::read_to_string(page).unwrap();
    for words in
        ["500 times the speed", "1000 times the speed", "answered requests per second", "p99.9", "r-1"]
    {
        assert!(page.contains(words), "{words}");
    }
    let (code, said) = failure(&[&replay[..], &["--as-version", "item@v9"]].concat());
    assert!(code == 1 && said.contains("item@v9 is not served"), "{said}");
    let (code, said) = failure(&["trace", "inspect", &text(request)]);
    assert!(code == 1 && said.contains("no trace"), "{said}");
}
