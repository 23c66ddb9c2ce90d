//! The memory of a device, as it was when somebody looked.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tidepool_dense::CudaDevice;

/// Free and total bytes of a device. Asking it may take as long as it hangs, so `/status` and the metrics, which are made on threads
/// that run tasks, read what was seen here. Clones share it.
#[derive(Clone, Debug)]
pub struct DeviceMemory(Arc<Seen>);

#[derive(Debug)]
struct Seen {
    bytes: Mutex<Option<(u64, u64)>>,
    /// Whether somebody is asking.
    is_asked: AtomicBool,
}

impl DeviceMemory {
    /// As it was seen to be: free and total bytes.
    pub(super) fn new(free: u64, total: u64) -> Self {
        Self(Arc::new(Seen { bytes: Mutex::new(Some((free, total))), is_asked: AtomicBool::new(false) }))
    }

    /// What was seen last; `None`: the device did not tell.
    pub(super) fn seen(&self) -> Option<(u64, u64)> {
        *self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a device asked on a thread for that, unless it is being asked.
    pub(super) fn look(&self, device: &Arc<CudaDevice>) {
        let device = device.clone();
        self.ask(move || device.memory().ok());
    }

    fn ask(&self, ask: impl FnOnce() -> Option<(u64, u64)> + Send + 'static) {
        if self.0.is_asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let seen = self.0.clone();
        // Nobody waits for it, nor does the end of the runtime.
        let begun = thread::Builder::new().name("gpu-memory".into()).spawn(move || {
            let bytes = ask();
            *seen.bytes.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
            seen.is_asked.store(false, Ordering::Release);
        });
        if begun.is_err() {
            // Without a thread it is asked with the next look.
            self.0.is_asked.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        time::{Duration, Instant},
    };

    use super::*;

    /// Lets all that was begun come to its end.
    fn is_quiet(memory: &DeviceMemory) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while memory.0.is_asked.load(Ordering::Acquire) {
            assert!(Instant::now() < deadline, "it is still being asked");
            thread::yield_now();
        }
    }

    #[test]
    fn a_device_that_hangs_is_asked_once_and_keeps_nobody_waiting() {
        let memory = DeviceMemory::new(3, 8);
        let (answer, answered) = mpsc::channel::<()>();
        memory.ask(move || {
            answered.recv().unwrap();
            Some((2, 8))
        });
        memory.ask(|| panic!("it is being asked"));
        assert_eq!(memory.seen(), Some((3, 8)));
        answer.send(()).unwrap();
        is_quiet(&memory);
        assert_eq!(memory.seen(), Some((2, 8)));
        memory.ask(|| None);
        is_quiet(&memory);
        assert_eq!(memory.seen(), None);
    }
}
