//! What only the simulated driver can show of the CUDA engine: what each batch asks of the device, that everything is
//! given back, and what becomes of faults. `scripts/with-sim.sh cargo test -p tidepool-dense --test gpu_sim`.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod around;
mod counts;
mod faults;
mod libraries;
#[path = "../it/models.rs"]
#[expect(dead_code, reason = "other tests use all of it")]
mod models;
#[path = "../it/onnx.rs"]
mod onnx;
#[path = "../it/oracle.rs"]
#[expect(dead_code, reason = "other tests use all of it")]
mod oracle;
mod resident;
mod sim;
mod usage;

use std::{path::PathBuf, sync::Arc};

use oracle::{Batch, Case};
use tempfile::TempDir;
use tidepool_dense::{Bucket, CudaDevice, CudaModel, CudaOptions, DenseBatch, DenseError, Precision};
use tidepool_types::ModelSpec;

fn open() -> Arc<CudaDevice> {
    CudaDevice::open(0).unwrap_or_else(|e| panic!("{e}"))
}

/// Two buckets and two streams.
fn options() -> CudaOptions {
    let bucket = |rows, requests| Bucket { rows, requests };
    CudaOptions { buckets: vec![bucket(8, 4), bucket(32, 8)], streams: 2, ..CudaOptions::default() }
}

fn load(device: &Arc<CudaDevice>, case: &Case) -> Result<CudaModel, DenseError> {
    CudaModel::load(device, &case.model, &options())
}

fn run(model: &CudaModel, batch: &Batch) -> Result<Vec<Vec<f32>>, DenseError> {
    let inputs: Vec<&[f32]> = batch.values.iter().map(Vec::as_slice).collect();
    let &Batch { rows, requests, ref request_of, .. } = batch;
    model.run(&DenseBatch { rows, requests, request_of, inputs: &inputs })
}

/// Scores must be the CPU's, as near as two runs in f32 are to each other.
fn same(case: &Case, batch: &Batch, found: &[Vec<f32>]) {
    let expected = case.run(batch);
    let inputs: Vec<&[f32]> = batch.values.iter().map(Vec::as_slice).collect();
    let &Batch { rows, requests, ref request_of, .. } = batch;
    let dense = DenseBatch { rows, requests, request_of, inputs: &inputs };
    let bounds = CudaModel::bounds(&case.model, Precision::F32, &dense).unwrap();
    let lengths = |outputs: &[Vec<f32>]| outputs.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(found), lengths(&expected));
    let expected = expected.iter().flatten().zip(bounds.iter().flatten());
    for (found, (expected, bound)) in found.iter().flatten().zip(expected) {
        let apart = (f64::from(*found) - f64::from(*expected)).abs();
        assert!(apart <= 2.0 * bound.off, "{found}, the CPU says {expected}, {bound:?}");
    }
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
