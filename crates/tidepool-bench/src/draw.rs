//! Which rows are asked for: a seeded stream of numbers, uniform or Zipf over the rows of a table.

use std::{fmt, str::FromStr};

use thiserror::Error;
use tidepool_types::mix64;

/// The numbers of splitmix64: the same seed, the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give the same stream a step apart.
        Self(mix64(seed))
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }

    /// A number below `limit`, each as likely as the others but for 2^-64 of `limit`.
    pub(crate) const fn below(&mut self, limit: u64) -> u64 {
        ((self.next() as u128 * limit as u128) >> 64) as u64
    }

    /// From 0, to 1 without it.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub(crate) const fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How likely each row is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Skew {
    /// All the same.
    Uniform,
    /// The k-th most likely row is asked for `k^-exponent` times as often as the first. Which row is the
    /// k-th is scattered over the table.
    Zipf(f64),
}

/// A skew that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no skew: uniform, or zipf: and an exponent above 0 and up to 10, as zipf:1.05")]
pub struct ParseSkewError(String);

impl FromStr for Skew {
    type Err = ParseSkewError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "uniform" {
            return Ok(Self::Uniform);
        }
        let exponent = text.strip_prefix("zipf:").and_then(|exponent| exponent.parse().ok());
        match exponent {
            Some(exponent) if exponent > 0.0 && exponent <= 10.0 => Ok(Self::Zipf(exponent)),
            _ => Err(ParseSkewError(text.to_owned())),
        }
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

/// Draws row numbers.
#[derive(Clone, Debug)]
pub(crate) enum Draw {
    Uniform { rows: u64 },
    Zipf { ranks: Zipf, scatter: Scatter },
}

impl Draw {
    /// `rows` is at least 1.
    pub(crate) fn new(skew: Skew, rows: u64) -> Self {
        match skew {
            Skew::Uniform => Self::Uniform { rows },
            Skew::Zipf(exponent) => {
                Self::Zipf { ranks: Zipf::new(rows, exponent), scatter: Scatter::new(rows) }
            }
        }
    }

    /// A row number.
    pub(crate) fn row(&self, random: &mut Random) -> u64 {
        match self {
            Self::Uniform { rows } => random.below(*rows),
            Self::Zipf { ranks, scatter } => scatter.of(ranks.rank(random) - 1),
        }
    }
}

/// Ranks 1 to n, rank k with probability proportional to `k^-exponent`, in constant time and memory: the
/// rejection-inversion of Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone
/// discrete distributions", ACM TOMACS 6(3), 1996. The density is laid under a hat whose integral can be
/// inverted; a draw from the hat is rounded, and rarely refused.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    ranks: f64,
    exponent: f64,
    /// The hat's integral at both ends.
    integral_first: f64,
    integral_last: f64,
    /// A draw that is this little below its rank is taken without a look at the density.
    sure: f64,
}

impl Zipf {
    #[expect(clippy::cast_precision_loss, reason = "beyond 2^53 rows the last ranks share a number")]
    pub(crate) fn new(ranks: u64, exponent: f64) -> Self {
        let mut zipf =
            Self { ranks: ranks as f64, exponent, integral_first: 0.0, integral_last: 0.0, sure: 0.0 };
        zipf.integral_first = zipf.integral(1.5) - 1.0;
        zipf.integral_last = zipf.integral(zipf.ranks + 0.5);
        zipf.sure = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the ranks")]
    pub(crate) fn rank(&self, random: &mut Random) -> u64 {
        loop {
            let u = random.unit().mul_add(self.integral_first - self.integral_last, self.integral_last);
            let x = self.inverse(u);
            let rank = x.round().clamp(1.0, self.ranks);
            if rank - x <= self.sure || u >= self.integral(rank + 0.5) - self.density(rank) {
                return rank as u64;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// The integral of the density from 1 to `x`. Around an exponent of 1, where the power law turns into a
    /// logarithm, it is written so that nothing cancels.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let power = (1.0 - self.exponent) * log;
        if power.abs() > 1e-8 { log * power.exp_m1() / power } else { log * (1.0 + power / 2.0) }
    }

    fn inverse(&self, integral: f64) -> f64 {
        let power = (integral * (1.0 - self.exponent)).max(-1.0);
        let log = if power.abs() > 1e-8 {
            integral * power.ln_1p() / power
        } else {
            integral * (1.0 - power / 2.0)
        };
        log.exp()
    }
}

/// A bijection of 0..n that leaves no neighbours together: likely rows are not in likely pages.
#[derive(Clone, Debug)]
pub(crate) struct Scatter {
    rows: u64,
    mask: u64,
    shift: u32,
}

impl Scatter {
    pub(crate) const fn new(rows: u64) -> Self {
        let bits = 64 - rows.saturating_sub(1).leading_zeros();
        let bits = if bits < 2 { 2 } else { bits };
        Self { rows, mask: u64::MAX >> (64 - bits), shift: bits.div_ceil(2) }
    }

    /// Where `n`, below the number of rows, goes.
    pub(crate) const fn of(&self, n: u64) -> u64 {
        let mut at = n;
        loop {
            // Multiplying by an odd number and folding the high half onto the low one are bijections of the
            // numbers of that many bits; those outside the table are sent on until they are inside.
            at = at.wrapping_add(0x51_7cc1).wrapping_mul(0x9e37_79b9_7f4a_7c15) & self.mask;
            at ^= at >> self.shift;
            at = at.wrapping_mul(0xd6e8_feb8_6659_fd93) & self.mask;
            at ^= at >> self.shift;
            if at < self.rows {
                return at;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skews_are_read_and_shown() {
        for text in ["uniform", "zipf:1.05", "zipf:1"] {
            assert_eq!(text.parse::<Skew>().unwrap().to_string(), text);
        }
        for text in ["", "zipf", "zipf:", "zipf:0", "zipf:-1", "zipf:NaN", "zipf:inf", "Uniform"] {
            assert!(text.parse::<Skew>().is_err(), "{text}");
        }
    }

    #[test]
    fn zipf_ranks_come_as_often_as_they_should() {
        const DRAWS: u32 = 200_000;
        for (ranks, exponent) in [(1u64, 1.05), (2, 1.0), (10, 0.5), (100, 1.05), (1000, 1.0), (50, 3.0)] {
            let weights: Vec<f64> = (1..=ranks).map(|k| (k as f64).powf(-exponent)).collect();
            let total: f64 = weights.iter().sum();
            let zipf = Zipf::new(ranks, exponent);
            let mut random = Random::new(ranks);
            let mut drawn = vec![0u32; weights.len()];
            for _ in 0..DRAWS {
                drawn[zipf.rank(&mut random) as usize - 1] += 1;
            }
            for (rank, (weight, drawn)) in weights.iter().zip(drawn).enumerate() {
                let expected = f64::from(DRAWS) * weight / total;
                // Six standard deviations, and one for the rarest.
                let allowed = 6.0 * expected.sqrt() + 1.0;
                assert!((f64::from(drawn) - expected).abs() < allowed, "{ranks} {exponent} {rank}: {drawn}");
            }
        }
    }

    #[test]
    fn zipf_over_very_many_ranks_stays_inside() {
        let zipf = Zipf::new(300_000_000, 1.05);
        let mut random = Random::new(1);
        let ranks: Vec<u64> = (0..10_000).map(|_| zipf.rank(&mut random)).collect();
        assert!(ranks.iter().all(|rank| (1..=300_000_000).contains(rank)));
        assert!(ranks.iter().any(|&rank| rank > 1_000_000) && ranks.contains(&1));
    }

    #[test]
    fn scattering_is_a_bijection() {
        for rows in [1u64, 2, 3, 5, 64, 1000, 1025] {
            let scatter = Scatter::new(rows);
            let mut seen = vec![false; rows as usize];
            for n in 0..rows {
                assert!(!std::mem::replace(&mut seen[scatter.of(n) as usize], true), "{rows} {n}");
            }
        }
    }
}
