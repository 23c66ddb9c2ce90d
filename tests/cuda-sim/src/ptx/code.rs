//! A kernel as it is run: instructions with resolved registers, and what their slots hold at the start.
//!
//! Registers, immediates, addresses of variables and special registers all live in one array of
//! 64-bit slots per call frame, so that an operand is one index. A slot keeps its value extended with
//! zeros from the width of its register.

use super::types::Type;

/// An instruction that does not use a slot has this there.
pub(super) const NONE: u16 = u16::MAX;

/// One instruction. What `d` to `e` mean is said by the code.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inst {
    pub(super) code: Code,
    /// Slot of the guarding predicate.
    pub(super) guard: u16,
    /// Whether the guard must be false.
    pub(super) negate: bool,
    pub(super) d: u16,
    pub(super) a: u16,
    pub(super) b: u16,
    pub(super) c: u16,
    pub(super) e: u16,
    /// Offset that is added to an address, or index of a list.
    pub(super) extra: i32,
}

impl Inst {
    pub(super) fn new(code: Code) -> Self {
        Self { code, guard: NONE, negate: false, d: NONE, a: NONE, b: NONE, c: NONE, e: NONE, extra: 0 }
    }
}

/// Operations on values: bits in, bits out.
pub(super) type One = fn(u64) -> u64;
pub(super) type Two = fn(u64, u64) -> u64;
pub(super) type Three = fn(u64, u64, u64) -> u64;
pub(super) type Four = fn(u64, u64, u64, u64) -> u64;
pub(super) type Test = fn(u64, u64) -> bool;
/// The last two are the carry in, and where the carry out goes.
pub(super) type Carry = fn(u64, u64, u64, &mut bool) -> u64;

/// What an instruction does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Code {
    Nop,
    Move,
    One(One),
    /// As `One`, cut to the width of the destination.
    Cut(One, u8),
    Two(Two),
    Three(Three),
    Four(Four),
    Carry(Carry),
    /// `d` becomes the number of instructions run so far.
    Clock,
    /// `d` = test(a, b) joined with predicate `c`; `e` gets the opposite of the test, joined likewise.
    Compare {
        test: Test,
        join: Join,
        negate: bool,
    },
    /// `d` = `yes` where the test holds, else 0.
    Set {
        test: Test,
        yes: Yes,
    },
    /// `d` = list `extra`, each part `bits` wide, lowest first.
    Pack {
        bits: u8,
    },
    /// List `extra` = parts of `a`.
    Unpack {
        bits: u8,
    },
    /// `d`, or list `e`, = memory at `a` + `extra`.
    Load(Access),
    /// Memory at `a` + `extra` = `b`, or list `e`.
    Store(Access),
    /// `d` = old value at `a` + `extra`, which becomes change(old, b, c).
    Atomic {
        change: Three,
        space: Space,
        bytes: u8,
    },
    /// `d` = `a` moved into the generic window of a space, or out of it.
    ToGeneric(Space),
    FromGeneric(Space),
    IsSpace(Space),
    Branch(u32),
    /// Jump to entry `a` of target list `extra`.
    BranchTable,
    /// Call of a function: entry `extra` of the function's calls.
    Call,
    Return,
    Exit,
    Trap,
    /// Barrier `a`, of `b` threads (all, when NONE). `d` and `c` belong to a reduction.
    Barrier {
        kind: BarrierKind,
        aligned: bool,
    },
    Warp(Warp),
    ActiveMask,
}

/// How `setp` combines its test with another predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    None,
    And,
    Or,
    Xor,
}

/// What `set` writes for true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Yes {
    Ones32,
    Ones16,
    OneF32,
    OneF16,
    OneBf16,
}

/// What a barrier does besides waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BarrierKind {
    Sync,
    /// Counts without waiting.
    Arrive,
    Count,
    And,
    Or,
}

/// An operation among the lanes of a warp. `b` (for shuffles and votes, see `decode/warp.rs`) and the
/// mask are operands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Warp {
    Sync,
    Up,
    Down,
    Butterfly,
    Index,
    Ballot,
    Any,
    All,
    Uniform,
    MatchAny { bits: u8 },
    MatchAll { bits: u8 },
    Reduce(Two),
}

/// A state space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

impl Space {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Global => "global",
            Self::Const => "const",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Param => "param",
        }
    }
}

/// A load or a store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) space: Space,
    /// Bytes of one element.
    pub(super) bytes: u8,
    /// Elements: 1, 2, 4 or 8.
    pub(super) count: u8,
    /// Whether a load extends the sign.
    pub(super) signed: bool,
    /// Width of the registers that are loaded into.
    pub(super) register_bits: u8,
    /// Volatile, relaxed or stronger: two such accesses do not race.
    pub(super) strong: bool,
}

/// What a slot holds when a frame is entered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// Nothing: a register, by its name.
    Register(String),
    Value(u64),
    Special(Special),
    /// Address of a module variable, plus an offset.
    Global(u32, i64),
    /// Offset in shared memory, in the part that functions have in common.
    SharedCommon(i64),
    /// Offset in the kernel's own part of shared memory.
    SharedOwn(i64),
    /// Offset in dynamic shared memory.
    SharedDynamic(i64),
    /// Offset in the frame's local memory.
    Local(i64),
    /// Address of a function.
    Function(u32),
}

/// Special registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Special {
    Thread(u8),
    Block(u8),
    BlockSize(u8),
    GridSize(u8),
    Lane,
    WarpIndex,
    Warps,
    MaskEqual,
    MaskLessEqual,
    MaskLess,
    MaskGreaterEqual,
    MaskGreater,
    DynamicShared,
    TotalShared,
    /// What is always zero here: multiprocessor, grid.
    Zero,
    /// What is always one here: number of multiprocessors.
    OneSm,
    WarpSize,
}

/// A parameter of a kernel or function, or a variable of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Where it starts in the parameter space, in bytes.
    pub offset: u32,
    /// Its length in bytes.
    pub size: u32,
}

/// One call, as the caller sees it: places in its own parameter space.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// Index of the function, unless the call is indirect through slot `a`.
    pub(super) function: Option<u32>,
    pub(super) inputs: Vec<Argument>,
    pub(super) outputs: Vec<Argument>,
}

/// What is handed to a function: a `.param` variable, or a register.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    Param(Param),
    Register(u16, Type),
}

/// A kernel or a device function, decoded.
#[derive(Debug, Default)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) code: Vec<Inst>,
    /// Line, and start and end in the text, of each instruction.
    pub(super) places: Vec<Place>,
    pub(super) slots: Vec<Slot>,
    pub(super) lists: Vec<Vec<u16>>,
    pub(super) targets: Vec<Vec<u32>>,
    pub(super) calls: Vec<Call>,
    pub(super) inputs: Vec<Param>,
    pub(super) outputs: Vec<Param>,
    /// Bytes of parameter space: inputs first, then outputs and the variables of calls.
    pub(super) param_bytes: u32,
    pub(super) local_bytes: u32,
    pub(super) defined: bool,
}

impl Function {
    pub(super) fn calls_with_places(&self) -> impl Iterator<Item = (&Call, Place)> {
        let at = self.code.iter().zip(&self.places).filter(|(inst, _)| matches!(inst.code, Code::Call));
        at.filter_map(|(inst, place)| Some((self.calls.get(inst.extra as usize)?, *place)))
    }
}

/// Where an instruction stands in the text.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) start: u32,
    pub(super) end: u32,
}
