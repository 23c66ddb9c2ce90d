//! What a table's manifest reports of its rows: what storing them cost in precision, and what they take in
//! bytes.

use serde::{Deserialize, Serialize};

use crate::quantizer::Quantizer;

/// What quantization cost, measured while the table was built.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "ReportAsWritten")]
pub struct QuantizationReport {
    /// Which quantizer's rule the rows follow; `None` where rows have no scale and no bias (f16, f32), and
    /// where an earlier Tidepool did not write it down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantizer: Option<Quantizer>,
    /// `||stored - original|| / ||original||` over all rows, L2.
    pub relative_l2: f64,
    /// The rows with the largest relative L2 error, the worst first, of equal ones the smaller id; at most
    /// [`WORST_ROWS`](Self::WORST_ROWS), and none that is stored exactly.
    pub worst_rows: Vec<WorstRow>,
}

impl QuantizationReport {
    /// How many rows are named at most.
    pub const WORST_ROWS: usize = 10;
}

/// A row that lost much.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorstRow {
    /// Whose it is.
    pub id: u64,
    /// `||stored - original|| / ||original||` of this row, L2.
    pub relative_l2: f64,
    /// The largest `|stored - original|` of its elements; `None` where an earlier Tidepool did not write it
    /// down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_absolute_error: Option<f64>,
}

/// A report as it stands in a manifest. Earlier ones name one worst row and no quantizer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportAsWritten {
    quantizer: Option<Quantizer>,
    relative_l2: f64,
    #[serde(default)]
    worst_rows: Vec<WorstRow>,
    worst_row_relative_l2: Option<f64>,
    worst_row_id: Option<u64>,
}

impl From<ReportAsWritten> for QuantizationReport {
    fn from(written: ReportAsWritten) -> Self {
        let ReportAsWritten { quantizer, relative_l2, mut worst_rows, .. } = written;
        if let (Some(id), Some(relative_l2)) = (written.worst_row_id, written.worst_row_relative_l2)
            && relative_l2 > 0.0
        {
            worst_rows.push(WorstRow { id, relative_l2, largest_absolute_error: None });
        }
        Self { quantizer, relative_l2, worst_rows }
    }
}

/// What a row takes, from the bare row to its share of everything in the partition files.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeReport {
    /// The stored row alone: what travels for a gathered id.
    pub row: Size,
    /// The partition files without their index sections: rows with their key checks, cold keys, checksums,
    /// headers, padding.
    pub file: Size,
    /// The partition files whole.
    pub file_with_index: Size,
}

/// Bytes of a row, beside bare rows of the same dimension that have neither key nor file around them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// On average.
    pub bytes_per_row: f64,
    /// As a share of an f16 row.
    pub ratio_to_f16: f64,
    /// As a share of an f32 row.
    pub ratio_to_f32: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Manifests are JSON; what serde makes of these types is the same in TOML.
    fn report(toml: &str) -> QuantizationReport {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn what_earlier_versions_wrote_is_read() {
        let early = report("relative_l2 = 0.0767\nworst_row_relative_l2 = 0.1143\nworst_row_id = 283");
        let worst = WorstRow { id: 283, relative_l2: 0.1143, largest_absolute_error: None };
        assert_eq!((early.quantizer, early.relative_l2, early.worst_rows), (None, 0.0767, vec![worst]));
        let exact = report("relative_l2 = 0.0\nworst_row_relative_l2 = 0.0\nworst_row_id = 3");
        assert_eq!(exact.worst_rows, []);
    }

    #[test]
    fn what_is_written_comes_back_and_nothing_unknown_is_taken() {
        let worst = WorstRow { id: 77, relative_l2: 0.2, largest_absolute_error: Some(0.125) };
        for (quantizer, worst_rows) in [(Some(Quantizer::Optimized), vec![worst, worst]), (None, vec![])] {
            let written = QuantizationReport { quantizer, relative_l2: 0.1, worst_rows };
            assert_eq!(report(&toml::to_string(&written).unwrap()), written);
        }
        let unknown = toml::from_str::<QuantizationReport>("relative_l2 = 0.1\nbest_rows = []");
        assert!(unknown.unwrap_err().to_string().contains("best_rows"));
    }
}
