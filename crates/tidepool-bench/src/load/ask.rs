//! What requests ask: bags of ids of a bench table, drawn from a seed, no batch ever the same.

use std::{fmt, str::FromStr};

use thiserror::Error;
use tidepool_client::{FeatureLookup, LookupRequest};
use tidepool_types::{Pooling, TableVersion};

use crate::{
    BenchError, BenchTable, Skew,
    draw::{Draw, Random},
    rows::id_of,
};

/// Parameter of the heavy tail: a Pareto density that falls with the power of -2.5.
const TAIL: f64 = 1.5;
/// The largest batch of a heavy tail, in means.
const LARGEST: f64 = 20.0;

/// How the bags of a request differ in number from request to request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchShape {
    /// Not at all.
    Fixed,
    /// Many small and a few large ones: a bounded Pareto distribution (power 1.5) with the given mean, up to
    /// twenty times that.
    HeavyTailed,
}

/// A shape that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no shape of batches: fixed or heavy")]
pub struct ParseBatchShapeError(String);

impl FromStr for BatchShape {
    type Err = ParseBatchShapeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "fixed" => Ok(Self::Fixed),
            "heavy" => Ok(Self::HeavyTailed),
            _ => Err(ParseBatchShapeError(text.to_owned())),
        }
    }
}

impl fmt::Display for BatchShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed",
            Self::HeavyTailed => "heavy",
        })
    }
}

/// What every request asks.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Of which table.
    pub table: BenchTable,
    /// Bags of a request, on average.
    pub batch: usize,
    /// How that differs.
    pub shape: BatchShape,
    /// Ids of a bag.
    pub bag: usize,
    /// How a bag becomes a vector.
    pub pooling: Pooling,
    /// Whether ids have weights: from 0.5 to 1.5.
    pub weighted: bool,
    /// Which rows are asked for how often.
    pub skew: Skew,
    /// The seed of all that is drawn.
    pub seed: u64,
}

impl Asked {
    /// Ids of a request, on average.
    #[must_use]
    pub const fn ids(&self) -> usize {
        self.batch * self.bag
    }

    /// The requests, one after the other, without end.
    ///
    /// # Errors
    /// [`BenchError::Parameters`]: a request without ids, or weights that nothing is pooled with.
    pub fn requests(&self) -> Result<Requests, BenchError> {
        if self.batch == 0 || self.bag == 0 || self.ids() > u32::MAX as usize / LARGEST as usize {
            return Err(BenchError::Parameters("a request has bags, a bag has ids, and both are few"));
        }
        if self.weighted && self.pooling == Pooling::None {
            return Err(BenchError::Parameters("weights go with sum or mean pooling"));
        }
        Ok(Requests {
            asked: *self,
            table_version: self.table.table_version()?,
            draw: Draw::new(self.skew, self.table.rows),
            random: Random::new(self.seed),
            sizes: BoundedPareto::with_mean(self.batch as f64),
            number: 0,
        })
    }
}

/// Requests that are drawn as they are taken.
#[derive(Clone, Debug)]
pub struct Requests {
    asked: Asked,
    table_version: TableVersion,
    draw: Draw,
    random: Random,
    sizes: BoundedPareto,
    number: u64,
}

impl Iterator for Requests {
    type Item = LookupRequest;

    fn next(&mut self) -> Option<LookupRequest> {
        let Asked { batch, shape, bag, pooling, weighted, table, .. } = self.asked;
        let bags = match shape {
            BatchShape::Fixed => batch,
            BatchShape::HeavyTailed => self.sizes.draw(&mut self.random),
        };
        let ids = (0..bags * bag).map(|_| id_of(table.keying, self.draw.row(&mut self.random))).collect();
        let weights = weighted.then(|| (0..bags * bag).map(|_| 0.5 + self.random.unit() as f32).collect());
        self.number += 1;
        let feature = FeatureLookup {
            table_version: self.table_version.clone(),
            pooling,
            ids,
            lengths: (bag > 1).then(|| vec![bag as u32; bags]),
            weights,
        };
        Some(LookupRequest { request_id: format!("load-{}", self.number), features: vec![feature] })
    }
}

/// Numbers from 1 to a bound, of a Pareto distribution cut off there.
#[derive(Clone, Copy, Debug)]
struct BoundedPareto {
    least: f64,
    most: f64,
}

impl BoundedPareto {
    /// The one whose draws, rounded, have about this mean; `mean` is at least 1.
    fn with_mean(mean: f64) -> Self {
        let most = mean * LARGEST;
        // The mean grows with the least number: bisection finds it.
        let (mut low, mut high) = (mean * 1e-3, mean);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if (Self { least: middle, most }).mean() < mean { low = middle } else { high = middle }
        }
        Self { least: high, most }
    }

    fn mean(self) -> f64 {
        let Self { least, most } = self;
        let cut = 1.0 - (least / most).powf(TAIL);
        TAIL * least.powf(TAIL) * (least.powf(1.0 - TAIL) - most.powf(1.0 - TAIL)) / ((TAIL - 1.0) * cut)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the most")]
    fn draw(self, random: &mut Random) -> usize {
        let Self { least, most } = self;
        let cut = 1.0 - (least / most).powf(TAIL);
        let x = least / (1.0 - random.unit() * cut).powf(1.0 / TAIL);
        // Rounded up or down by chance, so that the mean stays; no request is empty.
        ((x.min(most) + random.unit()) as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tidepool_types::{Keying, PartitionCount, RowFormat};

    use super::*;

    fn asked() -> Asked {
        Asked {
            table: BenchTable {
                rows: 1000,
                dim: 8,
                format: RowFormat::Int4,
                keying: Keying::Hashed,
                partitions: PartitionCount::new(4).unwrap(),
            },
            batch: 40,
            shape: BatchShape::Fixed,
            bag: 3,
            pooling: Pooling::Sum,
            weighted: true,
            skew: Skew::Uniform,
            seed: 5,
        }
    }

    #[test]
    fn the_same_seed_asks_the_same_and_no_batch_twice() {
        let first: Vec<_> = asked().requests().unwrap().take(50).collect();
        assert_eq!(first, asked().requests().unwrap().take(50).collect::<Vec<_>>());
        let other = Asked { seed: 6, ..asked() };
        assert_ne!(first[0].features, other.requests().unwrap().next().unwrap().features);
        let batches: HashSet<_> = first.iter().map(|r| r.features[0].ids.clone()).collect();
        assert_eq!(batches.len(), 50);
        let feature = &first[0].features[0];
        assert_eq!((feature.ids.len(), feature.lengths.as_deref()), (120, Some(&[3u32; 40][..])));
        assert!(feature.weights.as_ref().unwrap().iter().all(|w| (0.5..=1.5).contains(w)));
    }

    #[test]
    fn a_heavy_tail_is_bounded_and_has_its_mean() {
        for mean in [1.0, 10.0, 100.0, 1000.0] {
            let sizes = BoundedPareto::with_mean(mean);
            let mut random = Random::new(9);
            let drawn: Vec<f64> = (0..200_000).map(|_| sizes.draw(&mut random) as f64).collect();
            let most = drawn.iter().copied().fold(0.0, f64::max);
            assert!(most <= mean * LARGEST + 1.0 && most > mean * LARGEST / 3.0, "{mean}: {most}");
            let found = drawn.iter().sum::<f64>() / drawn.len() as f64;
            // A mean of 1 cannot be had when there is no empty request.
            let allowed = if mean > 1.0 { 0.03 } else { 0.5 };
            assert!((found / mean - 1.0).abs() < allowed, "{mean}: {found}");
            let mut sorted = drawn;
            sorted.sort_by(f64::total_cmp);
            assert!(sorted[100_000] < mean.max(1.1), "half of them are smaller than the mean");
        }
    }

    #[test]
    fn empty_requests_and_idle_weights_are_refused() {
        for wrong in [
            Asked { batch: 0, ..asked() },
            Asked { bag: 0, ..asked() },
            Asked { batch: 1 << 31, ..asked() },
            Asked { pooling: Pooling::None, ..asked() },
        ] {
            assert!(wrong.requests().is_err(), "{wrong:?}");
        }
        for text in ["fixed", "heavy"] {
            assert_eq!(text.parse::<BatchShape>().unwrap().to_string(), text);
        }
        assert!("Heavy".parse::<BatchShape>().is_err());
    }
}
