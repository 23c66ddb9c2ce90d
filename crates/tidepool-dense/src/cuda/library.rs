//! NVIDIA's libraries, found when they are first needed: the driver, NVRTC and cuBLASLt. A machine without them starts
//! the program all the same; asking for a device there is an error that names what is missing and what brings it.
//!
//! **Trap:** cudarc looks symbols up one by one at their first use, and a missing library or symbol is a panic there,
//! not an error. So here, in one place, it is seen to that the library is present and has every function that this
//! crate calls; and the first calls run inside `catch_unwind`, should the lists below ever lag behind.
#![expect(unsafe_code, reason = "libraries are loaded, and asked for symbols and versions, by C calls")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};

use cudarc::{cublaslt, driver, nvrtc};

use super::CudaError;

/// The least version of CUDA that the driver must know: what cuBLASLt of CUDA 12 runs on.
const LEAST_DRIVER: (i32, i32) = (12, 0);

/// The least version of CUDA that the other libraries may be of.
const LEAST_LIBRARY: i32 = 12;

const DRIVER: &str = "the NVIDIA driver (libcuda)";
const NVRTC: &str = "NVRTC (libnvrtc)";
const CUBLASLT: &str = "cuBLASLt (libcublasLt)";
const INSTALL_DRIVER: &str = "install an NVIDIA driver of version 525 or later, in a container pass the GPU in, or set device = \"cpu\"";
const INSTALL_NVRTC: &str = "install CUDA 12 or 13's NVRTC (packages cuda-nvrtc-12-4, or nvidia-cuda-nvrtc-cu12 of \
                             PyPI with its folder in LD_LIBRARY_PATH)";
const INSTALL_CUBLASLT: &str = "install CUDA 12 or 13's cuBLAS (packages libcublas-12-4, or nvidia-cublas-cu12 of PyPI \
                                with its folder in LD_LIBRARY_PATH)";

/// The functions of the driver that this crate calls, as the library names them.
const DRIVER_SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
];

const NVRTC_SYMBOLS: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
];

const CUBLASLT_SYMBOLS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatrixLayoutSetAttribute",
];

/// The libraries, present and complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Libraries {
    /// The newest CUDA version that the driver knows: major, minor.
    pub(crate) driver: (i32, i32),
    /// The version of NVRTC.
    pub(crate) nvrtc: (i32, i32),
    /// The number of cuBLASLt's version.
    pub(crate) cublaslt: u64,
}

/// Finds them, once per process, and starts the driver.
///
/// # Errors
/// What is missing or too old, and what to do about it.
pub(crate) fn libraries() -> Result<&'static Libraries, CudaError> {
    static FOUND: OnceLock<Result<Libraries, CudaError>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref().map_err(Clone::clone)
}

/// NVRTC alone, for those who compile without a device; its version.
pub(crate) fn nvrtc() -> Result<(i32, i32), CudaError> {
    // SAFETY: loading a library of that name runs nothing but its initialisers.
    let present = unsafe { nvrtc::sys::is_culib_present() };
    require(NVRTC, "nvrtc", INSTALL_NVRTC, present)?;
    has_all(NVRTC, NVRTC_SYMBOLS, INSTALL_NVRTC, |symbol| {
        // SAFETY: the library is present.
        let library = unsafe { nvrtc::sys::culib() };
        // SAFETY: the symbol is looked up and not called, so its type does not matter.
        unsafe { library.get::<*const ()>(symbol) }.is_ok()
    })?;
    guarded("tell NVRTC's version", || {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to numbers of the type that it writes.
        let answer = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        answer.result().map_err(|e| CudaError::Compile { name: "its version".into(), log: e.to_string() })?;
        Ok((major, minor))
    })
}

fn find() -> Result<Libraries, CudaError> {
    // SAFETY: loading a library of that name runs nothing but its initialisers.
    let present = unsafe { driver::sys::is_culib_present() };
    require(DRIVER, "cuda", INSTALL_DRIVER, present)?;
    // The version first: an old driver is told by its version and not by the first function that it lacks.
    let version_is_there = |symbol: &[u8]| {
        // SAFETY: the library is present.
        let library = unsafe { driver::sys::culib() };
        // SAFETY: the symbol is looked up and not called.
        unsafe { library.get::<*const ()>(symbol) }.is_ok()
    };
    has_all(DRIVER, &["cuDriverGetVersion"], INSTALL_DRIVER, version_is_there)?;
    let driver_version = guarded("tell the driver's version", || {
        let mut version = 0;
        // SAFETY: it points to a number of the type that is written.
        let answer = unsafe { driver::sys::cuDriverGetVersion(&raw mut version) };
        answer.result().map_err(|e| CudaError::Driver {
            doing: "tell its version".into(),
            code: format!("{:?}", e.0),
            problem: "the library answers nothing".into(),
        })?;
        Ok((version / 1000, version % 1000 / 10))
    })?;
    if driver_version < LEAST_DRIVER {
        let why = "cuBLASLt of CUDA 12 runs on it; install a driver of version 525 or later";
        return Err(too_old(driver_version, LEAST_DRIVER, why.into()));
    }
    has_all(DRIVER, DRIVER_SYMBOLS, INSTALL_DRIVER, version_is_there)?;
    let nvrtc_version = nvrtc()?;
    if driver_version < nvrtc_version {
        let (major, minor) = nvrtc_version;
        let why = format!(
            "NVRTC {major}.{minor} makes PTX for it; install a newer driver, or an NVRTC that is not newer than the driver"
        );
        return Err(too_old(driver_version, nvrtc_version, why));
    }
    // SAFETY: as for the driver.
    let present = unsafe { cublaslt::sys::is_culib_present() };
    require(CUBLASLT, "cublasLt", INSTALL_CUBLASLT, present)?;
    has_all(CUBLASLT, CUBLASLT_SYMBOLS, INSTALL_CUBLASLT, |symbol| {
        // SAFETY: the library is present.
        let library = unsafe { cublaslt::sys::culib() };
        // SAFETY: the symbol is looked up and not called.
        unsafe { library.get::<*const ()>(symbol) }.is_ok()
    })?;
    let cublaslt = guarded("tell cuBLASLt's version", || {
        // SAFETY: it takes nothing.
        Ok(unsafe { cublaslt::sys::cublasLtGetVersion() } as u64)
    })?;
    fit(driver_version, nvrtc_version, cublaslt)?;
    guarded("start the driver", || {
        driver::result::init().map_err(|e| CudaError::Driver {
            doing: "start".into(),
            code: format!("{:?}", e.0),
            problem: "there may be no device, or no right to use it".into(),
        })
    })?;
    Ok(Libraries { driver: driver_version, nvrtc: nvrtc_version, cublaslt })
}

/// Whether the libraries are new enough for what is asked of them, and cuBLASLt not too new for the driver: the driver runs
/// what is of its major version or an older one.
fn fit(driver: (i32, i32), nvrtc: (i32, i32), cublaslt: u64) -> Result<(), CudaError> {
    let least = |library, found: String, install: &str| {
        let why = format!("CUDA {LEAST_LIBRARY}'s is the least that is needed; {install}");
        CudaError::LibraryVersion { library, found, why }
    };
    if nvrtc.0 < LEAST_LIBRARY {
        return Err(least(NVRTC, format!("{}.{}", nvrtc.0, nvrtc.1), INSTALL_NVRTC));
    }
    // 120402 is 12.4.2.
    let (major, minor) = (i32::try_from(cublaslt / 10_000).unwrap_or(i32::MAX), cublaslt / 100 % 100);
    let found = format!("{major}.{minor}");
    if major < LEAST_LIBRARY {
        return Err(least(CUBLASLT, found, INSTALL_CUBLASLT));
    }
    if major > driver.0 {
        let why = format!(
            "the driver knows CUDA {}.{}; install a newer driver, or a cuBLASLt of CUDA {}",
            driver.0, driver.1, driver.0
        );
        return Err(CudaError::LibraryVersion { library: CUBLASLT, found, why });
    }
    Ok(())
}

fn too_old(found: (i32, i32), least: (i32, i32), why: String) -> CudaError {
    let text = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    CudaError::DriverTooOld { found: text(found), least: text(least), why }
}

fn require(library: &'static str, name: &str, install: &'static str, present: bool) -> Result<(), CudaError> {
    if present {
        return Ok(());
    }
    let searched = cudarc::get_lib_name_candidates(name);
    Err(CudaError::LibraryMissing { library, searched, install })
}

fn has_all(
    library: &'static str,
    symbols: &[&str],
    install: &'static str,
    has: impl Fn(&[u8]) -> bool,
) -> Result<(), CudaError> {
    match symbols.iter().find(|symbol| !has(symbol.as_bytes())) {
        Some(symbol) => Err(CudaError::SymbolMissing { library, symbol: (*symbol).to_owned(), install }),
        None => Ok(()),
    }
}

/// Runs calls of cudarc; a panic of its becomes an error.
pub(crate) fn guarded<T>(doing: &str, work: impl FnOnce() -> Result<T, CudaError>) -> Result<T, CudaError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let problem = crate::guard::words_of(&*panic);
        Err(CudaError::Panicked { doing: doing.to_owned(), problem })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_was_searched_and_what_brings_it() {
        let error = require(DRIVER, "cuda", INSTALL_DRIVER, false).unwrap_err();
        let text = error.to_string();
        for part in ["libcuda", "libcuda.so.1", "libcuda.so", "driver of version 525", "device = \"cpu\""] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let error = has_all(NVRTC, NVRTC_SYMBOLS, INSTALL_NVRTC, |s| s != b"nvrtcGetPTX").unwrap_err();
        assert!(error.to_string().contains("libnvrtc) has no nvrtcGetPTX; install"), "{error}");
    }

    #[test]
    fn libraries_must_be_of_versions_that_go_together() {
        assert_eq!(fit((12, 4), (12, 4), 120_402), Ok(()));
        assert_eq!(fit((13, 0), (12, 4), 120_402), Ok(()));
        for (driver, nvrtc, cublaslt, part) in [
            ((12, 4), (11, 8), 120_402, "NVRTC (libnvrtc) is of version 11.8: CUDA 12's is the least"),
            ((12, 4), (12, 4), 111_103, "(libcublasLt) is of version 11.11: CUDA 12's is the least"),
            (
                (12, 4),
                (12, 4),
                130_001,
                "is of version 13.0: the driver knows CUDA 12.4; install a newer driver",
            ),
        ] {
            let error = fit(driver, nvrtc, cublaslt).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_panic_of_the_bindings_is_an_error() {
        let error = guarded::<()>("start", || panic!("no symbol cuFoo")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the CUDA libraries broke down while the device was asked to start: no symbol cuFoo"
        );
    }

    #[test]
    fn an_old_driver_is_named_with_what_is_needed() {
        let error = too_old((11, 8), LEAST_DRIVER, "because".into());
        assert!(error.to_string().contains("it knows CUDA 11.8, 12.0 is the least"), "{error}");
    }
}
