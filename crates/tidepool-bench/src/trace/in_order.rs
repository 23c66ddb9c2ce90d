//! The lookups of a trace in the order of their times: on several threads they are written down a little out of
//! it.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    io::Read,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tidepool_client::trace::{TraceError, TraceReader, TracedLookup};

use crate::BenchError;

/// Lookups that are held to bring them into order.
const REORDERED: usize = 1024;

/// What is wrong with a trace, found while somebody else takes its lookups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Damage(Arc<Mutex<Option<BenchError>>>);

impl Damage {
    /// Notes why there are no more lookups.
    pub(crate) fn note(&self, error: BenchError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// What was noted, once.
    ///
    /// # Errors
    /// [`BenchError::Trace`], or what else was noted.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// The lookups of a trace, ordered. It ends early, and says so to `damage`, where the trace is damaged.
#[derive(Debug)]
pub(crate) struct InOrder<R> {
    trace: TraceReader<R>,
    waiting: BinaryHeap<Reverse<ByArrival>>,
    damage: Damage,
}

impl<R: Read> InOrder<R> {
    pub(crate) fn new(trace: TraceReader<R>, damage: Damage) -> Self {
        Self { trace, waiting: BinaryHeap::new(), damage }
    }

    fn fill(&mut self) -> Result<(), TraceError> {
        while self.waiting.len() < REORDERED {
            let Some(lookup) = self.trace.next_lookup()? else { break };
            self.waiting.push(Reverse(ByArrival(lookup)));
        }
        Ok(())
    }
}

impl<R: Read> Iterator for InOrder<R> {
    type Item = TracedLookup;

    fn next(&mut self) -> Option<TracedLookup> {
        if let Err(error) = self.fill() {
            self.damage.note(error.into());
            // What is left is of a trace that no figure is made of.
            self.waiting.clear();
        }
        self.waiting.pop().map(|Reverse(ByArrival(lookup))| lookup)
    }
}

/// By time, then by number.
#[derive(Debug)]
struct ByArrival(TracedLookup);

impl ByArrival {
    const fn key(&self) -> (Duration, u64) {
        (self.0.arrival, self.0.number)
    }
}

impl PartialEq for ByArrival {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ByArrival {}

impl PartialOrd for ByArrival {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByArrival {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}
