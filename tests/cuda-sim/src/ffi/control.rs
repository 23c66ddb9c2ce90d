//! What tests ask of the stand-in beyond CUDA, by symbols that they look up in the library that was loaded: counters,
//! findings, faults on demand. `docs/gpu-simulation.md` lists them.
#![expect(unsafe_code, reason = "symbols have fixed names, and `atexit` is C's")]

use super::{
    DRIVER,
    pointers::{Text, TextOut},
};
use crate::{error::Code, settings::Schedule};

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

/// Changes a setting: `memory_bytes`, `driver_version`, `devices`, `compute_capability` (80 is 8.0), `seed` (of the
/// random schedule), `lazy`; or asks for a fault: `fail_allocation`, `fail_launch`, `refuse_launch`,
/// `lose_device`, each with how many calls from now, nought for never. Gives 0, or 1 for a name that it does not know.
#[unsafe(no_mangle)]
extern "C" fn tidepool_sim_set(name: Text, value: u64) -> i32 {
    let Ok(name) = name.get() else { return 1 };
    let small = value.min(u64::from(u32::MAX)) as u32;
    let after = (value > 0).then_some(value);
    let mut known = 0;
    DRIVER.change(|settings| match name {
        "memory_bytes" => settings.memory_bytes = value,
        "driver_version" => settings.driver_version = small,
        "devices" => settings.devices = small,
        "compute_capability" => settings.compute_capability = (small / 10, small % 10),
        "seed" => settings.schedule = Schedule::Random(value),
        "lazy" => settings.schedule = Schedule::Lazy,
        "fail_allocation" => settings.fail_allocation = after,
        "fail_launch" => settings.fail_launch = after,
        "refuse_launch" => settings.refuse_launch = after,
        "lose_device" => settings.lose_device = after,
        _ => known = 1,
    });
    known
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
