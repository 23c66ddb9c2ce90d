//! Measures, while rows are stored, what quantization costs, and says what a row takes.

use tidepool_types::{QuantizationReport, Quantizer, RowFormat, Size, SizeReport, TableSchema, WorstRow};

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
    /// The largest distance of an element.
    largest: f64,
}

impl RowCost {
    /// Bytes of [`to_bytes`](Self::to_bytes).
    pub(crate) const BYTES: usize = 24;

    /// Compares a row with what is read back; all values are finite.
    pub(crate) fn of(original: &[f32], stored: &[f32]) -> Self {
        let mut cost = Self::default();
        for (&original, &stored) in original.iter().zip(stored) {
            let original = f64::from(original);
            let distance = (original - f64::from(stored)).abs();
            cost.error += distance * distance;
            cost.norm += original * original;
            cost.largest = cost.largest.max(distance);
        }
        cost
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let numbers = [self.error, self.norm, self.largest];
        for (bytes, number) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *bytes = number.to_le_bytes();
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let (numbers, _) = bytes.as_chunks::<8>();
        let number = |at: usize| f64::from_le_bytes(numbers[at]);
        Self { error: number(0), norm: number(1), largest: number(2) }
    }
}

/// The report in the making.
#[derive(Clone, Debug)]
pub(crate) struct Measure {
    rows: u64,
    error: ExactSum,
    norm: ExactSum,
    /// The worst first, at most [`QuantizationReport::WORST_ROWS`].
    worst: Vec<Ranked>,
}

/// A row that is worse than others, not rounded yet.
#[derive(Clone, Copy, Debug)]
struct Ranked {
    id: u64,
    relative: f64,
    largest: f64,
}

impl Ranked {
    /// Of equally bad rows the smaller id stands first, so that no order of rows changes the report.
    fn stands_before(&self, other: &Self) -> bool {
        self.relative > other.relative || (self.relative == other.relative && self.id < other.id)
    }
}

impl Measure {
    pub(crate) fn new() -> Self {
        Self { rows: 0, error: ExactSum::new(), norm: ExactSum::new(), worst: Vec::new() }
    }

    /// Adds one row.
    pub(crate) fn add(&mut self, id: u64, cost: RowCost) {
        let RowCost { error, norm, largest } = cost;
        self.rows += 1;
        self.error.add(error);
        self.norm.add(norm);
        self.rank(Ranked { id, relative: ratio(error, norm), largest });
    }

    /// Adds what another has measured.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.error.merge(&other.error);
        self.norm.merge(&other.norm);
        other.worst.iter().for_each(|&row| self.rank(row));
    }

    fn rank(&mut self, row: Ranked) {
        let full = self.worst.len() == QuantizationReport::WORST_ROWS;
        let of_no_note = self.worst.last().is_some_and(|last| full && last.stands_before(&row));
        if row.relative > 0.0 && !of_no_note {
            self.worst.truncate(QuantizationReport::WORST_ROWS - 1);
            let at = self.worst.partition_point(|before| before.stands_before(&row));
            self.worst.insert(at, row);
        }
    }

    /// The report on rows of `format` that were stored by `quantizer`; `None` when nothing was measured.
    pub(crate) fn report(&self, quantizer: Quantizer, format: RowFormat) -> Option<QuantizationReport> {
        let worst_rows = self.worst.iter().map(|row| WorstRow {
            id: row.id,
            relative_l2: six_digits(row.relative),
            largest_absolute_error: Some(six_digits(row.largest)),
        });
        (self.rows > 0).then(|| QuantizationReport {
            quantizer: quantizer.in_effect(format),
            relative_l2: six_digits(ratio(self.error.total(), self.norm.total())),
            worst_rows: worst_rows.collect(),
        })
    }
}

/// What a row of this table takes, whose partition files have so many bytes, so many of them index; `None`
/// when it has no rows.
pub(crate) fn sizes(schema: &TableSchema, file_bytes: u64, index_bytes: u64) -> Option<SizeReport> {
    let size = |bytes_per_row: f64| Size {
        bytes_per_row: six_digits(bytes_per_row),
        ratio_to_f16: six_digits(bytes_per_row / RowFormat::F16.row_bytes(schema.dim) as f64),
        ratio_to_f32: six_digits(bytes_per_row / RowFormat::F32.row_bytes(schema.dim) as f64),
    };
    let rows = schema.rows as f64;
    (schema.rows > 0).then(|| SizeReport {
        row: size(schema.row_bytes() as f64),
        file: size((file_bytes - index_bytes) as f64 / rows),
        file_with_index: size(file_bytes as f64 / rows),
    })
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
    use tidepool_types::{Keying, Name, PartitionCount, TableVersion};

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

    /// Adds a row of length 5 whose second element is off by `off`.
    fn add(measure: &mut Measure, id: u64, off: f32) {
        let cost = RowCost::of(&[3.0, 4.0], &[3.0, 4.0 + off]);
        measure.add(id, RowCost::from_bytes(cost.to_bytes()));
    }

    fn report(measure: &Measure) -> Option<QuantizationReport> {
        measure.report(Quantizer::Optimized, RowFormat::Int4)
    }

    #[test]
    fn the_worst_row_is_named() {
        let mut measure = Measure::new();
        assert_eq!(report(&measure), None);
        add(&mut measure, 7, 0.0);
        let mut other = Measure::new();
        add(&mut other, 8, -0.5);
        other.add(9, RowCost::of(&[0.0, 0.0], &[0.0, 0.0]));
        measure.merge(&other);
        let report = report(&measure).unwrap();
        let worst = WorstRow { id: 8, relative_l2: 0.1, largest_absolute_error: Some(0.5) };
        assert_eq!(report.worst_rows, [worst], "exact rows are not named");
        assert_eq!((report.quantizer, report.relative_l2), (Some(Quantizer::Optimized), 0.070_710_7));
    }

    #[test]
    fn the_worst_rows_are_the_same_in_any_order_and_of_any_parts() {
        // Pairs of rows are equally bad, so that the tenth place is disputed.
        let off = |id: u64| ((id / 2 * 7) % 19) as f32 / 64.0;
        let mut expected: Vec<u64> = (0..38).collect();
        expected.sort_by(|&a, &b| off(b).total_cmp(&off(a)).then(a.cmp(&b)));
        expected.truncate(QuantizationReport::WORST_ROWS);
        for parts in 1..6 {
            for ids in [(0..38).collect::<Vec<u64>>(), (0..38).rev().collect()] {
                let mut measures = vec![Measure::new(); parts];
                ids.iter().for_each(|&id| add(&mut measures[id as usize % parts], id, off(id)));
                let mut all = Measure::new();
                measures.iter().for_each(|measure| all.merge(measure));
                let named: Vec<u64> = report(&all).unwrap().worst_rows.iter().map(|row| row.id).collect();
                assert_eq!(named, expected, "{parts} parts");
            }
        }
    }

    #[test]
    fn sizes_are_beside_bare_rows() {
        let schema = TableSchema {
            table_version: TableVersion { table: Name::new("t").unwrap(), version: Name::new("v").unwrap() },
            dim: 32,
            format: RowFormat::Int4,
            keying: Keying::Hashed,
            partitions: PartitionCount::ONE,
            rows: 1000,
            default_row: Vec::new(),
            composite: None,
        };
        let report = sizes(&schema, 34_000, 2000).unwrap();
        let size =
            |bytes_per_row, ratio_to_f16, ratio_to_f32| Size { bytes_per_row, ratio_to_f16, ratio_to_f32 };
        assert_eq!(report.row, size(20.0, 0.3125, 0.156_25));
        assert_eq!(report.file, size(32.0, 0.5, 0.25));
        assert_eq!(report.file_with_index, size(34.0, 0.531_25, 0.265_625));
        assert_eq!(sizes(&TableSchema { rows: 0, ..schema }, 8192, 0), None);
    }
}
