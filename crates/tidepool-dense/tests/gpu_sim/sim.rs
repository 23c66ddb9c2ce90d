//! The simulated driver beyond CUDA: its counters, its findings, and faults on demand, by the symbols that
//! docs/gpu-simulation.md lists.
#![expect(
    unsafe_code,
    reason = "functions are looked up in the library that stands in for the driver, and called"
)]

use std::{
    ffi::{CString, c_char},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The one device of this process, which one test has at a time.
pub(crate) struct Sim {
    _alone: MutexGuard<'static, ()>,
}

fn function<F: Copy>(name: &str) -> F {
    // SAFETY: these tests need the library, and cudarc keeps it for ever.
    let library = unsafe { cudarc::driver::sys::culib() };
    // SAFETY: the callers below ask for the types that the functions have in tests/cuda-sim/src/ffi/control.rs.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    *found.unwrap_or_else(|_| panic!("{name} is not there: these tests run under scripts/with-sim.sh"))
}

impl Sim {
    /// Waits for the device, and takes the last test's faults and counts away.
    pub(crate) fn alone() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        // A test that failed has left nothing that a reset does not take away.
        let sim = Self { _alone: ONE.lock().unwrap_or_else(PoisonError::into_inner) };
        sim.reset();
        sim
    }

    pub(crate) fn reset(&self) {
        let reset: extern "C" fn() = function("tidepool_sim_reset");
        reset();
        self.set("lazy", 0);
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        let counter: unsafe extern "C" fn(*const c_char) -> u64 = function("tidepool_sim_counter");
        let text = CString::new(name).unwrap();
        // SAFETY: the text ends with a NUL and outlives the call.
        let value = unsafe { counter(text.as_ptr()) };
        assert_ne!(value, u64::MAX, "there is no counter {name}");
        value
    }

    pub(crate) fn counters<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        names.map(|name| self.counter(name))
    }

    /// The last finding; empty where there was none.
    pub(crate) fn fault(&self) -> String {
        let fault: unsafe extern "C" fn(*mut c_char, usize) -> usize = function("tidepool_sim_last_fault");
        let mut text = vec![0_u8; 4096];
        // SAFETY: there is room for as many bytes as are said.
        let length = unsafe { fault(text.as_mut_ptr().cast(), text.len()) };
        text.truncate(length.min(text.len() - 1));
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(crate) fn set(&self, name: &str, value: u64) {
        let set: unsafe extern "C" fn(*const c_char, u64) -> i32 = function("tidepool_sim_set");
        let text = CString::new(name).unwrap();
        // SAFETY: the text ends with a NUL and outlives the call.
        let known = unsafe { set(text.as_ptr(), value) };
        assert_eq!(known, 0, "there is no setting {name}");
    }

    pub(crate) fn lose(&self, code: u32) {
        let lose: extern "C" fn(u32) = function("tidepool_sim_lose");
        lose(code);
    }

    pub(crate) fn hang(&self, hangs: bool) {
        let hang: extern "C" fn(u32) = function("tidepool_sim_hang");
        hang(u32::from(hangs));
    }
}
