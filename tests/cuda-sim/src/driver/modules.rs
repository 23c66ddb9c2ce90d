//! Modules, functions and launches of kernels.

use std::sync::Arc;

use super::{Driver, device::MAX_SHARED, memory::is_next};
use crate::{
    error::Code,
    memory::Memory,
    module::{Function, KernelCall, LoadedModule, newest_ptx, wants},
    ptx,
    state::{Answer, State, kinds},
    work::Work,
};

/// Shared memory that a kernel may have without asking for more, in bytes.
const SHARED: u32 = 49_152;
const MAX_THREADS: u32 = 1024;

/// Grid, block and dynamic shared memory of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes.
    pub dynamic_shared: u32,
}

impl State {
    fn function(&mut self, handle: u64) -> Answer<Function> {
        let number = self.number(kinds::FUNCTION, handle)?;
        self.functions.get(&number).cloned().ok_or_else(|| self.unknown("function"))
    }

    /// Why a device would refuse this launch.
    fn launch_problem(function: &Function, kernel: &ptx::Kernel, shape: LaunchShape) -> Option<String> {
        let LaunchShape { grid, block, dynamic_shared } = shape;
        let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
        let allowed = kernel.max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS);
        if grid.contains(&0) || threads == 0 {
            return Some(format!("grid {grid:?} of blocks {block:?} is empty"));
        }
        if threads > u64::from(allowed) || block[2] > 64 {
            return Some(format!(
                "a block of {block:?} threads is larger than the {allowed} that are allowed"
            ));
        }
        if grid[0] > i32::MAX as u32 || grid[1] > 65_535 || grid[2] > 65_535 {
            return Some(format!("grid {grid:?} is too large"));
        }
        if dynamic_shared > function.max_dynamic_shared.max(SHARED.saturating_sub(kernel.shared_bytes)) {
            return Some(format!(
                "{dynamic_shared} bytes of dynamic shared memory are more than the {} that were asked for by attribute",
                function.max_dynamic_shared
            ));
        }
        None
    }
}

impl Driver {
    /// `cuModuleLoadData` of a PTX text: the handle of the module.
    pub fn load_module(&self, image: &[u8]) -> Answer<u64> {
        let (mut state, context) = self.enter()?;
        state.unsafe_call("cuModuleLoadData")?;
        let Some((text, (version, target))) =
            std::str::from_utf8(image).ok().and_then(|text| Some((text, wants(text)?)))
        else {
            return Err(state.refuse(Code::INVALID_IMAGE, "the stand-in loads PTX only, and this is none"));
        };
        let (driver, (major, minor)) = (state.settings.driver_version, state.settings.compute_capability);
        if version > newest_ptx(driver) {
            let words =
                format!("PTX {}.{} is newer than what driver {driver} takes", version / 10, version % 10);
            return Err(state.refuse(Code::UNSUPPORTED_PTX_VERSION, words));
        }
        if target > major * 10 + minor {
            let words = format!("PTX for sm_{target} does not run on compute capability {major}.{minor}");
            return Err(state.refuse(Code::NO_BINARY_FOR_GPU, words));
        }
        let parsed = ptx::Module::parse(text).map_err(|e| state.refuse(Code::INVALID_PTX, e.to_string()))?;
        let held = &mut *state;
        let allocate = |memory: &mut Memory, bytes| memory.allocate(bytes, context);
        let module = LoadedModule::new(parsed, &mut held.memory, allocate).ok_or(Code::OUT_OF_MEMORY)?;
        for address in module.addresses() {
            let length = held.memory.allocation(address).map_or(0, |a| a.length);
            held.counters.allocations_live += 1;
            held.counters.bytes_live += Memory::rounded(length);
        }
        held.memory.take_touched();
        held.counters.bytes_peak = held.counters.bytes_peak.max(held.counters.bytes_live);
        held.counters.modules_loaded += 1;
        held.counters.modules_live += 1;
        let number = held.handle();
        held.modules.insert(number, Arc::new(module));
        Ok(kinds::MODULE | u64::from(number))
    }

    /// `cuModuleUnload`. Launches that were asked for run all the same.
    pub fn unload(&self, module: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        state.unsafe_call("cuModuleUnload")?;
        let number = state.number(kinds::MODULE, module)?;
        if !state.modules.contains_key(&number) {
            return Err(state.unknown("module"));
        }
        let mut state = self.drain(state, context);
        let Some(module) = state.modules.remove(&number) else { return Err(state.unknown("module")) };
        for address in module.addresses().collect::<Vec<_>>() {
            state.release_memory(address).map_err(|wrong| state.not_memory(&wrong))?;
        }
        state.memory.take_touched();
        state.functions.retain(|_, function| !Arc::ptr_eq(&function.module, &module));
        state.counters.modules_live -= 1;
        Ok(())
    }

    /// `cuModuleGetFunction`.
    pub fn get_function(&self, module: u64, name: &str) -> Answer<u64> {
        let (mut state, _) = self.enter()?;
        let number = state.number(kinds::MODULE, module)?;
        let Some(module) = state.modules.get(&number).cloned() else { return Err(state.unknown("module")) };
        if module.kernel(name).is_none() {
            return Err(Code::NOT_FOUND);
        }
        let function = state.handle();
        state.functions.insert(function, Function { module, name: name.to_owned(), max_dynamic_shared: 0 });
        Ok(kinds::FUNCTION | u64::from(function))
    }

    /// `cuModuleGetGlobal`: address and length.
    pub fn get_global(&self, module: u64, name: &str) -> Answer<(u64, u64)> {
        let (mut state, _) = self.enter()?;
        let number = state.number(kinds::MODULE, module)?;
        let Some(module) = state.modules.get(&number) else { return Err(state.unknown("module")) };
        module.global(name).ok_or(Code::NOT_FOUND)
    }

    /// `cuFuncGetAttribute`.
    pub fn function_attribute(&self, attribute: u32, function: u64) -> Answer<i32> {
        let (mut state, _) = self.enter()?;
        let function = state.function(function)?;
        let Some(kernel) = function.module.kernel(&function.name) else {
            return Err(state.unknown("function"));
        };
        match attribute {
            0 => Ok(kernel.max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS) as i32),
            1 => Ok(kernel.shared_bytes as i32),
            2 | 7 => Ok(0),
            3 => Ok(kernel.local_bytes as i32),
            8 => Ok(function.max_dynamic_shared.max(SHARED.saturating_sub(kernel.shared_bytes)) as i32),
            9 => Ok(-1),
            5 | 6 => {
                let (major, minor) = state.settings.compute_capability;
                Ok((major * 10 + minor) as i32)
            }
            // Registers are what only ptxas knows.
            _ => {
                let words = format!("the stand-in does not know function attribute {attribute}");
                Err(state.refuse(Code::INVALID_VALUE, words))
            }
        }
    }

    /// `cuFuncSetAttribute`: dynamic shared memory past 48 KiB; the carve-out is a hint that changes nothing.
    pub fn set_function_attribute(&self, function: u64, attribute: u32, value: i32) -> Answer<()> {
        let (mut state, _) = self.enter()?;
        let of = state.function(function)?;
        let own = of.module.kernel(&of.name).map_or(0, |kernel| kernel.shared_bytes);
        let number = state.number(kinds::FUNCTION, function)?;
        match attribute {
            8 if value >= 0 && value as u32 + own <= MAX_SHARED as u32 => {
                if let Some(function) = state.functions.get_mut(&number) {
                    function.max_dynamic_shared = value as u32;
                }
                Ok(())
            }
            9 => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// How many blocks of a function a multiprocessor holds, by threads and shared memory alone: registers are what
    /// only ptxas knows.
    pub fn occupancy(&self, function: u64, threads: u32, dynamic_shared: u64) -> Answer<i32> {
        let (mut state, _) = self.enter()?;
        let function = state.function(function)?;
        let own = function.module.kernel(&function.name).map_or(0, |kernel| kernel.shared_bytes);
        if threads == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let by_threads = 2048 / u64::from(threads.next_multiple_of(32));
        let by_shared = 167_936 / (u64::from(own) + dynamic_shared + 1024);
        Ok(by_threads.min(by_shared).min(32) as i32)
    }

    /// Offset and size of a function's parameters, and the length of all, in bytes.
    pub fn parameters(&self, function: u64) -> Answer<(Vec<(u32, u32)>, u32)> {
        let (mut state, _) = self.enter()?;
        let function = state.function(function)?;
        let Some(kernel) = function.module.kernel(&function.name) else {
            return Err(state.unknown("function"));
        };
        Ok((kernel.params.iter().map(|p| (p.offset, p.size)).collect(), kernel.param_bytes))
    }

    /// `cuLaunchKernel`, with the parameters laid out as the kernel declares them.
    pub fn launch(&self, function: u64, shape: LaunchShape, params: Vec<u8>, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        let function = state.function(function)?;
        let Some(kernel) = function.module.kernel(&function.name) else {
            return Err(state.unknown("function"));
        };
        if let Some(problem) = State::launch_problem(&function, kernel, shape) {
            return Err(state.refuse(Code::INVALID_VALUE, format!("kernel {}: {problem}", function.name)));
        }
        state.may_be_lost()?;
        if is_next(&mut state.settings.refuse_launch) {
            return Err(Code::LAUNCH_OUT_OF_RESOURCES);
        }
        if state.streams[&stream].capture.is_none() {
            state.counters.launches += 1;
        }
        let LaunchShape { grid, block, dynamic_shared } = shape;
        let Function { module, name, .. } = function;
        let call = KernelCall { module, name, grid, block, dynamic_shared, params };
        state.submit(stream, Work::Kernel(Arc::new(call)), Vec::new())
    }
}
