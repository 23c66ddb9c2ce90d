//! What this ranker has counted of a release since it has loaded it. It is reported to the controller, whose
//! guards judge by it, and shown as metrics.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tidepool_cluster::{ScoreHistogram, Serving, ShadowTally, Tally};

use crate::releases::Releases;

/// Scores of one request that are counted, at most: one with many candidates says no more of a release than others. What
/// selects candidates elsewhere brings so many samples of each request, of the rows that [`counted`] says.
pub(crate) const SCORES_COUNTED: usize = 16;

/// The counters of one loaded release.
#[derive(Debug)]
pub(crate) struct Counters(Mutex<Serving>);

impl Default for Counters {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        Self(Mutex::new(Serving { since, ..Serving::default() }))
    }
}

impl Counters {
    /// What has been counted until now.
    pub(crate) fn snapshot(&self) -> Serving {
        self.lock().clone()
    }

    /// Counts a request that the release was chosen for, of the user whose key has this hash.
    pub(crate) fn count(&self, tally: &Tally, key: u64) {
        let chosen = &mut self.lock().chosen;
        chosen.add(tally);
        chosen.keys.record(key);
        if tally.scores.total() > 0 {
            chosen.scored_keys.record(key);
        }
    }

    /// Counts what became of a request in the shadow of another.
    pub(crate) fn count_shadow(&self, tally: &ShadowTally) {
        self.lock().shadow.add(tally);
    }

    fn lock(&self) -> MutexGuard<'_, Serving> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Positions of the scores that are counted, of so many: the first, the last but few, and those between, evenly.
pub(crate) fn counted(scores: usize) -> impl Iterator<Item = usize> {
    let step = scores.div_ceil(SCORES_COUNTED).max(1);
    (0..scores).step_by(step)
}

/// The distribution of the scores of one request.
pub(crate) fn histogram(scores: &[f32]) -> ScoreHistogram {
    let mut histogram = ScoreHistogram::default();
    counted(scores.len()).for_each(|at| histogram.record(scores[at]));
    histogram
}

/// Shows the counters of the releases that are loaded. A release that is let go takes its series with it.
pub(crate) struct ReleaseMetrics {
    releases: Releases,
    descriptions: Vec<Desc>,
}

const LABELS: [&str; 2] = ["model", "release"];

/// A metric: its name, its help, and which number it is.
type Shown = (&'static str, &'static str, fn(&Serving) -> u64);

const SHOWN: [Shown; 7] = [
    ("requests_total", "Requests that a release was chosen for", |s| s.chosen.requests),
    ("errors_total", "Those of them that were not answered", |s| s.chosen.errors),
    ("ids_total", "Ids that they looked up", |s| s.chosen.ids),
    ("missing_ids_total", "Those of them that no table had", |s| s.chosen.missing_ids),
    ("shadow_compared_total", "Requests that a release answered in the shadow of another", |s| {
        s.shadow.compared
    }),
    ("shadow_failed_total", "Requests that it could not answer there", |s| s.shadow.failed),
    ("shadow_dropped_total", "Requests that it was not asked there, for want of time", |s| s.shadow.dropped),
];

impl ReleaseMetrics {
    /// Of the releases of a ranker.
    ///
    /// # Errors
    /// When a name is none: a defect.
    pub(crate) fn new(releases: Releases) -> prometheus::Result<Self> {
        let mut descriptions = Vec::new();
        for shown in SHOWN {
            descriptions.extend(vec(shown)?.desc().into_iter().cloned());
        }
        Ok(Self { releases, descriptions })
    }
}

fn vec((name, help, _): Shown) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(format!("tidepool_ranker_release_{name}"), help), &LABELS)
}

impl Collector for ReleaseMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot = self.releases.snapshot();
        let loaded: Vec<_> =
            snapshot.loaded().map(|release| (release, release.counters.snapshot())).collect();
        let family = |shown: Shown| {
            let counters = vec(shown).ok()?;
            for (release, serving) in &loaded {
                let labels = [release.model.as_str(), release.release.as_str()];
                counters.with_label_values(&labels).inc_by(shown.2(serving));
            }
            counters.collect().pop()
        };
        // What was not loaded yet has no series, and a family of none is not to be shown.
        SHOWN.into_iter().filter_map(family).filter(|family| !family.get_metric().is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_scores_of_many_are_counted_from_everywhere() {
        for scores in [0usize, 1, 15, 16, 17, 100, 10_000] {
            let at: Vec<_> = counted(scores).collect();
            assert!(at.len() <= SCORES_COUNTED && at.iter().all(|at| *at < scores), "{scores}: {at:?}");
            assert!(at.len() >= scores.min(SCORES_COUNTED / 2), "{scores}: {at:?}");
        }
        assert_eq!(histogram(&[0.5; 100]).total(), 15);
    }
}
