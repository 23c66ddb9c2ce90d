//! How a process ends: on a signal it stops taking work, finishes what it has within a bound, and goes.

use std::{
    fmt,
    future::{Future, pending},
    io, process,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    signal::unix::{self, SignalKind},
    sync::oneshot,
    task::JoinHandle,
    time,
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::health::Health;

/// A handle on the end of this process (or of one role in it, when tests run many). Clones share it.
///
/// There are two moments. *Draining*: servers stop taking new work and finish what they have. *Stopped*:
/// nothing is left to finish, or the bound has passed; the admin server, which shows the draining to the
/// outside, ends only now.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    stopped: CancellationToken,
    work: TaskTracker,
}

/// Holds the end of the draining back until it is dropped.
#[must_use = "it counts only as long as it is held"]
#[derive(Debug)]
pub struct InFlight {
    _token: TaskTrackerToken,
}

/// How a draining ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All work was finished.
    Clean,
    /// The bound passed with this much unfinished.
    TimedOut {
        /// Tasks and requests that were still going.
        in_flight: usize,
    },
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("drained"),
            Self::TimedOut { in_flight } => write!(f, "gave up on {in_flight} unfinished"),
        }
    }
}

/// Asks the kernel to continue this process, should it be stopped (SIGSTOP) when the thread ends that started
/// it. To one that runs nothing happens.
///
/// # Errors
/// What the kernel says.
pub fn continue_when_the_parent_ends() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::CONT)).map_err(Into::into)
}

impl Shutdown {
    /// Nobody has asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves when new work should no longer be taken: for `serve_with_incoming_shutdown` and loops.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        self.draining.clone().cancelled_owned()
    }

    /// Whether new work should no longer be taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// The token behind [`draining`](Self::draining). A child of it ends with it, and may end sooner.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.draining.child_token()
    }

    /// Resolves when the draining is over, one way or the other.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stopped.clone().cancelled_owned()
    }

    /// Spawns a task (a server, a loop) that [`drain`](Self::drain) waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.work.spawn(task)
    }

    /// Counts a piece of work that [`drain`](Self::drain) waits for, as long as the guard lives.
    pub fn in_flight(&self) -> InFlight {
        InFlight { _token: self.work.token() }
    }

    /// Ends the role: `health` becomes not ready, [`draining`](Self::draining) resolves, then this waits
    /// until all that was [spawned](Self::spawn) or is [in flight](Self::in_flight) is done, at most
    /// `timeout`; then [`stopped`](Self::stopped) resolves.
    pub async fn drain(&self, health: &Health, timeout: Duration) -> Drained {
        health.set_ready(false, "draining");
        self.draining.cancel();
        self.work.close();
        let outcome = match time::timeout(timeout, self.work.wait()).await {
            Ok(()) => Drained::Clean,
            Err(_) => Drained::TimedOut { in_flight: self.work.len() },
        };
        self.stopped.cancel();
        outcome
    }
}

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: from an init system, Kubernetes, `kill`.
    Terminate,
    /// SIGINT: from a terminal.
    Interrupt,
}

impl Signal {
    /// What a shell shows for a process that the signal ended: 128 and its number.
    #[must_use]
    pub const fn exit_code(self) -> i32 {
        match self {
            Self::Terminate => 128 + 15,
            Self::Interrupt => 128 + 2,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// The system would not let us handle a signal.
#[derive(Debug, Error)]
#[error("could not install a handler for {signal}")]
pub struct SignalError {
    /// Which one.
    pub signal: Signal,
    /// Why.
    pub source: io::Error,
}

/// Handles SIGTERM and SIGINT from now on. The future resolves on the first of them; a second one ends the
/// process at once with [`Signal::exit_code`], for those who will not wait for the draining. For a
/// `main`, once; it must be called inside a tokio runtime.
///
/// # Errors
/// [`SignalError`].
pub fn signal() -> Result<impl Future<Output = Signal> + Send + 'static, SignalError> {
    let handler = |kind, signal| unix::signal(kind).map_err(|source| SignalError { signal, source });
    let mut terminate = handler(SignalKind::terminate(), Signal::Terminate)?;
    let mut interrupt = handler(SignalKind::interrupt(), Signal::Interrupt)?;
    let (first, received) = oneshot::channel();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                Some(()) = terminate.recv() => Signal::Terminate,
                Some(()) = interrupt.recv() => Signal::Interrupt,
                else => pending().await,
            }
        };
        // Whoever no longer waits for the first signal still wants the second to count.
        let _ = first.send(next().await);
        let second = next().await;
        tracing::warn!(signal = %second, "second signal: ending at once");
        process::exit(second.exit_code());
    });
    Ok(async {
        match received.await {
            Ok(signal) => signal,
            // Only when the runtime itself is going away.
            Err(_) => pending().await,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_marks_not_ready_and_waits_for_what_is_in_flight() {
        let (health, shutdown) = (Health::new(), Shutdown::new());
        health.set_ready(true, "");
        let guard = shutdown.in_flight();
        let draining = tokio::spawn({
            let (health, shutdown) = (health.clone(), shutdown.clone());
            async move { shutdown.drain(&health, Duration::from_secs(60)).await }
        });
        shutdown.draining().await;
        assert_eq!(health.readiness(), Err("draining".into()));
        assert!(shutdown.is_draining() && shutdown.token().is_cancelled());
        assert!(!draining.is_finished(), "one is still in flight");
        assert!(!shutdown.stopped.is_cancelled());
        drop(guard);
        assert_eq!(draining.await.unwrap(), Drained::Clean);
        shutdown.stopped().await;
    }

    #[tokio::test]
    async fn the_bound_ends_a_draining() {
        let (health, shutdown) = (Health::new(), Shutdown::new());
        let _guard = shutdown.in_flight();
        let task = shutdown.spawn(pending::<()>());
        let outcome = shutdown.drain(&health, Duration::from_millis(20)).await;
        assert_eq!(outcome, Drained::TimedOut { in_flight: 2 });
        assert_eq!(outcome.to_string(), "gave up on 2 unfinished");
        shutdown.stopped().await;
        task.abort();
    }

    #[tokio::test]
    async fn a_task_that_listens_to_the_token_drains_clean() {
        let (health, shutdown) = (Health::new(), Shutdown::new());
        shutdown.spawn(shutdown.draining());
        assert_eq!(shutdown.drain(&health, Duration::from_secs(60)).await, Drained::Clean);
        // And once more is no different.
        assert_eq!(shutdown.drain(&health, Duration::ZERO).await, Drained::Clean);
    }
}
