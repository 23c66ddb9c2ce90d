//! The dense engine: an ONNX model, checked against its contract and run on the CPU or on a GPU.
//!
//! **Invariant:** it must not know tokio, tonic, the network, or where the inputs came from: rows of `f32`
//! go in, one `f32` per row and output comes out. Types of the library that runs the graph do not leave
//! this crate, and a defect of that library, or a hostile file, is an error here and never a panic.
//!
//! Read first: [`DenseModel`], [`DenseBatch`], [`DenseError`], and `ModelSpec` of tidepool-types, the contract.

mod contract;
mod cpu;
mod cuda;
mod error;
mod file;
mod guard;
mod model;
mod plan;
mod write;

pub use cuda::{Answered, Around, RowFeed, resident, rows, select};
pub use cuda::{
    Bound, Bucket, Cost, CudaDevice, CudaError, CudaModel, CudaOptions, Device, MemoryUse, Precision, Rates,
    Usage,
};
pub use error::DenseError;
pub use model::{DenseBatch, DenseModel};
pub use write::GraphWriter;
