//! Work that nobody waits for by the millisecond: verifying files, copying them, loading models. It runs on threads of
//! their own at the lowest priority, so that requests do not notice while there is any other work for the cores.
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

/// The lowest priority there is.
const NICE: i32 = 19;

/// Why work has no result.
#[derive(Debug, Error)]
pub enum IdleError {
    /// There is no thread to be had.
    #[error("starting a thread for work at low priority")]
    Thread(#[source] io::Error),
    /// The work panicked.
    #[error("work at low priority panicked: {0}")]
    Panicked(String),
}

/// Begins `work` now, on a thread of its own at the lowest priority, and gives a future of its result. Work whose
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
        // It counts for this thread alone. Where it is refused, the work is merely not last.
        let _ = rustix::process::nice(NICE);
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

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nice value of the calling thread.
    fn niceness() -> i64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name, in brackets, may have spaces; nice is the 19th field, and the first after the name the third.
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        rest.split(' ').nth(16).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn work_is_done_at_the_lowest_priority_and_others_keep_theirs() {
        let before = niceness();
        assert_eq!(run(niceness).await.unwrap(), 19);
        assert_eq!(niceness(), before);
        assert_eq!(tokio::task::spawn_blocking(niceness).await.unwrap(), before);
    }

    #[tokio::test]
    async fn work_goes_on_without_anybody_waiting_and_a_panic_is_an_error() {
        let (tell, told) = oneshot::channel();
        drop(run(move || tell.send(7)));
        assert_eq!(told.await, Ok(7));
        let error = run(|| panic!("no more")).await.map(|()| 0).unwrap_err();
        assert_eq!(error.to_string(), "work at low priority panicked: no more");
    }
}
