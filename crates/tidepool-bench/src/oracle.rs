//! The oracle: what a bag of a bench table must give, from the rows' function and a decoder of its own.

use tidepool_types::RowFormat;

use crate::rows::stored_row;

/// How far a sum may be off, as a share of the sum of |weight x value|.
pub(crate) const TOLERANCE: f64 = 1e-5;

/// Knows every row of a bench table, and what sums of them are. Slow, obvious, in f64.
#[derive(Debug)]
pub struct Oracle {
    format: RowFormat,
    version: u64,
    row: Vec<u8>,
    values: Vec<f64>,
    sums: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl Oracle {
    /// For the rows of one version.
    #[must_use]
    pub fn new(format: RowFormat, dim: u32, version: u64) -> Self {
        let zeros = vec![0.0; dim as usize];
        Self {
            format,
            version,
            row: vec![0; format.row_bytes(dim)],
            values: zeros.clone(),
            sums: zeros.clone(),
            magnitudes: zeros,
        }
    }

    /// Whether `answer` is the sum of the rows of `members`, ids with weights: no column is off by more than
    /// 1e-5 of its sum of |weight x value|.
    pub fn is_sum(&mut self, members: impl IntoIterator<Item = (u64, f32)>, answer: &[f32]) -> bool {
        self.sums.fill(0.0);
        self.magnitudes.fill(0.0);
        for (id, weight) in members {
            stored_row(self.format, id, self.version, &mut self.row);
            decode(self.format, &self.row, &mut self.values);
            let sums = self.sums.iter_mut().zip(&mut self.magnitudes);
            for ((sum, magnitude), value) in sums.zip(&self.values) {
                let term = f64::from(weight) * value;
                *sum += term;
                *magnitude += term.abs();
            }
        }
        let expected = self.sums.iter().zip(&self.magnitudes);
        // Written so that NaN is wrong.
        answer.len() == self.sums.len()
            && answer
                .iter()
                .zip(expected)
                .all(|(&found, (sum, magnitude))| (f64::from(found) - sum).abs() <= TOLERANCE * magnitude)
    }
}

/// A stored row as numbers, read as docs/table-format.md has it.
pub(crate) fn decode(format: RowFormat, row: &[u8], values: &mut [f64]) {
    match format {
        RowFormat::Int4 => {
            let (codes, ends) = row.split_at(row.len() - 4);
            let scale = f16(u16::from_le_bytes([ends[0], ends[1]]));
            let bias = f16(u16::from_le_bytes([ends[2], ends[3]]));
            for (column, value) in values.iter_mut().enumerate() {
                let byte = codes[column / 2];
                let code = if column % 2 == 0 { byte % 16 } else { byte / 16 };
                *value = f64::from(code) * scale + bias;
            }
        }
        RowFormat::Int8 => {
            let (codes, ends) = row.split_at(row.len() - 8);
            let end = |at: usize| f32::from_le_bytes([ends[at], ends[at + 1], ends[at + 2], ends[at + 3]]);
            for (value, &code) in values.iter_mut().zip(codes) {
                *value = f64::from(code) * f64::from(end(0)) + f64::from(end(4));
            }
        }
        RowFormat::F16 => {
            for (value, &bytes) in values.iter_mut().zip(row.as_chunks::<2>().0) {
                *value = f16(u16::from_le_bytes(bytes));
            }
        }
        RowFormat::F32 => {
            for (value, &bytes) in values.iter_mut().zip(row.as_chunks::<4>().0) {
                *value = f64::from(f32::from_le_bytes(bytes));
            }
        }
    }
}

/// The number that an IEEE 754 half is.
fn f16(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let fraction = f64::from(bits & 0x3ff) / 1024.0;
    match i32::from(bits >> 10 & 0x1f) {
        0 => sign * fraction * 2f64.powi(-14),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        exponent => sign * (1.0 + fraction) * 2f64.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: u32 = 6;

    fn values(format: RowFormat, id: u64) -> Vec<f64> {
        let mut row = vec![0; format.row_bytes(DIM)];
        stored_row(format, id, 1, &mut row);
        let mut values = vec![0.0; DIM as usize];
        decode(format, &row, &mut values);
        values
    }

    fn sum(format: RowFormat, members: &[(u64, f32)]) -> Vec<f32> {
        let mut sum = vec![0.0; DIM as usize];
        for &(id, weight) in members {
            for (sum, value) in sum.iter_mut().zip(values(format, id)) {
                *sum += f64::from(weight) * value;
            }
        }
        sum.into_iter().map(|sum| sum as f32).collect()
    }

    #[test]
    fn golden_rows_are_decoded() {
        let golden = [-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0];
        let mut values = [0.0; 8];
        let near = |values: &[f64], within: f64| {
            values.iter().zip(golden).all(|(value, golden)| (value - golden).abs() <= within)
        };
        decode(RowFormat::Int4, &[0x20, 0x54, 0x86, 0xfb, 0x44, 0x34, 0x00, 0xbc], &mut values);
        assert!(near(&values, 0.14), "{values:?}");
        let int8 = [0, 0x20, 0x40, 0x50, 0x60, 0x80, 0xbf, 0xff, 0x81, 0x80, 0x80, 0x3c, 0, 0, 0x80, 0xbf];
        decode(RowFormat::Int8, &int8, &mut values);
        assert!(near(&values, 0.01), "{values:?}");
        assert_eq!(
            (f16(0x3c00), f16(0xbc00), f16(0x3444), f16(0x0001)),
            (1.0, -1.0, 0.2666015625, 2f64.powi(-24))
        );
        assert!(f16(0x7c00).is_infinite() && f16(0x7e00).is_nan());
    }

    #[test]
    fn values_are_moderate_and_never_all_the_same() {
        for format in RowFormat::ALL {
            for id in 0..2000 {
                let values = values(format, id);
                assert!(values.iter().all(|value| value.abs() < 4.0 && value.is_finite()), "{values:?}");
                assert!(values.iter().any(|value| *value != values[0]), "{values:?}");
            }
        }
    }

    #[test]
    fn a_wrong_row_weight_or_column_is_noticed() {
        for format in RowFormat::ALL {
            let mut oracle = Oracle::new(format, DIM, 1);
            let members: Vec<(u64, f32)> = (0..20).map(|n| (n * 77, 0.5 + n as f32 / 16.0)).collect();
            let right = sum(format, &members);
            assert!(oracle.is_sum(members.iter().copied(), &right));
            assert!(oracle.is_sum(members.iter().rev().copied(), &right), "order is rounding only");
            let check = |oracle: &mut Oracle, what: &str, wrong: &[(u64, f32)]| {
                assert!(!oracle.is_sum(members.iter().copied(), &sum(format, wrong)), "{format}: {what}");
            };
            let mut wrong = members.clone();
            wrong[7].0 += 1;
            check(&mut oracle, "another row", &wrong);
            let mut wrong = members.clone();
            (wrong[2].1, wrong[9].1) = (wrong[9].1, wrong[2].1);
            check(&mut oracle, "weights swapped", &wrong);
            check(&mut oracle, "a row left out", &members[1..]);
            let mut columns = right.clone();
            columns.swap(0, 1);
            assert!(!oracle.is_sum(members.iter().copied(), &columns), "{format}: columns swapped");
            columns.clone_from(&right);
            columns[3] = f32::NAN;
            assert!(!oracle.is_sum(members.iter().copied(), &columns), "{format}: NaN");
            assert!(!oracle.is_sum(members.iter().copied(), &right[1..]), "{format}: too short");
            let mut other = Oracle::new(format, DIM, 2);
            assert!(!other.is_sum(members.iter().copied(), &right), "{format}: another version");
        }
    }
}
