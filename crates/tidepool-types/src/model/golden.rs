//! Golden vectors: what training says that transforms, curves and the formula give, frozen in `golden.json` beside the
//! contract. Whoever publishes or loads the release computes them again, so that serving cannot differ from training
//! without being noticed.
//!
//! ```json
//! {"schema_version": 1,
//!  "inputs": {"item": [{"raw": ["sku-1", "sku-2"], "ids": [271043, 99120]}]},
//!  "scores": [{"surface": "home", "outputs": {"ctr": 0.8}, "inputs": {"bid": 2.5}, "score": 1.975}]}
//! ```
//! `weights` may stand beside `raw`, and `id_weights` beside `ids`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{ModelSpec, RawKind, RawValues, Transform, transform::nearest};

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Of this document: 1.
    pub schema_version: u32,
    /// Bags of an input's feature, by the name of the input.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Vec<GoldenBag>>,
    /// Candidates, after the graph.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<GoldenScore>,
}

/// A bag as a request says it, and the ids that it becomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenBag {
    /// The values.
    pub raw: RawBag,
    /// A weight per value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f32>>,
    /// What they become; absent in samples that are still to be frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<u64>>,
    /// The weights that the ids have then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_weights: Option<Vec<f32>>,
}

/// Values as JSON writes them; the contract says whether numbers are ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RawBag {
    /// Texts; an empty bag of any kind.
    Texts(Vec<String>),
    /// Whole numbers.
    Ids(Vec<u64>),
    /// Numbers.
    Numbers(Vec<f64>),
}

/// What the graph gives for a candidate, and what the candidate is ranked by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenScore {
    /// The surface of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub surface: String,
    /// The graph's outputs, as f32.
    pub outputs: BTreeMap<String, f64>,
    /// The numbers of the formula, as f32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, f64>,
    /// The score; absent in samples that are still to be frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

impl Golden {
    /// The only document version there is.
    pub const SCHEMA_VERSION: u32 = 1;
    /// How far a score may be from the frozen one, as a part of it: an f32 and a little of a training script's own.
    pub const SCORE_TOLERANCE: f64 = 1e-6;
    /// The most cases: whoever loads a release computes all of them.
    pub const MAX_CASES: usize = 100_000;
    /// Mismatches that are told one by one.
    const TOLD: usize = 10;
    /// Looks at an entry of the contract that all scores together may take.
    const MAX_STEPS: usize = 1 << 30;

    /// How many cases there are.
    #[must_use]
    pub fn cases(&self) -> usize {
        self.inputs.values().map(Vec::len).sum::<usize>() + self.scores.len()
    }

    /// Computes every case again. Gives what does not fit, the first ten of it one by one; nothing is good. What comes
    /// after those ten is not computed.
    #[must_use]
    pub fn check(&self, spec: &ModelSpec) -> Vec<String> {
        if let Some(problem) = self.too_much(spec) {
            return vec![problem];
        }
        let mut problems = Vec::new();
        if self.schema_version != Self::SCHEMA_VERSION {
            let (found, known) = (self.schema_version, Self::SCHEMA_VERSION);
            problems.push(format!("schema_version {found}, this build knows {known}"));
        }
        let entries = Entries::of(spec);
        let mut left = 0;
        for (name, bags) in &self.inputs {
            let Some(transform) = entries.transforms.get(name.as_str()) else {
                if problems.len() < Self::TOLD {
                    problems.push(format!("model.toml has no input {name:?} that takes ids"));
                } else {
                    left += bags.len();
                }
                continue;
            };
            for (at, bag) in bags.iter().enumerate() {
                if problems.len() < Self::TOLD {
                    problems
                        .extend(bag.problem(transform).map(|p| format!("input {name:?}, case {at}: {p}")));
                } else {
                    left += 1;
                }
            }
        }
        for (at, score) in self.scores.iter().enumerate() {
            if problems.len() < Self::TOLD {
                let problem = score.problem(spec, &entries);
                problems.extend(problem.map(|problem| format!("scores, case {at}: {problem}")));
            } else {
                left += 1;
            }
        }
        if left > 0 {
            problems.push(format!("{left} more cases were not computed"));
        }
        problems
    }

    /// Why nothing of it is computed, if so: a document that fits its bound in bytes could keep a ranker for hours.
    fn too_much(&self, spec: &ModelSpec) -> Option<String> {
        let cases = self.cases();
        if cases > Self::MAX_CASES {
            return Some(format!("it has {cases} cases, it may have {}", Self::MAX_CASES));
        }
        // A score looks for each name of the formula among all that it may be.
        let names = spec.utility.as_ref().map_or(1, |utility| utility.names().len().max(1));
        let entries = spec.outputs.len() + spec.utility_inputs.len() + spec.calibrations.len();
        let most = Self::MAX_STEPS / names.saturating_mul(entries).max(1);
        let scores = self.scores.len();
        (scores > most)
            .then(|| format!("it has {scores} scores, with a contract this long it may have {most}"))
    }

    /// Fills in what samples leave out: ids, their weights, and scores. What is there already stays as it is, for
    /// [`check`](Self::check) to judge.
    ///
    /// # Errors
    /// Samples that the contract cannot take.
    pub fn freeze(&mut self, spec: &ModelSpec) -> Result<(), Vec<String>> {
        if let Some(problem) = self.too_much(spec) {
            return Err(vec![problem]);
        }
        let entries = Entries::of(spec);
        for (name, bags) in &mut self.inputs {
            let Some(transform) = entries.transforms.get(name.as_str()) else { continue };
            for bag in bags {
                // What cannot be made says so when it is checked.
                let Ok((ids, weights)) = bag.made(transform) else { continue };
                bag.ids.get_or_insert(ids);
                if let Some(weights) = weights {
                    bag.id_weights.get_or_insert(weights);
                }
            }
        }
        for score in &mut self.scores {
            if let (None, Ok(made)) = (score.score, score.made(spec, &entries)) {
                score.score = Some(f64::from(made));
            }
        }
        let problems = self.check(spec);
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// What cases name of a contract, made once for all of them.
struct Entries<'s> {
    /// Of inputs that take ids.
    transforms: BTreeMap<&'s str, &'s Transform>,
    outputs: BTreeSet<&'s str>,
    utility_inputs: BTreeSet<&'s str>,
}

impl<'s> Entries<'s> {
    fn of(spec: &'s ModelSpec) -> Self {
        let of_ids = spec.inputs.iter().filter(|input| input.source.table().is_some());
        Self {
            transforms: of_ids.map(|input| (input.name.as_str(), &input.transform)).collect(),
            outputs: spec.outputs.iter().map(|output| output.name.as_str()).collect(),
            utility_inputs: spec.utility_inputs.iter().map(|input| input.name.as_str()).collect(),
        }
    }
}

impl GoldenBag {
    fn made(&self, transform: &Transform) -> Result<(Vec<u64>, Option<Vec<f32>>), String> {
        let values = match (transform.takes(), &self.raw) {
            (RawKind::Ids, RawBag::Texts(none)) if none.is_empty() => RawValues::Ids(Vec::new()),
            (RawKind::Numbers, RawBag::Texts(none)) if none.is_empty() => RawValues::Numbers(Vec::new()),
            (RawKind::Numbers, RawBag::Ids(ids)) => {
                RawValues::Numbers(ids.iter().map(|id| nearest(*id as f64)).collect())
            }
            (_, RawBag::Texts(texts)) => RawValues::Texts(texts.clone()),
            (_, RawBag::Ids(ids)) => RawValues::Ids(ids.clone()),
            (_, RawBag::Numbers(numbers)) => {
                RawValues::Numbers(numbers.iter().map(|number| nearest(*number)).collect())
            }
        };
        let length = u32::try_from(values.len()).map_err(|_| "too many values".to_owned())?;
        let bags = transform.apply(values, Some(vec![length]), self.weights.clone());
        bags.map(|bags| (bags.ids, bags.weights)).map_err(|error| error.to_string())
    }

    fn problem(&self, transform: &Transform) -> Option<String> {
        let (ids, weights) = match self.made(transform) {
            Ok(made) => made,
            Err(problem) => return Some(problem),
        };
        let raw = self.raw.shown();
        match &self.ids {
            None => Some(format!("{raw} has no ids: `tidepool release golden` freezes them")),
            Some(golden) if *golden != ids => {
                Some(format!("{raw} gives ids {}, training gave {}", brief(&ids), brief(golden)))
            }
            Some(_) => {
                let golden = self.id_weights.as_ref().filter(|golden| weights.as_ref() != Some(golden))?;
                let weights = brief(&weights.unwrap_or_default());
                Some(format!("{raw} gives weights {weights}, training gave {}", brief(golden)))
            }
        }
    }
}

impl GoldenScore {
    fn made(&self, spec: &ModelSpec, entries: &Entries<'_>) -> Result<f32, String> {
        if let Some(other) = self.outputs.keys().find(|name| !entries.outputs.contains(name.as_str())) {
            return Err(format!("{other:?} is not one of the outputs"));
        }
        if let Some(other) = self.inputs.keys().find(|name| !entries.utility_inputs.contains(name.as_str())) {
            return Err(format!("{other:?} is not one of the utility inputs"));
        }
        let of = |values: &BTreeMap<String, f64>, name: &String| {
            values.get(name).map(|value| vec![nearest(*value)]).unwrap_or_default()
        };
        let outputs: Vec<_> = spec.outputs.iter().map(|output| of(&self.outputs, &output.name)).collect();
        let inputs: Vec<_> = spec.utility_inputs.iter().map(|input| of(&self.inputs, &input.name)).collect();
        match spec.scores(&self.surface, 1, &outputs, &inputs).first() {
            Some(score) if score.is_finite() => Ok(*score),
            Some(score) => {
                Err(format!("the {} is {score}: is one of its numbers missing?", spec.score_name()))
            }
            None => Err(format!("there is no output {:?} in it", spec.score_name())),
        }
    }

    fn problem(&self, spec: &ModelSpec, entries: &Entries<'_>) -> Option<String> {
        let made = match self.made(spec, entries) {
            Ok(made) => f64::from(made),
            Err(problem) => return Some(problem),
        };
        let name = spec.score_name();
        match self.score {
            None => Some("it has no score: `tidepool release golden` freezes it".to_owned()),
            Some(golden) => {
                let near = (made - golden).abs() <= Golden::SCORE_TOLERANCE * golden.abs().max(made.abs());
                (!near).then(|| format!("the {name} is {made}, training gave {golden}"))
            }
        }
    }
}

impl RawBag {
    fn shown(&self) -> String {
        match self {
            Self::Texts(texts) => brief(texts),
            Self::Ids(ids) => brief(ids),
            Self::Numbers(numbers) => brief(numbers),
        }
    }
}

/// The beginning of a list, which may be long.
fn brief<T: std::fmt::Debug>(list: &[T]) -> String {
    const ENTRIES: usize = 8;
    match list.get(..ENTRIES) {
        Some(first) if list.len() > ENTRIES => format!("{first:?} and {} more", list.len() - ENTRIES),
        _ => format!("{list:?}"),
    }
}
