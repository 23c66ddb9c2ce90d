//! Row codecs and gather-and-pool: how a vector becomes the bytes of a stored row, and how stored rows
//! become one sum. A scalar reference and one SIMD path per instruction set give the same bits.
//!
//! **Invariant:** nothing here allocates while pooling, does I/O, or knows what a table, a bag's id or a
//! missing row is: a kernel sees slices of bytes and adds them up. `unsafe` stands in the files
//! that are named after an instruction set and in `prefetch.rs`, nowhere else.
//!
//! Read first: [`RowKernel`], [`Isa`], [`QuantizeError`].
//!
//! **Numerics, the same on every [`Isa`].** A coded value is `fma(code, scale, bias)` in f32; an unweighted
//! sum is `acc + value`, a weighted one `fma(weight, value, acc)`. Each column adds its rows in the order
//! given, so the result does not depend on how many columns are worked on at once. Where a result is NaN
//! (only rows that [`RowKernel::quantize`] did not write can cause it) its payload bits are unspecified.

mod error;
mod isa;
mod kernel;
mod pool;
mod prefetch;
mod quantize;

pub use error::QuantizeError;
pub use isa::Isa;
pub use kernel::RowKernel;
pub use prefetch::prefetch_read;
pub use quantize::Quantizer;
#[cfg(test)]
mod testing;
