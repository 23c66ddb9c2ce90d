//! A device: asked for by name, opened once, shared by everything that is on it. It knows whether it is lost.
#![expect(unsafe_code, reason = "the driver is called, with handles that this file made itself")]

use std::{
    fmt, io,
    str::FromStr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUresult},
};

use super::{
    CudaError,
    library::{self, Libraries, guarded},
    threads::Starter,
};

/// The highest number of a device that a name may have.
const MAX_ORDINAL: u32 = 1023;
/// The most notes that are kept; those that come later are left out.
const MAX_NOTES: usize = 32;

/// Where a model runs. It is asked for by name and never swapped for another in silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// `cpu`: the cores of this machine.
    #[default]
    Cpu,
    /// `cuda:N`: the GPU of that number, as the driver counts them (`CUDA_VISIBLE_DEVICES` may hide some).
    Cuda(u32),
}

impl FromStr for Device {
    type Err = CudaError;

    fn from_str(name: &str) -> Result<Self, CudaError> {
        let unknown = || CudaError::Name(name.to_owned());
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        let number = name.strip_prefix("cuda:").ok_or_else(unknown)?;
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(unknown());
        }
        match number.parse() {
            Ok(ordinal) if ordinal <= MAX_ORDINAL => Ok(Self::Cuda(ordinal)),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// A handle of the driver, which may be used from any thread that has its context current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle<T>(pub(super) T);

// SAFETY: handles are addresses that only the driver looks behind, and its calls may be made from any thread.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above; what must not be used from two threads at once (streams under capture, graphs) is kept on one
// thread by its owner.
unsafe impl<T> Sync for Handle<T> {}

/// An open device. Everything on it holds it, so it is closed last.
pub struct CudaDevice {
    ordinal: u32,
    name: String,
    /// Compute capability: major, minor.
    capability: (u32, u32),
    libraries: &'static Libraries,
    device: sys::CUdevice,
    context: Handle<sys::CUcontext>,
    /// Why it is lost. An error of a kernel leaves the whole context unusable, so it holds for all models.
    lost: OnceLock<String>,
    /// Whether it is lost because it did not finish: then calls that wait for it would never return.
    hangs: AtomicBool,
    /// **Trap:** what fails while something is dropped cannot be returned there, and must not be the error of whatever is
    /// called next, which may be another model's: it is kept here for those who log.
    notes: Mutex<Vec<String>>,
    starter: Starter,
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice")
            .field("ordinal", &self.ordinal)
            .field("name", &self.name)
            .field("capability", &self.capability)
            .field("lost", &self.lost.get())
            .finish_non_exhaustive()
    }
}

impl CudaDevice {
    /// Opens the device of this number: `cuda:0` is the first.
    ///
    /// # Errors
    /// What is missing on the machine (a library, a function, a device) and what brings it, or that the driver is too
    /// old for what it must run.
    pub fn open(ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let libraries = library::libraries()?;
        guarded("open a device", || {
            let count = result::device::get_count().map_err(|e| plain("count its devices", e))?;
            let number = i32::try_from(ordinal).ok().filter(|&number| number < count);
            let count = u32::try_from(count).unwrap_or(0);
            let number = number.ok_or(CudaError::NoDevice { ordinal, count })?;
            let device = result::device::get(number).map_err(|e| plain("find the device", e))?;
            let name = result::device::get_name(device).map_err(|e| plain("name the device", e))?;
            let attribute = |attribute| {
                // SAFETY: the device comes from the driver.
                let value = unsafe { result::device::get_attribute(device, attribute) };
                value
                    .map(|value| u32::try_from(value).unwrap_or(0))
                    .map_err(|e| plain("describe the device", e))
            };
            use sys::CUdevice_attribute as Of;
            let capability = (
                attribute(Of::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Of::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            );
            let starter = Starter::new().map_err(|e| no_thread(&e))?;
            // The primary context is shared by all who open the device, in this library and beside it.
            // SAFETY: the device comes from the driver; the context is released when this is dropped.
            let context = unsafe { result::primary_ctx::retain(device) };
            let context = Handle(context.map_err(|e| plain("open the device", e))?);
            let (lost, hangs, notes) = (OnceLock::new(), AtomicBool::new(false), Mutex::default());
            Ok(Arc::new(Self {
                ordinal,
                name,
                capability,
                libraries,
                device,
                context,
                lost,
                hangs,
                notes,
                starter,
            }))
        })
    }

    /// Starts the thread of a stream, at the priority of whoever opened the device.
    pub(super) fn start(
        &self,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, CudaError> {
        self.starter.start(name, work).map_err(|e| no_thread(&e))
    }

    /// Its number.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// What its maker calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its compute capability: major, minor.
    #[must_use]
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Why the device is lost, if it is.
    #[must_use]
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// The versions of the libraries, for those who ask what runs here: driver's CUDA, NVRTC, cuBLASLt.
    #[must_use]
    pub fn versions(&self) -> String {
        let Libraries { driver, nvrtc, cublaslt } = self.libraries;
        format!(
            "driver for CUDA {}.{}, NVRTC {}.{}, cuBLASLt {cublaslt}",
            driver.0, driver.1, nvrtc.0, nvrtc.1
        )
    }

    /// Free and total bytes of its memory.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(|e| self.failed("tell its memory", e))?;
        Ok((free as u64, total as u64))
    }

    /// Makes the device the one that this thread's calls are for; also says whether it can still be used. Every
    /// thread does this before its calls; it costs a write to thread-local memory.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        if let Some(problem) = self.lost.get() {
            return Err(CudaError::Lost { problem: problem.clone() });
        }
        // SAFETY: the context is retained as long as `self` is there.
        unsafe { result::ctx::set_current(self.context.0) }.map_err(|e| self.failed("select the device", e))
    }

    /// The same for a `drop`, where nothing can be returned; whether there is something to give back to. What is on a lost
    /// device is left there: it goes with the context, and a device that hangs would hang who frees.
    pub(super) fn bind_for_drop(&self) -> bool {
        if self.lost.get().is_some() {
            return false;
        }
        // SAFETY: as above.
        let bound = unsafe { result::ctx::set_current(self.context.0) };
        let usable = bound.is_ok();
        self.note("select the device", bound);
        usable
    }

    /// Keeps what failed in a `drop`.
    pub(super) fn note(&self, doing: &str, answer: Result<(), DriverError>) {
        let Err(error) = answer else { return };
        let error = self.failed(doing, error);
        // A lost device fails everything; that is told already.
        if !error.is_lost() {
            self.tell(error.to_string());
        }
    }

    /// Keeps a note for those who log.
    pub(super) fn tell(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < MAX_NOTES {
            notes.push(note);
        }
    }

    /// What went wrong on it and failed nobody, since it was asked last: memory that could not be freed, a folder that kept
    /// no kernels. For logs.
    #[must_use]
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives up a device that did not finish in time.
    pub(super) fn hangs(&self, waited: Duration) -> CudaError {
        self.hangs.store(true, Ordering::Release);
        let error = CudaError::TimedOut { waited };
        self.give_up(error.to_string());
        error
    }

    /// Asks the device whether it is lost, where a library beside the driver failed on it.
    pub(super) fn look(&self) {
        // A lost context fails every call.
        if let Err(error) = result::mem_get_info() {
            self.failed("tell its memory", error);
        }
    }

    /// Gives the device up.
    pub(super) fn give_up(&self, problem: String) -> CudaError {
        let first = || {
            self.tell(format!("cuda:{} is lost: {problem}", self.ordinal));
            problem
        };
        CudaError::Lost { problem: self.lost.get_or_init(first).clone() }
    }

    /// What a call's error means for the device.
    pub(super) fn failed(&self, doing: &str, error: DriverError) -> CudaError {
        if is_sticky(error.0) {
            let (code, words) = words(error);
            return self.give_up(format!("it failed to {doing}: {code} ({words})"));
        }
        plain(doing, error)
    }

    /// The error of an allocation.
    pub(super) fn no_room(&self, what: &str, bytes: usize, error: DriverError) -> CudaError {
        if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return self.failed(&format!("allocate {bytes} bytes for {what}"), error);
        }
        let (free, total) = result::mem_get_info().unwrap_or((0, 0));
        let (free, total) = (free as u64, total as u64);
        CudaError::OutOfMemory { doing: what.to_owned(), bytes: bytes as u64, free, total }
    }

    /// The error of an allocation of pinned memory.
    pub(super) fn no_host_room(&self, what: &str, bytes: usize, error: DriverError) -> CudaError {
        if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return self.failed(&format!("allocate {bytes} bytes of pinned memory for {what}"), error);
        }
        CudaError::OutOfHostMemory { doing: what.to_owned(), bytes: bytes as u64 }
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        if self.hangs.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: it was retained once when this was made. Nobody is left to tell of a failure.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Errors after which the context can only be thrown away: by the driver's documentation, "the process must be
/// terminated and relaunched".
fn is_sticky(code: CUresult) -> bool {
    use CUresult as C;
    matches!(
        code,
        C::CUDA_ERROR_ASSERT
            | C::CUDA_ERROR_CONTAINED
            | C::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | C::CUDA_ERROR_DEINITIALIZED
            | C::CUDA_ERROR_DEVICE_UNAVAILABLE
            | C::CUDA_ERROR_ECC_UNCORRECTABLE
            | C::CUDA_ERROR_EXTERNAL_DEVICE
            | C::CUDA_ERROR_HARDWARE_STACK_ERROR
            | C::CUDA_ERROR_ILLEGAL_ADDRESS
            | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | C::CUDA_ERROR_INVALID_PC
            | C::CUDA_ERROR_LAUNCH_FAILED
            | C::CUDA_ERROR_LAUNCH_TIMEOUT
            | C::CUDA_ERROR_MISALIGNED_ADDRESS
            | C::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | C::CUDA_ERROR_MPS_RPC_FAILURE
            | C::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | C::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | C::CUDA_ERROR_UNKNOWN
    )
}

/// The driver's name of an error, and its words.
fn words(error: DriverError) -> (String, String) {
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.ok().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    };
    (text(error.error_name()), text(error.error_string()))
}

fn no_thread(problem: &io::Error) -> CudaError {
    CudaError::Thread { problem: problem.to_string() }
}

fn plain(doing: &str, error: DriverError) -> CudaError {
    let (code, problem) = words(error);
    CudaError::Driver { doing: doing.to_owned(), code, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_exactly() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda:0".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:12".parse::<Device>().unwrap().to_string(), "cuda:12");
        for wrong in
            ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:1 ", "CUDA:0", "cuda:99999999999"]
        {
            assert_eq!(wrong.parse::<Device>(), Err(CudaError::Name(wrong.into())));
        }
    }
}
