//! Everything that the driver keeps, behind one lock, and the handles that callers have of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    thread::ThreadId,
};

use crate::{
    blas,
    capture::{Capture, CaptureMode},
    counters::Counters,
    error::Code,
    graph::{Executable, Graph},
    host::Pinned,
    memory::Memory,
    module::{Function, LoadedModule},
    races::{Clock, Races},
    settings::{Schedule, Settings},
    streams::{Event, Stream, StreamKind},
};

/// What a call gives back: nothing of the driver's is returned with an error.
pub type Answer<T> = Result<T, Code>;

/// The primary context of a device.
pub(crate) struct Context {
    pub(crate) device: u32,
    /// How often it has been retained. At nought it is gone.
    pub(crate) retained: u32,
    pub(crate) legacy: u32,
    pub(crate) per_thread: HashMap<ThreadId, u32>,
}

/// The driver's state. Maps are keyed by the numbers inside handles, which are never given twice.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) counters: Counters,
    pub(crate) initialized: bool,
    pub(crate) memory: Memory,
    pub(crate) pinned: Pinned,
    pub(crate) races: Races,
    pub(crate) contexts: BTreeMap<u64, Context>,
    pub(crate) current: HashMap<ThreadId, u64>,
    pub(crate) streams: BTreeMap<u32, Stream>,
    pub(crate) events: BTreeMap<u32, Event>,
    pub(crate) graphs: BTreeMap<u32, Arc<Graph>>,
    pub(crate) executables: BTreeMap<u32, Executable>,
    pub(crate) captures: BTreeMap<u32, Capture>,
    /// How each thread's own calls are judged while streams are captured; global where nothing is said.
    pub(crate) thread_modes: HashMap<ThreadId, CaptureMode>,
    pub(crate) modules: BTreeMap<u32, Arc<LoadedModule>>,
    pub(crate) functions: BTreeMap<u32, Function>,
    pub(crate) blas: blas::Handles,
    /// What the host has waited for.
    pub(crate) host: Clock,
    /// An error that every later call returns, until the last context is released.
    pub(crate) sticky: Option<Code>,
    /// The device is gone: an error that every call returns, until a reset.
    pub(crate) lost: Option<Code>,
    /// Nothing runs until this is taken back.
    pub(crate) hung: bool,
    /// The last finding, in words.
    pub(crate) last_fault: String,
    pub(crate) draws: u64,
    pub(crate) last_handle: u32,
}

impl State {
    pub(crate) fn handle(&mut self) -> u32 {
        self.last_handle += 1;
        self.last_handle
    }

    /// The next of the numbers that the schedule's seed gives, below `below`.
    pub(crate) fn draw(&mut self, below: usize) -> usize {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.draws;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below.max(1) as u64) as usize
    }

    /// Changes the device or the driver, or asks for faults.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        if let Schedule::Random(seed) = self.settings.schedule {
            self.draws = seed;
        }
    }

    /// Takes the device away: from now on every call returns this.
    pub(crate) fn lose(&mut self, code: Code) {
        self.refuse(code, "the device was asked to be lost");
        self.lost = Some(code);
        self.hung = false;
    }

    /// Reports a finding of a call, which that call returns, and no other.
    pub(crate) fn refuse(&mut self, code: Code, what: impl Into<String>) -> Code {
        self.last_fault = format!("{code:?}: {}", what.into());
        self.counters.faults += 1;
        eprintln!("tidepool-cuda-sim: {}", self.last_fault);
        code
    }

    /// Reports a finding of the device, which every later call returns. The first one stays.
    pub(crate) fn fault(&mut self, code: Code, what: impl Into<String>) {
        if self.sticky.is_none() {
            self.refuse(code, what);
            self.sticky = Some(code);
        }
    }

    /// The current context of the calling thread.
    pub(crate) fn context(&self) -> Answer<u64> {
        let current = self.current.get(&std::thread::current().id()).copied();
        current.filter(|context| self.contexts.contains_key(context)).ok_or(Code::INVALID_CONTEXT)
    }

    /// The stream of a handle of this context: nought and one are the legacy stream, two that of the thread.
    pub(crate) fn stream_of(&mut self, context: u64, handle: u64) -> Answer<u32> {
        match handle {
            0 | 1 => Ok(self.contexts[&context].legacy),
            2 => {
                let thread = std::thread::current().id();
                if let Some(stream) = self.contexts[&context].per_thread.get(&thread) {
                    return Ok(*stream);
                }
                let stream = self.new_stream(context, StreamKind::Blocking, 0);
                if let Some(context) = self.contexts.get_mut(&context) {
                    context.per_thread.insert(thread, stream);
                }
                Ok(stream)
            }
            _ => {
                let id = u32::try_from(handle ^ kinds::STREAM).ok();
                let known = id.filter(|id| self.streams.get(id).is_some_and(|s| s.context == context));
                known.ok_or_else(|| {
                    self.refuse(Code::INVALID_HANDLE, format!("{handle:#x} is no live stream"))
                })
            }
        }
    }

    pub(crate) fn new_stream(&mut self, context: u64, kind: StreamKind, priority: i32) -> u32 {
        let id = self.handle();
        self.streams.insert(id, Stream::new(context, kind, priority));
        id
    }

    /// The number of a handle of this kind.
    pub(crate) fn number(&mut self, kind: u64, handle: u64) -> Answer<u32> {
        u32::try_from(handle ^ kind).map_err(|_| {
            self.refuse(Code::INVALID_HANDLE, format!("{handle:#x} is no handle of the kind that is needed"))
        })
    }

    /// What a handle that is not known any more, or never was, gets.
    pub(crate) fn unknown(&mut self, what: &str) -> Code {
        self.refuse(Code::INVALID_HANDLE, format!("this handle is of no live {what}"))
    }
}

/// What handles of each kind look like: a word of their own over the number, so that one is not taken for another,
/// and no address that could be followed.
pub(crate) mod kinds {
    /// A context.
    pub(crate) const CONTEXT: u64 = 0x0C01_0000_0000_0000;
    /// A stream.
    pub(crate) const STREAM: u64 = 0x0C02_0000_0000_0000;
    /// An event.
    pub(crate) const EVENT: u64 = 0x0C03_0000_0000_0000;
    /// A graph.
    pub(crate) const GRAPH: u64 = 0x0C04_0000_0000_0000;
    /// An executable graph.
    pub(crate) const EXECUTABLE: u64 = 0x0C05_0000_0000_0000;
    /// A module.
    pub(crate) const MODULE: u64 = 0x0C06_0000_0000_0000;
    /// A function.
    pub(crate) const FUNCTION: u64 = 0x0C07_0000_0000_0000;
    /// A cuBLASLt library handle.
    pub(crate) const BLAS: u64 = 0x0C08_0000_0000_0000;
    /// A matmul description.
    pub(crate) const MATMUL: u64 = 0x0C09_0000_0000_0000;
    /// A matrix layout.
    pub(crate) const LAYOUT: u64 = 0x0C0A_0000_0000_0000;
    /// A matmul preference.
    pub(crate) const PREFERENCE: u64 = 0x0C0B_0000_0000_0000;
}
