//! How well a quantile of a few requests is known: between which of them, put in order, that of all that could have been
//! lies with 95 %. No distribution is assumed: how many of `n` lie beyond the quantile is binomial.

use serde::Serialize;

use crate::load::Times;

/// The least number of requests of which a p99 is said.
pub const LEAST_SAMPLES: u64 = 100;
/// What lies below the interval, and above it.
const TAIL: f64 = 0.025;
/// From so many expected beyond the quantile on, the normal distribution stands for the binomial one.
const MANY: f64 = 500.0;

/// A p99, and where it may lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct P99 {
    /// In microseconds.
    pub us: f64,
    /// With 95 %, it is not below.
    pub low_us: f64,
    /// Nor above; none: the longest of so few says nothing of it.
    pub high_us: Option<f64>,
    /// Requests that it is of.
    pub samples: u64,
}

impl P99 {
    /// Of these times; none of fewer than [`LEAST_SAMPLES`].
    pub(super) fn of(times: &Times) -> Option<Self> {
        let samples = times.count();
        if samples < LEAST_SAMPLES {
            return None;
        }
        let (low, high) = ranks(samples, 0.99);
        // The time at a rank, counted from 1.
        let at = |rank: u64| times.quantile_us(rank as f64 / samples as f64);
        Some(Self { us: times.quantile_us(0.99), low_us: at(low), high_us: high.map(at), samples })
    }
}

/// The ranks, from 1, between which the quantile `q` lies with 95 %.
fn ranks(samples: u64, q: f64) -> (u64, Option<u64>) {
    let (least, most) = (beyond(samples, 1.0 - q, TAIL), beyond(samples, 1.0 - q, 1.0 - TAIL));
    // With `most` of them beyond, the quantile is not below the one before those; with `least - 1` and fewer it could
    // only be above the one behind them.
    let low = samples.saturating_sub(most).max(1);
    let high = (least > 0).then(|| (samples - least + 1).min(samples));
    (low, high)
}

/// The smallest count that a binomial number of `samples` with chance `p` does not exceed with chance `share`.
fn beyond(samples: u64, p: f64, share: f64) -> u64 {
    let (n, mean) = (samples as f64, samples as f64 * p);
    if mean > MANY {
        let sign = if share < 0.5 { -1.0 } else { 1.0 };
        return (mean + sign * 1.96 * (mean * (1.0 - p)).sqrt()).round().max(0.0) as u64;
    }
    let mut chance = (n * (1.0 - p).ln()).exp();
    let (mut sum, mut count) = (chance, 0u64);
    while sum < share && count < samples {
        chance *= (n - count as f64) / (count + 1) as f64 * p / (1.0 - p);
        count += 1;
        sum += chance;
    }
    count
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ranks_are_those_of_the_binomial_distribution() {
        // Of 100 with a chance of 1 %: none with 36.6 %, at most 3 with 98.2 %, at most 2 with 92.1 %.
        assert_eq!((beyond(100, 0.01, 0.366), beyond(100, 0.01, 0.975)), (0, 3));
        assert_eq!(ranks(100, 0.99), (97, None), "the longest of a hundred bounds nothing");
        assert_eq!(ranks(1000, 0.99), (983, Some(997)));
        // Where the normal distribution takes over, nothing jumps.
        let (exact, normal) = (ranks(49_999, 0.99), ranks(50_001, 0.99));
        assert!(exact.0.abs_diff(normal.0) <= 6 && exact.1.unwrap().abs_diff(normal.1.unwrap()) <= 6);
    }

    #[test]
    fn of_few_nothing_is_said() {
        let mut times = Times::new().unwrap();
        (1..=99).for_each(|us| times.record(Duration::from_micros(us)));
        assert_eq!(P99::of(&times), None);
        (100..=1000).for_each(|us| times.record(Duration::from_micros(us)));
        let p99 = P99::of(&times).unwrap();
        let near = |found: f64, right: f64| (found - right).abs() <= right / 500.0;
        assert!(near(p99.us, 990.0) && near(p99.low_us, 983.0), "{p99:?}");
        assert!(near(p99.high_us.unwrap(), 997.0) && p99.samples == 1000, "{p99:?}");
    }
}
