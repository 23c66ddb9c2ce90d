//! The pieces of one request: each leaves its result here, and the last one hands all of them over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tokio::sync::oneshot;

use super::PoolError;

type Outcome<T, E> = Result<Result<Vec<T>, E>, PoolError>;

/// Where the results of pieces come together.
pub(super) struct Together<T, E>(Mutex<State<T, E>>);

struct State<T, E> {
    results: Vec<Option<T>>,
    missing: usize,
    /// Gone once there is an outcome.
    sender: Option<oneshot::Sender<Outcome<T, E>>>,
}

impl<T, E> Together<T, E> {
    /// A place for `count` results, and who gets them.
    pub(super) fn new(count: usize) -> (Arc<Self>, oneshot::Receiver<Outcome<T, E>>) {
        let (sender, receiver) = oneshot::channel();
        let results = (0..count).map(|_| None).collect();
        let this = Self(Mutex::new(State { results, missing: count, sender: Some(sender) }));
        if count == 0 {
            this.end(Ok(Ok(Vec::new())));
        }
        (Arc::new(this), receiver)
    }

    /// Whether nothing is waited for any more: the caller has left, or a piece has failed.
    pub(super) fn is_over(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Takes what became of piece `at`.
    pub(super) fn settle(&self, at: usize, done: thread::Result<Result<T, E>>) {
        let value = match done {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => return self.end(Ok(Err(error))),
            Err(payload) => return self.end(Err(PoolError::panicked(&*payload))),
        };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = state.results.get_mut(at) {
            *place = Some(value);
            state.missing -= 1;
        }
        if state.missing == 0 {
            let all = std::mem::take(&mut state.results).into_iter().flatten().collect();
            drop(state);
            self.end(Ok(Ok(all)));
        }
    }

    fn end(&self, outcome: Outcome<T, E>) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).sender.take();
        if let Some(sender) = sender {
            // The caller may have left meanwhile; then nobody misses the outcome.
            let _ = sender.send(outcome);
        }
    }
}
