//! Threads that stay on their cores.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::SpawnError;

/// Makes sure that the process may run on each of `cores`.
///
/// # Errors
/// [`SpawnError::Core`] for the first that is not to be had.
pub(super) fn check(cores: &[usize]) -> Result<(), SpawnError> {
    if cores.is_empty() {
        return Ok(());
    }
    let allowed = sched_getaffinity(None).map_err(|e| SpawnError::Cores { source: e.into() })?;
    let is_there = |core: usize| core < CpuSet::MAX_CPU && allowed.is_set(core);
    match cores.iter().find(|core| !is_there(**core)) {
        None => Ok(()),
        Some(&core) => {
            let allowed = (0..CpuSet::MAX_CPU).filter(|core| is_there(*core)).collect();
            Err(SpawnError::Core { core, allowed })
        }
    }
}

/// Keeps the current thread on `core`.
pub(super) fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "a thread of the CPU pool could not be kept on its core");
    }
}
