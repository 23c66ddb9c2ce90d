//! What a replay found.

use std::collections::BTreeMap;

use serde::Serialize;
use tidepool_train::{Change, Estimate, Evaluation};
use tidepool_types::Name;

use crate::{labels::LabelsReport, online::OnlineReport};

/// Fewer groups of requests than this say too little of chance: a standard error of two of them is often far too small.
const MIN_GROUPS: u32 = 10;

/// All that a replay found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SkewReport {
    /// The model.
    pub model: Name,
    /// Requests of the sample.
    pub requests: u64,
    /// Their candidates.
    pub candidates: u64,
    /// Candidates with a label, at least one.
    pub labelled_candidates: u64,
    /// Lines of rankers that are not whole, and were left out.
    pub damaged_lines: u64,
    /// The first of them: file and line.
    pub first_damaged_line: Option<String>,
    /// Requests with online scores of releases that are not judged.
    pub online_of_other_releases: u64,
    /// Labels that came in a file of their own.
    pub labels: Option<LabelsReport>,
    /// In the order in which they were named.
    pub releases: Vec<ReleaseReport>,
}

/// A dense model, and what it gives with tables.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReleaseReport {
    /// The release.
    pub release: Name,
    /// The table versions that it pins.
    pub tables: Vec<String>,
    /// What it gave online; `None`: the sample has no scores of it.
    pub online: Option<OnlineReport>,
    /// With its own tables first.
    pub cells: Vec<CellReport>,
}

/// A dense model with tables.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CellReport {
    /// Whose tables.
    pub tables_of: Name,
    /// The one table that is of `tables_of`, the rest being the dense model's own; `None`: all are.
    pub only_table: Option<Name>,
    /// Whether they are those that the dense model was trained with.
    pub matched: bool,
    /// The versions.
    pub tables: Vec<String>,
    /// Why it cannot be run; the rest is empty then.
    pub not_comparable: Option<String>,
    /// By output (and by what candidates are ranked by, where that has labels).
    pub outputs: BTreeMap<String, OutputReport>,
    /// How far scores are from those with the matched tables.
    pub score_change: ScoreChange,
    /// By table.
    pub missing: Vec<MissingReport>,
}

/// How good an output is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputReport {
    /// Against the labels.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Against the same dense model with its own tables; `None` for that itself.
    pub change: Option<Change>,
}

/// How far scores are from those with the matched tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ScoreChange {
    /// Mean distance over all candidates.
    pub mean: f64,
    /// The largest.
    pub max: f64,
}

/// Ids that a table did not have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissingReport {
    /// The table.
    pub table: String,
    /// Ids that it was asked for, repetitions counted.
    pub ids: u64,
    /// Those that it does not have.
    pub missing_ids: u64,
    /// Their share, in percent.
    pub missing_percent: f64,
}

/// Whether a bound holds, as far as the sample can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It holds: the change and two standard errors are below it.
    Kept,
    /// It does not: the change less two standard errors is above it.
    Broken,
    /// The sample is too small to say.
    Undecided,
}

impl Verdict {
    /// Whether `change` is at most `bound`.
    #[must_use]
    pub fn of(change: Option<Estimate>, bound: f64) -> Self {
        let told = change.filter(|change| change.groups >= MIN_GROUPS);
        let Some(Estimate { value, standard_error: Some(error), .. }) = told else { return Self::Undecided };
        if value + 2.0 * error <= bound {
            Self::Kept
        } else if value - 2.0 * error > bound {
            Self::Broken
        } else {
            Self::Undecided
        }
    }

    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Broken => "broken",
            Self::Undecided => "undecided",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_groups_decide_nothing() {
        let verdict = |value: f64, groups: u32| {
            Verdict::of(Some(Estimate { value, standard_error: Some(0.1), groups }), 1.0)
        };
        assert_eq!([2, 9].map(|groups| verdict(0.5, groups)), [Verdict::Undecided; 2]);
        assert_eq!([2, 9].map(|groups| verdict(1.5, groups)), [Verdict::Undecided; 2]);
        assert_eq!(
            [0.5, 0.9, 1.1, 1.5].map(|value| verdict(value, 10)),
            [Verdict::Kept, Verdict::Undecided, Verdict::Undecided, Verdict::Broken]
        );
        assert_eq!(Verdict::of(None, 1.0), Verdict::Undecided);
    }
}
