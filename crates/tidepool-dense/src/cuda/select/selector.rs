//! A selection on the device, and nothing else: for tests that hold the kernels against the twin, and for benches.
#![expect(unsafe_code, reason = "launches are asked for that were recorded over buffers of this file")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    DeviceSelect, SelectError, SelectKernels, SelectLayout, SelectRequest, Selected, layout::Wanted,
};
use crate::cuda::{
    CudaDevice, CudaError,
    compile::Compiler,
    memory::{DeviceBuffer, Pinned},
    stream::Stream,
};

/// How long the device may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Selects by one layout, from outputs that are given.
pub struct Selector {
    stream: Stream,
    layout: SelectLayout,
    staging: Pinned,
    staged: DeviceBuffer,
    outputs: Vec<DeviceBuffer>,
    select: DeviceSelect,
    /// Its curves lie there.
    _kernels: SelectKernels,
    answer: Pinned,
}

impl std::fmt::Debug for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Selector").field("room", &self.layout.room()).finish_non_exhaustive()
    }
}

impl Selector {
    /// Allocates what the layout has room for. `cache` is the folder of compiled kernels.
    ///
    /// # Errors
    /// When the device has no room, or the kernels do not compile.
    pub fn new(
        device: &Arc<CudaDevice>,
        layout: SelectLayout,
        cache: Option<&Path>,
    ) -> Result<Self, CudaError> {
        let stream = Stream::new(device)?;
        let compiler = Compiler::new(device.capability(), cache)?;
        let spec = layout.selection().spec();
        let kernels = SelectKernels::load(&stream, &compiler, spec)?;
        let staging = Pinned::new(device, layout.bytes(), "a selection")?;
        let staged = DeviceBuffer::new(device, layout.bytes(), "a selection")?;
        let rows = layout.room().rows as usize;
        let outputs = spec.outputs.iter().map(|_| DeviceBuffer::new(device, 4 * rows, "an output"));
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<u64> = outputs.iter().map(DeviceBuffer::address).collect();
        let select = DeviceSelect::new(&stream, &kernels, &layout, [staged.address(), 0], &addresses, 0)?;
        let answer = Pinned::new(device, layout.answer_room(), "the answer")?;
        Ok(Self { stream, layout, staging, staged, outputs, select, _kernels: kernels, answer })
    }

    /// Selects of `outputs`, which have the rows of all requests, one request behind the other.
    ///
    /// # Errors
    /// What does not fit, or what the device failed over.
    pub fn run(
        &mut self,
        requests: &[SelectRequest<'_>],
        outputs: &[Vec<f32>],
    ) -> Result<Vec<Selected>, SelectError> {
        let wanted = self.stage(requests, outputs)?;
        let bytes = self.layout.answer_bytes(&wanted);
        // SAFETY: the launches were recorded over buffers that `self` keeps, and the fence below is waited for.
        unsafe { self.select.recording.ask(&self.stream) }?;
        self.stream.copy_out(&self.select.answer, 0, &mut self.answer, bytes)?;
        self.stream.fence(&mut [&mut self.answer])?.wait(DEADLINE)?;
        Ok(self.layout.read(&wanted, &self.answer.bytes_mut()?[..bytes]).1)
    }

    /// How long the launches take, done so many times: for benches.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn timed(
        &mut self,
        requests: &[SelectRequest<'_>],
        outputs: &[Vec<f32>],
        times: u32,
    ) -> Result<Duration, SelectError> {
        self.stage(requests, outputs)?;
        let begun = Instant::now();
        for _ in 0..times {
            // SAFETY: as in `run`.
            unsafe { self.select.recording.ask(&self.stream) }?;
        }
        self.stream.fence(&mut [])?.wait(DEADLINE)?;
        Ok(begun.elapsed())
    }

    fn stage(&mut self, requests: &[SelectRequest<'_>], outputs: &[Vec<f32>]) -> Result<Wanted, SelectError> {
        let places = [0, self.layout.head()];
        let (wanted, bytes) = self.layout.write(self.staging.bytes_mut()?, places, requests)?;
        let rows: usize = wanted.rows.iter().map(|rows| *rows as usize).sum();
        let fits = outputs.len() == self.outputs.len() && outputs.iter().all(|values| values.len() == rows);
        if !fits {
            let problem = format!("{} outputs of {rows} rows each are wanted", self.outputs.len());
            return Err(SelectError::Wanted(problem));
        }
        for (values, buffer) in outputs.iter().zip(&self.outputs) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.stream.upload(&bytes, buffer, 0)?;
        }
        self.stream.copy_in(&mut self.staging, &self.staged, bytes)?;
        self.stream.fence(&mut [&mut self.staging])?.wait(DEADLINE)?;
        Ok(wanted)
    }
}
