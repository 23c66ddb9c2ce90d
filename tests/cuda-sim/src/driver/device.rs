//! Initialisation, devices and their primary contexts.

use super::Driver;
use crate::{
    error::Code,
    memory::Memory,
    state::{Answer, Context, kinds},
    streams::StreamKind,
};

/// Numbers of `CUdevice_attribute` that the stand-in answers, with those of an A100 where there is a choice.
const ATTRIBUTES: &[(u32, i32)] = &[
    (1, 1024),        // MAX_THREADS_PER_BLOCK
    (2, 1024),        // MAX_BLOCK_DIM_X
    (3, 1024),        // MAX_BLOCK_DIM_Y
    (4, 64),          // MAX_BLOCK_DIM_Z
    (5, i32::MAX),    // MAX_GRID_DIM_X
    (6, 65_535),      // MAX_GRID_DIM_Y
    (7, 65_535),      // MAX_GRID_DIM_Z
    (8, 49_152),      // MAX_SHARED_MEMORY_PER_BLOCK
    (9, 65_536),      // TOTAL_CONSTANT_MEMORY
    (10, 32),         // WARP_SIZE
    (12, 65_536),     // MAX_REGISTERS_PER_BLOCK
    (13, 1_410_000),  // CLOCK_RATE, kHz
    (15, 1),          // GPU_OVERLAP
    (16, 108),        // MULTIPROCESSOR_COUNT
    (17, 0),          // KERNEL_EXEC_TIMEOUT
    (18, 0),          // INTEGRATED
    (19, 0),          // CAN_MAP_HOST_MEMORY: addresses of the host are no addresses of this device
    (20, 0),          // COMPUTE_MODE
    (31, 1),          // CONCURRENT_KERNELS
    (32, 1),          // ECC_ENABLED
    (36, 1_215_000),  // MEMORY_CLOCK_RATE, kHz
    (37, 5_120),      // GLOBAL_MEMORY_BUS_WIDTH
    (38, 41_943_040), // L2_CACHE_SIZE
    (39, 2_048),      // MAX_THREADS_PER_MULTIPROCESSOR
    (40, 3),          // ASYNC_ENGINE_COUNT
    (41, 0),          // UNIFIED_ADDRESSING
    (78, 1),          // STREAM_PRIORITIES_SUPPORTED
    (81, 167_936),    // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    (82, 65_536),     // MAX_REGISTERS_PER_MULTIPROCESSOR
    (83, 0),          // MANAGED_MEMORY
    (88, 0),          // PAGEABLE_MEMORY_ACCESS
    (95, 0),          // COOPERATIVE_LAUNCH
    (97, MAX_SHARED), // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    (106, 32),        // MAX_BLOCKS_PER_MULTIPROCESSOR
    (111, 1_024),     // RESERVED_SHARED_MEMORY_PER_BLOCK
    (115, 1),         // MEMORY_POOLS_SUPPORTED
];

/// The most shared memory that a kernel may ask for, in bytes.
pub(super) const MAX_SHARED: i32 = 166_912;

impl Driver {
    /// `cuInit`.
    pub fn init(&self) -> Answer<()> {
        let mut state = self.held();
        if let Some(lost) = state.lost {
            return Err(lost);
        }
        if state.settings.devices == 0 {
            return Err(Code::NO_DEVICE);
        }
        state.initialized = true;
        Ok(())
    }

    /// `cuDriverGetVersion`, which needs no initialisation.
    pub fn version(&self) -> u32 {
        self.held().settings.driver_version
    }

    /// `cuDeviceGetCount`.
    pub fn device_count(&self) -> Answer<u32> {
        let state = self.held();
        if state.initialized { Ok(state.settings.devices) } else { Err(Code::NOT_INITIALIZED) }
    }

    /// `cuDeviceGet`: ordinals and devices are the same numbers.
    pub fn device(&self, ordinal: i32) -> Answer<u32> {
        let count = self.device_count()?;
        u32::try_from(ordinal).ok().filter(|device| *device < count).ok_or(Code::INVALID_DEVICE)
    }

    /// `cuDeviceGetAttribute`.
    pub fn attribute(&self, attribute: u32, device: i32) -> Answer<i32> {
        self.device(device)?;
        let (major, minor) = self.held().settings.compute_capability;
        match attribute {
            75 => Ok(major as i32),
            76 => Ok(minor as i32),
            33 => Ok(device + 1),
            _ => {
                let known = ATTRIBUTES.iter().find(|(number, _)| *number == attribute);
                known.map(|(_, value)| *value).ok_or_else(|| {
                    let words = format!("the stand-in does not know device attribute {attribute}");
                    self.held().refuse(Code::INVALID_VALUE, words)
                })
            }
        }
    }

    /// `cuDeviceTotalMem`.
    pub fn total_memory(&self, device: i32) -> Answer<u64> {
        self.device(device)?;
        Ok(self.held().settings.memory_bytes)
    }

    /// `cuDevicePrimaryCtxRetain`: the handle of the context.
    pub fn retain(&self, device: i32) -> Answer<u64> {
        let device = self.device(device)?;
        let mut state = self.held();
        if let Some(lost) = state.lost {
            return Err(lost);
        }
        let known = state.contexts.iter_mut().find(|(_, context)| context.device == device);
        if let Some((handle, context)) = known {
            context.retained += 1;
            return Ok(*handle);
        }
        let handle = kinds::CONTEXT | u64::from(state.handle());
        let legacy = state.new_stream(handle, StreamKind::Legacy, 0);
        let context = Context { device, retained: 1, legacy, per_thread: Default::default() };
        state.contexts.insert(handle, context);
        Ok(handle)
    }

    /// `cuDevicePrimaryCtxRelease`. The last one ends the context with everything in it, says what was live still,
    /// and takes an error of the device away.
    pub fn release(&self, device: i32) -> Answer<()> {
        let device = self.device(device)?;
        let mut state = self.held();
        let Some((handle, context)) = state.contexts.iter_mut().find(|(_, c)| c.device == device) else {
            return Err(Code::INVALID_CONTEXT);
        };
        let handle = *handle;
        context.retained -= 1;
        if context.retained > 0 {
            return Ok(());
        }
        if !state.hung {
            state = self.drain(state, handle);
        }
        let leaks = state.end_context(handle);
        state.sticky = None;
        if !leaks.is_empty() {
            state.counters.leaks += leaks.len() as u64;
            let (told, more) = leaks.split_at(leaks.len().min(8));
            let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            let words =
                format!("live when the context of device {device} was released: {}{more}", told.join(", "));
            eprintln!("tidepool-cuda-sim: {words}");
            state.last_fault = words;
        }
        Ok(())
    }

    /// `cuCtxSetCurrent`; nought takes the current one away.
    pub fn set_current(&self, context: u64) -> Answer<()> {
        let mut state = self.held();
        if !state.initialized {
            return Err(Code::NOT_INITIALIZED);
        }
        let thread = std::thread::current().id();
        if context == 0 {
            state.current.remove(&thread);
        } else if state.contexts.contains_key(&context) {
            state.current.insert(thread, context);
        } else {
            return Err(Code::INVALID_CONTEXT);
        }
        Ok(())
    }

    /// `cuCtxGetCurrent`; nought where there is none.
    pub fn current(&self) -> Answer<u64> {
        let state = self.held();
        if state.initialized { Ok(state.context().unwrap_or(0)) } else { Err(Code::NOT_INITIALIZED) }
    }

    /// The device of the current context.
    pub fn current_device(&self) -> Answer<u32> {
        let state = self.held();
        let context = state.context()?;
        Ok(state.contexts[&context].device)
    }

    /// `cuCtxSynchronize`.
    pub fn synchronize(&self) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let captured: Vec<u32> = state.streams.values().filter_map(|s| s.capture).collect();
        if !captured.is_empty() {
            for capture in captured {
                state.invalidate(capture, "the host waits for the device");
            }
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        state.counters.synchronizations += 1;
        self.answer(self.drain(state, context))
    }

    /// `cuMemGetInfo`: free and total bytes.
    pub fn memory_info(&self) -> Answer<(u64, u64)> {
        let (state, _) = self.enter()?;
        let total = state.settings.memory_bytes;
        Ok((total.saturating_sub(state.counters.bytes_live), total))
    }
}

impl crate::state::State {
    /// Ends everything of a context, and names what its user should have ended.
    fn end_context(&mut self, handle: u64) -> Vec<String> {
        let mut leaks = Vec::new();
        let module_globals: Vec<u64> = self.modules.values().flat_map(|m| m.addresses()).collect();
        let live: Vec<(u64, u64, u64)> =
            self.memory.live(handle).map(|a| (a.start, a.serial, a.length)).collect();
        for (start, serial, length) in live {
            if !module_globals.contains(&start) {
                leaks.push(format!("allocation {serial} of {length} bytes"));
            }
            if self.memory.free(start).is_ok() {
                self.counters.allocations_live -= 1;
                self.counters.bytes_live -= Memory::rounded(length);
            }
        }
        // Without any other context, all that is left belongs to this one.
        if self.contexts.len() == 1 {
            leaks.extend(self.pinned.live().map(|bytes| format!("{bytes} bytes of pinned memory")));
            leaks.extend(self.events.keys().map(|_| "an event".to_owned()));
            leaks.extend(self.graphs.keys().map(|_| "a graph".to_owned()));
            leaks.extend(self.executables.keys().map(|_| "an executable graph".to_owned()));
            leaks.extend(self.modules.keys().map(|_| "a module".to_owned()));
            self.events.clear();
            self.graphs.clear();
            self.executables.clear();
            self.modules.clear();
            self.functions.clear();
            self.pinned.forget();
            self.counters.pinned_live = 0;
            self.counters.pinned_bytes_live = 0;
            self.counters.events_live = 0;
            self.counters.graphs_live = 0;
            self.counters.modules_live = 0;
        }
        let context = self.contexts.remove(&handle);
        let own: Vec<u32> =
            context.iter().flat_map(|c| c.per_thread.values().copied().chain([c.legacy])).collect();
        let streams = self.streams.iter().filter(|(_, s)| s.context == handle).map(|(id, _)| *id);
        for stream in streams.collect::<Vec<_>>() {
            if !own.contains(&stream) {
                leaks.push("a stream".to_owned());
                self.counters.streams_live -= 1;
            }
            self.streams.remove(&stream);
        }
        self.captures.clear();
        self.races.forget();
        self.memory.take_touched();
        leaks
    }
}
