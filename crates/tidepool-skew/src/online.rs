//! What was served beside what is computed here, with the same release.

use serde::Serialize;
use tidepool_ranker::{offline::Scored, samples::Online};
use tidepool_types::{ModelSpec, TableVersion};

/// How far the scores and outputs that rankers gave are from those that are computed offline.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OnlineReport {
    /// Requests that this release answered, and were compared.
    pub requests: u64,
    /// Scores and outputs that were compared.
    pub values: u64,
    /// Those that differ by more than the bound.
    pub beyond: u64,
    /// Their share, in percent.
    pub beyond_percent: f64,
    /// The largest difference.
    pub max_difference: f64,
    /// The mean difference.
    pub mean_difference: f64,
    /// Requests of this release that were left out, being answered without some ids, or from other table versions.
    pub not_comparable_requests: u64,
    #[serde(skip)]
    sum: f64,
}

impl OnlineReport {
    /// Compares what was answered with what is `scored`. Differences count up to `bound` times the larger of 1 and the
    /// value.
    pub(crate) fn add(
        &mut self,
        (spec, tables): (&ModelSpec, &[TableVersion]),
        online: &Online,
        scored: &Scored,
        bound: f64,
    ) {
        let other = |told: &String| !tables.iter().any(|own| own.to_string() == *told);
        if online.unavailable_ids > 0 || online.tables.iter().any(other) {
            self.not_comparable_requests += 1;
            return;
        }
        self.requests += 1;
        self.compare(&online.scores, &scored.scores, bound);
        for (name, values) in &online.outputs {
            if let Some(at) = spec.output(name) {
                self.compare(values, &scored.outputs[at], bound);
            }
        }
    }

    fn compare(&mut self, online: &[Option<f32>], offline: &[f32], bound: f64) {
        for (online, offline) in online.iter().zip(offline) {
            let Some(online) = online else { continue };
            let online = f64::from(*online);
            let difference = (online - f64::from(*offline)).abs();
            self.values += 1;
            self.beyond += u64::from(difference > bound * online.abs().max(1.0));
            self.max_difference = self.max_difference.max(difference);
            self.sum += difference;
        }
    }

    /// With the shares of what was counted.
    pub(crate) fn finished(mut self) -> Self {
        let values = (self.values as f64).max(1.0);
        self.beyond_percent = self.beyond as f64 / values * 100.0;
        self.mean_difference = self.sum / values;
        self
    }
}
