//! A program with addresses and numbers of records: the device steps that a graph is captured from.

use std::collections::BTreeMap;

use super::{
    CudaError,
    blas::{Activation, Blas, Matmul, Precision, Shape, Sides},
    codegen,
    module::{Arguments, Kernel, Launch, Module},
    program::{Do, Known, Left, MatmulTask, Origin, Pack, Place, ProductShape, Program, SHORT_LINE, Task},
    step::DeviceStep,
};
use crate::{
    cpu::{LineOp, Small},
    plan::view::{BufferId, Space},
};
use std::sync::Arc;

/// Threads of a block of the fixed kernels.
const BLOCK: u32 = codegen::BLOCK;
/// Products of one call of cuBLASLt: as many as a grid has layers, on which some of its kernels lay them.
const MAX_PRODUCTS: u64 = 65_535;
/// Threads of a block of short lines, sixteen for each line.
const LINE_BLOCK: u32 = 128;

/// The room of a graph: what a batch of it may have at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket {
    /// Rows to score.
    pub rows: u32,
    /// Requests that they belong to.
    pub requests: u32,
}

impl Bucket {
    /// Records of a space.
    pub(crate) fn records(self, space: Space) -> u64 {
        match space {
            Space::Request => self.requests.into(),
            Space::Row => self.rows.into(),
        }
    }
}

/// Where everything is on the device.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    /// What the model fixes.
    pub(crate) fixed: u64,
    /// The arena: of requests, then of rows.
    pub(crate) arena: [u64; 2],
    /// Packed left sides.
    pub(crate) packed: u64,
    /// For each row its request, u32; as the inputs, where the first step has spread them.
    pub(crate) request_of: u64,
    /// Each input of the model, f32, records side by side.
    pub(crate) inputs: Vec<u64>,
    /// The results of each output, f32, one per row of the bucket.
    pub(crate) results: Vec<u64>,
}

/// The kernels of a module, found once each.
pub(crate) struct Kernels {
    module: Arc<Module>,
    found: BTreeMap<String, Kernel>,
}

impl Kernels {
    pub(crate) fn new(module: Arc<Module>) -> Self {
        Self { module, found: BTreeMap::new() }
    }

    /// The kernel of this name.
    pub(crate) fn get(&mut self, name: &str) -> Result<Kernel, CudaError> {
        if let Some(kernel) = self.found.get(name) {
            return Ok(kernel.clone());
        }
        let kernel = self.module.kernel(name)?;
        self.found.insert(name.to_owned(), kernel.clone());
        Ok(kernel)
    }
}

/// Makes the steps.
pub(crate) struct Recorder<'a> {
    pub(crate) program: &'a Program,
    pub(crate) kernels: &'a mut Kernels,
    pub(crate) blas: &'a Arc<Blas>,
    pub(crate) addresses: &'a Addresses,
    pub(crate) bucket: Bucket,
}

impl Recorder<'_> {
    /// The steps of the whole program.
    ///
    /// # Errors
    /// When a bucket is too large for a kernel's 32 bits, or cuBLASLt has no algorithm for a product.
    pub(crate) fn steps(mut self) -> Result<Vec<DeviceStep>, CudaError> {
        let program = self.program;
        program.tasks.iter().map(|task| self.step(task)).collect()
    }

    fn step(&mut self, task: &Task) -> Result<DeviceStep, CudaError> {
        let space = self.program.space(task);
        let records = self.bucket.records(space);
        let out = self.address(task.out);
        let out_width = self.known(task.out).width;
        match &task.work {
            Do::Map { kernel, per_record, loads, table } => {
                let mut arguments = Arguments::default().address(out);
                for &load in loads {
                    arguments = arguments.address(self.address(load));
                }
                if let Some(table) = table {
                    arguments = arguments.address(self.fixed(*table));
                }
                let arguments = arguments.address(self.addresses.request_of);
                self.flat(task, kernel, records, *per_record, arguments)
            }
            Do::Start { from } => {
                let (from, width, of) = match *from {
                    Origin::Buffer(from) => self.source(space, from),
                    Origin::Fixed(at) => (self.fixed(at), 0, 0),
                };
                let arguments = Arguments::default().address(out).address(from).u32(width).address(of);
                self.flat(task, "tp_start", records, out_width, arguments.u32(word(out_width)))
            }
            Do::Pack(pack) => self.pack(task, pack, space),
            Do::Matmul(matmul) => self.matmul(task, matmul, records),
            Do::Product { a, weights, calls, count, shape } => {
                let (from, width, of) = self.source(space, *a);
                let &ProductShape { m, m_stride, m_out, k, k_stride, columns, matrix, stride, activation } =
                    shape;
                let arguments = Arguments::default().address(out).u32(word(out_width));
                let arguments = arguments.address(from).u32(width).address(of);
                let arguments = arguments.address(self.fixed(*weights)).address(self.fixed(*calls));
                let numbers = [*count, m, m_stride, m_out, k, k_stride, columns, matrix, stride];
                let arguments = numbers.iter().fold(arguments, |list, &number| list.u32(word(number)));
                let activation = match activation {
                    Activation::None => 0,
                    Activation::Relu => 1,
                    Activation::GeluTanh => 2,
                };
                self.flat(task, "tp_product", records, count * m * columns, arguments.u32(activation))
            }
            Do::Pair { a, b, shape, in_lanes, places, count } => {
                let (a, a_width, a_of) = self.source(space, *a);
                let (b, b_width, b_of) = self.source(space, *b);
                let &Small { m, a_row, n, b_column, k, a_k, b_k, out_row } = shape;
                let arguments = Arguments::default().address(out).u32(word(out_width));
                let arguments = arguments.address(a).u32(a_width).address(a_of);
                let arguments = arguments.address(b).u32(b_width).address(b_of).address(self.fixed(*places));
                let numbers = [*count, m, a_row, n, b_column, k, a_k, b_k, out_row, usize::from(*in_lanes)];
                let arguments = numbers.iter().fold(arguments, |list, &number| list.u32(word(number)));
                self.flat(task, "tp_pair", records, count * m * n, arguments)
            }
            Do::Line { source, op, starts, lines, elements, stride, len } => {
                let (from, width, of) = self.source(space, *source);
                let made = if op.keeps_length() { *len } else { 1 };
                let (code, epsilon) = code(*op);
                let arguments = Arguments::default().address(out).address(from).u32(width).address(of);
                let arguments = arguments.address(self.fixed(*starts)).u32(word(*lines));
                let arguments = arguments.address(elements.map_or(0, |at| self.fixed(at)));
                let numbers = [*stride, *len, made];
                let arguments = numbers.iter().fold(arguments, |list, &number| list.u32(word(number)));
                let arguments = arguments.u32(code).f32(epsilon);
                if *len <= SHORT_LINE {
                    return self.launch(task, "tp_line_16", records, lines * 16, LINE_BLOCK, arguments);
                }
                self.launch(task, "tp_line_256", records, lines * BLOCK as usize, BLOCK, arguments)
            }
            Do::Pick { source, elements, count } => {
                let (from, width, of) = self.source(space, *source);
                let arguments = Arguments::default().address(out).address(from).u32(width).address(of);
                let arguments = arguments.address(self.fixed(*elements)).u32(word(*count));
                self.flat(task, "tp_pick", records, *count, arguments)
            }
        }
    }

    fn pack(&mut self, task: &Task, pack: &Pack, space: Space) -> Result<DeviceStep, CudaError> {
        let &Pack { source, offset, m, m_stride, k_stride, k, padded } = pack;
        let (from, width, of) = self.source(space, source);
        let arguments = Arguments::default().address(self.addresses.packed);
        let arguments = arguments.address(from + bytes(offset)).u32(width).address(of);
        let numbers = [m, m_stride, k_stride, k, padded];
        let arguments = numbers.iter().fold(arguments, |list, &number| list.u32(word(number)));
        let rows = self.bucket.records(space) * m as u64;
        match self.program.precision {
            Precision::F32 | Precision::Tf32 => self.flat(task, "tp_pack_f32", rows, padded, arguments),
            Precision::Bf16 => self.flat(task, "tp_pack_bf16", rows, padded / 2, arguments),
        }
    }

    fn matmul(&self, task: &Task, matmul: &MatmulTask, records: u64) -> Result<DeviceStep, CudaError> {
        if matmul.per_record.is_some() && records > MAX_PRODUCTS {
            let Bucket { rows, requests } = self.bucket;
            let node = &task.node;
            return Err(CudaError::Options(format!(
                "{rows} rows and {requests} requests are too large a bucket for the step {node:?}, which is a product of its \
                 own for each: {MAX_PRODUCTS} are covered"
            )));
        }
        let precision = self.program.precision;
        let left = match matmul.left {
            Left::Packed => self.addresses.packed,
            Left::Buffer(buffer, offset) => self.address(buffer) + bytes(offset),
        };
        let records = usize::try_from(records).unwrap_or(usize::MAX);
        let (rows, batch, left_step, out_step) = match matmul.per_record {
            None => (records * matmul.m, 1, 0, 0),
            Some((left_step, out_step)) => (matmul.m, records, left_step, out_step),
        };
        let shape = Shape {
            rows,
            columns: matmul.columns,
            k: matmul.k,
            left_stride: matmul.left_stride,
            left_turned: matmul.left_turned,
            weights_stride: matmul.weights_stride,
            out_stride: matmul.out_stride,
            batch,
            left_step,
            weights_step: 0,
            out_step,
            adds: matmul.adds,
            biased: matmul.bias.is_some(),
            activation: matmul.activation,
            precision,
        };
        let sides = Sides {
            left,
            weights: self.fixed(matmul.weights),
            out: self.address(task.out) + bytes(matmul.out_offset),
            bias: matmul.bias.map_or(0, |at| self.fixed(at)),
        };
        Ok(DeviceStep::Matmul(Arc::new(Matmul::new(self.blas, &task.node, shape, sides)?)))
    }

    /// A launch with a thread for each number of each record.
    fn flat(
        &mut self,
        task: &Task,
        kernel: &str,
        records: u64,
        per_record: usize,
        arguments: Arguments,
    ) -> Result<DeviceStep, CudaError> {
        self.launch(task, kernel, records, per_record, BLOCK, arguments)
    }

    fn launch(
        &mut self,
        task: &Task,
        kernel: &str,
        records: u64,
        threads: usize,
        block: u32,
        arguments: Arguments,
    ) -> Result<DeviceStep, CudaError> {
        let too_large = || {
            let Bucket { rows, requests } = self.bucket;
            let node = &task.node;
            CudaError::Options(format!(
                "{rows} rows and {requests} requests are too large a bucket for the step {node:?}: it would take more \
                 than 2^31 threads"
            ))
        };
        let threads = records.checked_mul(threads as u64).filter(|&threads| threads <= 1 << 31);
        let threads = threads.ok_or_else(too_large)?;
        let arguments = arguments.u32(u32::try_from(records).map_err(|_| too_large())?);
        let name = format!("{kernel} of {}", task.node);
        let kernel = self.kernels.get(kernel)?;
        Ok(DeviceStep::Launch(Launch::flat(&name, &kernel, threads, block, arguments)))
    }

    fn known(&self, buffer: BufferId) -> Known {
        self.program.buffers[buffer]
    }

    fn fixed(&self, at: usize) -> u64 {
        self.addresses.fixed + at as u64
    }

    fn address(&self, buffer: BufferId) -> u64 {
        let known = self.known(buffer);
        match known.place {
            Place::Fixed(at) => self.fixed(at),
            Place::Input(input) => self.addresses.inputs[input],
            Place::Arena(at) => {
                let region = self.addresses.arena[usize::from(known.space == Space::Row)];
                region + bytes(at) * self.bucket.records(known.space)
            }
            Place::Result(output) => self.addresses.results[output],
        }
    }

    /// How the fixed kernels find a buffer's records: address, width, and the requests of rows or nothing.
    fn source(&self, space: Space, buffer: BufferId) -> (u64, u32, u64) {
        let known = self.known(buffer);
        let by_request = known.width > 0 && known.space < space;
        let of = if by_request { self.addresses.request_of } else { 0 };
        (self.address(buffer), word(known.width), of)
    }
}

/// Bytes of so many f32.
fn bytes(elements: usize) -> u64 {
    (elements * size_of::<f32>()) as u64
}

/// A number of a plan, whose records have 2^24 elements at most.
fn word(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// An operation as `kernels/plan.cu` counts them.
fn code(op: LineOp) -> (u32, f32) {
    match op {
        LineOp::LogSoftmax => (0, 0.0),
        LineOp::Max => (1, 0.0),
        LineOp::MeanOfSquares => (2, 0.0),
        LineOp::Min => (3, 0.0),
        LineOp::Prod => (4, 0.0),
        LineOp::RmsNorm(epsilon) => (5, epsilon),
        LineOp::Softmax => (6, 0.0),
        LineOp::Sum => (7, 0.0),
    }
}
