//! What candidates are ranked by, and the best of them, on the device: so only the winners are copied back.
//!
//! From the plan's outputs, [`tidepool_types::ModelSpec`]'s calibrations and formula make what each candidate is ranked
//! by; the formula becomes CUDA C when the model is loaded. All rows of the batch are sorted at once by (request, value,
//! row), so that the best of each request stand where its rows begin, equal ones in the order of the request. What comes
//! back of a request is what the ranker makes of outputs on the CPU: its best candidates with the outputs that it asked
//! for, the first value that is no finite number, and some of all values for the release's guards.
//!
//! Sums, products and curves that are straight give the bits of the CPU. `log`, `exp`, `pow` and `sigmoid` are the
//! kernel's own, in f64 (`math.rs` says how near they are): after the rounding to f32, results are those of the CPU but
//! for one in some hundred million, which is off by its last bit.

mod answer;
mod device;
mod layout;
#[cfg(test)]
mod math;
mod selector;
mod source;
#[cfg(test)]
mod tests;
mod twin;

use thiserror::Error;

pub use answer::{NotFinite, Selected};
pub(crate) use device::{DeviceSelect, SelectKernels};
pub use layout::{SelectLayout, SelectRequest, SelectRoom, Selection, Wanted};
pub use selector::Selector;
pub use twin::select;

use super::CudaError;

/// Why a selection was not made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectError {
    /// More than the bucket has room for. Nothing has been copied.
    #[error("there is room for {room} {of}, the batch has {found}")]
    TooMany {
        /// Of what.
        of: &'static str,
        /// How many the batch has.
        found: usize,
        /// How many there may be.
        room: usize,
    },
    /// What is wanted does not fit the contract, or the bucket cannot be.
    #[error("the selection cannot be made: {0}")]
    Wanted(String),
    /// The device failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}
