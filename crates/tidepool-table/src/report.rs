//! Measures, while rows are stored, what quantization costs.

use tidepool_types::QuantizationReport;

/// A sum of non-negative doubles that does not depend on their order: mantissas are added as integers,
/// one total per exponent. So a shuffled input gives the same manifest to the byte. Squares of f32 are far
/// from the subnormal doubles, which it would lose.
#[derive(Clone, Debug)]
struct ExactSum(Box<[u128; 2048]>);

impl ExactSum {
    fn new() -> Self {
        Self(Box::new([0; 2048]))
    }

    fn add(&mut self, value: f64) {
        let bits = value.to_bits();
        let exponent = (bits >> 52 & 0x7ff) as usize;
        let hidden = u64::from(exponent > 0) << 52;
        self.0[exponent] += u128::from(bits & ((1 << 52) - 1) | hidden);
    }

    fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(sum, more)| *sum += more);
    }

    fn total(&self) -> f64 {
        let parts = self.0.iter().zip(0i32..).filter(|&(&mantissas, _)| mantissas > 0);
        parts.fold(0.0, |sum, (&mantissas, exponent)| {
            sum + mantissas as f64 * 2f64.powi(exponent.max(1) - 1075)
        })
    }
}

/// What storing one row cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowCost {
    /// The squared distance of what was stored.
    error: f64,
    /// The squared length of the row.
    norm: f64,
}

impl RowCost {
    /// Bytes of [`to_bytes`](Self::to_bytes).
    pub(crate) const BYTES: usize = 16;

    /// Compares a row with what is read back; all values are finite.
    pub(crate) fn of(original: &[f32], stored: &[f32]) -> Self {
        let square = |x: f64| x * x;
        let error = original.iter().zip(stored).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
        let norm = original.iter().map(|&a| square(f64::from(a))).sum();
        Self { error, norm }
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        (u128::from(self.error.to_bits()) | u128::from(self.norm.to_bits()) << 64).to_le_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self { error: f64::from_bits(both as u64), norm: f64::from_bits((both >> 64) as u64) }
    }
}

/// The report in the making.
#[derive(Clone, Debug)]
pub(crate) struct Measure {
    rows: u64,
    error: ExactSum,
    norm: ExactSum,
    worst: f64,
    worst_id: u64,
}

impl Measure {
    pub(crate) fn new() -> Self {
        Self { rows: 0, error: ExactSum::new(), norm: ExactSum::new(), worst: 0.0, worst_id: u64::MAX }
    }

    /// Adds one row.
    pub(crate) fn add(&mut self, id: u64, cost: RowCost) {
        let RowCost { error, norm } = cost;
        self.rows += 1;
        self.error.add(error);
        self.norm.add(norm);
        self.worst_of(ratio(error, norm), id);
    }

    /// Adds what another has measured.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.error.merge(&other.error);
        self.norm.merge(&other.norm);
        self.worst_of(other.worst, other.worst_id);
    }

    fn worst_of(&mut self, relative: f64, id: u64) {
        if relative > self.worst || (relative == self.worst && id < self.worst_id) {
            self.worst = relative;
            self.worst_id = id;
        }
    }

    /// The report; `None` when nothing was measured.
    pub(crate) fn report(&self) -> Option<QuantizationReport> {
        (self.rows > 0).then(|| QuantizationReport {
            relative_l2: six_digits(ratio(self.error.total(), self.norm.total())),
            worst_row_relative_l2: six_digits(self.worst),
            worst_row_id: self.worst_id,
        })
    }
}

/// `sqrt(error / norm)`. A row of zeros has no relative error; every format stores it exactly.
fn ratio(error: f64, norm: f64) -> f64 {
    if norm > 0.0 { (error / norm).sqrt() } else { 0.0 }
}

/// Six significant digits: more would be noise, and these come back from JSON exactly.
fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sum_is_close_and_does_not_depend_on_order(
            mut values in proptest::collection::vec(0f64..1e30, 0..50),
            tiny in proptest::collection::vec(0f64..1e-90, 0..50),
        ) {
            values.extend(tiny);
            let sum = |values: &[f64]| {
                let mut sum = ExactSum::new();
                values.iter().for_each(|&value| sum.add(value));
                sum.total()
            };
            let forward = sum(&values);
            let plain: f64 = values.iter().sum();
            prop_assert!((forward - plain).abs() <= plain * 1e-12);
            values.reverse();
            prop_assert_eq!(forward.to_bits(), sum(&values).to_bits());
        }
    }

    #[test]
    fn the_worst_row_is_named() {
        let mut measure = Measure::new();
        assert_eq!(measure.report(), None);
        measure.add(7, RowCost::of(&[3.0, 4.0], &[3.0, 4.0]));
        let mut other = Measure::new();
        other.add(8, RowCost::from_bytes(RowCost::of(&[3.0, 4.0], &[3.0, 3.5]).to_bytes()));
        other.add(9, RowCost::of(&[0.0, 0.0], &[0.0, 0.0]));
        measure.merge(&other);
        let report = measure.report().unwrap();
        assert_eq!((report.worst_row_id, report.worst_row_relative_l2), (8, 0.1));
        assert_eq!(report.relative_l2, 0.070_710_7);
    }
}
