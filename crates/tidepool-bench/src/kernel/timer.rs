//! The two clocks of a pass: the one on the wall, and that of the thread, which stands while others run.

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// A pass that has begun on this thread.
pub(crate) struct Timer {
    began: Instant,
    on_cpu: Duration,
}

/// A pass that has ended.
pub(crate) struct Timed {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) on_cpu: Duration,
}

impl Timer {
    /// Begins when all who wait have come.
    pub(crate) fn start(all: &Barrier) -> Self {
        all.wait();
        Self { began: Instant::now(), on_cpu: on_cpu() }
    }

    pub(crate) fn stop(self) -> Timed {
        let on_cpu = on_cpu().saturating_sub(self.on_cpu);
        Timed { began: self.began, ended: Instant::now(), on_cpu }
    }
}

/// How long this thread has run so far.
fn on_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_counts_and_sleep_does_not() {
        let timer = Timer::start(&Barrier::new(1));
        let mut spun = 0u64;
        while timer.began.elapsed() < Duration::from_millis(2) {
            spun = std::hint::black_box(spun + 1);
        }
        std::thread::sleep(Duration::from_millis(50));
        let timed = timer.stop();
        let took = timed.ended.duration_since(timed.began);
        assert!(timed.on_cpu > Duration::ZERO && timed.on_cpu + Duration::from_millis(40) < took, "{took:?}");
    }
}
