//! Sources of kernels become PTX by NVRTC when a model is loaded, once: what was compiled is kept in a folder, if one is
//! given (`kept.rs`), under the hash of everything that decides what comes out.
//!
//! It is always PTX, which the driver compiles for its device: the same files serve every device of the architecture
//! and later ones, and nothing depends on a cubin.
#![expect(unsafe_code, reason = "NVRTC is called with programs that this file made itself")]

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use cudarc::nvrtc::{result, sys};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{
    CudaError, kept,
    library::{self, guarded},
};

/// Options of every compilation. Products and sums are fused where the source says so and nowhere else, and divisions
/// and roots are rounded correctly: element-wise steps then give the CPU's bits.
const OPTIONS: &[&str] =
    &["--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false", "--std=c++17"];
/// The longest source.
const MAX_SOURCE: usize = 64 << 20;
/// The variable that names a folder into which all PTX is written, for `ptxas` to judge.
const PTX_DIR: &str = "TIDEPOOL_PTX_DIR";

/// Sources to PTX for one architecture.
pub(crate) struct Compiler {
    /// Such as 80 for `compute_80`.
    architecture: u32,
    nvrtc: (i32, i32),
    cache: Option<PathBuf>,
    /// What was wrong with the cache: nothing depends on it.
    notes: Mutex<Vec<String>>,
}

impl Compiler {
    /// For devices of this compute capability; NVRTC's newest architecture when the device is newer than NVRTC.
    ///
    /// # Errors
    /// When NVRTC is missing, or cannot compile for so old a device.
    pub(crate) fn new(capability: (u32, u32), cache: Option<&Path>) -> Result<Self, CudaError> {
        let nvrtc = library::nvrtc()?;
        let device = capability.0 * 10 + capability.1;
        let supported = guarded("tell NVRTC's architectures", architectures)?;
        let architecture = supported.iter().copied().filter(|&known| known <= device).max();
        let architecture = architecture.ok_or_else(|| CudaError::Unsupported {
            device: format!("a device of compute capability {}.{}", capability.0, capability.1),
            problem: format!(
                "NVRTC {}.{} compiles for {supported:?} alone; install an NVRTC that knows it, or set device = \"cpu\"",
                nvrtc.0, nvrtc.1
            ),
        })?;
        let made =
            cache.map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(|e| unusable(folder, &e)));
        let notes = Mutex::new(made.err().iter().map(ToString::to_string).collect());
        Ok(Self { architecture, nvrtc, cache: cache.map(Path::to_path_buf), notes })
    }

    /// What was wrong with the cache: what could not be kept is compiled again at the next load.
    pub(crate) fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The PTX of a source. `name` is for messages and for the files that `TIDEPOOL_PTX_DIR` asks for.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the compiler's log; [`CudaError::Cache`] of the folder of `TIDEPOOL_PTX_DIR`.
    pub(crate) fn ptx(&self, name: &str, source: &str) -> Result<String, CudaError> {
        let key = self.key(source);
        let kept = self.cache.as_ref().map(|folder| (folder, kept::path_of(folder, key)));
        if let Some((_, path)) = &kept
            && let Some(ptx) = kept::read(path)
        {
            return self.shown(name, ptx);
        }
        let options = self.options();
        let ptx = guarded("compile a kernel", || compile(name, source, &options))?;
        // A disk that is full must not end what is loaded: the PTX is there.
        if let Some((folder, path)) = &kept {
            let written = kept::write(path, &ptx).map_err(|e| unusable(path, &e));
            let kept = written
                .and_then(|()| kept::prune(folder, path, kept::LIMITS).map_err(|e| unusable(folder, &e)));
            if let Err(problem) = kept {
                self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(problem.to_string());
            }
        }
        self.shown(name, ptx)
    }

    fn options(&self) -> Vec<String> {
        let architecture = format!("--gpu-architecture=compute_{}", self.architecture);
        std::iter::once(architecture).chain(OPTIONS.iter().map(|&o| o.to_owned())).collect()
    }

    /// Everything that decides what comes out.
    fn key(&self, source: &str) -> u128 {
        let (major, minor) = self.nvrtc;
        let mut whole = format!("nvrtc {major}.{minor}\n{}\n", self.options().join("\n"));
        whole.push_str(source);
        xxh3_128(whole.as_bytes())
    }

    fn shown(&self, name: &str, ptx: String) -> Result<String, CudaError> {
        if let Some(folder) = std::env::var_os(PTX_DIR) {
            let folder = PathBuf::from(folder);
            fs::create_dir_all(&folder).map_err(|e| unusable(&folder, &e))?;
            let path = folder.join(format!("{name}-{:08x}.ptx", xxh3_64(ptx.as_bytes()) as u32));
            fs::write(&path, &ptx).map_err(|e| unusable(&path, &e))?;
        }
        Ok(ptx)
    }
}

fn unusable(path: &Path, problem: &dyn std::fmt::Display) -> CudaError {
    CudaError::Cache { path: path.display().to_string(), problem: problem.to_string() }
}

fn refused(name: &str, error: result::NvrtcError) -> CudaError {
    CudaError::Compile { name: name.to_owned(), log: error.to_string() }
}

fn architectures() -> Result<Vec<u32>, CudaError> {
    let failed = |e| refused("its architectures", e);
    let mut count = 0;
    // SAFETY: it points to a number of the type that is written.
    unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result().map_err(failed)?;
    let mut found = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: there is room for as many numbers as it said.
    unsafe { sys::nvrtcGetSupportedArchs(found.as_mut_ptr()) }.result().map_err(failed)?;
    Ok(found.into_iter().filter_map(|known| u32::try_from(known).ok()).collect())
}

fn compile(name: &str, source: &str, options: &[String]) -> Result<String, CudaError> {
    if source.len() > MAX_SOURCE {
        let log = format!("{} bytes of source, {MAX_SOURCE} are covered", source.len());
        return Err(CudaError::Compile { name: name.to_owned(), log });
    }
    let holds_nul = |_| CudaError::Compile { name: name.to_owned(), log: "a NUL byte in it".into() };
    let text = CString::new(source).map_err(holds_nul)?;
    let title = CString::new(format!("{name}.cu")).map_err(holds_nul)?;
    let program = Program(result::create_program(&text, Some(&title)).map_err(|e| refused(name, e))?);
    // SAFETY: the program was created above and is destroyed when it is dropped; so below.
    let compiled = unsafe { result::compile_program(program.0, options) };
    if let Err(error) = compiled {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.map(text_of).unwrap_or_default();
        let log = if log.is_empty() { error.to_string() } else { log };
        return Err(CudaError::Compile { name: name.to_owned(), log });
    }
    // SAFETY: as above.
    let ptx = unsafe { result::get_ptx(program.0) };
    ptx.map(text_of).map_err(|e| refused(name, e))
}

/// A program of NVRTC.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created once and is destroyed here alone. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Characters up to the NUL.
fn text_of(bytes: Vec<std::ffi::c_char>) -> String {
    let bytes: Vec<u8> = bytes.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_decides_the_result_is_in_the_key() {
        let compiler =
            |architecture, nvrtc| Compiler { architecture, nvrtc, cache: None, notes: Mutex::default() };
        let keys = [
            compiler(80, (12, 4)).key("a"),
            compiler(90, (12, 4)).key("a"),
            compiler(80, (12, 9)).key("a"),
            compiler(80, (12, 4)).key("b"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key));
        }
    }
}
