//! `model.toml`: the contract between a dense model, its tables and its callers.
//!
//! ```toml
//! schema_version = 1
//! model = "ads"
//! score = "utility"            # what candidates are ranked by: an output, or the utility
//! utility = "ctr * bid"
//!
//! [[inputs]]                   # a graph input [rows, vector dim of the table]
//! name = "item"                # of the ONNX graph input
//! feature = "sku"              # of the request; the same name when it is left out
//! side = "candidate"           # one per candidate; "user": sent once per request
//! table = "item"
//! pooling = "sum"              # or "mean"
//! transform = [{ op = "hash", seed = 7 }, { op = "modulo", n = 1_000_000 }]
//!
//! [[inputs]]                   # a graph input [rows, width]
//! name = "age"
//! side = "user"
//! width = 1
//!
//! [[utility_inputs]]           # a number of the request for the formula
//! name = "bid"
//! side = "candidate"
//!
//! [[outputs]]                  # a graph output [rows] or [rows, 1]
//! name = "ctr"
//!
//! [[calibrations]]
//! output = "ctr"
//! kind = "platt"
//! a = 1.1
//! b = -0.2
//! ```
//! Every key is explained in `docs/models.md`.

mod calibration;
mod golden;
mod input;
mod read;
mod scoring;
mod transform;
mod utility;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;
use toml::de::DeTable;
use xxhash_rust::xxh3::xxh3_64;

pub use self::{
    calibration::{Calibration, Curve},
    golden::{Golden, GoldenBag, GoldenScore, RawBag},
    input::{FeatureKind, FeatureSpec, InputSource, InputSpec, Side},
    scoring::rounded,
    transform::{Bags, Hashed, RawKind, RawValues, Stage, Transform, TransformError},
    utility::{Column, Op as UtilityOp, Utility, UtilityError},
};
use self::{
    input::{agree, name},
    read::{Fields, Problems},
};
use crate::name::Name;

/// The validated contract.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The model.
    pub model: Name,
    /// What the graph takes, in the order of the document.
    pub inputs: Vec<InputSpec>,
    /// What the graph gives.
    pub outputs: Vec<OutputSpec>,
    /// What candidates are ranked by.
    pub score: Score,
    /// The formula; there is one exactly when the score is the utility.
    pub utility: Option<Utility>,
    /// Numbers of the request that the formula speaks of.
    pub utility_inputs: Vec<UtilityInput>,
    /// Candidates that a request gets back which does not say how many; 0: all.
    pub top_k: u32,
    /// What is done with features that nothing here takes.
    pub unknown_features: UnknownFeatures,
    /// What makes probabilities of outputs, by surface.
    pub calibrations: Vec<Calibration>,
}

/// What candidates are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// An output, calibrated: index into the outputs.
    Output(usize),
    /// The formula.
    Utility,
}

/// One output of the graph: one number per candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// Name of the graph output.
    pub name: String,
}

/// A number of the request that only the formula takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UtilityInput {
    /// Name of the feature, and in the formula.
    pub name: String,
    /// One per request, or one per candidate.
    pub side: Side,
}

/// What is done with a feature that the contract does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFeatures {
    /// The request is refused.
    #[default]
    Refuse,
    /// It is ranked without, and the answer and a metric say so.
    Ignore,
}

/// All that is wrong with a `model.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelError {
    /// Not TOML.
    #[error("model.toml does not parse: {0}")]
    Syntax(String),
    /// Every contradiction found, at once, each with its line.
    #[error("model.toml: {}", .0.join("; "))]
    Problems(Vec<String>),
}

impl ModelSpec {
    /// The only document version there is.
    pub const SCHEMA_VERSION: u32 = 1;
    /// The most inputs, outputs and numbers of the formula, each: they are looked for by name, one after the other.
    pub const MAX_ENTRIES: usize = 1_000;
    /// The most calibrations: of each output, one for each surface.
    pub const MAX_CALIBRATIONS: usize = 10_000;
    /// The longest document, in bytes: a list of boundaries alone may have some hundred thousand.
    pub const MAX_BYTES: usize = 4 << 20;
    /// What `score` says for the formula.
    pub const UTILITY: &'static str = "utility";

    /// A contract of a model that is ranked by the first of `outputs`, and nothing else.
    #[must_use]
    pub fn new(model: Name, inputs: Vec<InputSpec>, outputs: Vec<OutputSpec>) -> Self {
        Self {
            model,
            inputs,
            outputs,
            score: Score::Output(0),
            utility: None,
            utility_inputs: Vec::new(),
            top_k: 0,
            unknown_features: UnknownFeatures::default(),
            calibrations: Vec::new(),
        }
    }

    /// Reads and checks the text of a `model.toml`.
    ///
    /// # Errors
    /// [`ModelError`], with every contradiction found.
    pub fn from_toml(text: &str) -> Result<Self, ModelError> {
        if text.len() > Self::MAX_BYTES {
            let problem = format!("it has {} bytes, it may have {}", text.len(), Self::MAX_BYTES);
            return Err(ModelError::Problems(vec![problem]));
        }
        let document = DeTable::parse(text).map_err(|first| ModelError::Syntax(no_toml(text, first)))?;
        let mut problems = Problems::of(text);
        let mut fields = Fields::of(document.get_ref(), String::new(), 0);
        let spec = Self::read(&mut fields, &mut problems);
        fields.end(&mut problems);
        match spec {
            Some(spec) if problems.is_empty() => Ok(spec),
            _ => Err(ModelError::Problems(problems.into_list())),
        }
    }

    fn read(fields: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<Self> {
        for key in ["schema_version", "model", "score", "inputs", "outputs"] {
            fields.need(problems, key);
        }
        let known = u64::from(Self::SCHEMA_VERSION);
        match fields.whole(problems, "schema_version", 0..=u64::from(u32::MAX)) {
            Some(version) if version != known => {
                let problem = format!("it is {version}, this build knows {known}");
                fields.problem_of(problems, "schema_version", problem);
            }
            _ => {}
        }
        let model = fields.parsed::<Name>(problems, "model");
        let inputs = read_inputs(fields, problems);
        let outputs = read_outputs(fields, problems);
        let utility_inputs = read_utility_inputs(fields, problems);
        agree(&inputs, problems);
        let inputs: Vec<_> = inputs.into_iter().map(|(_, input)| input).collect();
        for (at, input) in &utility_inputs {
            check_utility_input(*at, input, (&inputs, &outputs), problems);
        }
        let utility_inputs: Vec<_> = utility_inputs.into_iter().map(|(_, input)| input).collect();
        let utility = read_utility(fields, (&outputs, &utility_inputs), problems);
        let score = read_score(fields, &outputs, problems);
        let top_k = fields.whole(problems, "top_k", 0..=u64::from(u32::MAX)).unwrap_or_default();
        let policies = [("refuse", UnknownFeatures::Refuse), ("ignore", UnknownFeatures::Ignore)];
        let unknown_features = fields.word(problems, "unknown_features", &policies).unwrap_or_default();
        let mut calibrations: Vec<Calibration> = Vec::new();
        let mut curves = BTreeSet::new();
        for mut entry in fields.tables(problems, "calibrations", Self::MAX_CALIBRATIONS) {
            let calibration = Calibration::read(&mut entry, &outputs, problems);
            if let Some(calibration) = calibration {
                if !curves.insert((calibration.output, calibration.surface.clone())) {
                    let (output, surface) = (&outputs[calibration.output], &calibration.surface);
                    entry.problem(
                        problems,
                        format!("output {output:?} has a curve for surface {surface:?} already"),
                    );
                }
                calibrations.push(calibration);
            }
            entry.end(problems);
        }
        Some(Self {
            model: model?,
            inputs,
            outputs: outputs.into_iter().map(|name| OutputSpec { name }).collect(),
            score: score?,
            utility,
            utility_inputs,
            top_k: u32::try_from(top_k).ok()?,
            unknown_features,
            calibrations,
        })
    }

    /// The document that [`from_toml`](Self::from_toml) reads back as the same contract. It is written in one way
    /// only: without comments, each key in its place, and no key that says what is so without it. The formula stays as
    /// it was written.
    #[must_use]
    pub fn to_toml(&self) -> String {
        write::document(self, self.utility.as_ref().map(Utility::text))
    }

    /// XXH3 with 64 bits, seed 0, of [`to_toml`](Self::to_toml), but with the formula written from its steps: the same
    /// for two contracts that say the same, however they are written. The order of inputs, outputs, numbers of the
    /// formula and calibrations counts. It says nothing of the graph, the tables or the golden vectors.
    #[must_use]
    pub fn schema_hash(&self) -> u64 {
        let utility = self.utility.as_ref().map(Utility::canonical);
        xxh3_64(write::document(self, utility.as_deref()).as_bytes())
    }

    /// The tables that the inputs take vectors from, each once, in order of first use.
    pub fn tables(&self) -> impl Iterator<Item = &Name> {
        let mut seen = BTreeSet::new();
        self.inputs.iter().filter_map(|input| input.source.table()).filter(move |table| seen.insert(*table))
    }

    /// The features that a request has, each once: those of the inputs in their order, then those of the formula.
    #[must_use]
    pub fn features(&self) -> Vec<FeatureSpec> {
        let mut features: Vec<FeatureSpec> = Vec::new();
        let mut places = BTreeMap::new();
        let inputs = self.inputs.iter().map(|i| (&i.feature, i.side, i.takes(), i.name.as_str()));
        let number = FeatureKind::Row { width: 1 };
        let numbers = self.utility_inputs.iter().map(|i| (&i.name, i.side, number, Self::UTILITY));
        for (name, side, kind, used_by) in inputs.chain(numbers) {
            let place = *places.entry(name).or_insert(features.len());
            match features.get_mut(place) {
                Some(feature) => feature.used_by.push(used_by.to_owned()),
                None => {
                    let (name, used_by) = (name.clone(), vec![used_by.to_owned()]);
                    features.push(FeatureSpec { name, side, kind, used_by });
                }
            }
        }
        features
    }

    /// The index of an output.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|output| output.name == name)
    }

    /// The name of what candidates are ranked by.
    #[must_use]
    pub fn score_name(&self) -> &str {
        match self.score {
            Score::Output(at) => &self.outputs[at].name,
            Score::Utility => Self::UTILITY,
        }
    }

    /// The curve of an output on a surface: its own, or that of every other surface.
    #[must_use]
    pub fn curve(&self, output: usize, surface: &str) -> Option<&Curve> {
        let of = |surface: &str| {
            self.calibrations.iter().find(|c| c.output == output && c.surface == surface).map(|c| &c.curve)
        };
        of(surface).or_else(|| of(""))
    }
}

/// What is wrong with a text that is no TOML; `first` is the first error of it.
fn no_toml(text: &str, first: toml::de::Error) -> String {
    // There may be one error for every byte, and all of them are held at once: of a long text only the first is told.
    const ALL_OF_BYTES: usize = 256 << 10;
    const TOLD: usize = 20;
    let errors = if text.len() <= ALL_OF_BYTES { DeTable::parse_recoverable(text).1 } else { vec![first] };
    let tell = |error: &toml::de::Error| {
        // Not as the error shows itself: that is with its whole line, which may be all of the text.
        let at = error.span().map_or(0, |span| span.start);
        let before = text.as_bytes().get(..at).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        format!("line {line}: {}", error.message())
    };
    let mut told: Vec<_> = errors.iter().take(TOLD).map(tell).collect();
    if errors.len() > TOLD {
        told.push(format!("and {} more", errors.len() - TOLD));
    }
    told.join("; ")
}

fn read_inputs(fields: &mut Fields<'_>, problems: &mut Problems<'_>) -> Vec<(usize, InputSpec)> {
    let tables = fields.tables(problems, "inputs", ModelSpec::MAX_ENTRIES);
    if fields.has("inputs") && tables.is_empty() {
        fields.problem_of(problems, "inputs", "there are no inputs");
    }
    let mut inputs = Vec::new();
    for mut table in tables {
        inputs.extend(InputSpec::read(&mut table, problems).map(|input| (table.at, input)));
        table.end(problems);
    }
    inputs
}

fn read_outputs(fields: &mut Fields<'_>, problems: &mut Problems<'_>) -> Vec<String> {
    let mut outputs = Vec::new();
    for mut table in fields.tables(problems, "outputs", ModelSpec::MAX_ENTRIES) {
        if let Some(name) = name(&mut table, problems) {
            if outputs.contains(&name) {
                table.problem(problems, format!("output {name:?} stands twice"));
            }
            outputs.push(name);
        }
        table.end(problems);
    }
    outputs
}

fn read_utility_inputs(fields: &mut Fields<'_>, problems: &mut Problems<'_>) -> Vec<(usize, UtilityInput)> {
    let mut inputs: Vec<(usize, UtilityInput)> = Vec::new();
    for mut table in fields.tables(problems, "utility_inputs", ModelSpec::MAX_ENTRIES) {
        let (name, side) = (name(&mut table, problems), Side::read(&mut table, problems));
        if let (Some(name), Some(side)) = (name, side) {
            if inputs.iter().any(|(_, earlier)| earlier.name == name) {
                table.problem(problems, format!("utility input {name:?} stands twice"));
            }
            inputs.push((table.at, UtilityInput { name, side }));
        }
        table.end(problems);
    }
    inputs
}

/// A number of the formula must not be mistaken for an output; where an input takes the same feature, it is one number.
fn check_utility_input(
    at: usize,
    input: &UtilityInput,
    (inputs, outputs): (&[InputSpec], &[String]),
    problems: &mut Problems<'_>,
) {
    let place = format!("utility input {:?}", input.name);
    if outputs.contains(&input.name) {
        problems.add(at, &place, "an output has the same name");
    }
    for other in inputs.iter().filter(|other| other.feature == input.name) {
        if other.side != input.side || other.takes() != (FeatureKind::Row { width: 1 }) {
            let (side, takes) = (other.side.as_str(), other.takes().words());
            let problem =
                format!("input {:?} takes the same feature as {takes} of the {side} side", other.name);
            problems.add(at, &place, problem);
        }
    }
}

fn read_utility(
    fields: &mut Fields<'_>,
    (outputs, inputs): (&[String], &[UtilityInput]),
    problems: &mut Problems<'_>,
) -> Option<Utility> {
    let text = fields.text(problems, "utility");
    if !fields.has("utility") {
        if !inputs.is_empty() {
            fields.problem_of(problems, "utility_inputs", "there is no utility that would take them");
        }
        return None;
    }
    let utility = Utility::parse(text?);
    let utility = utility.map_err(|error| fields.problem_of(problems, "utility", error)).ok()?;
    for name in utility.names() {
        if !outputs.contains(name) && !inputs.iter().any(|input| input.name == *name) {
            let outputs = listed(outputs.iter().map(String::as_str));
            let inputs = listed(inputs.iter().map(|input| input.name.as_str()));
            let problem = format!("{name:?} is neither an output ({outputs}) nor a utility input ({inputs})");
            fields.problem_of(problems, "utility", problem);
        }
    }
    for input in inputs.iter().filter(|input| !utility.names().contains(&input.name)) {
        let problem = format!("the utility input {:?} is not in it", input.name);
        fields.problem_of(problems, "utility", problem);
    }
    Some(utility)
}

/// The first of some names, which may be very many.
fn listed<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    const LISTED: usize = 20;
    let more = names.len().saturating_sub(LISTED);
    let first = names.take(LISTED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

fn read_score(fields: &mut Fields<'_>, outputs: &[String], problems: &mut Problems<'_>) -> Option<Score> {
    let score = fields.text(problems, "score")?;
    let output = outputs.iter().position(|output| output == score);
    match (output, fields.has("utility")) {
        (None, true) if score == ModelSpec::UTILITY => Some(Score::Utility),
        (Some(_), true) if score == ModelSpec::UTILITY => {
            fields.problem_of(problems, "score", "an output is called \"utility\" too: give it another name");
            None
        }
        (_, true) => {
            let problem =
                format!("it is {score:?}, and there is a utility: rank by \"utility\", or leave it out");
            fields.problem_of(problems, "score", problem);
            None
        }
        (Some(output), false) => Some(Score::Output(output)),
        (None, false) => {
            fields.problem_of(problems, "score", format!("{score:?} is not one of the outputs"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
