//! Waiting for a moment to some microseconds, on the very thread that then has work to do.
//!
//! Timers of tokio come in milliseconds, and a thread of its own would have to wake another one. A timer of
//! the kernel that is watched like a socket wakes the thread that sends; it is set a little early, and the rest
//! is spent looking at the clock.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::{net::unix::pipe::Receiver, task::yield_now};

use crate::BenchError;

/// How much before its moment a sleep ends, at most: what waking up takes.
const EARLY: Duration = Duration::from_micros(60);

/// No more than this part of the time goes into looking at the clock: beyond it a sleep ends at its moment.
const SPIN_SHARE: u32 = 20;

/// Waits for moments.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// A timer is read as a pipe is: nothing is there until it has expired, then eight bytes.
    timer: Receiver,
    began: Instant,
    /// How long the clock was looked at.
    spun: Duration,
}

impl Pacer {
    pub(crate) fn new() -> Result<Self, BenchError> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .map_err(Into::into)
            .and_then(Receiver::from_owned_fd_unchecked);
        let timer = timer.map_err(BenchError::io("making a timer"))?;
        Ok(Self { timer, began: Instant::now(), spun: Duration::ZERO })
    }

    /// How long the clock was looked at while nothing else was to be done.
    pub(crate) const fn spun(&self) -> Duration {
        self.spun
    }

    /// Returns at `moment`, or at once if it is over. While others on this thread may have something to do
    /// (`busy`), they are let in between two looks at the clock.
    pub(crate) async fn until(&mut self, moment: Instant, busy: impl Fn() -> bool) -> Result<(), BenchError> {
        let now = Instant::now();
        let may_spin = self.spun * SPIN_SHARE < now.duration_since(self.began);
        let early = if may_spin { EARLY } else { Duration::ZERO };
        let left = moment.saturating_duration_since(now);
        if left > early {
            self.sleep(left - early).await.map_err(BenchError::io("waiting for a timer"))?;
        }
        let began = Instant::now();
        if began < moment && !busy() {
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            self.spun += began.elapsed();
            return Ok(());
        }
        while Instant::now() < moment {
            yield_now().await;
        }
        Ok(())
    }

    async fn sleep(&self, time: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec::try_from(Duration::ZERO).unwrap_or_default(),
            it_value: Timespec::try_from(time).unwrap_or_default(),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            self.timer.readable().await?;
            match self.timer.try_read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done.map(|_| ()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn moments_are_met_and_never_early() {
        let gap = Duration::from_millis(3);
        let mut pacer = Pacer::new().unwrap();
        let began = Instant::now();
        for n in 0..20u32 {
            let moment = began + gap * n;
            pacer.until(moment, || n % 2 == 0).await.unwrap();
            assert!(Instant::now() >= moment);
        }
        assert!(pacer.spun() < began.elapsed(), "most of the time is slept");
        // What is over is not waited for.
        pacer.until(began, || false).await.unwrap();
    }
}
