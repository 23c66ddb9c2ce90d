//! What of a batch is one request's: its counts and its times, for the answer and for whoever asks afterwards.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidepool_client::{LookupAccount, LookupOutcome, Stages};
use tidepool_types::Epoch;

/// What lookups that were answered counted. Ids and bags are those of the request; rows, nodes and calls are those of
/// the batches that it was in, which it may have shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The epoch of the map that the lookup was routed by.
    pub epoch: Epoch,
    /// Rows asked of the tables, after deduplication.
    pub rows: u64,
    /// Rows that needed no asking: the cache had them.
    pub cache_hits: u64,
    /// Rows that neither the tables nor the cache were asked for: they are on the device, or known to be in no table.
    pub held: u64,
    /// Nodes that were asked.
    pub nodes: u32,
    /// Calls after a failure.
    pub retries: u32,
    /// Late calls that were asked of another group as well.
    pub hedges: u32,
    /// Those of them that were answered first there.
    pub hedges_won: u32,
    /// Ids that no table had.
    pub missing: u32,
    /// Bags that became a default row.
    pub defaulted: u32,
    /// Ids whose partition nobody answered for.
    pub unavailable: u32,
}

impl Counts {
    /// What the lookup of a batch counted as a whole.
    pub(super) const fn of<T>(outcome: &LookupOutcome<T>) -> Self {
        Self {
            epoch: outcome.epoch,
            rows: outcome.rows_requested,
            cache_hits: outcome.cache_hits,
            held: outcome.held_ids,
            nodes: outcome.nodes_touched,
            retries: outcome.retries,
            hedges: outcome.hedges,
            hedges_won: outcome.hedges_won,
            missing: 0,
            defaulted: 0,
            unavailable: 0,
        }
    }

    /// Adds those of another piece of the same request.
    fn add(&mut self, more: Self) {
        self.epoch = self.epoch.max(more.epoch);
        self.rows += more.rows;
        self.cache_hits += more.cache_hits;
        self.held += more.held;
        self.nodes = self.nodes.max(more.nodes);
        self.retries = self.retries.saturating_add(more.retries);
        self.hedges = self.hedges.saturating_add(more.hedges);
        self.hedges_won = self.hedges_won.saturating_add(more.hedges_won);
        self.missing = self.missing.saturating_add(more.missing);
        self.defaulted = self.defaulted.saturating_add(more.defaulted);
        self.unavailable = self.unavailable.saturating_add(more.unavailable);
    }
}

/// What of its batches is a request's. Of one that was cut, times are those of all its pieces together, though some of
/// them may have passed side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// What was counted.
    pub counts: Counts,
    /// Batches that it was in: more than one if it was cut.
    pub batches: u32,
    /// Requests in the largest of them.
    pub batch_requests: u32,
    /// Rows of the largest of them.
    pub batch_rows: u32,
    /// From its arrival at the batcher until the first of its batches left.
    pub waited: Option<Duration>,
    /// The lookups.
    pub lookup: Option<Duration>,
    /// What they were made of.
    pub stages: Stages,
    /// The waits for a thread.
    pub queued: Option<Duration>,
    /// The dense runs, and what is made of them.
    pub dense: Option<Duration>,
    /// Of that, what is made of them.
    pub finish: Option<Duration>,
}

/// How far a request is. It can be read at any time, and outlives it.
#[derive(Debug, Default)]
pub struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    share: Share,
    account: Option<Arc<LookupAccount>>,
}

impl Progress {
    /// What has been counted until now.
    #[must_use]
    pub fn share(&self) -> Share {
        self.lock().share
    }

    /// What became of the last lookup that the request was in, of all of its batch.
    #[must_use]
    pub fn account(&self) -> Option<Arc<LookupAccount>> {
        self.lock().account.clone()
    }

    /// It leaves in a batch of so many requests and rows.
    pub(super) fn leaves(
        &self,
        (requests, rows): (usize, u64),
        waited: Duration,
        account: Option<Arc<LookupAccount>>,
    ) {
        let mut state = self.lock();
        let share = &mut state.share;
        share.batches += 1;
        share.batch_requests = share.batch_requests.max(u32::try_from(requests).unwrap_or(u32::MAX));
        share.batch_rows = share.batch_rows.max(u32::try_from(rows).unwrap_or(u32::MAX));
        share.waited.get_or_insert(waited);
        if account.is_some() {
            state.account = account;
        }
    }

    /// The lookup has ended.
    pub(super) fn looked_up(&self, took: Duration) {
        add(&mut self.lock().share.lookup, took);
    }

    /// It was answered.
    pub(super) fn counted(&self, counts: Counts, stages: Stages) {
        let share = &mut self.lock().share;
        share.counts.add(counts);
        let Stages { split, wait, node, merge } = &mut share.stages;
        *split += stages.split;
        *wait += stages.wait;
        *node += stages.node;
        *merge += stages.merge;
    }

    /// An answer was made of the outputs.
    pub(super) fn finished(&self, took: Duration) {
        let share = &mut self.lock().share;
        add(&mut share.dense, took);
        add(&mut share.finish, took);
    }

    /// A thread has run its rows.
    pub(super) fn ran(&self, queued: Duration, dense: Duration) {
        let share = &mut self.lock().share;
        add(&mut share.queued, queued);
        add(&mut share.dense, dense);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(sum: &mut Option<Duration>, more: Duration) {
    *sum = Some(sum.unwrap_or_default() + more);
}
