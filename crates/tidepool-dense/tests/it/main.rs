//! Small graphs against hand-computed values, and files that no release should have.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod contract;
mod device;
mod hostile;
mod models;
mod onnx;
mod oracle;
mod plan;
mod random;
mod run;

use std::path::PathBuf;

use onnx::{Graph, fixed, int, open};
use tempfile::TempDir;
use tidepool_dense::{DenseBatch, DenseError, DenseModel};
use tidepool_types::{ModelSpec, Name};

/// `probability = sigmoid([user, age] . W + b)`, `margin` = what the sigmoid is taken of.
fn logistic() -> Graph {
    let batch = || open("batch");
    Graph::new()
        .input("age", &[batch(), fixed(1)])
        .input("user", &[batch(), fixed(2)])
        .weights("w", &[3, 1], &WEIGHTS)
        .weights("b", &[1], &[BIAS])
        .node("Concat", &["user", "age"], "x", &[int("axis", 1)])
        .node("Gemm", &["x", "w", "b"], "margin", &[])
        .node("Sigmoid", &["margin"], "probability", &[])
        .output("probability", &[batch(), fixed(1)])
        .output("margin", &[batch(), fixed(1)])
}

const WEIGHTS: [f32; 3] = [0.5, -1.25, 2.0];
const BIAS: f32 = 0.125;

/// The contract of [`logistic`]: inputs and outputs in another order than the graph has them.
fn logistic_spec() -> ModelSpec {
    spec(
        r#"
        inputs = [
            { name = "user", side = "user", table = "user" },
            { name = "age", side = "candidate", width = 1 },
        ]
        outputs = [ { name = "margin" }, { name = "probability" } ]
        score = "probability"
        "#,
    )
}

fn spec(text: &str) -> ModelSpec {
    ModelSpec::from_toml(&format!("schema_version = 1\nmodel = \"m\"\n{text}")).unwrap()
}

/// The only table is `user`, of dimension 2.
fn dims(table: &Name) -> Option<u32> {
    (table.as_str() == "user").then_some(2)
}

/// Writes the bytes to a file of a directory of their own and loads them.
fn load(bytes: &[u8], spec: &ModelSpec) -> Result<DenseModel, DenseError> {
    let (_dir, path) = file(bytes);
    DenseModel::load(&path, spec, &dims)
}

/// Runs rows each of which is a request of its own.
fn run(model: &DenseModel, rows: usize, inputs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, DenseError> {
    let request_of: Vec<u32> = (0..rows as u32).collect();
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    model.run(&DenseBatch { rows, requests: rows, request_of: &request_of, inputs: &inputs })
}

fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}
