//! The first step of every graph: what a batch brings is spread over the room that the plan has for its bucket.
//!
//! A batch's arrays travel without room to spare. The plan reads them at addresses that are fixed when its graph is
//! captured, and cuBLASLt computes all rows of a bucket, so rows that the batch does not have must be there: they are
//! zeros. On the device that costs the bytes of the copy once and those of the bucket's room once, at the rate of its memory:
//! a thirtieth of what the copy takes for a full bucket, more of it for one that is not.

use std::sync::Arc;

use super::{
    CudaError,
    codegen::BLOCK,
    memory::DeviceBuffer,
    module::{Arguments, Launch},
    record::Kernels,
    staging::Staging,
    step::{DeviceStep, Recording, header},
    stream::Stream,
};
use crate::plan::view::Space;

/// Words that a thread of the kernel copies.
const WORDS: u64 = 4;

/// The step for one bucket: from the staging buffer at `staged` to the arrays at `spread`, both of which their owners keep.
pub(crate) fn spread(
    stream: &Stream,
    kernels: &mut Kernels,
    staging: &Staging,
    staged: u64,
    spread: u64,
) -> Result<Recording, CudaError> {
    let mut bytes = Vec::new();
    let mut most = 0;
    for array in &staging.arrays {
        let records = staging.bucket.records(array.space);
        let count = if array.space == Space::Request { header::REQUESTS } else { header::ROWS };
        bytes.extend((spread + array.at as u64).to_le_bytes());
        bytes.extend((records * array.width as u64).to_le_bytes());
        // Widths are below 2^24, as the plan's.
        bytes.extend((array.width as u32).to_le_bytes());
        bytes.extend((count as u32).to_le_bytes());
        most = most.max(records * array.width as u64);
    }
    let arrays = Arc::new(DeviceBuffer::new(stream.device(), bytes.len(), "where arrays are")?);
    stream.upload(&bytes, &arrays, 0)?;
    let blocks = u32::try_from(most.div_ceil(WORDS * u64::from(BLOCK)).max(1)).unwrap_or(u32::MAX);
    let launch = Launch {
        name: "tp_spread of the batch".into(),
        kernel: kernels.get("tp_spread")?,
        grid: [blocks, u32::try_from(staging.arrays.len()).unwrap_or(u32::MAX), 1],
        block: [BLOCK, 1, 1],
        shared: 0,
        arguments: Arguments::default().address(staged).address(arrays.address()),
    };
    Ok(Recording { steps: vec![DeviceStep::Launch(launch)], memory: vec![arrays] })
}
