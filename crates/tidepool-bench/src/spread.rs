//! A median and how far the runs lay apart.

use serde::Serialize;

/// The middle of many measurements, and the 5th and 95th percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the measurements are below.
    pub median: f64,
    /// 5 % are below.
    pub low: f64,
    /// 5 % are above.
    pub high: f64,
}

impl Spread {
    /// That of `values`; zeros when there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let place = (values.len().saturating_sub(1) * percent + 50) / 100;
            values.get(place).copied().unwrap_or_default()
        };
        Self { median: at(50), low: at(5), high: at(95) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_ends() {
        let spread = Spread::of((0..=100).rev().map(f64::from));
        assert_eq!(spread, Spread { median: 50.0, low: 5.0, high: 95.0 });
        assert_eq!(Spread::of([7.0]), Spread { median: 7.0, low: 7.0, high: 7.0 });
        assert_eq!(Spread::of([]).median, 0.0);
    }
}
