//! Figures of a stream beside those of all examples at once, and standard errors beside the spread that they speak of.

use super::*;
use crate::{
    metrics::{auc, log_loss},
    rng::Rng,
};

/// Requests of so many examples each: true probabilities and labels.
fn drawn(seed: u64, requests: u64, of_each: usize) -> Vec<(u64, f32, bool)> {
    let mut rng = Rng::new(seed);
    let mut examples = Vec::new();
    for request in 0..requests {
        // What the examples of a request have in common.
        let shift = rng.uniform() - 0.5;
        for _ in 0..of_each {
            let p = (0.02 + 0.5 * rng.uniform() + 0.4 * (shift + 0.5)).clamp(0.0, 1.0);
            examples.push((request, p as f32, rng.uniform() < p));
        }
    }
    examples
}

fn tally(examples: &[(u64, f32, bool)], score: impl Fn(f32) -> f32) -> Tally {
    let mut tally = Tally::default();
    examples.iter().for_each(|(request, p, label)| tally.add(*request, score(*p), *label));
    tally
}

#[test]
fn a_stream_has_the_figures_of_the_whole() {
    let examples = drawn(1, 300, 20);
    let scores: Vec<f32> = examples.iter().map(|e| e.1).collect();
    let labels: Vec<bool> = examples.iter().map(|e| e.2).collect();
    let told = tally(&examples, |p| p).evaluation();
    let positives = labels.iter().filter(|label| **label).count();
    assert_eq!((told.examples, told.positives, told.no_probabilities), (6_000, positives as u64, 0));
    assert!((told.log_loss.unwrap().value - log_loss(&scores, &labels)).abs() < 1e-9);
    let (found, within) = (told.auc.unwrap().value, told.auc_within.unwrap());
    assert!((found - auc(&scores, &labels)).abs() <= within && within < 1e-3, "{found} within {within}");
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / 6_000.0;
    let (score, label) =
        (mean(&mut scores.iter().map(|s| f64::from(*s))), mean(&mut labels.iter().map(|l| f64::from(*l))));
    assert!((told.calibration.unwrap().value - score / label).abs() < 1e-9);
    assert!(told.calibration_error.unwrap().value < 0.03, "{told:?}");
}

#[test]
fn a_wrong_scale_is_a_calibration_error_and_no_loss_of_order() {
    let examples = drawn(2, 400, 10);
    let (good, half) = (tally(&examples, |p| p), tally(&examples, |p| p / 2.0));
    let (good_told, half_told) = (good.evaluation(), half.evaluation());
    assert!((half_told.calibration.unwrap().value * 2.0 - good_told.calibration.unwrap().value).abs() < 1e-6);
    assert!((half_told.calibration_error.unwrap().value - 0.235).abs() < 0.03, "{half_told:?}");
    let change = half.change(&good);
    assert!(change.auc.unwrap().value.abs() < 1e-9, "{change:?}");
    let loss = change.log_loss.unwrap();
    assert!(loss.value > 5.0 * loss.standard_error.unwrap(), "{change:?}");
    let percent = change.log_loss_percent.unwrap().value;
    assert!((percent - 100.0 * loss.value / good_told.log_loss.unwrap().value).abs() < 1e-9);
    let none = good.change(&good).log_loss.unwrap();
    assert_eq!(none, Estimate { value: 0.0, standard_error: Some(0.0), groups: 20 });
}

#[test]
fn standard_errors_are_the_spread_of_the_figures() {
    let runs: Vec<Evaluation> =
        (0..60).map(|seed| tally(&drawn(100 + seed, 200, 8), |p| p).evaluation()).collect();
    type Pick = fn(&Evaluation) -> Option<Estimate>;
    let picks: [Pick; 3] = [|e| e.log_loss, |e| e.auc, |e| e.calibration];
    for pick in picks {
        let estimates: Vec<Estimate> = runs.iter().map(|run| pick(run).unwrap()).collect();
        let n = estimates.len() as f64;
        let mean = estimates.iter().map(|e| e.value).sum::<f64>() / n;
        let spread = (estimates.iter().map(|e| (e.value - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        let told = estimates.iter().map(|e| e.standard_error.unwrap()).sum::<f64>() / n;
        assert!((0.7..1.4).contains(&(told / spread)), "told {told}, it is {spread}");
    }
}

#[test]
fn what_cannot_be_told_is_not() {
    let nothing = Tally::default().evaluation();
    assert_eq!((nothing.examples, nothing.log_loss, nothing.auc), (0, None, None));
    let mut one = Tally::default();
    one.add(0, 0.5, true);
    let told = one.evaluation();
    assert_eq!(told.log_loss, Some(Estimate { value: -(0.5f64.ln()), standard_error: None, groups: 1 }));
    assert_eq!(told.auc, None, "there are no pairs");
    one.add(1, 7.5, false);
    let told = one.evaluation();
    assert_eq!((told.no_probabilities, told.log_loss, told.calibration), (1, None, None));
    let auc = told.auc.unwrap();
    assert_eq!((auc.value, auc.standard_error), (0.0, None), "without either group there are no pairs");
}
