//! NVIDIA's tritonclient beside a cluster of real processes: it lists, describes and infers over gRPC and HTTP, and what
//! it is answered is what ONNX Runtime makes of the same vectors.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    command::{Role, json},
    trained::Trained,
};

/// Ids that are looked up of each table, in the data that the model was trained on; some of them have no row.
fn ids(table: &str) -> Vec<String> {
    // Ids of items are spread over all of u64 there.
    let id = |at: u64| if table == "item" { tidepool_types::mix64(at) } else { at };
    (0..80).map(|at| id(at).to_string()).collect()
}

/// What the script may compute with: the rows of a table as the cluster serves them, and its default row.
fn rows(trained: &Trained, controller: &Role, table: &str) -> Value {
    let version = format!("{table}@r1");
    let ids = ids(table);
    let mut args = vec!["--controller", &controller.grpc_address, "lookup", &version];
    args.extend(ids.iter().map(String::as_str));
    let (code, found) = json(&args);
    assert_eq!(code, 0, "{found}");
    let rows = found["rows"].as_array().unwrap().iter().filter(|row| row["found"] == true);
    let rows: serde_json::Map<_, _> =
        rows.map(|row| (row["id"].to_string(), row["values"].clone())).collect();
    assert!(!rows.is_empty(), "{found}");
    let manifest = trained.store.root().join(format!("tables/{table}/r1/manifest.json"));
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    let default = &manifest["schema"]["default_row"];
    let width = rows.values().next().unwrap().as_array().unwrap().len();
    let default = if default.as_array().is_some_and(|row| !row.is_empty()) {
        default.clone()
    } else {
        json!(vec![0.0; width])
    };
    json!({ "rows": rows, "default": default })
}

#[test]
fn triton_clients_list_describe_and_infer() {
    let trained = Trained::new();
    let controller = Role::controller(trained.path(), trained.store.root());
    let _node = trained.node(&controller, &[]);
    let ranker = trained.ranker(&controller.grpc_address);
    trained.serve(&controller, "r1");
    trained.ranked_by(&ranker, "r1");

    let tables = ["user", "item", "genre", "occupation"];
    let tables: serde_json::Map<_, _> =
        tables.iter().map(|table| ((*table).to_owned(), rows(&trained, &controller, table))).collect();
    let onnx = trained.store.root().join("releases/m/r1/model.onnx");
    let site = json!({
        "grpc": ranker.grpc_address, "http": ranker.http_address, "onnx": onnx, "tables": tables,
    });
    let file = trained.path().join("site.json");
    fs::write(&file, site.to_string()).unwrap();
    let python = std::env::var("TIDEPOOL_TRITON_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/triton/client.py");
    let output = Command::new(&python).arg(script).arg(&file).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{python}: {e}; scripts/check.sh peers installs it"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(
        found["compared"].as_u64().unwrap() > 1000 && found["largest"].as_f64().unwrap() <= 1e-5,
        "{found}"
    );
    // What it sent and was answered is what a native request is: counted, and known by its id.
    let (code, why) = json(&["why", "triton-grpc-0", "--ranker", &ranker.http_address]);
    assert_eq!(code, 0, "{why}");
    assert!(why.to_string().contains("\"release\":\"r1\""), "{why}");
}
