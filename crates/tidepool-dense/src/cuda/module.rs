//! Modules: PTX as the device runs it, and the kernels in them.
#![expect(unsafe_code, reason = "the driver loads modules and launches kernels")]

use std::{
    ffi::{CString, c_void},
    fmt,
    sync::Arc,
};

use cudarc::driver::{result, sys};

use super::{CudaDevice, CudaError, device::Handle, stream::Stream};

/// Bytes of the log of the driver's compiler.
const LOG_BYTES: usize = 8 << 10;

/// Loaded PTX.
pub(crate) struct Module {
    device: Arc<CudaDevice>,
    raw: Handle<sys::CUmodule>,
}

impl Module {
    /// Has the driver compile PTX for the device.
    pub(crate) fn load(device: &Arc<CudaDevice>, name: &str, ptx: &str) -> Result<Arc<Self>, CudaError> {
        device.bind()?;
        let holds_nul = |_| CudaError::Compile { name: name.to_owned(), log: "a NUL byte in its PTX".into() };
        let image = CString::new(ptx).map_err(holds_nul)?;
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values =
            [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut::<c_void>(LOG_BYTES)];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image ends with NUL; the two options have their values, of which the first points to as many
        // bytes as the second says; all of them outlive the call.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut raw,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        loaded.result().map_err(|error| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]).into_owned();
            let failed = device.failed(&format!("load the kernels of {name}"), error);
            match failed {
                CudaError::Driver { doing, code, problem } if !log.is_empty() => {
                    CudaError::Driver { doing, code, problem: format!("{problem}: {}", log.trim_end()) }
                }
                failed => failed,
            }
        })?;
        Ok(Arc::new(Self { device: device.clone(), raw: Handle(raw) }))
    }

    /// The kernel of this name.
    pub(crate) fn kernel(self: &Arc<Self>, name: &str) -> Result<Kernel, CudaError> {
        self.device.bind()?;
        let symbol = CString::new(name).map_err(|_| CudaError::Compile {
            name: name.to_owned(),
            log: "a NUL byte in a kernel's name".into(),
        })?;
        // SAFETY: the module is loaded as long as `self` is there, which the kernel holds.
        let raw = unsafe { result::module::get_function(self.raw.0, symbol) };
        let raw = raw.map_err(|e| self.device.failed(&format!("find the kernel {name}"), e))?;
        Ok(Kernel { _module: self.clone(), raw: Handle(raw) })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if !self.device.bind_for_drop() {
            return;
        }
        // SAFETY: it was loaded once and is unloaded here alone, when no kernel of it is left.
        self.device.note("unload kernels", unsafe { result::module::unload(self.raw.0) });
    }
}

/// A kernel.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// Loaded as long as a kernel of it is there.
    _module: Arc<Module>,
    raw: Handle<sys::CUfunction>,
}

/// A kernel's arguments, in order: addresses on the device and numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments(Vec<u64>);

impl Arguments {
    /// An address on the device.
    pub(crate) fn address(self, address: u64) -> Self {
        self.u64(address)
    }

    /// An `unsigned long long`.
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.push(value);
        self
    }

    /// An `unsigned int`. Only the first four bytes are taken, and numbers are little-endian here as there.
    pub(crate) fn u32(self, value: u32) -> Self {
        self.u64(value.into())
    }

    /// A `float`.
    pub(crate) fn f32(self, value: f32) -> Self {
        self.u32(value.to_bits())
    }
}

/// One launch of a kernel.
#[derive(Clone)]
pub(crate) struct Launch {
    /// What the launch is for, in messages.
    pub(crate) name: String,
    pub(crate) kernel: Kernel,
    /// Blocks, each of `block` threads.
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    pub(crate) shared: u32,
    pub(crate) arguments: Arguments,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} x {:?}", self.name, self.grid, self.block)
    }
}

impl Launch {
    /// With one thread for each of `threads`, and those that fill the last block.
    pub(crate) fn flat(name: &str, kernel: &Kernel, threads: u64, block: u32, arguments: Arguments) -> Self {
        let blocks = u32::try_from(threads.div_ceil(block.into()).max(1)).unwrap_or(u32::MAX);
        let (grid, block) = ([blocks, 1, 1], [block, 1, 1]);
        Self { name: name.to_owned(), kernel: kernel.clone(), grid, block, shared: 0, arguments }
    }

    /// Asks a stream for it.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in number and type; what they point to is memory of the device that has
    /// room for all that the kernel reads and writes there, and that outlives the work.
    pub(crate) unsafe fn ask(&self, stream: &Stream) -> Result<(), CudaError> {
        let device = stream.device();
        device.bind()?;
        let mut values = self.arguments.0.clone();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let [grid, block] = [self.grid, self.block].map(|[x, y, z]| (x, y, z));
        // SAFETY: the function belongs to a module that `self` holds; the driver copies the arguments before it
        // returns; the rest is the caller's promise.
        let asked = unsafe {
            result::launch_kernel(self.kernel.raw.0, grid, block, self.shared, stream.raw(), &mut pointers)
        };
        asked.map_err(|e| device.failed(&format!("launch {}", self.name), e))
    }
}
