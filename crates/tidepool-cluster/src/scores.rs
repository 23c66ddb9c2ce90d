//! The distribution of scores, in bins of a relative width of 2 %, so that it can be counted in any number of
//! processes, added up, and compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A bin's upper end is so many times its lower end: scores of a model that knows little lie close together.
const RATIO: f64 = 1.02;
/// What is closer to zero is zero.
const SMALLEST: f64 = 1e-9;

/// How often scores fell into each bin. Bin 0 is zero, bin `n` from 1 on is the `n`th from 1e-9 away from zero,
/// bin `-n` its negative.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScoreHistogram {
    /// Counts by bin; a bin without scores is not there.
    bins: BTreeMap<i32, u64>,
}

impl ScoreHistogram {
    /// The last bin on either side: what is further away from zero, 1e15 and more, is counted there.
    pub const LAST_BIN: i32 = 2790;

    /// The bin of a score. A NaN has that of zero: who counts scores refuses it before.
    #[must_use]
    pub fn bin(score: f32) -> i32 {
        let distance = f64::from(score).abs();
        if distance.is_nan() || distance < SMALLEST {
            return 0;
        }
        let steps = (distance / SMALLEST).ln() / RATIO.ln();
        let bin = (steps.min(f64::from(Self::LAST_BIN - 1)) as i32) + 1;
        if score < 0.0 { -bin } else { bin }
    }

    /// One from counts by bin, in any order. Bins beyond the last count there.
    #[must_use]
    pub fn from_bins(bins: impl IntoIterator<Item = (i32, u64)>) -> Self {
        let mut histogram = Self::default();
        for (bin, count) in bins {
            let bin = bin.clamp(-Self::LAST_BIN, Self::LAST_BIN);
            histogram.count(bin, count);
        }
        histogram
    }

    /// Counts one score.
    pub fn record(&mut self, score: f32) {
        self.count(Self::bin(score), 1);
    }

    fn count(&mut self, bin: i32, count: u64) {
        if count > 0 {
            let counted = self.bins.entry(bin).or_default();
            *counted = counted.saturating_add(count);
        }
    }

    /// The bins that have scores, ascending, and how many.
    pub fn bins(&self) -> impl Iterator<Item = (i32, u64)> {
        self.bins.iter().map(|(bin, count)| (*bin, *count))
    }

    /// All scores together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.bins.values().fold(0, |sum: u64, count| sum.saturating_add(*count))
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        other.bins().for_each(|(bin, count)| self.count(bin, count));
    }

    /// What has been counted since `before`; `None` when it is no continuation of it.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        let mut since = self.clone();
        for (bin, count) in before.bins() {
            let counted = since.bins.get_mut(&bin)?;
            *counted = counted.checked_sub(count)?;
        }
        since.bins.retain(|_, count| *count > 0);
        Some(since)
    }

    /// The Kolmogorov-Smirnov distance to another: the largest difference of the two shares of scores up to any
    /// bin, from 0 to 1. `None` when either has no scores.
    #[must_use]
    pub fn distance(&self, other: &Self) -> Option<f64> {
        let (mine, others) = (self.total() as f64, other.total() as f64);
        if mine == 0.0 || others == 0.0 {
            return None;
        }
        let mut steps = BTreeMap::<i32, f64>::new();
        for (bin, count) in self.bins() {
            *steps.entry(bin).or_default() += count as f64 / mine;
        }
        for (bin, count) in other.bins() {
            *steps.entry(bin).or_default() -= count as f64 / others;
        }
        let (mut apart, mut most) = (0.0f64, 0.0f64);
        for step in steps.values() {
            apart += step;
            most = most.max(apart.abs());
        }
        Some(most.min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(scores: &[f32]) -> ScoreHistogram {
        let mut histogram = ScoreHistogram::default();
        scores.iter().for_each(|score| histogram.record(*score));
        histogram
    }

    #[test]
    fn bins_keep_the_sign_and_the_order() {
        let ascending = [f32::MIN, -1e3, -1.0, -0.5, -1e-8, 0.0, 1e-8, 0.01, 0.5, 0.56, 1.0, 1e3, f32::MAX];
        let bins: Vec<_> = ascending.iter().map(|score| ScoreHistogram::bin(*score)).collect();
        assert!(bins.windows(2).all(|pair| pair[0] < pair[1]), "{bins:?}");
        assert_eq!((bins[0], bins[12]), (-ScoreHistogram::LAST_BIN, ScoreHistogram::LAST_BIN));
        assert_eq!(ScoreHistogram::bin(-0.5), -ScoreHistogram::bin(0.5));
        assert_eq!((ScoreHistogram::bin(1e-10), ScoreHistogram::bin(f32::NAN)), (0, 0));
        assert_eq!(ScoreHistogram::bin(f32::INFINITY), ScoreHistogram::LAST_BIN);
        // A little more is another bin, a hair more is the same or the next one.
        for score in [0.001f32, 0.3, 7.0] {
            let bin = ScoreHistogram::bin(score);
            assert!(ScoreHistogram::bin(score * 1.03) > bin);
            assert!(ScoreHistogram::bin(score * 1.005) <= bin + 1);
        }
    }

    #[test]
    fn distances_are_those_of_the_shares() {
        let low = of(&[0.1, 0.1, 0.1, 0.1]);
        assert_eq!(low.distance(&of(&[0.1])), Some(0.0), "how many there are does not matter");
        assert_eq!(low.distance(&of(&[0.9, 0.8])), Some(1.0));
        assert_eq!(low.distance(&of(&[0.1, 0.9])), Some(0.5));
        assert_eq!(of(&[-1.0, 1.0]).distance(&of(&[0.5, -2.0])), Some(0.5));
        assert_eq!(low.distance(&ScoreHistogram::default()), None);
    }

    proptest! {
        #[test]
        fn what_came_since_and_what_was_before_are_all(
            before in prop::collection::vec(-2f32..2.0, 0..50),
            later in prop::collection::vec(-2f32..2.0, 0..50),
        ) {
            let (first, second) = (of(&before), of(&later));
            let mut all = first.clone();
            all.add(&second);
            prop_assert_eq!(all.since(&first), Some(second));
            prop_assert_eq!(ScoreHistogram::from_bins(all.bins()), all.clone());
            if !later.is_empty() {
                prop_assert_eq!(first.since(&all), None);
            }
        }
    }
}
