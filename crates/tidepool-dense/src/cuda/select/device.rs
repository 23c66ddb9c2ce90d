//! The launches that follow the plan, for one bucket of one stream.

use std::sync::Arc;

use tidepool_types::{Curve, ModelSpec};

use super::{layout::SelectLayout, source::source};
use crate::cuda::{
    CudaError,
    compile::Compiler,
    memory::DeviceBuffer,
    module::{Arguments, Kernel, Launch, Module},
    step::{DeviceStep, Recording},
    stream::Stream,
};

/// Threads of a block, and keys that a block sorts, as the kernels have them.
const THREADS: u32 = 128;
const CHUNK: u32 = 1024;

/// The kernels of a model's selection, and its curves: loaded once, used by each of its buckets and streams.
#[derive(Clone)]
pub(crate) struct SelectKernels {
    module: Arc<Module>,
    curves: Arc<DeviceBuffer>,
    points: Arc<DeviceBuffer>,
}

impl SelectKernels {
    /// Compiles them for a contract.
    pub(crate) fn load(stream: &Stream, compiler: &Compiler, spec: &ModelSpec) -> Result<Self, CudaError> {
        let device = stream.device();
        let module = Module::load(device, "select", &compiler.ptx("select", &source(spec))?)?;
        let (mut curves, mut points) = (Vec::new(), Vec::new());
        for calibration in &spec.calibrations {
            let none: &[(f64, f64)] = &[];
            let (kind, a, b, of) = match &calibration.curve {
                Curve::Platt { a, b } => (1u32, *a, *b, none),
                Curve::Linear { a, b } => (2, *a, *b, none),
                Curve::Isotonic { points } => (3, 0.0, 0.0, points.as_slice()),
            };
            let first = points.len() / 16;
            for word in [kind, as_u32(first), as_u32(of.len()), 0] {
                curves.extend(word.to_le_bytes());
            }
            curves.extend([a, b].iter().flat_map(|number| number.to_le_bytes()));
            points.extend(of.iter().flat_map(|(x, y)| [x.to_le_bytes(), y.to_le_bytes()].concat()));
        }
        let brought = |bytes: &[u8], what: &str| {
            let buffer = Arc::new(DeviceBuffer::new(device, bytes.len(), what)?);
            stream.upload(bytes, &buffer, 0)?;
            Ok::<_, CudaError>(buffer)
        };
        let (curves, points) = (brought(&curves, "curves")?, brought(&points, "points of curves")?);
        Ok(Self { module, curves, points })
    }

    /// What every selection reads: to be kept as long as its steps may run.
    pub(crate) fn memory(&self) -> [Arc<DeviceBuffer>; 2] {
        [self.curves.clone(), self.points.clone()]
    }
}

/// The launches, and the answer that they leave on the device.
#[derive(Debug)]
pub(crate) struct DeviceSelect {
    /// To be captured behind the plan. The staging buffer, the outputs and the kernels are their owners' to keep.
    pub(crate) recording: Recording,
    /// What is to be copied back: [`SelectLayout::answer_bytes`] of it.
    pub(crate) answer: Arc<DeviceBuffer>,
}

impl DeviceSelect {
    /// Launches for a staging buffer, whose address on the device comes first, then where in it the head is that `layout`
    /// describes. `outputs` are the addresses of the plan's, `[rows]` each, in the contract's order; `lost` that of a
    /// count of resident rows that were not found, or 0.
    pub(crate) fn new(
        stream: &Stream,
        kernels: &SelectKernels,
        layout: &SelectLayout,
        [staging, head]: [u64; 2],
        outputs: &[u64],
        lost: u64,
    ) -> Result<Self, CudaError> {
        let device = stream.device();
        let (rows, room) = (layout.room().rows, layout.room());
        let buffer = |bytes: usize, what: &str| DeviceBuffer::new(device, bytes, what).map(Arc::new);
        let scores = buffer(4 * rows as usize, "what candidates are ranked by")?;
        let keys = buffer(8 * rows as usize, "keys to sort")?;
        let merged = buffer(8 * rows as usize, "keys to sort")?;
        let answer = buffer(layout.answer_room(), "the answer")?;
        let list: Vec<u8> = outputs.iter().flat_map(|address| address.to_le_bytes()).collect();
        let list_at = buffer(list.len(), "where outputs are")?;
        stream.upload(&list, &list_at, 0)?;

        // Runs become twice as long with every merge, from one buffer to the other.
        let mut runs = Vec::new();
        let mut run = CHUNK;
        while run < rows {
            runs.push(run);
            run = run.saturating_mul(2);
        }
        let addresses = [
            staging,
            staging + head,
            list_at.address(),
            kernels.curves.address(),
            kernels.points.address(),
            scores.address(),
            keys.address(),
            merged.address(),
            answer.address(),
            lost,
        ];
        let words = [room.samples, layout.row_bits(), u32::from(!runs.len().is_multiple_of(2)), 0];
        let mut bytes: Vec<u8> = addresses.iter().flat_map(|address| address.to_le_bytes()).collect();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let select = buffer(bytes.len(), "where a selection is")?;
        stream.upload(&bytes, &select, 0)?;

        let mut recording = Recording::default();
        let mut launch = |name: &str, threads: u64, block: u32, more: [Option<u32>; 2], blocks_y: u32| {
            let arguments = Arguments::default().address(select.address());
            let arguments = more.into_iter().flatten().fold(arguments, Arguments::u32);
            let kernel: Kernel = kernels.module.kernel(name)?;
            let mut launch = Launch::flat(name, &kernel, threads, block, arguments);
            launch.grid[1] = blocks_y;
            recording.steps.push(DeviceStep::Launch(launch));
            Ok::<_, CudaError>(())
        };
        let watched = layout.selection().formula().len() + layout.chosen_room() + 1;
        let bad = u64::from(room.requests) * watched as u64;
        launch("select_begin", bad, THREADS, [None, None], 1)?;
        launch("select_score", rows.into(), THREADS, [None, None], 1)?;
        launch(
            "select_sort",
            u64::from(rows.div_ceil(CHUNK)) * u64::from(CHUNK / 2),
            CHUNK / 2,
            [None, None],
            1,
        )?;
        for (number, run) in runs.iter().enumerate() {
            launch("select_merge", rows.into(), THREADS, [Some(*run), Some(as_u32(number % 2))], 1)?;
        }
        let samples = u64::from(room.requests) * u64::from(room.samples);
        launch("select_take", bad.max(samples).max(rows.into()), THREADS, [None, None], 3)?;
        recording.memory.extend([scores, keys, merged, list_at, select, answer.clone()]);
        Ok(Self { recording, answer })
    }
}

fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
