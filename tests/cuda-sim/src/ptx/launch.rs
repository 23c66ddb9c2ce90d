//! Launching a kernel: what it needs is checked, then its blocks run one after the other.

use super::{
    Memory,
    block::Block,
    code::{Slot, Special},
    error::{Fault, FaultKind},
    module::{FUNCTION_BASE, Kernel, MAX_SHARED, Module, aligned},
    shared::Shared,
};

/// A limit that no sound kernel of the tests comes near: some tens of seconds of running.
pub const DEFAULT_INSTRUCTION_LIMIT: u64 = 2_000_000_000;

/// How a kernel is launched.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Blocks of the grid: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block: x, y, z; at most 1024 in all.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameters, laid out as [`Kernel::params`] says.
    pub params: &'a [u8],
}

/// What a launch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// PTX instructions of all threads.
    pub instructions: u64,
    /// Loads, vectors counted once.
    pub loads: u64,
    /// Stores, vectors counted once.
    pub stores: u64,
    /// Atomic operations.
    pub atomics: u64,
    /// Barriers, counted once for all threads that met there.
    pub barriers: u64,
}

/// What the slots of a function hold at its start in this launch.
pub(super) struct Template {
    pub(super) values: Vec<u64>,
    pub(super) defined: Vec<bool>,
    pub(super) specials: Vec<(u16, Special)>,
    pub(super) locals: Vec<(u16, i64)>,
}

/// What all threads of a launch share and none changes.
pub(super) struct Machine<'a> {
    pub(super) module: &'a Module,
    pub(super) kernel: &'a Kernel,
    pub(super) launch: &'a Launch<'a>,
    pub(super) memory: &'a dyn Memory,
    pub(super) templates: Vec<Template>,
    pub(super) shared_bytes: u32,
    pub(super) limit: u64,
}

impl Machine<'_> {
    pub(super) fn uninitialised(&self, function: usize, slot: usize) -> FaultKind {
        match &self.module.functions[function].slots[slot] {
            Slot::Register(name) => FaultKind::UninitialisedRegister(name.clone()),
            _ => FaultKind::UninitialisedRegister("a constant".to_owned()),
        }
    }
}

/// Runs every block of a launch, in order. `globals` has the addresses of [`Module::globals`]; `limit`
/// is the number of instructions after which the launch is taken to hang.
///
/// # Errors
/// The first fault, with kernel, block, thread, PTX line and instruction.
pub fn run(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    memory: &dyn Memory,
    globals: &[u64],
    limit: u64,
) -> Result<Counts, Box<Fault>> {
    let dynamic_at = aligned(kernel.shared_bytes, module.dynamic_align);
    let end = if launch.dynamic_shared == 0 { kernel.shared_bytes } else { dynamic_at };
    let shared_bytes = u64::from(end) + u64::from(launch.dynamic_shared);
    if let Some(problem) = refused(module, kernel, launch, globals, shared_bytes) {
        return Err(Box::new(Fault {
            kernel: kernel.name.clone(),
            block: [0; 3],
            thread: [0; 3],
            line: 0,
            instruction: String::new(),
            kind: FaultKind::Launch(problem),
        }));
    }
    let templates = (0..module.functions.len()).map(|function| {
        let needed = function == kernel.function || !module.is_kernel(function);
        if needed { template(module, kernel, function, globals, dynamic_at) } else { Template::empty() }
    });
    let machine = Machine {
        module,
        kernel,
        launch,
        memory,
        templates: templates.collect(),
        shared_bytes: shared_bytes as u32,
        limit,
    };
    let mut shared = Shared::new(shared_bytes as usize);
    let mut counts = Counts::default();
    let mut block = Block::new(&machine);
    let [x, y, z] = launch.grid;
    for at_z in 0..z {
        for at_y in 0..y {
            for at_x in 0..x {
                block.run([at_x, at_y, at_z], &mut shared, &mut counts)?;
            }
        }
    }
    Ok(counts)
}

fn refused(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    globals: &[u64],
    shared_bytes: u64,
) -> Option<String> {
    let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
    let [x, y, z] = launch.grid;
    if threads == 0 || threads > 1024 || launch.block[2] > 64 {
        return Some(format!("a block of {:?} threads", launch.block));
    }
    if kernel.max_threads.is_some_and(|max| threads > max.into()) {
        return Some(format!(
            "{threads} threads in a block, where the kernel allows {:?}",
            kernel.max_threads
        ));
    }
    if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
        return Some(format!("a grid of {:?} blocks", launch.grid));
    }
    if shared_bytes > MAX_SHARED {
        return Some(format!("{shared_bytes} bytes of shared memory"));
    }
    if launch.params.len() != kernel.param_bytes as usize {
        return Some(format!(
            "{} bytes of parameters instead of {}",
            launch.params.len(),
            kernel.param_bytes
        ));
    }
    if globals.len() != module.globals().len() {
        return Some(format!(
            "{} addresses of variables instead of {}",
            globals.len(),
            module.globals().len()
        ));
    }
    None
}

impl Template {
    fn empty() -> Self {
        Self { values: Vec::new(), defined: Vec::new(), specials: Vec::new(), locals: Vec::new() }
    }
}

fn template(module: &Module, kernel: &Kernel, function: usize, globals: &[u64], dynamic_at: u32) -> Template {
    let mut template = Template::empty();
    for (index, slot) in module.functions[function].slots.iter().enumerate() {
        let index = index as u16;
        let value = match *slot {
            Slot::Register(_) => None,
            Slot::Value(value) => Some(value),
            Slot::Special(special) => {
                template.specials.push((index, special));
                Some(0)
            }
            Slot::Global(at, offset) => Some(globals[at as usize].wrapping_add_signed(offset)),
            Slot::SharedCommon(offset) => Some(offset as u64),
            Slot::SharedOwn(offset) => Some(u64::from(kernel.shared_own).wrapping_add_signed(offset)),
            Slot::SharedDynamic(offset) => Some(u64::from(dynamic_at).wrapping_add_signed(offset)),
            Slot::Local(offset) => {
                template.locals.push((index, offset));
                Some(0)
            }
            Slot::Function(at) => Some(FUNCTION_BASE + 16 * u64::from(at)),
        };
        template.values.push(value.unwrap_or(0));
        template.defined.push(value.is_some());
    }
    template
}
