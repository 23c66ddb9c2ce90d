//! The launches that make inputs of the plan from the staged rows, for one bucket of one stream.

use std::sync::Arc;

use tidepool_types::Combine;

use super::{
    RowsLayout,
    layout::Pool,
    source::{Kinds, THREADS, kernel, source},
};
use crate::cuda::{
    CudaError,
    compile::Compiler,
    memory::{DeviceBuffer, Layout},
    module::{Arguments, Kernel, Launch, Module},
    resident,
    step::{DeviceStep, Recording},
    stream::Stream,
};

/// Bytes of what a kernel knows of one input.
const INPUT_BYTES: usize = 96;

/// Where an input of the plan is, on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// `[vectors, width]`, of the bucket.
    pub(crate) out: u64,
    /// `[vectors]`: the mask of a sequence, if it has one.
    pub(crate) mask: Option<u64>,
}

/// The kernels of a model's rows: loaded once, used by each of its buckets and streams.
#[derive(Clone)]
pub(crate) struct RowKernels {
    find: Kernel,
    pools: Vec<Kernel>,
}

impl RowKernels {
    /// Compiles them for the kinds of rows of a layout; those of the model's other buckets are the same.
    pub(crate) fn load(stream: &Stream, compiler: &Compiler, layout: &RowsLayout) -> Result<Self, CudaError> {
        let device = stream.device();
        let kinds = Kinds::of(layout);
        let pools = Module::load(device, "rows", &compiler.ptx("rows", &source(&kinds))?)?;
        let find = Module::load(device, "resident", &compiler.ptx("resident", resident::source())?)?;
        let pools =
            (0..kinds.kinds.len()).map(|kind| pools.kernel(&kernel(kind))).collect::<Result<_, _>>()?;
        Ok(Self { find: find.kernel("resident_find_staged")?, pools })
    }
}

/// The launches, and what they leave on the device beside the inputs.
#[derive(Debug)]
pub(crate) struct DeviceRows {
    /// To be captured before the plan. The staging buffer and the targets are their owners' to keep.
    pub(crate) recording: Recording,
    /// Of each input `[vectors]` numbers: see [`Expanded::state`](super::Expanded::state).
    pub(crate) states: Vec<Arc<DeviceBuffer>>,
    /// One number: the resident rows that were promised and not found, since this was made. It never falls.
    pub(crate) lost: Arc<DeviceBuffer>,
}

impl DeviceRows {
    /// Launches for a staging buffer, whose address on the device comes first, then where in it the head is that `layout`
    /// describes; one target for each of its inputs.
    pub(crate) fn new(
        stream: &Stream,
        kernels: &RowKernels,
        layout: &RowsLayout,
        [staging, head]: [u64; 2],
        targets: &[Target],
    ) -> Result<Self, CudaError> {
        let device = stream.device();
        let at = |offset: usize| staging + head + offset as u64;
        let found =
            Arc::new(DeviceBuffer::new(device, 4 * layout.keys() as usize, "the rows of resident keys")?);
        let lost = Arc::new(DeviceBuffer::new(device, 4, "a count of lost rows")?);
        stream.zero(&lost)?;
        let defaults = defaults(stream, layout)?;
        let mut states = Vec::new();
        let mut bytes = Vec::with_capacity(layout.inputs().len() * INPUT_BYTES);
        for (number, (input, target)) in layout.inputs().iter().zip(targets).enumerate() {
            let state = Arc::new(DeviceBuffer::new(device, 4 * layout.vectors(number), "what was found")?);
            let addresses = [
                staging,
                at(0),
                at(RowsLayout::input_head(number)),
                defaults.address() + default_at(layout, number) as u64,
                found.address(),
                target.out,
                target.mask.unwrap_or(0),
                state.address(),
                lost.address(),
            ];
            bytes.extend(addresses.iter().flat_map(|address| address.to_le_bytes()));
            let max_len = match input.pool {
                Pool::Sequence { max_len, .. } => max_len,
                Pool::Sum | Pool::Mean => 0,
            };
            #[expect(clippy::cast_possible_truncation, reason = "a row has some thousand bytes")]
            let stride = layout.tables()[input.table].stride() as u32;
            let concat = u32::from(input.combine == Combine::Concat);
            let mean = u32::from(input.pool == Pool::Mean);
            for word in [input.hashes, concat, mean, max_len, stride, 0] {
                bytes.extend(word.to_le_bytes());
            }
            states.push(state);
        }
        let inputs = Arc::new(DeviceBuffer::new(device, bytes.len(), "where rows and inputs are")?);
        stream.upload(&bytes, &inputs, 0)?;

        let mut recording = Recording::default();
        recording.memory.extend([found.clone(), lost.clone(), defaults, inputs.clone()]);
        recording.memory.extend(states.iter().cloned());
        if layout.keys() > 0 {
            let arguments = Arguments::default().address(staging).address(at(0)).address(found.address());
            let find =
                Launch::flat("find resident keys", &kernels.find, layout.keys().into(), THREADS, arguments);
            recording.steps.push(DeviceStep::Launch(find));
        }
        let kinds = Kinds::of(layout);
        for (number, kind) in kinds.kinds.iter().enumerate() {
            let members: Vec<usize> =
                (0..kinds.of_input.len()).filter(|input| kinds.of_input[*input] == number).collect();
            let bytes: Vec<u8> = members.iter().flat_map(|input| as_u32(*input).to_le_bytes()).collect();
            let list = Arc::new(DeviceBuffer::new(device, bytes.len(), "the inputs of a kind of rows")?);
            stream.upload(&bytes, &list, 0)?;
            let vectors = members.iter().map(|input| as_u32(layout.vectors(*input))).max().unwrap_or(0);
            let blocks = vectors.div_ceil(kind.vectors_per_block()).max(1);
            recording.steps.push(DeviceStep::Launch(Launch {
                name: format!("rows of {} x {}", kind.dim, kind.format),
                kernel: kernels.pools[number].clone(),
                grid: [blocks, as_u32(members.len()), 1],
                block: [THREADS, 1, 1],
                shared: 0,
                arguments: Arguments::default().address(inputs.address()).address(list.address()),
            }));
            recording.memory.push(list);
        }
        Ok(Self { recording, states, lost })
    }
}

/// Where the default row of an input is among those of all.
fn default_at(layout: &RowsLayout, input: usize) -> usize {
    let mut places = Layout::default();
    (0..=input).map(|before| places.push(4 * layout.width(before))).last().unwrap_or(0)
}

/// The default rows of all inputs.
fn defaults(stream: &Stream, layout: &RowsLayout) -> Result<Arc<DeviceBuffer>, CudaError> {
    let inputs = layout.inputs().len();
    let bytes = if inputs == 0 { 0 } else { default_at(layout, inputs - 1) + 4 * layout.width(inputs - 1) };
    let mut all = vec![0; bytes];
    for (number, input) in layout.inputs().iter().enumerate() {
        let into = all[default_at(layout, number)..].chunks_exact_mut(4);
        into.zip(&input.default_row).for_each(|(into, value)| into.copy_from_slice(&value.to_le_bytes()));
    }
    let buffer = Arc::new(DeviceBuffer::new(stream.device(), bytes, "default rows")?);
    stream.upload(&all, &buffer, 0)?;
    Ok(buffer)
}

fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
