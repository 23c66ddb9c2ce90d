//! Requests that are asked of another release too, after they were answered: its scores are compared with those
//! that were given, and given to nobody.
//!
//! A shadow has what is left over: it is not asked while a request waits for a thread, nor when others are being
//! asked already, and its lookups are in the ranker's own name, not its caller's.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tidepool_cluster::{BUCKETS, ShadowTally};
use tidepool_types::{Name, mix64};
use tokio::sync::Semaphore;
use tracing::debug;

use crate::{
    counters::counted,
    rank::{RankAnswer, Ranker},
    request::RankRequest,
};

/// Shadows that are asked at the same time.
const CONCURRENT: usize = 2;

/// Decides which requests are asked again.
#[derive(Debug)]
pub(crate) struct Shadows {
    turn: AtomicU64,
    permits: Arc<Semaphore>,
}

/// A request that is to be asked again once it is answered.
#[derive(Debug)]
pub(crate) struct Shadowed {
    request: RankRequest,
    releases: Vec<Name>,
}

impl Shadowed {
    /// How many releases it is to be asked of.
    pub(crate) fn count(&self) -> u8 {
        u8::try_from(self.releases.len()).unwrap_or(u8::MAX)
    }
}

impl Default for Shadows {
    fn default() -> Self {
        Self { turn: AtomicU64::new(0), permits: Arc::new(Semaphore::new(CONCURRENT)) }
    }
}

impl Shadows {
    /// Whether the next of `BUCKETS` requests is among `sample`: the same share of any stretch of them.
    fn draws(&self, sample: u32) -> bool {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        mix64(turn) % u64::from(BUCKETS) < u64::from(sample)
    }
}

impl Ranker {
    /// A copy of the request, if it is to be asked of a shadow. One that names its release is not.
    pub(crate) fn shadowed(&self, request: &RankRequest) -> Option<Shadowed> {
        if request.release.is_some() || request.candidates == 0 {
            return None;
        }
        let snapshot = self.releases.snapshot();
        let traffic = snapshot.map.traffic.get(request.model.as_str())?;
        let drawn = traffic.shadows.iter().filter(|shadow| self.shadows.draws(shadow.sample));
        let releases: Vec<_> = drawn.map(|shadow| shadow.release.clone()).collect();
        (!releases.is_empty()).then(|| Shadowed { request: request.clone(), releases })
    }

    /// Asks the shadows of a request that has got `answer`, if there is time for that. It does not wait.
    pub(crate) fn shadow(self: &Arc<Self>, shadowed: Shadowed, answer: &RankAnswer) {
        for release in shadowed.releases {
            let model = shadowed.request.model.as_str();
            // One that is not loaded here has nowhere to be counted: its release's report says that it is not.
            let Ok((loaded, epoch)) = self.releases.pin(model, &release) else { continue };
            let permit = self.shadows.permits.clone().try_acquire_owned().ok();
            let Some(permit) = permit.filter(|_| self.pool.depth() == 0) else {
                loaded.counters.count_shadow(&ShadowTally { dropped: 1, ..ShadowTally::default() });
                continue;
            };
            let request = RankRequest {
                release: Some(release.to_string()),
                tenant: String::new(),
                top_k: 0,
                ..shadowed.request.clone()
            };
            let (ranker, given) = (self.clone(), answer.ranked.clone());
            tokio::spawn(async move {
                let arrived = Instant::now();
                let mut noting = ranker.recent.begin_shadow(&request, arrived);
                let answered = ranker.answer_with((&loaded, epoch), request, arrived, &mut noting).await;
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
        let shadows = Shadows::default();
        for sample in [0, 100, 5_000, BUCKETS] {
            let drawn = (0..100_000).filter(|_| shadows.draws(sample)).count();
            let expected = 10.0 * f64::from(sample);
            assert!((drawn as f64 - expected).abs() <= 500.0, "{drawn} for {sample}");
        }
    }
}
