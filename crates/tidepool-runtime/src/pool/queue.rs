//! The queue before the threads: whose turn it is.
//!
//! Work waits in turns, a turn being the pieces of one request. A clock that counts cost instead of seconds says
//! whose piece is next (start-time fair queueing): a turn comes in at the time it is, and every piece of it that is
//! taken moves the rest back by what the piece costs. So turns that wait together get equal shares by cost,
//! however many pieces they have, and what came in later never goes before what has been passed over.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::PoolError;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// A piece of work, and what it costs; never nothing, or its turn would never end.
pub(super) struct Piece {
    pub(super) cost: u64,
    pub(super) job: Job,
}

pub(super) struct Queue {
    state: Mutex<State>,
    /// Signalled when work arrives, and when the queue closes.
    changed: Condvar,
    pub(super) max_len: usize,
}

#[derive(Default)]
struct State {
    /// By when they are due, and in the order in which they came. None is empty.
    turns: BTreeMap<(u64, u64), VecDeque<Piece>>,
    /// What the clock says.
    now: u64,
    /// By how much the clock moves when the next piece is taken: the share of the last one's cost that each
    /// waiting turn would have had. Without it, work that keeps coming in would go before what waits for ever.
    moved: u64,
    /// Turns that have come so far.
    arrivals: u64,
    /// Of all pieces that wait.
    cost: u64,
    closed: bool,
}

impl Queue {
    pub(super) fn new(max_len: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), max_len }
    }

    /// Nothing panics while it is held, so a poisoned lock guards a good state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().turns.len()
    }

    /// What waits costs so much.
    pub(super) fn cost(&self) -> u64 {
        self.lock().cost
    }

    /// Lines a turn up.
    ///
    /// # Errors
    /// [`PoolError::Full`], unless the turn `goes_on` with work that had its place already, and
    /// [`PoolError::Gone`].
    pub(super) fn push(&self, pieces: VecDeque<Piece>, goes_on: bool) -> Result<(), PoolError> {
        let mut state = self.lock();
        if state.closed && !goes_on {
            return Err(PoolError::Gone);
        }
        if state.turns.len() >= self.max_len && !goes_on {
            return Err(PoolError::Full { queue_len: self.max_len });
        }
        let many = pieces.len() > 1;
        if !pieces.is_empty() {
            state.cost += pieces.iter().map(|piece| piece.cost).sum::<u64>();
            let due = (state.now, state.arrivals);
            state.arrivals += 1;
            state.turns.insert(due, pieces);
        }
        drop(state);
        if many {
            self.changed.notify_all();
        } else {
            self.changed.notify_one();
        }
        Ok(())
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The life of a thread.
    pub(super) fn work(&self) {
        while let Some(job) = self.next() {
            // The job catches the panics of the work; this catches those of dropping what it leaves behind.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job of the CPU pool panicked while it was taken down");
            }
        }
    }

    /// Waits for a piece; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(piece) = state.take() {
                return Some(piece.job);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// The piece that is due, if any waits.
    fn take(&mut self) -> Option<Piece> {
        let ((due, arrival), mut pieces) = self.turns.pop_first()?;
        let piece = pieces.pop_front()?;
        self.now = self.now.saturating_add(self.moved).max(due);
        self.cost -= piece.cost;
        self.moved = piece.cost / (self.turns.len() as u64 + 1);
        if !pieces.is_empty() {
            self.turns.insert((due.saturating_add(piece.cost), arrival), pieces);
        }
        Some(piece)
    }
}
