//! Running a plan: first what has one record per request, then the rows, block by block.
//!
//! A block has as many records as keep what its steps make in the second level cache; its weights come through that
//! cache once per block. No step allocates.

use crate::{
    cpu::{self, Begin, CHUNK, Cpu, Instruction, LANES, MAX_REGISTERS, Packed, Registers, Rows, Small, Sums},
    plan::{
        Plan,
        step::{Elements, Product, Start, Step, Work},
        view::{Axis, BufferId, Home, Space, View, Walk},
    },
};

/// What a run needs beside its inputs; plans keep them for the next run.
pub(crate) struct Arena {
    /// Blocks' buffers, then those kept for the run; the first element lies at a cache line.
    values: Vec<f32>,
    registers: Box<Registers>,
    line: Vec<f32>,
    /// The right side of a product of two values, packed for one record.
    packed: Packed,
}

impl Arena {
    pub(crate) fn new(longest_line: usize) -> Self {
        let registers = Box::new([[[0.0; LANES]; CHUNK / LANES]; cpu::MAX_REGISTERS]);
        Self { values: Vec::new(), registers, line: vec![0.0; longest_line], packed: Packed::empty() }
    }

    /// The buffers from an element on, so many of them, and the rest.
    fn parts(&mut self, start: usize, needed: usize) -> (&mut [f32], Tools<'_>) {
        let Self { values, registers, line, packed } = self;
        (&mut values[start..][..needed], Tools { registers, line, packed })
    }

    /// Elements that it holds memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.values.capacity()
    }
}

/// What steps work with beside the buffers.
struct Tools<'a> {
    registers: &'a mut Registers,
    line: &'a mut [f32],
    packed: &'a mut Packed,
}

/// The inputs of a run, judged by the caller: lengths fit, and every row's request is there.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) rows: usize,
    pub(crate) requests: usize,
    pub(crate) request_of: &'a [u32],
    pub(crate) values: &'a [&'a [f32]],
}

/// One block of records of one space.
#[derive(Clone, Copy)]
struct Block<'a> {
    plan: &'a Plan,
    inputs: Inputs<'a>,
    space: Space,
    /// The first record, and how many.
    first: usize,
    count: usize,
    /// Records that a block has room for.
    room: usize,
    /// Where in the arena begins what is kept for the run.
    kept_at: usize,
}

/// The records of an operand as a block sees them.
struct Source<'a> {
    values: &'a [f32],
    width: usize,
    place: Place<'a>,
}

/// Which record belongs to the n-th of the block.
enum Place<'a> {
    From(usize),
    /// The request of the row.
    Of(&'a [u32]),
}

impl<'a> Source<'a> {
    /// From the beginning of the n-th record of the block to the end of all.
    fn record(&self, n: usize) -> &'a [f32] {
        let record = match self.place {
            Place::From(first) => first + n,
            Place::Of(request_of) => request_of[n] as usize,
        };
        &self.values[record * self.width..]
    }

    /// Whether records follow each other.
    fn is_even(&self) -> bool {
        matches!(self.place, Place::From(_))
    }
}

/// The arena while one buffer in it is written: what lies before and behind.
struct Others<'a> {
    before: &'a [f32],
    after: &'a [f32],
    /// Where `after` begins.
    resumes: usize,
}

impl<'a> Others<'a> {
    fn range(&self, from: usize, to: usize) -> &'a [f32] {
        if to <= self.before.len() {
            &self.before[from..to]
        } else {
            &self.after[from - self.resumes..to - self.resumes]
        }
    }
}

/// How a run divides the arena.
pub(super) struct Division {
    /// Records that blocks of requests and of rows have room for.
    rooms: [usize; 2],
    /// Where what is kept for the run begins.
    pub(super) kept_at: usize,
}

impl Plan {
    /// Divides the arena for a run of so many rows and requests.
    pub(super) fn divide(&self, rows: usize, requests: usize) -> Division {
        let room =
            |at: usize, total: usize| self.blocks[at].min(total.checked_next_power_of_two().unwrap_or(total));
        let rooms = [room(0, requests), room(1, rows)];
        let kept_at = (self.extent.requests * rooms[0]).max(self.extent.rows * rooms[1]);
        Division { rooms, kept_at }
    }

    /// Runs the plan; `outputs` have a place for every row.
    pub(crate) fn execute(&self, inputs: Inputs<'_>, arena: &mut Arena, outputs: &mut [Vec<f32>]) {
        let Division { rooms, kept_at } = self.divide(inputs.rows, inputs.requests);
        let needed = kept_at + self.extent.kept * inputs.requests;
        // One cache line more, to begin at one.
        if arena.values.len() < needed + LANES {
            arena.values.resize(needed + LANES, 0.0);
        }
        let start = arena.values.as_ptr().align_offset(LANES * size_of::<f32>()).min(LANES);
        let (values, mut tools) = arena.parts(start, needed);
        for (space, steps, total, room) in [
            (Space::Request, &self.request_steps, inputs.requests, rooms[0]),
            (Space::Row, &self.row_steps, inputs.rows, rooms[1]),
        ] {
            for first in (0..total).step_by(room) {
                let count = room.min(total - first);
                let block = Block { plan: self, inputs, space, first, count, room, kept_at };
                for step in steps {
                    block.run(step, values, &mut tools);
                }
                if space == Space::Row {
                    let others = Others { before: &*values, after: &[], resumes: 0 };
                    for (view, out) in self.outputs.iter().zip(outputs.iter_mut()) {
                        block.take(view, &others, &mut out[first..first + count]);
                    }
                }
            }
        }
    }
}

impl<'a> Block<'a> {
    fn run(&self, step: &Step, arena: &mut [f32], tools: &mut Tools<'_>) {
        let (from, to, width) = self.extent(step.out);
        let (before, rest) = arena.split_at_mut(from);
        let (out, after) = rest.split_at_mut(to - from);
        let others = Others { before, after, resumes: to };
        // A block of requests writes its own records of what is kept for all.
        let kept = matches!(self.plan.buffers[step.out].home, Home::Kept(_));
        let skipped = if kept { self.first * width } else { 0 };
        let out = &mut out[skipped..][..self.count * width];
        let cpu = self.plan.cpu;
        match &step.work {
            Work::Map { walk, loads, instructions } => {
                self.map(walk, loads, instructions, &others, (out, width), tools.registers);
            }
            Work::Product(product) => self.product(product, &others, (out, width)),
            Work::Pair { a, b, shape, places } => {
                let (a, b) = (self.source(*a, &others), self.source(*b, &others));
                for (n, out) in out.chunks_exact_mut(width).enumerate() {
                    let (a, b) = (a.record(n), b.record(n));
                    for place in places {
                        let [a_at, b_at, out_at] = place.map(|at| at as usize);
                        pair(cpu, shape, &a[a_at..], &b[b_at..], &mut out[out_at..], tools.packed);
                    }
                }
            }
            Work::Line { source, op, starts, elements } => {
                let source = self.source(*source, &others);
                let len = elements.len();
                let made = if op.keeps_length() { len } else { 1 };
                for (n, out) in out.chunks_exact_mut(width).enumerate() {
                    let record = source.record(n);
                    for (&start, out) in starts.iter().zip(out.chunks_exact_mut(made)) {
                        let line = &mut tools.line[..len];
                        gather(&record[start as usize..], elements, line);
                        cpu::line(cpu, *op, line);
                        out.copy_from_slice(&line[..made]);
                    }
                }
            }
            Work::Pick { source, elements } => {
                let source = self.source(*source, &others);
                for (n, out) in out.chunks_exact_mut(width).enumerate() {
                    let record = source.record(n);
                    for (out, &element) in out.iter_mut().zip(elements) {
                        *out = record[element as usize];
                    }
                }
            }
        }
    }

    /// Where a buffer lies in the arena: from, to, and the width of a record.
    fn extent(&self, buffer: BufferId) -> (usize, usize, usize) {
        let buffer = &self.plan.buffers[buffer];
        let (from, records) = match buffer.home {
            Home::Scratch(at) => (at * self.room, self.room),
            Home::Kept(at) => (self.kept_at + at * self.inputs.requests, self.inputs.requests),
            // Steps write neither of these.
            Home::Constant(_) | Home::Input(_) => (0, 0),
        };
        (from, from + records * buffer.width, buffer.width)
    }

    fn source<'m>(&self, buffer: BufferId, others: &Others<'m>) -> Source<'m>
    where
        'a: 'm,
    {
        let known = &self.plan.buffers[buffer];
        let values = match known.home {
            Home::Constant(at) => &self.plan.constants[at..],
            Home::Input(at) => self.inputs.values[at],
            Home::Scratch(_) | Home::Kept(_) => {
                let (from, to, _) = self.extent(buffer);
                others.range(from, to)
            }
        };
        let place = match known.home {
            Home::Scratch(_) | Home::Constant(_) => Place::From(0),
            _ if known.space < self.space => Place::Of(&self.inputs.request_of[self.first..]),
            Home::Input(_) | Home::Kept(_) => Place::From(self.first),
        };
        Source { values, width: known.width, place }
    }

    /// Copies one number per row to the caller.
    fn take<'m>(&self, view: &View, others: &Others<'m>, out: &mut [f32])
    where
        'a: 'm,
    {
        let source = self.source(view.buffer, others);
        debug_assert!(view.axes.iter().all(|a| matches!(a, Axis::Batch | Axis::Fixed { len: 1, .. })));
        for (n, out) in out.iter_mut().enumerate() {
            *out = source.record(n)[view.offset];
        }
    }

    fn map<'m>(
        &self,
        walk: &Walk,
        loads: &[BufferId],
        instructions: &[Instruction],
        others: &Others<'m>,
        (out, width): (&mut [f32], usize),
        registers: &mut Registers,
    ) where
        'a: 'm,
    {
        let sources: [Option<Source<'m>>; MAX_REGISTERS] =
            std::array::from_fn(|load| loads.get(load).map(|&buffer| self.source(buffer, others)));
        let source = |load: usize| &sources[load];
        // When records follow each other without gaps everywhere, the block is one long record.
        let whole = |source: &Source<'_>, stride: usize| {
            (stride == 1 && source.width == walk.inner && source.is_even())
                || (stride == 0 && source.width == 0)
        };
        let flat = walk.is_flat() && walk.strides[0] == 1 && walk.inner == width;
        if flat && sources.iter().flatten().zip(&walk.strides[1..]).all(|(s, &stride)| whole(s, stride)) {
            let starts = |load: usize| source(load).as_ref().map_or(&[][..], |source| source.record(0));
            return self.chain(instructions, walk, out.len(), registers, starts, (out, 1));
        }
        for n in 0..self.count {
            let out = &mut out[n * width..][..width];
            for place in walk.loops() {
                let starts = |load: usize| {
                    source(load).as_ref().map_or(&[][..], |s| &s.record(n)[place[load + 1] as usize..])
                };
                let out = (&mut out[place[0] as usize..], walk.strides[0]);
                self.chain(instructions, walk, walk.inner, registers, starts, out);
            }
        }
    }

    /// One inner loop of a chain.
    fn chain<'s>(
        &self,
        instructions: &[Instruction],
        walk: &Walk,
        len: usize,
        registers: &mut Registers,
        starts: impl Fn(usize) -> &'s [f32],
        (out, out_stride): (&mut [f32], usize),
    ) {
        let Some(result) = instructions.len().checked_sub(1) else { return };
        if let [Instruction::Load(load)] = *instructions
            && (walk.strides[load + 1], out_stride) == (1, 1)
        {
            return out[..len].copy_from_slice(&starts(load)[..len]);
        }
        for first in (0..len).step_by(CHUNK) {
            let count = CHUNK.min(len - first);
            for (register, instruction) in registers.iter_mut().zip(instructions) {
                let Instruction::Load(load) = *instruction else { continue };
                let (values, stride) = (starts(load), walk.strides[load + 1]);
                let register = &mut register.as_flattened_mut()[..count];
                match stride {
                    0 => register.fill(values[0]),
                    1 => register.copy_from_slice(&values[first..first + count]),
                    _ => {
                        for (at, x) in register.iter_mut().enumerate() {
                            *x = values[(first + at) * stride];
                        }
                    }
                }
            }
            cpu::evaluate(self.plan.cpu, instructions, registers, count.div_ceil(LANES));
            let made = &registers[result].as_flattened()[..count];
            if out_stride == 1 {
                out[first..first + count].copy_from_slice(made);
            } else {
                for (at, x) in made.iter().enumerate() {
                    out[(first + at) * out_stride] = *x;
                }
            }
        }
    }

    /// Whether all rows of the block belong to one request.
    fn is_one_request(&self) -> bool {
        self.space == Space::Row
            && self.inputs.request_of[self.first..][..self.count].windows(2).all(|pair| pair[0] == pair[1])
    }

    fn product<'m>(&self, product: &Product, others: &Others<'m>, (out, width): (&mut [f32], usize))
    where
        'a: 'm,
    {
        let begin = match &product.start {
            Start::Zero => Begin::Zero,
            Start::Here => Begin::There,
            // One number for each column.
            Start::Bias(bias) if product.m == 1 => Begin::Record(bias),
            Start::Bias(bias) => {
                out.chunks_exact_mut(width).for_each(|out| out.copy_from_slice(bias));
                Begin::There
            }
            Start::Buffer(start) => {
                let start = self.source(*start, others);
                if product.m == 1 && self.is_one_request() {
                    Begin::Record(&start.record(0)[..width])
                } else {
                    for (n, out) in out.chunks_exact_mut(width).enumerate() {
                        out.copy_from_slice(&start.record(n)[..width]);
                    }
                    Begin::There
                }
            }
        };
        let sums = Sums { begin, relu: product.relu };
        let a = self.source(product.a, others);
        let &Product { m, m_stride, m_out, k_stride, .. } = product;
        // One call does all records when their rows follow each other evenly.
        let even = m == 1 || (a.width == m * m_stride && width == m * m_out);
        for call in &product.calls {
            let weights = &product.weights[call.weights];
            let sums = sums.from(call.out);
            if even {
                let (a_row, c_row) = if m == 1 { (a.width, width) } else { (m_stride, m_out) };
                let rows = Rows { count: self.count * m, a_row, a_k: k_stride, c_row };
                let (a, out) = (&a.record(0)[call.a..], &mut out[call.out..]);
                cpu::multiply(self.plan.cpu, rows, a, weights, out, sums);
            } else {
                let rows = Rows { count: m, a_row: m_stride, a_k: k_stride, c_row: m_out };
                for (n, out) in out.chunks_exact_mut(width).enumerate() {
                    let (a, out) = (&a.record(n)[call.a..], &mut out[call.out..]);
                    cpu::multiply(self.plan.cpu, rows, a, weights, out, sums);
                }
            }
        }
    }
}

fn gather(record: &[f32], elements: &Elements, line: &mut [f32]) {
    match elements {
        Elements::Even { len, stride: 1 } => line.copy_from_slice(&record[..*len]),
        Elements::Even { stride, .. } => {
            for (at, x) in line.iter_mut().enumerate() {
                *x = record[at * stride];
            }
        }
        Elements::At(places) => {
            for (x, &place) in line.iter_mut().zip(places) {
                *x = record[place as usize];
            }
        }
    }
}

/// Rows of a product of two values from which on packing its right side pays.
const PACKED_ROWS: usize = 4;

/// One product of two values.
fn pair(cpu: Cpu, shape: &Small, a: &[f32], b: &[f32], out: &mut [f32], packed: &mut Packed) {
    if shape.m < PACKED_ROWS || shape.n < LANES / 2 {
        return cpu::small(cpu, shape, a, b, out);
    }
    packed.refill((shape.k, shape.n), b, (shape.b_k, shape.b_column));
    let rows = Rows { count: shape.m, a_row: shape.a_row, a_k: shape.a_k, c_row: shape.out_row };
    let sums = Sums { begin: Begin::Zero, relu: false };
    cpu::multiply(cpu, rows, a, packed, out, sums);
}
