//! One thread: its registers, its call frames, and the loop that runs it.

use super::{
    code::{Argument, BarrierKind, Code, Function, Inst, Join, NONE, Param, Space, Special, Yes},
    error::FaultKind,
    launch::{Counts, Machine},
    module::{FUNCTION_BASE, MAX_LOCAL},
    reach::{Bytes, Reach, window, window_of},
    shared::{Shared, Toucher},
    types::{keep, sign_extend},
};

/// The deepest nesting of calls, and the most slots of all frames together.
const MAX_FRAMES: usize = 1024;
const MAX_SLOTS: usize = 4 << 20;

/// Whether arguments have the lengths of a function's parameters.
pub(super) fn arguments_fit(callee: &Function, inputs: &[Argument], outputs: &[Argument]) -> bool {
    let fit = |arguments: &[Argument], params: &[Param]| {
        arguments.len() == params.len()
            && arguments.iter().zip(params).all(|(argument, param)| match argument {
                Argument::Param(p) => p.size == param.size,
                Argument::Register(_, ty) => ty.bytes() == param.size,
            })
    };
    fit(inputs, &callee.inputs) && fit(outputs, &callee.outputs)
}

/// What a caller goes on with after a call.
struct Frame {
    function: usize,
    pc: usize,
    base: usize,
    param_base: usize,
    local_base: usize,
}

/// Why a thread stopped running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Exited,
    /// Its slice of instructions is over.
    Slice,
    /// It waits at a barrier; `pending` has number, count and predicate.
    Barrier,
    /// It waits for other lanes; `pending` has the operands.
    Warp,
}

/// A thread of a block.
#[derive(Default)]
pub(super) struct Thread {
    values: Vec<u64>,
    defined: Vec<bool>,
    params: Bytes,
    local: Bytes,
    frames: Vec<Frame>,
    pub(super) function: usize,
    pub(super) pc: usize,
    base: usize,
    param_base: usize,
    local_base: usize,
    carry: bool,
    /// The launch's instructions when the running slice will be over.
    clock: u64,
    /// Linear index in the block.
    pub(super) index: u32,
    position: [u32; 3],
    block: [u32; 3],
    /// Operands `a`, `b`, `c` and `e` of what it waits for; zero where there is none.
    pub(super) pending: [u64; 4],
}

impl Thread {
    /// Puts the thread at the start of the kernel.
    pub(super) fn start(&mut self, machine: &Machine<'_>, index: u32, block: [u32; 3]) {
        let [x, y, _] = machine.launch.block;
        self.index = index;
        self.position = [index % x, index / x % y, index / x / y];
        self.block = block;
        self.frames.clear();
        self.values.clear();
        self.defined.clear();
        self.local.resize(0);
        self.params.resize(0);
        self.carry = false;
        self.enter(machine, machine.kernel.function);
        self.params.bytes[..machine.launch.params.len()].copy_from_slice(machine.launch.params);
        self.params.written[..machine.launch.params.len()].fill(true);
    }

    /// Makes the frame of a function on top of the others.
    fn enter(&mut self, machine: &Machine<'_>, function: usize) {
        let (code, template) = (&machine.module.functions[function], &machine.templates[function]);
        self.function = function;
        self.pc = 0;
        self.base = self.values.len();
        self.param_base = self.params.bytes.len();
        self.local_base = self.local.bytes.len().next_multiple_of(32);
        self.values.extend_from_slice(&template.values);
        self.defined.extend_from_slice(&template.defined);
        for &(slot, special) in &template.specials {
            self.values[self.base + usize::from(slot)] = self.special(machine, special);
        }
        for &(slot, offset) in &template.locals {
            self.values[self.base + usize::from(slot)] = (self.local_base as u64).wrapping_add_signed(offset);
        }
        self.params.resize(self.param_base + code.param_bytes as usize);
        self.local.resize(self.local_base + code.local_bytes as usize);
    }

    fn special(&self, machine: &Machine<'_>, special: Special) -> u64 {
        let launch = machine.launch;
        let lane = self.index % 32;
        let value = match special {
            Special::Thread(axis) => self.position[usize::from(axis)],
            Special::Block(axis) => self.block[usize::from(axis)],
            Special::BlockSize(axis) => launch.block[usize::from(axis)],
            Special::GridSize(axis) => launch.grid[usize::from(axis)],
            Special::Lane => lane,
            Special::WarpIndex => self.index / 32,
            Special::Warps => launch.block.iter().product::<u32>().div_ceil(32),
            Special::MaskEqual => 1 << lane,
            Special::MaskLess => (1 << lane) - 1,
            Special::MaskLessEqual => u32::MAX >> (31 - lane),
            Special::MaskGreaterEqual => u32::MAX << lane,
            Special::MaskGreater => !(u32::MAX >> (31 - lane)),
            Special::DynamicShared => launch.dynamic_shared,
            Special::TotalShared => machine.shared_bytes,
            Special::Zero => 0,
            Special::OneSm => 1,
            Special::WarpSize => 32,
        };
        value.into()
    }

    /// Its `threadIdx`.
    pub(super) fn position(&self) -> [u32; 3] {
        self.position
    }

    pub(super) fn instruction<'m>(&self, machine: &'m Machine<'_>) -> &'m Inst {
        &machine.module.functions[self.function].code[self.pc]
    }

    /// Writes a result of what it waited for.
    pub(super) fn write(&mut self, slot: u16, value: u64) {
        let at = self.base + usize::from(slot);
        self.values[at] = value;
        self.defined[at] = true;
    }

    /// Runs until the thread exits, waits, or has run `slice` instructions.
    pub(super) fn run(
        &mut self,
        machine: &Machine<'_>,
        shared: &mut Shared,
        counts: &mut Counts,
        slice: u64,
    ) -> Result<Stop, FaultKind> {
        let mut left = slice;
        self.clock = counts.instructions + slice;
        let result = loop {
            // A call or a return gives nothing: the same slice goes on in another frame.
            match self.run_frame(machine, shared, counts, &mut left) {
                Ok(None) => {}
                Ok(Some(stop)) => break Ok(stop),
                Err(kind) => break Err(kind),
            }
        };
        counts.instructions += slice - left;
        result
    }

    #[expect(clippy::too_many_lines, reason = "one arm per kind of instruction, in one loop for speed")]
    fn run_frame(
        &mut self,
        machine: &Machine<'_>,
        shared: &mut Shared,
        counts: &mut Counts,
        left: &mut u64,
    ) -> Result<Option<Stop>, FaultKind> {
        let function = &machine.module.functions[self.function];
        let code = function.code.as_slice();
        let values = &mut self.values[self.base..];
        let defined = &mut self.defined[self.base..];
        let mut pc = self.pc;

        macro_rules! fail {
            ($kind:expr) => {{
                self.pc = pc;
                return Err($kind);
            }};
        }
        macro_rules! get {
            ($slot:expr) => {{
                let slot = usize::from($slot);
                if !defined[slot] {
                    fail!(machine.uninitialised(self.function, slot));
                }
                values[slot]
            }};
        }
        macro_rules! put {
            ($slot:expr, $value:expr) => {{
                let slot = usize::from($slot);
                values[slot] = $value;
                defined[slot] = true;
            }};
        }
        macro_rules! reach {
            () => {
                Reach {
                    machine,
                    shared: &mut *shared,
                    local: &mut self.local,
                    params: &mut self.params,
                    param_base: self.param_base,
                    by: Toucher { thread: self.index, line: function.places[pc].line, strong: false },
                }
            };
        }
        loop {
            if *left == 0 {
                self.pc = pc;
                return Ok(Some(Stop::Slice));
            }
            *left -= 1;
            let inst = &code[pc];
            if inst.guard != NONE && (get!(inst.guard) != 0) == inst.negate {
                pc += 1;
                continue;
            }
            match inst.code {
                Code::Nop => {}
                Code::Move => put!(inst.d, get!(inst.a)),
                Code::One(f) => put!(inst.d, f(get!(inst.a))),
                Code::Cut(f, bits) => put!(inst.d, keep(f(get!(inst.a)), bits)),
                Code::Two(f) => put!(inst.d, f(get!(inst.a), get!(inst.b))),
                Code::Three(f) => put!(inst.d, f(get!(inst.a), get!(inst.b), get!(inst.c))),
                Code::Four(f) => put!(inst.d, f(get!(inst.a), get!(inst.b), get!(inst.c), get!(inst.e))),
                Code::Carry(f) => {
                    let c = if inst.c == NONE { 0 } else { get!(inst.c) };
                    put!(inst.d, f(get!(inst.a), get!(inst.b), c, &mut self.carry));
                }
                Code::Clock => put!(inst.d, (self.clock - *left) & u64::from(u32::MAX)),
                Code::Compare { test, join, negate } => {
                    let result = test(get!(inst.a), get!(inst.b));
                    let (mut yes, mut no) = (result, !result);
                    if join != Join::None {
                        let with = (get!(inst.c) != 0) != negate;
                        let combine = |p: bool| match join {
                            Join::And => p & with,
                            Join::Or => p | with,
                            _ => p ^ with,
                        };
                        (yes, no) = (combine(yes), combine(no));
                    }
                    put!(inst.d, yes.into());
                    if inst.e != NONE {
                        put!(inst.e, no.into());
                    }
                }
                Code::Set { test, yes } => {
                    let yes = match yes {
                        Yes::Ones32 => 0xffff_ffff,
                        Yes::Ones16 => 0xffff,
                        Yes::OneF32 => 0x3f80_0000,
                        Yes::OneF16 => 0x3c00,
                        Yes::OneBf16 => 0x3f80,
                    };
                    put!(inst.d, if test(get!(inst.a), get!(inst.b)) { yes } else { 0 });
                }
                Code::Pack { bits } => {
                    let mut whole = 0;
                    for (i, &slot) in function.lists[usize::from(inst.e)].iter().enumerate() {
                        whole |= keep(get!(slot), bits) << (i as u32 * u32::from(bits));
                    }
                    put!(inst.d, whole);
                }
                Code::Unpack { bits } => {
                    let whole = get!(inst.a);
                    for (i, &slot) in function.lists[usize::from(inst.e)].iter().enumerate() {
                        put!(slot, keep(whole >> (i as u32 * u32::from(bits)), bits));
                    }
                }
                Code::Load(access) => {
                    counts.loads += 1;
                    let address = get!(inst.a).wrapping_add_signed(inst.extra.into());
                    let bytes = usize::from(access.bytes);
                    let mut buffer = [0; 40];
                    let into = &mut buffer[..bytes * usize::from(access.count)];
                    let mut reach = reach!();
                    reach.by.strong = access.strong;
                    if let Err(kind) = reach.load(access.space, address, into) {
                        fail!(kind);
                    }
                    let element = |i: usize| {
                        let mut eight = [0; 8];
                        eight.copy_from_slice(&buffer[i * bytes..i * bytes + 8]);
                        let value = keep(u64::from_le_bytes(eight), access.bytes * 8);
                        let value = if access.signed { sign_extend(value, access.bytes * 8) } else { value };
                        keep(value, access.register_bits)
                    };
                    if access.count == 1 {
                        put!(inst.d, element(0));
                    } else {
                        for (i, &slot) in function.lists[usize::from(inst.e)].iter().enumerate() {
                            put!(slot, element(i));
                        }
                    }
                }
                Code::Store(access) => {
                    counts.stores += 1;
                    let address = get!(inst.a).wrapping_add_signed(inst.extra.into());
                    let bytes = usize::from(access.bytes);
                    let mut buffer = [0; 40];
                    if access.count == 1 {
                        buffer[..8].copy_from_slice(&get!(inst.b).to_le_bytes());
                    } else {
                        for (i, &slot) in function.lists[usize::from(inst.e)].iter().enumerate() {
                            buffer[i * bytes..i * bytes + 8].copy_from_slice(&get!(slot).to_le_bytes());
                        }
                    }
                    let from = &buffer[..bytes * usize::from(access.count)];
                    let mut reach = reach!();
                    reach.by.strong = access.strong;
                    if let Err(kind) = reach.store(access.space, address, from) {
                        fail!(kind);
                    }
                }
                Code::Atomic { change, space, bytes } => {
                    counts.atomics += 1;
                    let address = get!(inst.a).wrapping_add_signed(inst.extra.into());
                    let (b, c) = (get!(inst.b), get!(inst.c));
                    let mut reach = reach!();
                    reach.by.strong = true;
                    match reach.atomic(space, address, bytes, &mut |old| change(old, b, c)) {
                        Ok(old) if inst.d != NONE => put!(inst.d, old),
                        Ok(_) => {}
                        Err(kind) => fail!(kind),
                    }
                }
                Code::ToGeneric(space) => put!(inst.d, get!(inst.a).wrapping_add(window(space))),
                Code::FromGeneric(space) => {
                    let address = get!(inst.a);
                    // An address of another window stays as it is, and its first use is a fault.
                    let inside = window_of(address) == space && window(space) != 0;
                    put!(inst.d, if inside { address - window(space) } else { address });
                }
                Code::IsSpace(space) => {
                    let found = window_of(get!(inst.a));
                    put!(
                        inst.d,
                        u64::from(found == space || (found == Space::Global && space == Space::Const))
                    );
                }
                Code::Branch(target) => {
                    pc = target as usize;
                    continue;
                }
                Code::BranchTable => {
                    let index = get!(inst.a);
                    let targets = &function.targets[inst.extra as usize];
                    match targets.get(index as usize) {
                        Some(&target) => pc = target as usize,
                        None => fail!(FaultKind::BadTarget(format!(
                            "entry {index} of a table of {} labels",
                            targets.len()
                        ))),
                    }
                    continue;
                }
                Code::Call => {
                    let indirect = if inst.a == NONE { None } else { Some(get!(inst.a)) };
                    self.pc = pc;
                    self.call(machine, indirect, inst.extra as usize)?;
                    return Ok(None);
                }
                Code::Return => {
                    self.pc = pc;
                    return Ok(self.leave(machine));
                }
                Code::Exit => {
                    self.pc = pc;
                    return Ok(Some(Stop::Exited));
                }
                Code::Trap => fail!(FaultKind::Trap),
                Code::ActiveMask => put!(inst.d, 1 << (self.index % 32)),
                Code::Barrier { .. } | Code::Warp(_) => {
                    let mut pending = [0; 4];
                    for (value, slot) in pending.iter_mut().zip([inst.a, inst.b, inst.c, inst.e]) {
                        if slot != NONE {
                            *value = get!(slot);
                        }
                    }
                    self.pending = pending;
                    self.pc = pc;
                    let barrier = matches!(inst.code, Code::Barrier { .. });
                    return Ok(Some(if barrier { Stop::Barrier } else { Stop::Warp }));
                }
            }
            pc += 1;
        }
    }

    /// Enters a function, with the call's arguments in its parameters.
    fn call(&mut self, machine: &Machine<'_>, indirect: Option<u64>, index: usize) -> Result<(), FaultKind> {
        let functions = &machine.module.functions;
        let call = &functions[self.function].calls[index];
        let target = match (call.function, indirect) {
            (Some(target), _) => target as usize,
            (None, address) => {
                let address = address.unwrap_or(0);
                let at = address.wrapping_sub(FUNCTION_BASE) / 16;
                let callee = functions.get(at as usize).filter(|_| address % 16 == 0);
                let fits = |f: &&Function| f.defined && arguments_fit(f, &call.inputs, &call.outputs);
                if callee.filter(fits).is_none() {
                    return Err(FaultKind::BadTarget(format!(
                        "a call of {address:#x}, where no such function is"
                    )));
                }
                at as usize
            }
        };
        if self.frames.len() >= MAX_FRAMES || self.values.len() > MAX_SLOTS {
            return Err(FaultKind::Stack("calls nest too deeply"));
        }
        if self.local.bytes.len() as u64 + u64::from(functions[target].local_bytes) > MAX_LOCAL {
            return Err(FaultKind::Stack("local memory is full"));
        }
        let caller = Frame {
            function: self.function,
            pc: self.pc,
            base: self.base,
            param_base: self.param_base,
            local_base: self.local_base,
        };
        let mut registers = Vec::new();
        for argument in &call.inputs {
            if let Argument::Register(slot, _) = *argument {
                let at = self.base + usize::from(slot);
                if !self.defined[at] {
                    return Err(machine.uninitialised(self.function, usize::from(slot)));
                }
                registers.push(self.values[at]);
            }
        }
        self.enter(machine, target);
        let mut registers = registers.into_iter();
        for (argument, param) in call.inputs.iter().zip(&functions[target].inputs) {
            let to = self.param_base + param.offset as usize;
            match *argument {
                Argument::Param(from) => {
                    self.params.copy(caller.param_base + from.offset as usize, to, param.size as usize);
                }
                Argument::Register(..) => {
                    let bytes = registers.next().unwrap_or(0).to_le_bytes();
                    let stored = self.params.store(to as u64, &bytes[..param.size as usize]);
                    stored.map_err(|access| FaultKind::Memory { space: "param", store: true, access })?;
                }
            }
        }
        self.frames.push(caller);
        Ok(())
    }

    /// Returns from a function with its results, or out of the kernel.
    fn leave(&mut self, machine: &Machine<'_>) -> Option<Stop> {
        let Some(caller) = self.frames.pop() else { return Some(Stop::Exited) };
        let functions = &machine.module.functions;
        let (callee, callee_params) = (self.function, self.param_base);
        let (callee_base, callee_local) = (self.base, self.local_base);
        let index = functions[caller.function].code[caller.pc].extra as usize;
        (self.function, self.pc, self.base) = (caller.function, caller.pc + 1, caller.base);
        (self.param_base, self.local_base) = (caller.param_base, caller.local_base);
        for (argument, param) in
            functions[caller.function].calls[index].outputs.iter().zip(&functions[callee].outputs)
        {
            let from = callee_params + param.offset as usize;
            match *argument {
                Argument::Param(to) => {
                    self.params.copy(from, caller.param_base + to.offset as usize, param.size as usize);
                }
                Argument::Register(slot, _) => {
                    let mut bytes = [0; 8];
                    bytes[..param.size as usize]
                        .copy_from_slice(&self.params.bytes[from..from + param.size as usize]);
                    let written = self.params.written[from..from + param.size as usize].iter().all(|&w| w);
                    let at = self.base + usize::from(slot);
                    (self.values[at], self.defined[at]) = (u64::from_le_bytes(bytes), written);
                }
            }
        }
        self.values.truncate(callee_base);
        self.defined.truncate(callee_base);
        self.params.resize(callee_params);
        self.local.resize(callee_local);
        None
    }

    /// The barrier that it waits at.
    pub(super) fn barrier(&self, machine: &Machine<'_>) -> Option<(BarrierKind, bool)> {
        match self.instruction(machine).code {
            Code::Barrier { kind, aligned } => Some((kind, aligned)),
            _ => None,
        }
    }
}
