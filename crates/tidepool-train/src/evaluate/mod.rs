//! How good scores are when there are more of them than memory: log loss, AUC and calibration of a stream of labelled
//! examples, each with its standard error, and how one set of scores differs from another over the same examples.
//!
//! Examples of one request are alike (one user, one page), so a standard error that takes them for independent is too
//! small. Requests are dealt into twenty groups, and each figure is computed anew without each of them (the delete-a-group
//! jackknife): how much it moves says how much chance there is in it, for AUC as for log loss, and for the difference of
//! two models as for one.

mod ranks;

use serde::Serialize;

use self::ranks::Ranks;
use crate::metrics::example_loss;

/// Groups that requests are dealt into.
const GROUPS: usize = 20;
/// Bins of equal numbers of examples that calibration is judged by.
const CALIBRATION_BINS: usize = 10;

/// A figure, and how much chance there is in it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// On all examples.
    pub value: f64,
    /// Of `value`, from requests that are taken away group by group; `None` where there are too few.
    pub standard_error: Option<f64>,
    /// Groups of requests that were taken away for it, 20 at most. Of few of them the standard error is itself a guess.
    pub groups: u32,
}

/// How good a set of scores is. A figure that there are no examples for is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Labelled examples.
    pub examples: u64,
    /// Those of them with label 1.
    pub positives: u64,
    /// Scores that are no probability, being below 0 or above 1. If there are any, AUC alone is told.
    pub no_probabilities: u64,
    /// Mean negative log likelihood, in nats.
    pub log_loss: Option<Estimate>,
    /// Area under the ROC curve over all examples at once, ties counted half. Scores within a thousandth of each other
    /// count as tied.
    pub auc: Option<Estimate>,
    /// How far `auc` may be off for that.
    pub auc_within: Option<f64>,
    /// Mean score over mean label: 1 is calibrated, 2 promises twice what comes.
    pub calibration: Option<Estimate>,
    /// Expected calibration error: the mean distance of score and label over ten bins of equally many examples, ordered
    /// by score. Of few examples it is never 0: chance alone keeps the mean label of a bin from its mean score.
    pub calibration_error: Option<Estimate>,
}

/// How the scores differ from others over the same examples: these less those.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Of log loss, in nats: above 0 is worse.
    pub log_loss: Option<Estimate>,
    /// Of log loss, in percent of the other's.
    pub log_loss_percent: Option<Estimate>,
    /// Of AUC: below 0 is worse.
    pub auc: Option<Estimate>,
    /// Of calibration.
    pub calibration: Option<Estimate>,
}

/// Labelled scores, added up as they come. Its memory does not grow with their number.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    groups: [Group; GROUPS],
}

#[derive(Clone, Debug, Default)]
struct Group {
    sums: Sums,
    ranks: Ranks,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    examples: u64,
    positives: u64,
    no_probabilities: u64,
    score: f64,
    loss: f64,
}

/// The figures of one set of examples.
#[derive(Clone, Copy, Debug)]
struct Figures {
    log_loss: Option<f64>,
    auc: Option<f64>,
    auc_within: Option<f64>,
    calibration: Option<f64>,
    calibration_error: Option<f64>,
}

impl Tally {
    /// Adds an example of the request with this number. Two tallies can be compared when requests have the same numbers
    /// in both. `score` must be finite.
    pub fn add(&mut self, request: u64, score: f32, label: bool) {
        let Group { sums, ranks } = &mut self.groups[(request % GROUPS as u64) as usize];
        sums.examples += 1;
        sums.positives += u64::from(label);
        sums.no_probabilities += u64::from(!(0.0..=1.0).contains(&score));
        sums.score += f64::from(score);
        sums.loss += example_loss(score, label);
        ranks.add(score, label);
    }

    /// How good the scores are.
    #[must_use]
    pub fn evaluation(&self) -> Evaluation {
        let whole = Whole::of(self);
        let figures = whole.each();
        let estimate = |figure: fn(&Figures) -> Option<f64>| estimate(&figures, figure);
        Evaluation {
            examples: whole.sums.examples,
            positives: whole.sums.positives,
            no_probabilities: whole.sums.no_probabilities,
            log_loss: estimate(|f| f.log_loss),
            auc: estimate(|f| f.auc),
            auc_within: figures.on_all.auc_within,
            calibration: estimate(|f| f.calibration),
            calibration_error: estimate(|f| f.calibration_error),
        }
    }

    /// How the scores differ from `other`, which has the same examples of the same requests.
    #[must_use]
    pub fn change(&self, other: &Self) -> Change {
        let (own, other) = (Whole::of(self).each(), Whole::of(other).each());
        let pairs = Each {
            on_all: (own.on_all, other.on_all),
            without: own.without.into_iter().zip(other.without).collect(),
        };
        let difference = |figure: fn(&Figures) -> Option<f64>| {
            estimate(&pairs, |(own, other)| Some(figure(own)? - figure(other)?))
        };
        Change {
            log_loss: difference(|f| f.log_loss),
            log_loss_percent: estimate(&pairs, |(own, other)| {
                let other = other.log_loss.filter(|loss| *loss > 0.0)?;
                Some((own.log_loss? - other) / other * 100.0)
            }),
            auc: difference(|f| f.auc),
            calibration: difference(|f| f.calibration),
        }
    }
}

/// A figure of all examples, and of those without each group that has any.
#[derive(Clone, Debug)]
struct Each<T> {
    on_all: T,
    without: Vec<T>,
}

/// The jackknife over groups.
fn estimate<T>(each: &Each<T>, figure: impl Fn(&T) -> Option<f64>) -> Option<Estimate> {
    let value = figure(&each.on_all)?;
    let groups = each.without.len() as u32;
    // A group without which a figure cannot be told (it had all positives) says that chance is large.
    let without: Option<Vec<f64>> = each.without.iter().map(&figure).collect();
    let spread = |without: Vec<f64>| {
        let groups = without.len() as f64;
        let mean = without.iter().sum::<f64>() / groups;
        let squares: f64 = without.iter().map(|value| (value - mean).powi(2)).sum();
        ((groups - 1.0) / groups * squares).sqrt()
    };
    let standard_error = without.filter(|without| without.len() > 1).map(spread);
    Some(Estimate { value, standard_error, groups })
}

/// All groups together.
struct Whole<'a> {
    tally: &'a Tally,
    sums: Sums,
    ranks: Ranks,
}

impl<'a> Whole<'a> {
    fn of(tally: &'a Tally) -> Self {
        let (mut sums, mut ranks) = (Sums::default(), Ranks::default());
        for group in &tally.groups {
            sums.examples += group.sums.examples;
            sums.positives += group.sums.positives;
            sums.no_probabilities += group.sums.no_probabilities;
            sums.score += group.sums.score;
            sums.loss += group.sums.loss;
            ranks.merge(&group.ranks);
        }
        Self { tally, sums, ranks }
    }

    fn each(&self) -> Each<Figures> {
        let groups = self.tally.groups.iter().filter(|group| group.sums.examples > 0);
        Each { on_all: self.figures(None), without: groups.map(|group| self.figures(Some(group))).collect() }
    }

    /// The figures of all examples but those of a group.
    fn figures(&self, without: Option<&Group>) -> Figures {
        let all = self.sums;
        let less = without.map(|group| group.sums).unwrap_or_default();
        let examples = (all.examples - less.examples) as f64;
        let positives = (all.positives - less.positives) as f64;
        let is_probability = all.no_probabilities == 0 && examples > 0.0;
        let (auc, auc_within) = self.auc(without, positives, examples - positives);
        Figures {
            log_loss: is_probability.then(|| (all.loss - less.loss) / examples),
            auc,
            auc_within,
            calibration: (is_probability && positives > 0.0).then(|| (all.score - less.score) / positives),
            calibration_error: is_probability.then(|| self.calibration_error(without, examples)),
        }
    }

    /// The AUC, and how much of it are pairs whose order is not known; none where one of the two labels is absent.
    fn auc(&self, without: Option<&Group>, positives: f64, negatives: f64) -> (Option<f64>, Option<f64>) {
        let pairs = positives * negatives;
        if pairs <= 0.0 {
            return (None, None);
        }
        let (mut below, mut wins, mut ties) = (0.0, 0.0, 0.0);
        for bin in self.ranks.bins(without.map(|group| &group.ranks)) {
            let tied = bin.positives * bin.negatives;
            wins += bin.positives * below + tied / 2.0;
            ties += tied / 2.0;
            below += bin.negatives;
        }
        (Some(wins / pairs), Some(ties / pairs))
    }

    /// The mean distance of scores and labels, over bins of equally many examples.
    fn calibration_error(&self, without: Option<&Group>, examples: f64) -> f64 {
        let wanted = examples / CALIBRATION_BINS as f64;
        let (mut distance, mut filled) = (0.0, 0.0);
        let (mut scores, mut labels) = (0.0, 0.0);
        for bin in self.ranks.bins(without.map(|group| &group.ranks)) {
            let count = bin.positives + bin.negatives;
            let mut left = count;
            // Examples of one score may lie on both sides of a bin's end: their labels are dealt out evenly.
            while left > 0.0 {
                let taken = left.min(wanted - filled);
                scores += bin.score * taken;
                labels += bin.positives * taken / count;
                filled += taken;
                left -= taken;
                if wanted - filled <= wanted * 1e-9 {
                    distance += f64::abs(scores - labels);
                    (filled, scores, labels) = (0.0, 0.0, 0.0);
                }
            }
        }
        (distance + f64::abs(scores - labels)) / examples
    }
}

#[cfg(test)]
mod tests;
