//! Labels that came later than the requests, in a file of their own, and how they find their candidates.
//!
//! ```json
//! {"request_id": "auto-1f", "candidate": 242, "labels": {"ctr": 1, "cvr": 0}}
//! {"request_id": "auto-1f", "index": 7, "labels": {"ctr": 0}}
//! ```
//! A candidate is named by the id or text that it has of a feature, or by its place in the request.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidepool_ranker::samples::{Sample, SampleError};

use crate::SkewError;

/// Labels that are held at most: some gigabytes of memory.
const MAX_LABELS: u64 = 20_000_000;
/// The longest line, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Labels by request and candidate.
#[derive(Debug, Default)]
pub struct Labels {
    /// The candidate feature that names candidates.
    feature: Option<String>,
    requests: HashMap<String, OfRequest>,
    report: LabelsReport,
}

/// The labels of a request, by candidate and output. In an order, so that the same label is refused every time.
type OfRequest = BTreeMap<Candidate, BTreeMap<String, bool>>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Candidate {
    Named(String),
    At(usize),
}

/// What became of labels that came in a file of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LabelsReport {
    /// Labels that were read, one per candidate and output.
    pub read: u64,
    /// Those that found their candidates.
    pub joined: u64,
    /// Those of candidates that stand several times in their request: whose they are is not known.
    pub ambiguous: u64,
    /// Those of requests, or of candidates, that the sample does not have.
    pub unmatched: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLabel {
    request_id: String,
    #[serde(default)]
    candidate: Option<Value>,
    #[serde(default)]
    index: Option<usize>,
    labels: BTreeMap<String, Value>,
}

impl Labels {
    /// Reads a file of labels. Candidates are named by `feature`, if they are not by their places.
    ///
    /// # Errors
    /// [`SkewError::Label`] names the line.
    pub fn read(path: &Path, feature: Option<&str>) -> Result<Self, SkewError> {
        let file = File::open(path).map_err(|source| SkewError::File { path: path.to_owned(), source })?;
        let mut input = BufReader::new(file);
        let mut labels = Self { feature: feature.map(str::to_owned), ..Self::default() };
        let mut text = Vec::new();
        for line in 1.. {
            let fail = |problem: String| SkewError::Label { path: path.to_owned(), line, problem };
            text.clear();
            let read = std::io::Read::take(&mut input, MAX_LINE_BYTES).read_until(b'\n', &mut text);
            if read.map_err(|error| fail(error.to_string()))? == 0 {
                return Ok(labels);
            }
            if text.len() as u64 == MAX_LINE_BYTES && text.last() != Some(&b'\n') {
                return Err(fail(format!("more than {MAX_LINE_BYTES} bytes")));
            }
            if !text.trim_ascii().is_empty() {
                labels.add(&text).map_err(fail)?;
            }
        }
        Ok(labels)
    }

    /// Adds what a line says.
    fn add(&mut self, text: &[u8]) -> Result<(), String> {
        let raw: RawLabel = serde_json::from_slice(text).map_err(|error| format!("no label: {error}"))?;
        let candidate = match (raw.candidate, raw.index) {
            (None, Some(index)) => Candidate::At(index),
            (Some(_), None) if self.feature.is_none() => {
                return Err("which feature names candidates is not said (--candidate-feature)".into());
            }
            (Some(Value::String(name)), None) => Candidate::Named(name),
            (Some(Value::Number(name)), None) => Candidate::Named(name.to_string()),
            (Some(other), None) => return Err(format!("candidate {other} is neither a text nor a number")),
            _ => return Err("either candidate or index is expected".into()),
        };
        // Every line counts against the bound on labels, so it must have some.
        if raw.labels.is_empty() {
            return Err("labels is empty".into());
        }
        let mut outputs = BTreeMap::new();
        for (output, label) in raw.labels {
            let label = match &label {
                Value::Bool(label) => *label,
                label if label.as_f64() == Some(0.0) => false,
                label if label.as_f64() == Some(1.0) => true,
                other => return Err(format!("label {output:?} is {other}, not 0 or 1")),
            };
            outputs.insert(output, label);
        }
        self.report.read += outputs.len() as u64;
        if self.report.read > MAX_LABELS {
            return Err(format!("more than {MAX_LABELS} labels: cut the file, and the sample, by request"));
        }
        let known = self.requests.entry(raw.request_id).or_default();
        let earlier = known.entry(candidate).or_default();
        for (output, label) in outputs {
            match earlier.entry(output) {
                Entry::Occupied(entry) if *entry.get() != label => {
                    return Err(format!("label {:?} contradicts an earlier line", entry.key()));
                }
                Entry::Occupied(_) => self.report.read -= 1,
                Entry::Vacant(entry) => {
                    entry.insert(label);
                }
            }
        }
        Ok(())
    }

    /// Gives a sample of so many candidates its labels, and lets go of them.
    ///
    /// # Errors
    /// [`SampleError::Content`] when the sample's own labels contradict them, or its candidates have no names.
    pub(crate) fn join(&mut self, sample: &mut Sample, candidates: usize) -> Result<(), SampleError> {
        if sample.request_id().is_empty() {
            return Ok(());
        }
        let Some(labels) = self.requests.remove(sample.request_id()) else { return Ok(()) };
        let named = labels.keys().any(|candidate| matches!(candidate, Candidate::Named(_)));
        let names = match &self.feature {
            Some(feature) if named => sample.candidate_names(feature)?,
            _ => Vec::new(),
        };
        let mut places: HashMap<&str, Result<usize, ()>> = HashMap::new();
        for (at, name) in names.iter().enumerate() {
            places.entry(name).and_modify(|place| *place = Err(())).or_insert(Ok(at));
        }
        for (candidate, outputs) in labels {
            let count = outputs.len() as u64;
            let at = match &candidate {
                Candidate::At(at) if *at < candidates => *at,
                Candidate::Named(name) if let Some(Ok(at)) = places.get(name.as_str()) => *at,
                Candidate::Named(name) if places.contains_key(name.as_str()) => {
                    self.report.ambiguous += count;
                    continue;
                }
                Candidate::At(_) | Candidate::Named(_) => {
                    self.report.unmatched += count;
                    continue;
                }
            };
            self.report.joined += count;
            for (output, label) in outputs {
                let line = sample.line;
                let own = sample.labels.entry(output.clone()).or_insert_with(|| vec![None; candidates]);
                // A list of another length is refused with the rest of the sample.
                let Some(place) = own.get_mut(at) else { continue };
                if place.is_some_and(|own| own != label) {
                    let problem =
                        format!("label {output:?} of candidate {at} is another one in the labels' file");
                    return Err(SampleError::Content { line, problem });
                }
                *place = Some(label);
            }
        }
        Ok(())
    }

    /// What became of all of them, once the sample has ended.
    pub(crate) fn end(&self) -> LabelsReport {
        let left = self
            .requests
            .values()
            .flat_map(BTreeMap::values)
            .map(|outputs| outputs.len() as u64)
            .sum::<u64>();
        LabelsReport { unmatched: self.report.unmatched + left, ..self.report }
    }
}
