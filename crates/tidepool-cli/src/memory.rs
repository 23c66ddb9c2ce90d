//! How much anonymous memory this process has had at most, looked at now and then (Linux).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tidepool_bench::proc::anonymous_bytes;

const INTERVAL: Duration = Duration::from_millis(20);

/// A thread that watches until this is dropped.
pub(crate) struct PeakMemory {
    peak: Arc<AtomicU64>,
    watcher: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl PeakMemory {
    pub(crate) fn watch() -> Self {
        let peak = Arc::new(AtomicU64::new(0));
        let (end, ended) = mpsc::channel();
        let seen = Arc::clone(&peak);
        let watcher = thread::spawn(move || {
            loop {
                seen.fetch_max(anonymous_bytes(std::process::id()).unwrap_or(0), Ordering::Relaxed);
                if ended.recv_timeout(INTERVAL) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { peak, watcher: Some((end, watcher)) }
    }

    /// The most that was seen; `None` where the system does not tell.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        Some(self.peak.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        if let Some((end, watcher)) = self.watcher.take() {
            drop(end);
            // Nothing in it panics.
            let _ = watcher.join();
        }
    }
}
