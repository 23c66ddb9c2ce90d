//! The `[cuda.resident]` section: what of its tables each release has on the GPU.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tidepool_runtime::config::Problems;

/// The smallest budget that is one: less would hold a head and hardly a row.
const LEAST_BYTES: u64 = 1 << 16;
/// Ids of a table that may be asked to be resident, at most: of so many a list is 1 GiB of text.
const MOST_IDS: u64 = 50_000_000;
/// Numbers of resident rows have 31 bits.
const MOST_WHOLE_ROWS: u64 = (1 << 31) - 1;
/// An hour.
const MAX_WITHIN_MS: u64 = 3_600_000;

/// The `[cuda.resident]` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawResident {
    /// Bytes of the device that the set of each release may take; 0: there is none.
    pub bytes: u64,
    /// Tables whose row ids are known beforehand are resident whole when they have at most so many rows.
    pub whole_rows: u64,
    /// A folder of lists of hot ids; empty: none.
    pub hot_ids: String,
    /// Ids of each other table, at most.
    pub ids: u64,
    /// How long the rows of a release may take to come.
    pub within_ms: u64,
}

impl Default for RawResident {
    fn default() -> Self {
        Self { bytes: 0, whole_rows: 100_000, hot_ids: String::new(), ids: 1_000_000, within_ms: 30_000 }
    }
}

/// What of its tables each release has on the GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidenceOptions {
    /// Bytes of the device that the set of each release may take.
    pub bytes: u64,
    /// Tables whose row ids are known beforehand are resident whole when they have at most so many rows.
    pub whole_rows: u64,
    /// A folder of lists of hot ids.
    pub hot_ids: Option<PathBuf>,
    /// Ids of each other table, at most.
    pub ids: usize,
    /// How long the rows of a release may take to come.
    pub within: Duration,
}

impl ResidenceOptions {
    /// Judges the section. `None`: nothing is to be resident, or there was a problem. `takes_rows`: whether rows go to the
    /// device as they are stored, without which none can be found there.
    pub(crate) fn check(problems: &mut Problems, raw: &RawResident, takes_rows: bool) -> Option<Self> {
        let RawResident { bytes, whole_rows, hot_ids, ids, within_ms } = raw;
        let is_budget = *bytes == 0 || *bytes >= LEAST_BYTES;
        problems.check(is_budget, format!("cuda.resident.bytes: 0, or at least {LEAST_BYTES}"));
        let needs_rows = "cuda.resident.bytes: rows can be resident where cuda.rows is \"device\" alone";
        problems.check(*bytes == 0 || takes_rows, needs_rows);
        let is_nothing = "cuda.resident.hot_ids: of no use, since cuda.resident.bytes is 0";
        problems.check(*bytes > 0 || hot_ids.is_empty(), is_nothing);
        let is_some =
            "cuda.resident.bytes: of no use, since cuda.resident.whole_rows and cuda.resident.ids are 0";
        problems.check(*bytes == 0 || *whole_rows > 0 || *ids > 0, is_some);
        let many = format!("cuda.resident.whole_rows: at most {MOST_WHOLE_ROWS}");
        problems.check(*whole_rows <= MOST_WHOLE_ROWS, many);
        problems.check(*ids <= MOST_IDS, format!("cuda.resident.ids: at most {MOST_IDS}"));
        let in_time = (1..=MAX_WITHIN_MS).contains(within_ms);
        problems.check(in_time, format!("cuda.resident.within_ms: from 1 to {MAX_WITHIN_MS}"));
        (*bytes > 0).then(|| Self {
            bytes: *bytes,
            whole_rows: *whole_rows,
            hot_ids: (!hot_ids.is_empty()).then(|| hot_ids.into()),
            ids: usize::try_from(*ids).unwrap_or(usize::MAX),
            within: Duration::from_millis(*within_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: &RawResident, takes_rows: bool) -> (Option<ResidenceOptions>, Vec<String>) {
        let mut problems = Problems::default();
        let options = ResidenceOptions::check(&mut problems, raw, takes_rows);
        let told = problems.finish(|| Some(())).err().map(|invalid| invalid.problems);
        (options, told.unwrap_or_default())
    }

    #[test]
    fn nothing_is_resident_unless_it_is_asked_for() {
        assert_eq!(check(&RawResident::default(), false), (None, vec![]));
        let raw = RawResident { bytes: 1 << 20, hot_ids: "lists".into(), ..RawResident::default() };
        let options = check(&raw, true).0.unwrap();
        assert_eq!((options.bytes, options.hot_ids), (1 << 20, Some("lists".into())));
        let nothing = RawResident { bytes: 0, ..raw.clone() };
        assert!(check(&nothing, true).1.join("\n").contains("cuda.resident.hot_ids: of no use"));
        let nothing = RawResident { ids: 0, whole_rows: 0, ..raw.clone() };
        assert!(check(&nothing, true).1.join("\n").contains("cuda.resident.bytes: of no use"));
        let wrong = RawResident { bytes: 5, within_ms: 0, ids: u64::MAX, whole_rows: 1 << 31, ..raw };
        let text = check(&wrong, false).1.join("\n");
        for key in ["bytes: 0, or", "bytes: rows can", "whole_rows", "ids", "within_ms"] {
            assert!(text.contains(&format!("cuda.resident.{key}")), "{key} is not in: {text}");
        }
    }
}
