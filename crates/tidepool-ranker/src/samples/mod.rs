//! Samples of requests: what was asked, what became of it, and what was right. A JSON object a line (docs/skew.md):
//!
//! ```json
//! {"request": {"model": "movielens", "user": {"user": 196}, "candidates": {"item": [242, 302]}},
//!  "labels": {"probability": [1, 0]},
//!  "online": {"release": "r7", "tables": ["user@v7", "item@v7"], "scores": [0.9, 0.1]}}
//! ```
//! `request` is what `POST /v1/rank` takes. A ranker writes such lines of its own accord (`audit_sample/`), with a checksum
//! at their end; people write them with labels. Both are read here, line by line.

mod read;
mod write;

use std::{collections::BTreeMap, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tidepool_types::ModelSpec;

pub use self::read::{Entry, SampleReader};
pub(crate) use self::write::{Record, line};
use crate::{
    json::JsonRequest,
    offline::Prepared,
    request::{Limits, RankRequest, check},
};

/// The longest line, in bytes.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// What a line of a ranker begins with; the number is the version of the format.
const AUDIT_START: &[u8] = br#"{"audit":1,"#;
/// The part of it that all versions have.
const AUDIT_KEY: &[u8] = br#"{"audit":"#;
/// What stands before the checksum, which is of all that stands before this.
const CHECKSUM_KEY: &[u8] = br#","crc32c":""#;

/// A sample that cannot be used.
#[derive(Debug, Error)]
pub enum SampleError {
    /// The file cannot be read on.
    #[error("reading line {line}")]
    Io {
        /// Counted from 1.
        line: u64,
        /// Why not.
        source: io::Error,
    },
    /// Nobody writes such a line.
    #[error("line {line} has more than {MAX_LINE_BYTES} bytes")]
    TooLong {
        /// Counted from 1.
        line: u64,
    },
    /// It is not JSON, or not these keys.
    #[error("line {line} is no sample")]
    Syntax {
        /// Counted from 1.
        line: u64,
        /// Where it does not parse.
        source: serde_json::Error,
    },
    /// It says something that cannot be.
    #[error("line {line}: {problem}")]
    Content {
        /// Counted from 1.
        line: u64,
        /// What.
        problem: String,
    },
}

/// One request, and what is known of it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Where it stands, counted from 1.
    pub line: u64,
    request: JsonRequest,
    /// By output: per candidate what was right, or nothing where that is not known.
    pub labels: BTreeMap<String, Vec<Option<bool>>>,
    /// What a ranker answered.
    pub online: Option<Online>,
}

/// What a ranker answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Online {
    /// The release that the scores are of.
    pub release: String,
    /// The table versions that they were made from, as `table@version`; none: those that the release pins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// When, in UTC.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub time: String,
    /// Per candidate in the order of the request; nothing for those that were not among the best that were asked for.
    pub scores: Vec<Option<f32>>,
    /// The outputs that were asked for, in the same way.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, Vec<Option<f32>>>,
    /// Ids that no table had.
    #[serde(default)]
    pub missing_ids: u64,
    /// Ids that no node answered for: the scores were made without them.
    #[serde(default)]
    pub unavailable_ids: u64,
}

impl Sample {
    /// The id of the request; empty: it has none.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request.request_id
    }

    /// Holds the request against a contract, as a ranker does.
    ///
    /// # Errors
    /// [`SampleError::Content`] names the line and what does not fit, labels and scores of wrong lengths included.
    pub fn prepare(&self, spec: &ModelSpec, limits: Limits) -> Result<Prepared, SampleError> {
        let fail = |problem: String| SampleError::Content { line: self.line, problem };
        let model = &self.request.model;
        if !model.is_empty() && model != spec.model.as_str() {
            return Err(fail(format!(
                "the request is one of model {model}, the releases are of {}",
                spec.model
            )));
        }
        let message = self.request.to_message(spec).map_err(|error| fail(error.to_string()))?;
        let request = RankRequest::try_from(message).map_err(|error| fail(error.to_string()))?;
        let (candidates, request_id) = (request.candidates, request.request_id.clone());
        // Which outputs were asked for is of no account: all are computed.
        let request = RankRequest { outputs: Vec::new(), tenant: String::new(), ..request };
        let checked = check(request, spec, limits).map_err(|error| fail(error.to_string()))?;
        let lengths = |what: &str, name: &str, found: usize| match found == candidates as usize {
            true => Ok(()),
            false => {
                Err(fail(format!("{what} {name:?}: {found} of them, there are {candidates} candidates")))
            }
        };
        for (output, labels) in &self.labels {
            if !judged(spec).any(|known| known == output) {
                let known: Vec<_> = judged(spec).collect();
                return Err(fail(format!(
                    "labels: there is no output {output:?}, there are {}",
                    known.join(", ")
                )));
            }
            lengths("labels of", output, labels.len())?;
        }
        if let Some(online) = &self.online {
            lengths("online scores of release", &online.release, online.scores.len())?;
            for (output, values) in &online.outputs {
                lengths("online output", output, values.len())?;
            }
        }
        Ok(Prepared { rows: checked.rows, finishing: checked.finishing, candidates, request_id })
    }

    /// What names each candidate: the one id, text or number that a candidate feature of this name has.
    ///
    /// # Errors
    /// [`SampleError::Content`] when there is no such feature, or a candidate has none or several of them.
    pub fn candidate_names(&self, feature: &str) -> Result<Vec<String>, SampleError> {
        let names = self.request.candidate_names(feature);
        names.map_err(|problem| SampleError::Content { line: self.line, problem })
    }
}

/// What can have labels: the outputs, and what candidates are ranked by where that is none of them.
pub fn judged(spec: &ModelSpec) -> impl Iterator<Item = &str> {
    let outputs = spec.outputs.iter().map(|output| output.name.as_str());
    let utility = Some(spec.score_name()).filter(|name| spec.output(name).is_none());
    outputs.chain(utility)
}

#[cfg(test)]
mod tests;
