//! Work that nobody waits for by the millisecond: verifying files, copying them, loading models. It runs on threads of
//! their own at idle priority: whatever else wants the core has it at once. The lowest nice value would not do, for a
//! thread that has it may finish its slice of time before one that wakes up to answer is let in. Nor is idle priority
//! quite last: a thread that has it may be handed the core until the next tick when it wakes up, beside others that
//! have just run and wait for their next turn. So work that takes long gives way in between (`thread::yield_now`),
//! after which the kernel owes it nothing.
//!
//! Threads are not used again: without privileges a thread may lower its priority and not raise it.

use std::{
    any::Any,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use thiserror::Error;
use tokio::sync::oneshot;
use tracing::Span;

/// Why work has no result.
#[derive(Debug, Error)]
pub enum IdleError {
    /// There is no thread to be had.
    #[error("starting a thread for work at idle priority")]
    Thread(#[source] io::Error),
    /// The work panicked.
    #[error("work at idle priority panicked: {0}")]
    Panicked(String),
}

/// Begins `work` now, on a thread of its own at idle priority, and gives a future of its result. Work whose
/// future is dropped goes on. The current tracing span goes along.
///
/// How much of it there is at once is the caller's to bound.
pub fn run<T, F>(work: F) -> impl Future<Output = Result<T, IdleError>> + Send + use<T, F>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let (tell, told) = oneshot::channel();
    let span = Span::current();
    let started = thread::Builder::new().name("idle".into()).spawn(move || {
        become_idle();
        // Who waits already does not wait for the next tick.
        thread::yield_now();
        let result = span.in_scope(|| catch_unwind(AssertUnwindSafe(work)));
        // Nobody waits any more.
        let _ = tell.send(result.map_err(|panic| IdleError::Panicked(said(panic.as_ref()))));
    });
    async move {
        started.map_err(IdleError::Thread)?;
        // The thread tells in any case.
        told.await.unwrap_or_else(|_| Err(IdleError::Panicked("it did not end".into())))
    }
}

/// Gives the calling thread idle priority, and what it starts from then on: there is no way back without privileges.
/// Whether it has it then.
fn become_idle() -> bool {
    let parameters = libc::sched_param { sched_priority: 0 };
    #[expect(unsafe_code, reason = "rustix does not have the call")]
    // SAFETY: 0 is the calling thread, and the kernel only reads the parameters, which outlive the call.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if refused != 0 {
        // Some sandboxes do not let anybody choose. The work is merely not last then.
        tracing::debug!(error = %io::Error::last_os_error(), "idle priority was refused");
    }
    refused == 0
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scheduling policy of the calling thread, by its number.
    fn policy() -> i64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name, in brackets, may have spaces; the policy is field 41, and the first after the name field 3.
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        rest.split(' ').nth(38).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn work_is_done_at_idle_priority_and_others_keep_theirs() {
        let before = policy();
        // Where nobody may choose, the work is done all the same.
        let granted = thread::spawn(become_idle).join().unwrap();
        let expected = if granted { i64::from(libc::SCHED_IDLE) } else { before };
        assert_eq!(run(policy).await.unwrap(), expected);
        assert_eq!(policy(), before);
        assert_eq!(tokio::task::spawn_blocking(policy).await.unwrap(), before);
    }

    #[tokio::test]
    async fn work_goes_on_without_anybody_waiting_and_a_panic_is_an_error() {
        let (tell, told) = oneshot::channel();
        drop(run(move || tell.send(7)));
        assert_eq!(told.await, Ok(7));
        let error = run(|| panic!("no more")).await.map(|()| 0).unwrap_err();
        assert_eq!(error.to_string(), "work at idle priority panicked: no more");
    }
}
