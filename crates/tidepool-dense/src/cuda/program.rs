//! The plan as tasks of a device: which kernel or product, over which buffers. It is the same for every bucket and every
//! stream; `record.rs` gives it addresses and numbers of records. No library is needed to make one, so its tests run
//! everywhere.

use super::{
    blas::{Activation, Precision},
    codegen::{self, Part, Records},
    packing::UNIT,
    place::{self, Extent, Life},
    product,
    step::header,
};
use crate::{
    cpu::{Binary, Instruction, LANES, LineOp, Small, Unary},
    plan::{
        Plan,
        step::{Elements, Step, Work},
        view::{Buffer, BufferId, Home, Space, View},
    },
};

/// The kernels that are not generated.
const FIXED: &str = concat!(include_str!("kernels/math.cu"), include_str!("kernels/plan.cu"));
/// The most operands of a kernel of several chains: arguments have 4 KiB.
const MAX_LOADS: usize = 64;
/// The longest line that sixteen threads take.
pub(crate) const SHORT_LINE: usize = 2048;

/// Where a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In what the model fixes, from this byte on; one record for all.
    Fixed(usize),
    /// The input of this number.
    Input(usize),
    /// In the arena's region of the buffer's space: a multiple of the bucket's records.
    Arena(usize),
    /// The results of the output of this number.
    Result(usize),
}

/// A buffer of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) space: Space,
    /// Elements from record to record; 0 where there is one record.
    pub(crate) width: usize,
    pub(crate) place: Place,
}

/// One thing that the device does, for all records of a space.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Task {
    /// The node of the graph that asked for it.
    pub(crate) node: String,
    pub(crate) out: BufferId,
    pub(crate) work: Do,
}

/// What it does. Positions of numbers that the model fixes are bytes in [`Program::fixed`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Do {
    /// A generated kernel.
    Map {
        kernel: String,
        per_record: usize,
        loads: Vec<BufferId>,
        table: Option<usize>,
    },
    /// The record that sums start from: of a buffer, or fixed.
    Start {
        from: Origin,
    },
    /// The left side of products, packed into the scratch.
    Pack(Pack),
    /// A product of cuBLASLt.
    Matmul(MatmulTask),
    /// Products in other forms.
    Product {
        a: BufferId,
        weights: usize,
        calls: usize,
        count: usize,
        shape: ProductShape,
    },
    Pair {
        a: BufferId,
        b: BufferId,
        shape: Small,
        in_lanes: bool,
        places: usize,
        count: usize,
    },
    Line {
        source: BufferId,
        op: LineOp,
        starts: usize,
        lines: usize,
        elements: Option<usize>,
        stride: usize,
        len: usize,
    },
    Pick {
        source: BufferId,
        elements: usize,
        count: usize,
    },
}

/// What a record is copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Buffer(BufferId),
    Fixed(usize),
}

/// Rows of `k` elements side by side, `padded` apart: `m` per record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pack {
    pub(crate) source: BufferId,
    pub(crate) offset: usize,
    pub(crate) m: usize,
    pub(crate) m_stride: usize,
    pub(crate) k_stride: usize,
    pub(crate) k: usize,
    pub(crate) padded: usize,
}

/// The left side of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// What the last [`Do::Pack`] made.
    Packed,
    /// A buffer's records, from this element on.
    Buffer(BufferId, usize),
}

/// A product whose rows follow each other evenly, or one product per record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MatmulTask {
    pub(crate) left: Left,
    pub(crate) left_stride: usize,
    pub(crate) left_turned: bool,
    pub(crate) weights: usize,
    pub(crate) weights_stride: usize,
    pub(crate) bias: Option<usize>,
    /// Where the result begins in its record.
    pub(crate) out_offset: usize,
    pub(crate) out_stride: usize,
    /// Rows per record.
    pub(crate) m: usize,
    pub(crate) columns: usize,
    pub(crate) k: usize,
    /// One product for each record, this far apart: on the left and in the result. Else one for all.
    pub(crate) per_record: Option<(usize, usize)>,
    pub(crate) adds: bool,
    pub(crate) activation: Activation,
}

/// The numbers of [`Do::Product`], as the kernel takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProductShape {
    pub(crate) m: usize,
    pub(crate) m_stride: usize,
    pub(crate) m_out: usize,
    pub(crate) k: usize,
    pub(crate) k_stride: usize,
    pub(crate) columns: usize,
    /// Elements of a matrix, and of a row of it.
    pub(crate) matrix: usize,
    pub(crate) stride: usize,
    pub(crate) activation: Activation,
}

/// A plan for devices.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) precision: Precision,
    pub(crate) buffers: Vec<Known>,
    /// Those of requests first.
    pub(crate) tasks: Vec<Task>,
    pub(crate) extent: Extent,
    /// Weights, constants and tables.
    pub(crate) fixed: Fixed,
    /// All kernels, fixed and generated.
    pub(crate) source: String,
    pub(crate) outputs: usize,
}

/// Bytes that the model fixes, in regions at multiples of 256.
#[derive(Debug, Default)]
pub(crate) struct Fixed {
    pub(crate) bytes: Vec<u8>,
}

impl Fixed {
    /// Appends a region; where it begins.
    pub(super) fn push(&mut self, bytes: impl IntoIterator<Item = u8>) -> usize {
        let at = self.bytes.len();
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(super::memory::ALIGN), 0);
        at
    }

    pub(super) fn floats(&mut self, values: impl IntoIterator<Item = f32>) -> usize {
        self.push(values.into_iter().flat_map(f32::to_le_bytes))
    }

    pub(super) fn words(&mut self, values: impl IntoIterator<Item = u32>) -> usize {
        self.push(values.into_iter().flat_map(u32::to_le_bytes))
    }
}

/// A program under construction.
pub(super) struct Builder {
    pub(super) precision: Precision,
    pub(super) buffers: Vec<Known>,
    pub(super) fixed: Fixed,
    pub(super) tasks: Vec<Task>,
    /// What lies in the scratch of packed left sides.
    pub(super) packed: Option<(Pack, Space)>,
    text: String,
}

impl Program {
    /// Makes the tasks of a plan.
    pub(crate) fn new(plan: &Plan, precision: Precision) -> Self {
        let mut fixed = Fixed::default();
        let constants = fixed.floats(plan.constants.iter().copied());
        let known = |buffer: &Buffer| {
            let place = match buffer.home {
                Home::Constant(at) => Place::Fixed(constants + at * size_of::<f32>()),
                Home::Input(input) => Place::Input(input),
                Home::Scratch(_) | Home::Kept(_) => Place::Arena(0),
            };
            Known { space: buffer.space, width: buffer.width, place }
        };
        let buffers = plan.buffers.iter().map(known).collect();
        let (places, unit) = (header::PLACES, UNIT / size_of::<u32>());
        let text = format!("#define PLACES {places}u\n#define UNIT_WORDS {unit}u\n{FIXED}");
        let tasks = Vec::new();
        let mut builder = Builder { precision, buffers, fixed, tasks, packed: None, text };
        let mut readers = vec![0usize; plan.buffers.len()];
        let steps = plan.request_steps.iter().chain(&plan.row_steps);
        steps.flat_map(Step::reads).for_each(|buffer| readers[buffer] += 1);
        plan.outputs.iter().for_each(|view| readers[view.buffer] += 1);
        builder.steps(&plan.request_steps, &readers);
        builder.steps(&plan.row_steps, &readers);
        for (output, view) in plan.outputs.iter().enumerate() {
            builder.output(output, view);
        }
        let Builder { mut buffers, fixed, tasks, text, .. } = builder;
        let extent = arrange(&mut buffers, &tasks);
        let outputs = plan.outputs.len();
        Self { precision, buffers, tasks, extent, fixed, source: text, outputs }
    }

    /// The space whose records a task is done for.
    pub(crate) fn space(&self, task: &Task) -> Space {
        self.buffers[task.out].space
    }

    /// The tasks in words.
    pub(crate) fn describe(&self) -> Vec<String> {
        let line = |task: &Task| {
            let space = if self.space(task) == Space::Request { "request" } else { "row" };
            let what = match &task.work {
                Do::Map { kernel, per_record, .. } => format!("{kernel} of {per_record}"),
                Do::Start { .. } => "start".to_owned(),
                Do::Pack(pack) => format!("pack of {} x {}", pack.m, pack.k),
                Do::Matmul(MatmulTask { m, columns, k, bias, adds, activation, .. }) => {
                    let bias = if bias.is_some() { ", bias" } else { "" };
                    let adds = if *adds { ", adds" } else { "" };
                    let activation = match activation {
                        Activation::None => "",
                        Activation::Relu => ", relu",
                        Activation::GeluTanh => ", gelu",
                    };
                    format!("matmul of {m} x [{k}, {columns}]{adds}{bias}{activation}")
                }
                Do::Product { count, shape, .. } => {
                    format!("products, {count} x [{}, {}]", shape.k, shape.columns)
                }
                Do::Pair { shape, count, .. } => {
                    format!("pair, {count} x [{}, {}, {}]", shape.m, shape.k, shape.n)
                }
                Do::Line { op, lines, len, .. } => format!("{op:?} of {lines} x {len}"),
                Do::Pick { count, .. } => format!("pick of {count}"),
            };
            format!("{space} {}: {what}", task.node)
        };
        self.tasks.iter().map(line).collect()
    }

    /// Elements per request and row that packed left sides take at most.
    pub(crate) fn packed(&self) -> Extent {
        let mut extent = Extent::default();
        for task in &self.tasks {
            if let Do::Pack(pack) = &task.work {
                let of = match self.space(task) {
                    Space::Request => &mut extent.requests,
                    Space::Row => &mut extent.rows,
                };
                *of = (*of).max(pack.m * pack.padded);
            }
        }
        extent
    }
}

/// Gives places to the buffers that tasks write.
fn arrange(buffers: &mut [Known], tasks: &[Task]) -> Extent {
    let mut lives: Vec<Option<Life>> = vec![None; buffers.len()];
    for (at, task) in tasks.iter().enumerate() {
        for buffer in task.reads().into_iter().chain([task.out]) {
            let known = buffers[buffer];
            if matches!(known.place, Place::Arena(_)) {
                let (space, width) = (known.space, known.width);
                let life = Life { buffer, space, width, first: at, last: at };
                lives[buffer].get_or_insert(life).last = at;
            }
        }
    }
    let lives: Vec<Life> = lives.into_iter().flatten().collect();
    let (places, extent) = place::assign(&lives);
    for (life, place) in lives.iter().zip(places) {
        buffers[life.buffer].place = Place::Arena(place);
    }
    extent
}

impl Task {
    /// The buffers that it reads. A product that adds reads its result as well.
    pub(crate) fn reads(&self) -> Vec<BufferId> {
        match &self.work {
            Do::Map { loads, .. } => loads.clone(),
            Do::Start { from: Origin::Buffer(from) } => vec![*from],
            Do::Start { from: Origin::Fixed(_) } => Vec::new(),
            Do::Pack(pack) => vec![pack.source],
            Do::Matmul(MatmulTask { left: Left::Buffer(left, _), .. }) => vec![*left],
            Do::Matmul(_) => Vec::new(),
            Do::Product { a, .. } => vec![*a],
            Do::Pair { a, b, .. } => vec![*a, *b],
            Do::Line { source, .. } | Do::Pick { source, .. } => vec![*source],
        }
    }
}

impl Builder {
    fn steps(&mut self, steps: &[Step], readers: &[usize]) {
        let mut at = 0;
        while let Some(step) = steps.get(at) {
            at += 1;
            let (node, out) = (&step.node, step.out);
            match &step.work {
                Work::Product(product) => {
                    // An activation that alone takes the product goes with it.
                    let next = steps.get(at).filter(|_| readers[out] == 1 && !product.relu);
                    match next.and_then(|next| Some((next.out, self.activation(next, out)?))) {
                        Some((behind, activation)) => {
                            at += 1;
                            product::lower(self, node, product, behind, activation);
                        }
                        None => {
                            let own = if product.relu { Activation::Relu } else { Activation::None };
                            product::lower(self, node, product, out, own);
                        }
                    }
                }
                Work::Map { .. } => {
                    // The parts of a concatenation follow each other, and become one kernel.
                    let mut group = vec![step];
                    let shares = |step: &Step| self.part(step).is_some_and(|(part, _)| part.shares());
                    let mut loads = step.reads().len();
                    while let Some(next) = steps.get(at).filter(|next| next.out == out) {
                        loads += next.reads().len();
                        if loads > MAX_LOADS || !shares(next) || !shares(step) {
                            break;
                        }
                        group.push(next);
                        at += 1;
                    }
                    self.map(node, out, &group);
                }
                Work::Pair { a, b, shape, places } => {
                    let count = places.len();
                    let places = self.fixed.words(places.iter().flatten().copied());
                    // As the CPU does it: with its rows packed, in order; a column of its own, in lanes.
                    let packed = shape.m >= 4 && shape.n >= LANES / 2;
                    let columns = shape.b_column == 1 && shape.n > 1;
                    let in_lanes = !packed && !columns && shape.a_k == 1 && shape.b_k == 1;
                    let (a, b, shape) = (*a, *b, *shape);
                    self.task(node, out, Do::Pair { a, b, shape, in_lanes, places, count });
                }
                Work::Line { source, op, starts, elements } => {
                    let (lines, len) = (starts.len(), elements.len());
                    let starts = self.fixed.words(starts.iter().copied());
                    let (elements, stride) = match elements {
                        Elements::Even { stride, .. } => (None, *stride),
                        Elements::At(places) => (Some(self.fixed.words(places.iter().copied())), 0),
                    };
                    let (source, op) = (*source, *op);
                    self.task(node, out, Do::Line { source, op, starts, lines, elements, stride, len });
                }
                Work::Pick { source, elements } => {
                    let count = elements.len();
                    let elements = self.fixed.words(elements.iter().copied());
                    self.task(node, out, Do::Pick { source: *source, elements, count });
                }
            }
        }
    }

    /// The chain of a step, and what it loads.
    fn part<'a>(&self, step: &'a Step) -> Option<(Part<'a>, &'a [BufferId])> {
        let Work::Map { walk, loads, instructions } = &step.work else { return None };
        let space = self.buffers[step.out].space;
        let operands = loads.iter().map(|&load| self.records(space, load)).collect();
        Some((Part { walk, operands, instructions }, loads))
    }

    /// One kernel for the chains of these steps.
    fn map(&mut self, node: &str, out: BufferId, group: &[&Step]) {
        let (parts, loads): (Vec<_>, Vec<_>) = group.iter().filter_map(|step| self.part(step)).unzip();
        // A number that no other kernel of the program has.
        let name = format!("tp_map_{}", self.tasks.len());
        let kernel = codegen::map(&name, self.buffers[out].width, &parts);
        self.text.push('\n');
        self.text.push_str(&kernel.text);
        let table = kernel.table.map(|table| self.fixed.words(table));
        let (per_record, loads) = (kernel.per_record, loads.concat());
        self.task(node, out, Do::Map { kernel: name, per_record, loads, table });
    }

    pub(super) fn task(&mut self, node: &str, out: BufferId, work: Do) {
        self.tasks.push(Task { node: node.to_owned(), out, work });
    }

    /// How a task of `space` finds a buffer's records.
    pub(super) fn records(&self, space: Space, buffer: BufferId) -> Records {
        let Known { space: of, width, .. } = self.buffers[buffer];
        match width {
            0 => Records::One,
            width if of < space => Records::OfRequest(width),
            width => Records::Each(width),
        }
    }

    /// The activation that a step applies to every number of a buffer, in place, and nothing else.
    fn activation(&self, step: &Step, of: BufferId) -> Option<Activation> {
        let Work::Map { walk, loads, instructions } = &step.work else { return None };
        let (from, to) = (self.buffers[of], self.buffers[step.out]);
        let whole = walk.is_flat() && walk.strides.iter().all(|&stride| stride == 1);
        if loads[..] != [of]
            || !whole
            || walk.inner != from.width
            || from.width != to.width
            || from.space != to.space
        {
            return None;
        }
        match instructions[..] {
            [Instruction::Load(0), Instruction::Unary(Unary::GeluTanh, 0)] => Some(Activation::GeluTanh),
            [
                Instruction::Load(0),
                Instruction::Fill(0.0),
                Instruction::Binary(Binary::Max, 0 | 1, 0 | 1),
            ]
            | [
                Instruction::Fill(0.0),
                Instruction::Load(0),
                Instruction::Binary(Binary::Max, 0 | 1, 0 | 1),
            ] => Some(Activation::Relu),
            _ => None,
        }
    }

    /// The numbers of an output go to its results: at once where they are alone in a buffer, by a copy else.
    fn output(&mut self, output: usize, view: &View) {
        let Known { space, width, place } = self.buffers[view.buffer];
        if matches!(place, Place::Arena(_)) && space == Space::Row && width == 1 {
            self.buffers[view.buffer].place = Place::Result(output);
            return;
        }
        let elements = self.fixed.words([view.offset as u32]);
        self.buffers.push(Known { space: Space::Row, width: 1, place: Place::Result(output) });
        let out = self.buffers.len() - 1;
        self.task("output", out, Do::Pick { source: view.buffer, elements, count: 1 });
    }
}
