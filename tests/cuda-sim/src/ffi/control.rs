//! What tests ask of the stand-in beyond CUDA, by symbols that they look up in the library that was loaded: counters,
//! findings, faults on demand. `docs/gpu-simulation.md` lists them.
#![expect(unsafe_code, reason = "symbols have fixed names, and `atexit` is C's")]

use super::{
    DRIVER,
    pointers::{Text, TextOut},
};
use crate::error::Code;

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> i32;
}

extern "C" fn report() {
    let path = DRIVER.held().settings.report.clone();
    if let Some(path) = path
        && let Err(problem) = std::fs::write(&path, DRIVER.counters().json())
    {
        eprintln!("tidepool-cuda-sim: cannot write {}: {problem}", path.display());
    }
}

/// Writes the counters to the file that the settings name when the process exits.
pub(super) fn report_at_exit() {
    // SAFETY: the function is one of this library, which is never unloaded: cudarc keeps it, and so does Rust.
    unsafe { atexit(report) };
}

/// The counter of this name; the largest number when there is none.
#[unsafe(no_mangle)]
extern "C" fn tidepool_sim_counter(name: Text) -> u64 {
    name.get().ok().and_then(|name| DRIVER.counters().get(name)).unwrap_or(u64::MAX)
}

/// Writes the last finding, cut to the room that there is, with a NUL; gives its whole length in bytes, nought when
/// there was none.
#[unsafe(no_mangle)]
extern "C" fn tidepool_sim_last_fault(text: TextOut, room: usize) -> usize {
    let fault = DRIVER.last_fault();
    text.set(&fault, room);
    fault.len()
}

/// Forgets findings, errors and faults asked for, and starts the counters again; what is live stays.
#[unsafe(no_mangle)]
extern "C" fn tidepool_sim_reset() {
    DRIVER.reset();
}

/// Changes a setting, or asks for a fault, as [`Settings::set`](crate::Settings) has them. Gives 0, or 1 for a name that it
/// does not know.
#[unsafe(no_mangle)]
extern "C" fn tidepool_sim_set(name: Text, value: u64) -> i32 {
    let Ok(name) = name.get() else { return 1 };
    let mut known = false;
    DRIVER.change(|settings| known = settings.set(name, value));
    i32::from(!known)
}

/// Takes the device away: every call returns this code from now on, until a reset.
#[unsafe(no_mangle)]
extern "C" fn tidepool_sim_lose(code: u32) {
    DRIVER.lose(Code(code));
}

/// Lets the device hang (1) or go on (0).
#[unsafe(no_mangle)]
extern "C" fn tidepool_sim_hang(hangs: u32) {
    DRIVER.hang(hangs != 0);
}

/// Writes the counters as JSON to a file. Gives 0, or 1 when that failed.
#[unsafe(no_mangle)]
extern "C" fn tidepool_sim_report(path: Text) -> i32 {
    let written = path.get().ok().map(|path| std::fs::write(path, DRIVER.counters().json()));
    i32::from(!matches!(written, Some(Ok(()))))
}
