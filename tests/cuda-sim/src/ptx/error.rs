//! What can be wrong with PTX text when it is loaded, and with a kernel when it runs.

use thiserror::Error;

/// Why a module was not loaded. Every variant names the line of the PTX text, counted from one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PtxError {
    /// The text does not follow the grammar of PTX.
    #[error("PTX line {line}: expected {expected}, found {found}")]
    Syntax {
        /// Line of the text.
        line: u32,
        /// What the grammar wants here.
        expected: &'static str,
        /// What stands there, cut short.
        found: String,
    },
    /// An instruction, a modifier or a directive that this interpreter does not know.
    #[error("PTX line {line}: {instruction} is not supported by the simulated device")]
    Unsupported {
        /// Line of the text.
        line: u32,
        /// The instruction or directive as written.
        instruction: String,
    },
    /// A name that nothing declares.
    #[error("PTX line {line}: {name} is not declared")]
    Undeclared {
        /// Line of the text.
        line: u32,
        /// The name.
        name: String,
    },
    /// A name that is declared twice in one scope.
    #[error("PTX line {line}: {name} is declared twice")]
    Duplicate {
        /// Line of the text.
        line: u32,
        /// The name.
        name: String,
    },
    /// Operands that do not fit their instruction: their number, their kind or their width.
    #[error("PTX line {line}: {problem} in {instruction}")]
    Operands {
        /// Line of the text.
        line: u32,
        /// The instruction as written.
        instruction: String,
        /// What does not fit.
        problem: String,
    },
    /// Something is larger than a bound of this interpreter.
    #[error("PTX line {line}: {what} passes the limit of {limit}")]
    TooLarge {
        /// Line of the text.
        line: u32,
        /// What is too large.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
}

/// What is wrong with one access to memory. The driver finds the first three in device memory, the
/// interpreter in shared, local and parameter memory; alignment is checked by the interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Access {
    /// Some byte lies in no allocation.
    #[error("{bytes} bytes at {address:#x} are out of bounds{}", near(*nearest))]
    OutOfBounds {
        /// First address of the access.
        address: u64,
        /// Length of the access.
        bytes: u64,
        /// Start and length of the allocation below the address, when there is one.
        nearest: Option<(u64, u64)>,
    },
    /// Some byte lies in an allocation that was freed.
    #[error("{bytes} bytes at {address:#x} were freed")]
    Freed {
        /// First address of the access.
        address: u64,
        /// Length of the access.
        bytes: u64,
    },
    /// Some byte was never written since its allocation.
    #[error("{bytes} bytes at {address:#x} are read before anything was written there")]
    Uninitialised {
        /// First address of the access.
        address: u64,
        /// Length of the access.
        bytes: u64,
    },
    /// The address is no multiple of the access's length.
    #[error("{bytes} bytes at {address:#x} are misaligned")]
    Misaligned {
        /// First address of the access.
        address: u64,
        /// Length of the access.
        bytes: u64,
    },
}

fn near(nearest: Option<(u64, u64)>) -> String {
    nearest.map_or_else(String::new, |(start, length)| format!(" (below it: {length} bytes at {start:#x})"))
}

/// A kernel that went wrong: what happened, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("kernel {kernel}, block {block:?}, thread {thread:?}, PTX line {line}, `{instruction}`: {kind}")]
pub struct Fault {
    /// Name of the kernel that was launched.
    pub kernel: String,
    /// `blockIdx` of the thread.
    pub block: [u32; 3],
    /// `threadIdx` of the thread.
    pub thread: [u32; 3],
    /// Line of the instruction in the module's text.
    pub line: u32,
    /// The instruction as written.
    pub instruction: String,
    /// What happened.
    pub kind: FaultKind,
}

/// What a thread did wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FaultKind {
    /// The launch asks for something that the kernel or the device cannot have.
    #[error("the launch is not possible: {0}")]
    Launch(String),
    /// A wrong access to memory.
    #[error("{} {space} memory: {access}", if *.store { "store to" } else { "load from" })]
    Memory {
        /// The state space, as PTX calls it.
        space: &'static str,
        /// Whether the access writes.
        store: bool,
        /// What is wrong with it.
        access: Access,
    },
    /// A register is read that nothing wrote.
    #[error("register {0} is read before anything was written to it")]
    UninitialisedRegister(String),
    /// Two threads touch the same shared byte with no barrier between, and one of them writes.
    #[error(
        "race in shared memory at offset {offset}: {} thread {other} {} it at PTX line {other_line}, with no barrier between",
        if *.store { "this store follows where" } else { "this load follows where" },
        if *.other_wrote { "wrote" } else { "read" }
    )]
    SharedRace {
        /// Offset of the byte in the block's shared memory.
        offset: u64,
        /// Whether this access writes.
        store: bool,
        /// Linear index in the block of (one of) the other threads.
        other: u32,
        /// Whether the other access wrote.
        other_wrote: bool,
        /// Line of the other access.
        other_line: u32,
    },
    /// Threads of one warp wait at different places of one aligned barrier, or disagree about it.
    #[error("divergent barrier: {0}")]
    DivergentBarrier(String),
    /// A barrier or a warp operation waits for threads that will not come.
    #[error("the block cannot go on: {0}")]
    Deadlock(String),
    /// A warp operation names or reads a lane that takes no part in it.
    #[error("lane {lane} {problem}")]
    Lane {
        /// The lane.
        lane: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// `trap` was executed.
    #[error("the kernel trapped")]
    Trap,
    /// The launch ran more instructions than its limit.
    #[error("the launch ran more than {0} instructions: it hangs, or its limit is too low")]
    InstructionLimit(u64),
    /// Calls nest too deeply, or local memory is used up.
    #[error("the stack of the thread is used up: {0}")]
    Stack(&'static str),
    /// An indirect call or branch goes nowhere.
    #[error("{0}")]
    BadTarget(String),
}
