//! What can go wrong with a GPU: what is missing on the machine, what the driver said, and whether the device is lost.

use std::time::Duration;

use thiserror::Error;

/// Why a device was not opened, or did not do what it was asked for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CudaError {
    /// A device's name that is none.
    #[error("device {0:?} is not known: it must be \"cpu\" or \"cuda:N\", N a device's number from 0 on")]
    Name(String),
    /// One of NVIDIA's libraries is not on this machine.
    #[error("{library} was not found (searched for {}); {install}", searched.join(", "))]
    LibraryMissing {
        /// Which one.
        library: &'static str,
        /// The names that were tried, in the order of the loader's search path.
        searched: Vec<String>,
        /// What brings it.
        install: &'static str,
    },
    /// A library is there, and lacks a function: it is older than what is needed, or something else of that name.
    #[error("{library} has no {symbol}; {install}")]
    SymbolMissing {
        /// Which library.
        library: &'static str,
        /// The function.
        symbol: String,
        /// What brings one that has it.
        install: &'static str,
    },
    /// The driver is older than what it must run.
    #[error(
        "the NVIDIA driver is too old: it knows CUDA {found}, {least} is the least that is needed ({why})"
    )]
    DriverTooOld {
        /// The newest CUDA version that the driver knows, such as `11.8`.
        found: String,
        /// The least that is needed.
        least: String,
        /// What needs it, and what to do.
        why: String,
    },
    /// A library is there in a version that does not do.
    #[error("{library} is of version {found}: {why}")]
    LibraryVersion {
        /// Which library.
        library: &'static str,
        /// The version that was found.
        found: String,
        /// Why it does not do, and what to do.
        why: String,
    },
    /// The machine has no device of that number.
    #[error("there is no cuda:{ordinal}: the driver shows {count} devices")]
    NoDevice {
        /// The number that was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The device cannot do what an option asks for.
    #[error("{device} cannot do this: {problem}")]
    Unsupported {
        /// The device's name.
        device: String,
        /// What it cannot do.
        problem: String,
    },
    /// The driver refused a call.
    #[error("the driver failed to {doing}: {code} ({problem})")]
    Driver {
        /// What was tried.
        doing: String,
        /// The driver's name of the error.
        code: String,
        /// Its words.
        problem: String,
    },
    /// The device has no room.
    #[error("no {bytes} bytes of GPU memory for {doing}: {free} of {total} are free")]
    OutOfMemory {
        /// What they were for.
        doing: String,
        /// How many were asked for.
        bytes: u64,
        /// How many were free.
        free: u64,
        /// How many the device has.
        total: u64,
    },
    /// The host has no room that can be pinned.
    #[error(
        "no {bytes} bytes of the host's memory can be pinned for {doing}; fewer streams or smaller buckets take less"
    )]
    OutOfHostMemory {
        /// What they were for.
        doing: String,
        /// How many were asked for.
        bytes: u64,
    },
    /// cuBLASLt refused a call.
    #[error("cuBLASLt failed to {doing}: {status}")]
    Blas {
        /// What was tried.
        doing: String,
        /// Its status.
        status: String,
    },
    /// A kernel's source did not compile.
    #[error("NVRTC did not compile {name}: {log}")]
    Compile {
        /// Which source.
        name: String,
        /// What the compiler said.
        log: String,
    },
    /// The folder of compiled kernels cannot be used.
    #[error("the kernel cache {path} cannot be used: {problem}")]
    Cache {
        /// The file or folder.
        path: String,
        /// Why.
        problem: String,
    },
    /// The device broke down: nothing on it can be used until the process starts anew.
    #[error("the device is lost, all models on it fail until this process is started anew: {problem}")]
    Lost {
        /// What it broke down over.
        problem: String,
    },
    /// The model failed in a way that may not be the device's: other models on it go on.
    #[error("the model was given up on its device and must be loaded anew: {problem}")]
    GivenUp {
        /// What it failed over.
        problem: String,
    },
    /// A batch waited too long for its turn. The device is well.
    #[error("the batch had no turn on the device within {} ms", waited.as_millis())]
    Late {
        /// How long it waited.
        waited: Duration,
    },
    /// The device did not finish in time; it is given up as lost.
    #[error("the device did not finish what it was asked for within {} ms", waited.as_millis())]
    TimedOut {
        /// How long it was waited for.
        waited: Duration,
    },
    /// As many batches wait for the device as may.
    #[error("{waiting} batches wait for the device already, more may not")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The system gives no thread for a stream.
    #[error("no thread for a stream: {problem}")]
    Thread {
        /// What it said.
        problem: String,
    },
    /// Memory that the device still copies from or to was asked for.
    #[error("a copy from or to this memory is still in flight")]
    InFlight,
    /// Options that contradict each other or a limit.
    #[error("the options of the device are wrong: {0}")]
    Options(String),
    /// The resident set of a batch had not what the host took it to have.
    #[error(
        "{rows} resident rows were not found on the device: its set is not the one that the batch was made for"
    )]
    NotResident {
        /// How many.
        rows: u32,
    },
    /// A binding of the CUDA libraries broke down.
    #[error("the CUDA libraries broke down while the device was asked to {doing}: {problem}")]
    Panicked {
        /// What was tried.
        doing: String,
        /// The last words.
        problem: String,
    },
}

impl CudaError {
    /// Whether the device, or the model on it, is lost: no later batch of the model will succeed.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::GivenUp { .. } | Self::TimedOut { .. })
    }
}
