//! The CUDA engine, on a GPU or on the simulated driver: models score as on the CPU, in every bucket and at its edges.
//!
//! It needs a driver, NVRTC and cuBLASLt in the loader's path, and fails without them:
//! `scripts/with-sim.sh cargo test -p tidepool-dense --test gpu`.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod around;
mod kernels;
#[path = "../it/models.rs"]
mod models;
#[path = "../it/onnx.rs"]
mod onnx;
#[path = "../it/oracle.rs"]
#[expect(dead_code, reason = "the integration tests compare plans with tract by it")]
mod oracle;
mod random;
mod resident;
mod rows;
mod scores;
mod select;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use oracle::{Batch, Case};
use tempfile::TempDir;
use tidepool_dense::{Bucket, CudaDevice, CudaModel, CudaOptions, DenseBatch, DenseError};
use tidepool_types::ModelSpec;

/// The device of all tests: `cuda:0`.
fn device() -> Arc<CudaDevice> {
    static DEVICE: OnceLock<Arc<CudaDevice>> = OnceLock::new();
    DEVICE.get_or_init(|| CudaDevice::open(0).unwrap_or_else(|e| panic!("{e}"))).clone()
}

/// Buckets that small batches go through all of: by rows, and by requests.
fn small_buckets() -> CudaOptions {
    let bucket = |rows, requests| Bucket { rows, requests };
    CudaOptions {
        buckets: vec![bucket(4, 4), bucket(16, 2), bucket(16, 16), bucket(40, 8)],
        streams: 1,
        ..CudaOptions::default()
    }
}

fn load(case: &Case, options: &CudaOptions) -> CudaModel {
    CudaModel::load(&device(), &case.model, options).unwrap_or_else(|e| panic!("{e}"))
}

fn run(model: &CudaModel, batch: &Batch) -> Result<Vec<Vec<f32>>, DenseError> {
    let inputs: Vec<&[f32]> = batch.values.iter().map(Vec::as_slice).collect();
    let &Batch { rows, requests, ref request_of, .. } = batch;
    model.run(&DenseBatch { rows, requests, request_of, inputs: &inputs })
}

fn spec(text: &str) -> ModelSpec {
    ModelSpec::from_toml(&format!("schema_version = 1\nmodel = \"m\"\n{text}")).unwrap()
}

fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}
