//! A CUDA driver that runs on the CPU and checks what it is asked for, for tests of the `cuda` engine.
//!
//! It is built as one shared library that stands in for `libcuda` and `libcublasLt`; the engine loads it without
//! knowing. Kernels are the PTX that NVRTC makes, run by an interpreter. `docs/gpu-simulation.md` says what it finds
//! and what it cannot tell. Read first: [`driver::Driver`], the calls without pointers; `streams`, where work waits
//! until something needs it; [`memory::Wrong`], what can be wrong with an access.
//!
//! **Invariant.** It knows nothing of Tidepool: the engine is tried as it is, through the ABI of the real libraries.

pub mod blas;
pub mod capture;
mod counters;
pub mod driver;
mod error;
mod exec;
mod ffi;
mod graph;
pub mod host;
pub mod memory;
mod module;
mod orders;
pub mod ptx;
mod races;
mod settings;
mod state;
mod streams;
mod work;

pub use counters::Counters;
pub use driver::Driver;
pub use error::Code;
pub use settings::{Schedule, Settings};
pub use state::Answer;
