//! What it costs when a dense model meets tables that it was not trained with: releases are replayed against a sample of
//! requests, each with its own tables and with those of other releases, and their scores are held against labels
//! (docs/skew.md). The same sample, when a ranker wrote it, says whether what is computed offline is what was served.
//!
//! **Invariant:** no cluster and no network: releases and tables come from a store on this machine, and scores from the
//! ranker's own code over the mapped tables. However long a sample is, memory is bounded; a table that does not fit a model
//! is named, and what can be compared is.
//!
//! Read first: [`replay()`], [`Plan`], [`SkewReport`].

mod cells;
mod error;
mod labels;
mod online;
mod replay;
mod report;
mod tables;

pub use cells::Plan;
pub use error::SkewError;
pub use labels::{Labels, LabelsReport};
pub use online::OnlineReport;
pub use replay::{Options, Progress, replay};
pub use report::{CellReport, MissingReport, OutputReport, ReleaseReport, ScoreChange, SkewReport, Verdict};
