//! How good scores are: AUC, log loss, and how sure a difference between two sets of scores is.

use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// AUC and log loss of one set of scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Area under the ROC curve over all examples at once, ties counted half.
    pub auc: f64,
    /// Mean negative log likelihood, in nats.
    pub log_loss: f64,
}

impl Quality {
    /// Of `scores` for examples with these `labels`.
    #[must_use]
    pub fn of(scores: &[f32], labels: &[bool]) -> Self {
        Self { auc: auc(scores, labels), log_loss: log_loss(scores, labels) }
    }
}

/// A difference and its 95 % interval from a paired bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// On all examples.
    pub difference: f64,
    /// 2.5 % of the resamples lie below.
    pub low: f64,
    /// 2.5 % of the resamples lie above.
    pub high: f64,
}

/// How one set of scores differs from another over the same examples: first minus second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Of AUC.
    pub auc: Interval,
    /// Of log loss, in nats.
    pub log_loss: Interval,
    /// Of log loss, as a share of the second's log loss.
    pub log_loss_relative: Interval,
    /// Resamples that the intervals come from.
    pub resamples: u32,
}

/// Area under the ROC curve: the chance that a liked example scores above one that was not, ties counted half.
/// NaN when one of the two labels is absent.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn auc(scores: &[f32], labels: &[bool]) -> f64 {
    assert_eq!(scores.len(), labels.len(), "one label per score");
    Ranking::new(scores).auc(labels, |_| 1)
}

/// Mean negative log likelihood, in nats. Probabilities are kept within 1e-7 of 0 and 1.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn log_loss(scores: &[f32], labels: &[bool]) -> f64 {
    assert_eq!(scores.len(), labels.len(), "one label per score");
    let sum: f64 = scores.iter().zip(labels).map(|(&p, &label)| example_loss(p, label)).sum();
    sum / scores.len() as f64
}

/// The negative log likelihood of one example.
pub(crate) fn example_loss(probability: f32, label: bool) -> f64 {
    let p = f64::from(probability).clamp(1e-7, 1.0 - 1e-7);
    if label { -p.ln() } else { -(1.0 - p).ln() }
}

/// Compares two sets of scores over the same examples: each resample draws examples with repetition and takes both
/// sets' AUC and log loss on the very same draw.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn paired_bootstrap(
    first: &[f32],
    second: &[f32],
    labels: &[bool],
    resamples: u32,
    seed: u64,
) -> Comparison {
    assert!(first.len() == labels.len() && second.len() == labels.len(), "one label per score");
    let n = labels.len();
    let rankings = [Ranking::new(first), Ranking::new(second)];
    let losses = [first, second].map(|scores| {
        let of_each = scores.iter().zip(labels).map(|(&p, &label)| example_loss(p, label));
        of_each.collect::<Vec<f64>>()
    });
    let differences = |counts: &[u32]| {
        let [auc_a, auc_b] = [0, 1].map(|s| rankings[s].auc(labels, |at| counts[at]));
        let [loss_a, loss_b] = [0, 1].map(|s| {
            losses[s].iter().zip(counts).map(|(loss, &count)| loss * f64::from(count)).sum::<f64>() / n as f64
        });
        [auc_a - auc_b, loss_a - loss_b, (loss_a - loss_b) / loss_b]
    };
    let on_all = differences(&vec![1; n]);
    let mut rng = Rng::fork(seed, 90);
    let mut drawn: [Vec<f64>; 3] = Default::default();
    let mut counts = vec![0u32; n];
    for _ in 0..resamples {
        counts.fill(0);
        for _ in 0..n {
            counts[rng.below(n)] += 1;
        }
        for (all, value) in drawn.iter_mut().zip(differences(&counts)) {
            all.push(value);
        }
    }
    let [auc, log_loss, log_loss_relative] =
        std::array::from_fn(|which| interval(on_all[which], &mut drawn[which]));
    Comparison { auc, log_loss, log_loss_relative, resamples }
}

fn interval(difference: f64, drawn: &mut [f64]) -> Interval {
    drawn.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = (q * drawn.len() as f64) as usize;
        drawn.get(at.min(drawn.len().saturating_sub(1))).copied().unwrap_or(difference)
    };
    Interval { difference, low: quantile(0.025), high: quantile(0.975) }
}

/// Examples in order of score, sorted once so that an AUC under any weights is one pass.
struct Ranking {
    /// Places of examples, lowest score first.
    order: Vec<u32>,
    /// Whether the example scores the same as the one before it in `order`.
    tied: Vec<bool>,
}

impl Ranking {
    fn new(scores: &[f32]) -> Self {
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        order.sort_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]));
        let tied = order.windows(2).map(|w| scores[w[0] as usize] == scores[w[1] as usize]);
        let tied = std::iter::once(false).chain(tied).collect();
        Self { order, tied }
    }

    /// AUC when example `at` stands there `count(at)` times.
    fn auc(&self, labels: &[bool], count: impl Fn(usize) -> u32) -> f64 {
        // Counts are whole numbers well below 2^53, so these sums are exact.
        let (mut below, mut wins) = (0.0f64, 0.0f64);
        let (mut tie_negatives, mut tie_positives) = (0.0f64, 0.0f64);
        let mut positives = 0.0f64;
        for (&at, &tied) in self.order.iter().zip(&self.tied) {
            if !tied {
                wins += tie_positives * (below + tie_negatives / 2.0);
                below += tie_negatives;
                positives += tie_positives;
                (tie_negatives, tie_positives) = (0.0, 0.0);
            }
            let count = f64::from(count(at as usize));
            if labels[at as usize] {
                tie_positives += count;
            } else {
                tie_negatives += count;
            }
        }
        wins += tie_positives * (below + tie_negatives / 2.0);
        wins / ((positives + tie_positives) * (below + tie_negatives))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    /// Every pair of a liked and a not liked example, one by one.
    fn auc_of_pairs(scores: &[f32], labels: &[bool]) -> f64 {
        let (mut wins, mut pairs) = (0.0, 0.0);
        for (a, _) in labels.iter().enumerate().filter(|&(_, &l)| l) {
            for (b, _) in labels.iter().enumerate().filter(|&(_, &l)| !l) {
                pairs += 1.0;
                wins += if scores[a] > scores[b] {
                    1.0
                } else if scores[a] == scores[b] {
                    0.5
                } else {
                    0.0
                };
            }
        }
        wins / pairs
    }

    proptest! {
        #[test]
        fn auc_is_the_share_of_pairs_in_order(examples in prop::collection::vec((0u8..12, any::<bool>()), 2..60)) {
            let scores: Vec<f32> = examples.iter().map(|&(s, _)| f32::from(s) / 12.0).collect();
            let labels: Vec<bool> = examples.iter().map(|&(_, l)| l).collect();
            let (fast, slow) = (auc(&scores, &labels), auc_of_pairs(&scores, &labels));
            prop_assert!((fast - slow).abs() < 1e-12 || (fast.is_nan() && slow.is_nan()), "{} {}", fast, slow);
        }

        #[test]
        fn counts_mean_repeated_examples(examples in prop::collection::vec((0u8..6, any::<bool>(), 0u32..4), 2..20)) {
            let scores: Vec<f32> = examples.iter().map(|&(s, ..)| f32::from(s)).collect();
            let labels: Vec<bool> = examples.iter().map(|&(_, l, _)| l).collect();
            let (mut long_scores, mut long_labels) = (Vec::new(), Vec::new());
            for &(s, l, count) in &examples {
                for _ in 0..count {
                    long_scores.push(f32::from(s));
                    long_labels.push(l);
                }
            }
            let fast = Ranking::new(&scores).auc(&labels, |at| examples[at].2);
            let slow = auc_of_pairs(&long_scores, &long_labels);
            prop_assert!((fast - slow).abs() < 1e-12 || (fast.is_nan() && slow.is_nan()), "{} {}", fast, slow);
        }
    }

    #[test]
    fn log_loss_of_known_probabilities() {
        let loss = log_loss(&[0.5, 0.25, 1.0], &[true, false, true]);
        let expected = ((2.0f64).ln() - (0.75f64).ln() + 1e-7) / 3.0;
        assert!((loss - expected).abs() < 1e-9, "{loss} {expected}");
    }

    #[test]
    fn the_bootstrap_tells_a_real_difference_from_noise() {
        let mut rng = Rng::new(5);
        let truth: Vec<f32> = (0..4_000).map(|_| rng.uniform() as f32).collect();
        let labels: Vec<bool> = truth.iter().map(|&p| rng.uniform() < f64::from(p)).collect();
        let same: Vec<f32> = truth.iter().map(|&p| p * 0.999 + 0.0005).collect();
        let worse: Vec<f32> = truth.iter().map(|&p| (p + 0.5 * rng.uniform() as f32) / 1.5).collect();
        let none = paired_bootstrap(&same, &truth, &labels, 200, 1);
        assert!(none.auc.difference.abs() < 1e-6 && none.log_loss_relative.difference.abs() < 1e-3);
        let real = paired_bootstrap(&worse, &truth, &labels, 200, 1);
        assert!(real.auc.high < 0.0 && real.log_loss.low > 0.0, "{real:?}");
        assert!(real.auc.low < real.auc.difference && real.auc.difference < real.auc.high);
        assert_eq!(real, paired_bootstrap(&worse, &truth, &labels, 200, 1), "a seed decides the draw");
    }
}
