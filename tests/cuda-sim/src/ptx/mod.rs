//! PTX, as NVRTC makes it: read once, then run on the CPU with every access checked.
//!
//! [`Module::parse`] turns the text into instructions with resolved registers and refuses what it does
//! not know, naming line and instruction; nothing is ignored when a kernel runs. [`run`] launches a
//! kernel over device memory that its caller keeps behind [`Memory`]. A thread runs alone until it
//! meets a barrier or an operation among the lanes of its warp, so there is no reconvergence stack, and
//! results do not depend on timing: blocks run in order, and so do the threads between two barriers.
//!
//! It is a checker first. Found are accesses out of bounds, to freed, misaligned or never written
//! memory; registers that are read before they are written; races in shared memory; barriers that some
//! threads never reach; lanes that are read while they take no part; launches that never end. What it
//! does not tell: races in global memory, speed, and how precise a device's approximations are.
//!
//! **Invariant**: the result of an instruction depends on the text, the launch and memory alone.

mod block;
mod body;
mod code;
mod decode;
mod error;
mod launch;
mod module;
mod operand;
mod reach;
mod round;
mod shared;
mod text;
mod thread;
mod types;

#[cfg(test)]
mod tests;

pub use self::{
    code::Param,
    error::{Access, Fault, FaultKind, PtxError},
    launch::{Counts, DEFAULT_INSTRUCTION_LIMIT, Launch, run},
    module::{Global, Kernel, Module},
};

/// Device memory as the driver keeps it. Addresses are those that kernels see. An error becomes the
/// launch's fault. Accesses are aligned to their length when they arrive here.
pub trait Memory: Sync {
    /// Fills `into` from `address` on; every byte must have been written before.
    ///
    /// # Errors
    /// When some byte is in no live allocation, or was never written.
    fn load(&self, address: u64, into: &mut [u8]) -> Result<(), Access>;

    /// Writes `from` to `address`.
    ///
    /// # Errors
    /// When some byte is in no live allocation.
    fn store(&self, address: u64, from: &[u8]) -> Result<(), Access>;

    /// Replaces the little-endian number of 2, 4 or 8 `bytes` at `address` by `change` of it, as one
    /// step, and gives the old one.
    ///
    /// # Errors
    /// As [`Memory::load`] and [`Memory::store`].
    fn atomic(&self, address: u64, bytes: usize, change: &mut dyn FnMut(u64) -> u64) -> Result<u64, Access>;
}
