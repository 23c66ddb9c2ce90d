//! Requests that are asked of another release too, after they were answered: its scores are compared with those
//! that were given, and given to nobody.
//!
//! A shadow has what is left over: it is not asked while a request waits for a thread, nor when others are being
//! asked already, and its lookups are in the ranker's own name, not its caller's. Shadows never have more than half of
//! the threads of the pool; with a single one they are asked only when nobody else is being answered.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tidepool_cluster::{BUCKETS, ShadowTally};
use tidepool_runtime::pool::CpuPool;
use tidepool_types::{Epoch, mix64};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use crate::{
    counters::counted,
    loaded::LoadedRelease,
    rank::{RankAnswer, Ranker},
    request::RankRequest,
};

/// Shadows that are asked at the same time, at most.
const CONCURRENT: usize = 2;

/// Decides which requests are asked again.
#[derive(Debug)]
pub(crate) struct Shadows {
    turn: AtomicU64,
    permits: Arc<Semaphore>,
    /// One thread does everything: a shadow would keep it from those who wait.
    only_when_idle: bool,
    /// Requests that are being answered.
    answering: Arc<AtomicU64>,
}

/// Says for as long as it lives that a request is being answered.
#[derive(Debug)]
pub(crate) struct Answering(Arc<AtomicU64>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that is to be asked again once it is answered.
#[derive(Debug)]
pub(crate) struct Shadowed {
    request: RankRequest,
    /// The releases, with a place for each.
    releases: Vec<(Loaded, OwnedSemaphorePermit)>,
}

impl Shadowed {
    /// How many releases it is to be asked of.
    pub(crate) fn count(&self) -> u8 {
        u8::try_from(self.releases.len()).unwrap_or(u8::MAX)
    }
}

/// A release, and the epoch of the map that it was found by.
type Loaded = (Arc<LoadedRelease>, Epoch);

impl Shadows {
    /// For a pool of so many threads.
    pub(crate) fn of_pool(threads: usize) -> Self {
        let permits = (threads / 2).clamp(1, CONCURRENT);
        Self {
            turn: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(permits)),
            only_when_idle: threads < 2,
            answering: Arc::default(),
        }
    }

    /// A request is being answered from here on.
    pub(crate) fn answering(&self) -> Answering {
        self.answering.fetch_add(1, Ordering::Relaxed);
        Answering(self.answering.clone())
    }

    /// Whether there is nobody whom a shadow would keep waiting: who asks has been answered. (In the line before its
    /// model's batches it stands behind everybody.)
    fn has_room(&self, pool: &CpuPool) -> bool {
        let others = self.answering.load(Ordering::Relaxed);
        pool.depth() == 0 && (!self.only_when_idle || others == 0)
    }

    /// Whether the next of `BUCKETS` requests is among `sample`: the same share of any stretch of them.
    fn draws(&self, sample: u32) -> bool {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        mix64(turn) % u64::from(BUCKETS) < u64::from(sample)
    }
}

impl Ranker {
    /// A copy of the request, if it is to be asked of a shadow and there is a place for that. One that names its
    /// release is not. Nothing is copied before there is a place.
    pub(crate) fn shadowed(&self, request: &RankRequest) -> Option<Shadowed> {
        if request.release.is_some() || request.candidates == 0 {
            return None;
        }
        let snapshot = self.releases.snapshot();
        let traffic = snapshot.map.traffic.get(request.model.as_str())?;
        let mut releases = Vec::new();
        for shadow in traffic.shadows.iter().filter(|shadow| self.shadows.draws(shadow.sample)) {
            // One that is not loaded here has nowhere to be counted: its release's report says that it is not.
            let Ok(loaded) = self.releases.pin(&request.model, &shadow.release) else { continue };
            match self.shadows.permits.clone().try_acquire_owned() {
                Ok(permit) => releases.push((loaded, permit)),
                Err(_) => drop_shadow(&loaded.0),
            }
        }
        (!releases.is_empty()).then(|| Shadowed { request: request.clone(), releases })
    }

    /// Asks the shadows of a request that has got `answer`, if there is time for that. It does not wait.
    pub(crate) fn shadow(self: &Arc<Self>, shadowed: Shadowed, answer: &RankAnswer) {
        for ((loaded, epoch), permit) in shadowed.releases {
            if !self.shadows.has_room(&self.pool) {
                drop_shadow(&loaded);
                continue;
            }
            let request = RankRequest {
                release: Some(loaded.release.to_string()),
                tenant: String::new(),
                // All, also of a model that gives fewer by itself.
                top_k: u32::MAX,
                outputs: Vec::new(),
                ..shadowed.request.clone()
            };
            let (ranker, given) = (self.clone(), answer.ranked.clone());
            tokio::spawn(async move {
                let arrived = Instant::now();
                let mut noting = ranker.recent.begin_shadow(&request, arrived);
                let answered =
                    ranker.answer_with((&loaded, epoch), request, (arrived, true), &mut noting).await;
                let tally = match answered {
                    Ok(ranked) => {
                        noting.answered();
                        compare(&given, &ranked.answer.ranked)
                    }
                    Err(error) => {
                        noting.failed(&error);
                        debug!(release = %loaded.release, %error, "a shadow could not answer");
                        ShadowTally { failed: 1, ..ShadowTally::default() }
                    }
                };
                loaded.counters.count_shadow(&tally);
                drop(permit);
            });
        }
    }
}

/// Counts a request that a shadow was not asked.
fn drop_shadow(loaded: &LoadedRelease) {
    loaded.counters.count_shadow(&ShadowTally { dropped: 1, ..ShadowTally::default() });
}

/// Compares the scores that were given with those of the shadow, candidate by candidate.
fn compare(given: &[(u32, f32)], shadow: &[(u32, f32)]) -> ShadowTally {
    let scores: BTreeMap<u32, f32> = shadow.iter().copied().collect();
    let mut tally = ShadowTally { compared: 1, ..ShadowTally::default() };
    for at in counted(given.len()) {
        let (candidate, score) = given[at];
        let Some(other) = scores.get(&candidate) else { continue };
        tally.answered.record(score);
        tally.scores.record(*other);
        tally.differences.record((score - other).abs());
    }
    tally
}

#[cfg(test)]
mod tests {
    use tidepool_cluster::ScoreHistogram;

    use super::*;

    #[test]
    fn scores_are_compared_candidate_by_candidate() {
        let tally = compare(&[(2, 0.5), (0, 0.25)], &[(0, 0.25), (1, 9.0), (2, 0.75)]);
        assert_eq!(tally.compared, 1);
        assert_eq!(tally.differences, ScoreHistogram::from_bins([(0, 1), (ScoreHistogram::bin(0.25), 1)]));
        let bins = |scores: [f32; 2]| ScoreHistogram::from_bins(scores.map(|s| (ScoreHistogram::bin(s), 1)));
        assert_eq!((tally.answered, tally.scores), (bins([0.5, 0.25]), bins([0.75, 0.25])));
    }

    #[test]
    fn so_many_are_drawn_as_the_sample_says() {
        let shadows = Shadows::of_pool(4);
        for sample in [0, 100, 5_000, BUCKETS] {
            let drawn = (0..100_000).filter(|_| shadows.draws(sample)).count();
            let expected = 10.0 * f64::from(sample);
            assert!((drawn as f64 - expected).abs() <= 500.0, "{drawn} for {sample}");
        }
    }

    #[tokio::test]
    async fn shadows_leave_half_of_the_threads_and_a_single_one_to_those_who_ask() {
        for (threads, permits) in [(1, 1), (2, 1), (3, 1), (4, 2), (64, 2)] {
            assert_eq!(Shadows::of_pool(threads).permits.available_permits(), permits, "{threads} threads");
        }
        let pool = CpuPool::new(1, 4).unwrap();
        let (alone, two) = (Shadows::of_pool(1), Shadows::of_pool(2));
        assert!(alone.has_room(&pool));
        let _others = (alone.answering(), two.answering());
        assert!(!alone.has_room(&pool) && two.has_room(&pool));
        drop(_others);
        assert!(alone.has_room(&pool));
    }
}
