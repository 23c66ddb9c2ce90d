//! How far a node is with its assignment: what its reports, `/readyz`, `/status` and gauges are made from.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tidepool_cluster::{HostMemory, PartitionState, PartitionStatus};
use tidepool_table::MemoryUse;
use tidepool_types::{Epoch, TableVersion};

/// The assignment and its partitions, as of one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeState {
    /// Of the assignment; 0 while there is none.
    pub(crate) epoch: Epoch,
    /// Whether an assignment was received or restored.
    pub(crate) assigned: bool,
    /// Whether an assignment with partitions has been served whole since the start.
    pub(crate) served: bool,
    /// In the order of the assignment.
    pub(crate) partitions: Vec<Held>,
    /// What is served takes of memory.
    pub(crate) memory: HostMemory,
}

/// One partition of the assignment.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) status: PartitionStatus,
    /// Rows in it; 0 until it is ready.
    pub(crate) rows: u64,
    /// As of soon after it was brought into memory; zeros until then, and where the kernel does not tell.
    pub(crate) memory: MemoryUse,
    /// How much of it has been read into memory so far.
    pub(crate) warm_up: Arc<WarmUp>,
    /// Bytes of the files of its version and layout that the node should hold, as of the assignment.
    pub(crate) version_bytes: u64,
}

/// The progress of a warm-up, noted by who does it and read by who is asked.
#[derive(Debug, Default)]
pub(crate) struct WarmUp {
    done_bytes: AtomicU64,
    all_bytes: AtomicU64,
}

impl WarmUp {
    /// Nothing is done yet of so much.
    pub(crate) fn of(bytes: u64) -> Arc<Self> {
        Arc::new(Self { done_bytes: AtomicU64::new(0), all_bytes: AtomicU64::new(bytes) })
    }

    pub(crate) fn note(&self, done: u64, all: u64) {
        self.all_bytes.store(all, Ordering::Relaxed);
        self.done_bytes.store(done, Ordering::Relaxed);
    }

    fn add_to(&self, sum: &mut Warmth) {
        sum.done_bytes += self.done_bytes.load(Ordering::Relaxed);
        sum.all_bytes += self.all_bytes.load(Ordering::Relaxed);
    }
}

/// How far warm-ups are: of the bytes that lookups read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Warmth {
    pub(crate) done_bytes: u64,
    pub(crate) all_bytes: u64,
}

/// Partitions by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) loading: usize,
    pub(crate) ready: usize,
    pub(crate) failed: usize,
}

impl NodeState {
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for held in &self.partitions {
            match held.status.state {
                PartitionState::Loading => counts.loading += 1,
                PartitionState::Ready => counts.ready += 1,
                PartitionState::Failed(_) => counts.failed += 1,
            }
        }
        counts
    }

    /// How far the warm-up of each version and layout is.
    pub(crate) fn warmth(&self) -> BTreeMap<(&TableVersion, u32), Warmth> {
        let mut warmth = BTreeMap::new();
        for held in &self.partitions {
            let sum = warmth.entry((&held.status.table_version, held.status.partitions)).or_default();
            held.warm_up.add_to(sum);
        }
        warmth
    }

    /// Whether every partition of the assignment is ready.
    pub(crate) fn is_whole(&self) -> bool {
        self.assigned && self.counts().ready == self.partitions.len()
    }

    /// Whether lookups should be sent here; if not, why. A new assignment that loads, or of which something
    /// fails, while the node serves does not turn it away: what it cannot answer, clients ask elsewhere.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        if !self.assigned {
            return Err("no assignment yet".into());
        }
        let counts = self.counts();
        // What is not assigned any more is let go only when nothing loads.
        let serves = self.served && counts.loading + counts.ready > 0;
        if serves || self.is_whole() {
            return Ok(());
        }
        let mut why = format!("{} of {} partitions are ready", counts.ready, self.partitions.len());
        let first = self.partitions.iter().find_map(|held| match &held.status.state {
            PartitionState::Failed(problem) => Some(problem),
            _ => None,
        });
        if let Some(problem) = first {
            why += &format!(", {} failed: {problem}", counts.failed);
        }
        Err(why)
    }
}

/// Whether a try that failed with `problem` deserves a line in the log after what was `before` it. One that fails as the
/// try before it, but for numbers, is no news: how many bytes are free changes while other files are fetched.
pub(crate) fn is_news(problem: &str, before: &PartitionState) -> bool {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    match before {
        PartitionState::Failed(before) => words(problem) != words(before),
        PartitionState::Loading | PartitionState::Ready => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_that_fails_alike_is_no_news() {
        let before = PartitionState::Failed("b does not fit: 90 bytes are needed, 7 are free".into());
        assert!(!is_news("b does not fit: 90 bytes are needed, 1234 are free", &before));
        assert!(is_news("b is damaged: byte 90", &before));
        assert!(is_news("b does not fit", &before));
        assert!(is_news("b does not fit", &PartitionState::Loading));
        assert!(is_news("b does not fit", &PartitionState::Ready));
    }
}
