//! Rows to vectors on the device, and nothing else: for tests that hold the kernels against the twin, and for benches.
#![expect(unsafe_code, reason = "launches are asked for that were recorded over buffers of this file")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    DeviceRows, Expanded, RowCounts, RowsError, RowsLayout, RowsWriter, Tally, Target, device::RowKernels,
    layout::Pool,
};
use crate::cuda::{
    CudaDevice, CudaError,
    compile::Compiler,
    memory::{DeviceBuffer, Pinned},
    resident::ResidentSet,
    stream::Stream,
};

/// How long the device may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why rows were not expanded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExpandError {
    /// They do not fit together, or into the layout.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// The device failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Expands the rows of one layout.
pub struct RowExpander {
    stream: Stream,
    layout: RowsLayout,
    tally: Tally,
    staging: Pinned,
    staged: DeviceBuffer,
    rows: DeviceRows,
    targets: Vec<(Arc<DeviceBuffer>, Option<Arc<DeviceBuffer>>)>,
    lost: u32,
    /// The resident set of the last batch, which a launch that was not waited for may still read.
    set: Option<Arc<ResidentSet>>,
}

impl std::fmt::Debug for RowExpander {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowExpander").field("bytes", &self.layout.bytes()).finish_non_exhaustive()
    }
}

impl RowExpander {
    /// Allocates what the layout has room for. `cache` is the folder of compiled kernels.
    ///
    /// # Errors
    /// When the device has no room, or the kernels do not compile.
    pub fn new(
        device: &Arc<CudaDevice>,
        layout: RowsLayout,
        cache: Option<&Path>,
    ) -> Result<Self, CudaError> {
        let stream = Stream::new(device)?;
        let compiler = Compiler::new(device.capability(), cache)?;
        let kernels = RowKernels::load(&stream, &compiler, &layout)?;
        let staging = Pinned::new(device, layout.bytes(), "rows")?;
        let staged = DeviceBuffer::new(device, layout.bytes(), "rows")?;
        let mut targets = Vec::new();
        for (number, input) in layout.inputs().iter().enumerate() {
            let out = Arc::new(DeviceBuffer::new(device, 4 * layout.numbers(number), "an input")?);
            let mask = match input.pool {
                Pool::Sequence { mask: true, .. } => {
                    Some(Arc::new(DeviceBuffer::new(device, 4 * layout.vectors(number), "a mask")?))
                }
                _ => None,
            };
            targets.push((out, mask));
        }
        let addresses: Vec<Target> = targets
            .iter()
            .map(|(out, mask)| Target { out: out.address(), mask: mask.as_ref().map(|mask| mask.address()) })
            .collect();
        let rows = DeviceRows::new(&stream, &kernels, &layout, [staged.address(), 0], &addresses)?;
        let tally = Tally::default();
        Ok(Self { stream, layout, tally, staging, staged, rows, targets, lost: 0, set: None })
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &RowsLayout {
        &self.layout
    }

    /// Expands what `write` stages: so much at most, and `bags` of each input.
    ///
    /// # Errors
    /// What `write` says, what is missing of the bags, or what the device failed over.
    pub fn run(
        &mut self,
        counts: &RowCounts,
        bags: &[u32],
        write: impl FnOnce(&mut RowsWriter<'_>) -> Result<(), RowsError>,
    ) -> Result<Vec<Expanded>, ExpandError> {
        self.stage(counts, bags, write)?;
        // SAFETY: the launches were recorded over buffers that `self` keeps, and the downloads below wait for them.
        unsafe { self.rows.recording.ask(&self.stream) }?;
        let mut made = Vec::with_capacity(bags.len());
        for (number, (out, mask)) in self.targets.iter().enumerate() {
            let bags = bags[number] as usize;
            let vectors = match self.layout.inputs()[number].pool {
                Pool::Sequence { max_len, .. } => bags * max_len as usize,
                Pool::Sum | Pool::Mean => bags,
            };
            let words = |buffer: &DeviceBuffer, count: usize| -> Result<Vec<u32>, CudaError> {
                let bytes = self.stream.download(buffer, 0, 4 * count)?;
                Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            };
            let floats = |words: Vec<u32>| words.into_iter().map(f32::from_bits).collect::<Vec<_>>();
            made.push(Expanded {
                values: floats(words(out, vectors * self.layout.width(number))?),
                mask: mask
                    .as_ref()
                    .map(|mask| words(mask, vectors))
                    .transpose()?
                    .map(floats)
                    .unwrap_or_default(),
                state: words(&self.rows.states[number], vectors)?,
                lost: 0,
            });
        }
        let bytes = self.stream.download(&self.rows.lost, 0, 4)?;
        let lost = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        // It is counted over all inputs, and over all batches.
        if let Some(first) = made.first_mut() {
            first.lost = lost.wrapping_sub(self.lost);
        }
        self.lost = lost;
        Ok(made)
    }

    /// What was staged last, for the twin.
    ///
    /// # Errors
    /// When the device failed before the copy of it had ended.
    pub fn staging(&mut self) -> Result<Vec<u8>, CudaError> {
        let bytes = self.layout.bytes();
        Ok(self.staging.bytes_mut()?[..bytes].to_vec())
    }

    /// How long the launches take, done so many times with what `write` stages: for benches.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn timed(
        &mut self,
        counts: &RowCounts,
        bags: &[u32],
        write: impl FnOnce(&mut RowsWriter<'_>) -> Result<(), RowsError>,
        times: u32,
    ) -> Result<Duration, ExpandError> {
        self.stage(counts, bags, write)?;
        let begun = Instant::now();
        for _ in 0..times {
            // SAFETY: as in `run`; the fence below is waited for.
            unsafe { self.rows.recording.ask(&self.stream) }?;
        }
        self.stream.fence(&mut [])?.wait(DEADLINE)?;
        Ok(begun.elapsed())
    }

    /// Writes the batch and brings it to the device.
    fn stage(
        &mut self,
        counts: &RowCounts,
        bags: &[u32],
        write: impl FnOnce(&mut RowsWriter<'_>) -> Result<(), RowsError>,
    ) -> Result<(), ExpandError> {
        let (staging, places) = (self.staging.bytes_mut()?, [0, self.layout.head()]);
        let mut writer = RowsWriter::begin(&self.layout, staging, places, counts, bags, &mut self.tally)?;
        write(&mut writer)?;
        let staged = writer.finish()?;
        staged.check_device(self.stream.device().ordinal())?;
        self.stream.copy_in(&mut self.staging, &self.staged, staged.end)?;
        self.stream.fence(&mut [&mut self.staging])?.wait(DEADLINE)?;
        // The one before goes now: whatever read it is done, for it was asked for before the copy.
        self.set = staged.set;
        Ok(())
    }
}
