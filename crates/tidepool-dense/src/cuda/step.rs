//! What a graph consists of: launches and products over fixed addresses, in order.
//!
//! A *device step* is complete when a model is loaded. Whatever differs from batch to batch is read by kernels from the
//! header of the staging buffer ([`header`]); grids are sized for the bucket, and threads that have nothing to do leave.
#![expect(unsafe_code, reason = "kernels are launched with the addresses that lowering gave them")]

use std::sync::Arc;

use super::{CudaError, blas::Matmul, memory::DeviceBuffer, module::Launch, stream::Stream};

/// The beginning of every staging buffer: numbers of type `unsigned int` at these places.
pub(crate) mod header {
    /// Rows of the batch; a bucket may have room for more.
    pub(crate) const ROWS: usize = 0;
    /// Requests of the batch.
    pub(crate) const REQUESTS: usize = 1;
    /// Where the places of the plan's arrays begin; the heads of the steps around the plan follow them.
    pub(crate) const PLACES: usize = 2;
}

/// One step of a graph.
#[derive(Clone, Debug)]
pub(crate) enum DeviceStep {
    /// A kernel.
    Launch(Launch),
    /// A product of matrices by cuBLASLt.
    Matmul(Arc<Matmul>),
}

/// Steps, and the memory that they work in.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) steps: Vec<DeviceStep>,
    /// Kept as long as the steps may run.
    pub(crate) memory: Vec<Arc<DeviceBuffer>>,
}

impl Recording {
    /// Asks a stream for the steps, in order: under capture once, or one by one.
    ///
    /// # Safety
    /// Every address in the steps belongs to memory that has room for what the step reads and writes there, and that
    /// outlives the work: `self.memory`, or what the caller keeps beside it.
    pub(crate) unsafe fn ask(&self, stream: &Stream) -> Result<(), CudaError> {
        for step in &self.steps {
            match step {
                // SAFETY: the caller's promise.
                DeviceStep::Launch(launch) => unsafe { launch.ask(stream) }?,
                // SAFETY: the caller's promise.
                DeviceStep::Matmul(matmul) => unsafe { matmul.ask(stream) }?,
            }
        }
        Ok(())
    }
}
