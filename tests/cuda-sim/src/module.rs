//! Modules as the driver keeps them, and kernels on their way through the interpreter.

use std::sync::Arc;

use crate::{
    error::Code,
    exec::Failed,
    memory::{Memory, Wrong},
    ptx::{self, Access, FaultKind},
};

/// A module and where its variables lie.
pub(crate) struct LoadedModule {
    parsed: ptx::Module,
    /// Name, address and length of each variable, in the module's order.
    globals: Vec<(String, u64, u64)>,
}

/// A kernel of a module, which a handle names.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) module: Arc<LoadedModule>,
    pub(crate) name: String,
    /// Dynamic shared memory that it may have, in bytes.
    pub(crate) max_dynamic_shared: u32,
}

/// A launch with its parameters, as copied when it was asked for.
pub(crate) struct KernelCall {
    pub(crate) module: Arc<LoadedModule>,
    pub(crate) name: String,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u32,
    pub(crate) params: Vec<u8>,
}

/// `.version` and `.target` of a PTX text, as 84 for 8.4 and 80 for sm_80.
pub(crate) fn wants(text: &str) -> Option<(u32, u32)> {
    let mut words =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(str::split_whitespace);
    words.find(|word| *word == ".version")?;
    let (major, minor) = words.next()?.split_once('.')?;
    words.find(|word| *word == ".target")?;
    let target = words.next()?.trim_end_matches(',').strip_prefix("sm_")?;
    let target = target.trim_end_matches(|c: char| c.is_ascii_lowercase());
    Some((major.parse::<u32>().ok()? * 10 + minor.parse::<u32>().ok()?, target.parse().ok()?))
}

/// The newest PTX that a driver takes, by NVIDIA's table.
pub(crate) fn newest_ptx(driver_version: u32) -> u32 {
    match driver_version {
        13000.. => 90 + (driver_version - 13000) / 10,
        12090.. => 88,
        12080.. => 87,
        12050.. => 85,
        12000.. => 80 + (driver_version - 12000) / 10,
        11000.. => 70 + (driver_version - 11000) / 10,
        _ => 65,
    }
}

impl LoadedModule {
    /// Places the variables of a module in memory that `allocate` gives, and fills them.
    pub(crate) fn new(
        parsed: ptx::Module,
        memory: &mut Memory,
        mut allocate: impl FnMut(&mut Memory, u64) -> Option<u64>,
    ) -> Option<Self> {
        let mut globals = Vec::with_capacity(parsed.globals().len());
        for global in parsed.globals() {
            let address = allocate(memory, global.size.max(1))?;
            globals.push((global.name.clone(), address, global.size));
        }
        let addresses: Vec<u64> = globals.iter().map(|(_, address, _)| *address).collect();
        for (global, address) in parsed.globals().iter().zip(&addresses) {
            memory.store(*address, &global.image(&addresses)).ok()?;
        }
        Some(Self { parsed, globals })
    }

    pub(crate) fn kernel(&self, name: &str) -> Option<&ptx::Kernel> {
        self.parsed.kernel(name)
    }

    /// Address and length of a variable.
    pub(crate) fn global(&self, name: &str) -> Option<(u64, u64)> {
        let found = self.globals.iter().find(|(of, _, _)| of == name)?;
        Some((found.1, found.2))
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.globals.iter().map(|(_, address, _)| *address)
    }
}

/// What the interpreter is told of an access that cannot be.
fn told(wrong: Wrong) -> Access {
    match wrong {
        Wrong::Nowhere { address } => Access::OutOfBounds { address, bytes: 1, nearest: None },
        Wrong::Outside { address, bytes, start, length, .. } => {
            Access::OutOfBounds { address, bytes, nearest: Some((start, length)) }
        }
        Wrong::Freed { address, bytes, .. } => Access::Freed { address, bytes },
        Wrong::Unwritten { address, .. } => Access::Uninitialised { address, bytes: 1 },
        Wrong::Misaligned { address, bytes } => Access::Misaligned { address, bytes },
    }
}

impl ptx::Memory for Memory {
    fn load(&self, address: u64, into: &mut [u8]) -> Result<(), Access> {
        Memory::load(self, address, into).map_err(told)
    }

    fn store(&self, address: u64, from: &[u8]) -> Result<(), Access> {
        Memory::store(self, address, from).map_err(told)
    }

    fn atomic(&self, address: u64, bytes: usize, change: &mut dyn FnMut(u64) -> u64) -> Result<u64, Access> {
        Memory::atomic(self, address, bytes, change).map_err(told)
    }
}

/// What a device answers to a kernel that went wrong like this.
fn code(kind: &FaultKind) -> Code {
    match kind {
        FaultKind::Memory { access: Access::OutOfBounds { .. } | Access::Freed { .. }, .. } => {
            Code::ILLEGAL_ADDRESS
        }
        FaultKind::Memory { access: Access::Misaligned { .. }, .. } => Code::MISALIGNED_ADDRESS,
        FaultKind::InstructionLimit(_) | FaultKind::Deadlock(_) => Code::LAUNCH_TIMEOUT,
        _ => Code::LAUNCH_FAILED,
    }
}

/// Runs a kernel and gives the number of its instructions.
pub(crate) fn run(call: &KernelCall, memory: &Memory) -> Result<u64, Failed> {
    let Some(kernel) = call.module.kernel(&call.name) else {
        return Err((Code::INVALID_HANDLE, format!("no kernel {}", call.name)));
    };
    let launch = ptx::Launch {
        grid: call.grid,
        block: call.block,
        dynamic_shared: call.dynamic_shared,
        params: &call.params,
    };
    let addresses: Vec<u64> = call.module.addresses().collect();
    match ptx::run(&call.module.parsed, kernel, &launch, memory, &addresses, ptx::DEFAULT_INSTRUCTION_LIMIT) {
        Ok(counts) => Ok(counts.instructions),
        Err(fault) => Err((code(&fault.kind), fault.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_text_wants_is_read_from_its_head() {
        let text =
            "//\n// .version 1.0 in a comment\n.version 8.4\n.target sm_90a, debug\n.address_size 64\n";
        assert_eq!(wants(text), Some((84, 90)));
        assert_eq!(wants("\u{7f}ELF"), None);
        assert_eq!((newest_ptx(12080), newest_ptx(12040), newest_ptx(13010)), (87, 84, 91));
    }
}
