//! The plan on a GPU: the same steps as on the CPU, as kernels and matrix products that are captured once, when a model
//! is loaded, and replayed for every batch.
//!
//! NVIDIA's libraries are found at run time ([`library`]): this is in every build, and starts on machines without them.
//! cudarc is used as the bindings that it is (`result` and `sys`); what its own layer would do beside that, and gets in
//! the way of captures, exact products or bounded waits, is in the files below, each trap in one place:
//!
//! | trap | handled in |
//! |---|---|
//! | a missing library or symbol panics | `library.rs` |
//! | a driver that is too old fails anywhere | `library.rs` |
//! | f32 products in TF32 | `blas.rs` |
//! | pinned memory that the CPU reads slowly; copies in flight that nobody waits for | `memory.rs` |
//! | events that break captures; graphs launched from two threads | `stream.rs` |
//! | errors in `drop`; a device that is lost | `device.rs` |
//! | threads that inherit an idle priority | `threads.rs` |
//!
//! Read first: [`CudaDevice`], `step.rs` (what a graph consists of), `docs/gpu.md`.

mod answer;
mod around;
mod blas;
mod bound;
mod codegen;
mod compile;
mod cost;
mod device;
mod error;
mod kept;
mod library;
mod memory;
mod model;
mod module;
mod options;
mod packing;
mod pieces;
mod place;
mod product;
mod program;
mod record;
pub mod resident;
pub mod rows;
pub mod select;
mod spread;
mod staging;
mod step;
mod stream;
mod threads;
mod usage;
mod worker;

pub use answer::Answered;
pub use around::{Around, RowFeed};
pub use blas::Precision;
pub use bound::Bound;
pub use cost::{Cost, Rates};
pub use device::{CudaDevice, Device};
pub use error::CudaError;
pub use model::CudaModel;
pub use options::CudaOptions;
pub use record::Bucket;
pub use usage::Usage;
pub use worker::MemoryUse;
