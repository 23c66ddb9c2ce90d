//! `model.toml`: the contract between a dense model, its tables and its callers.
//!
//! ```toml
//! schema_version = 1
//! model = "movielens"
//! score = "probability"        # the output that candidates are ranked by
//!
//! [[inputs]]                   # a graph input [rows, vector dim of the table]
//! name = "user"                # of the ONNX graph input, and of the request's feature
//! side = "user"                # sent once per request; "candidate": one per candidate
//! table = "user"
//! pooling = "sum"              # or "mean"
//!
//! [[inputs]]                   # a graph input [rows, width]
//! name = "age"
//! side = "user"
//! width = 1
//!
//! [[outputs]]                  # a graph output [rows] or [rows, 1]
//! name = "probability"
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{name::Name, pooling::Pooling};

/// The validated contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// The model.
    pub model: Name,
    /// What the graph takes, in the order of the document.
    pub inputs: Vec<InputSpec>,
    /// What the graph gives.
    pub outputs: Vec<OutputSpec>,
    /// Index into `outputs` of the one that candidates are ranked by.
    pub score: usize,
}

/// One input of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// Name of the graph input and of the feature in a request.
    pub name: String,
    /// Whose feature it is.
    pub side: Side,
    /// Where its values come from.
    pub source: InputSource,
}

/// Whose feature: sent once per request, or once per candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The same for every candidate of a request.
    User,
    /// One per candidate.
    Candidate,
}

/// Where the values of an input come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputSource {
    /// A bag of ids, pooled from a table: `[rows, vector_dim]`.
    Pooled {
        /// The table; the release pins its version.
        table: Name,
        /// Sum or mean.
        pooling: Pooling,
    },
    /// Numbers from the request: `[rows, width]`.
    Dense {
        /// Numbers per row.
        width: u32,
    },
}

/// One output of the graph: one number per candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// Name of the graph output.
    pub name: String,
}

/// All that is wrong with a `model.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelError {
    /// Not TOML, or not these keys.
    #[error("model.toml does not parse: {0}")]
    Syntax(String),
    /// Every contradiction found, at once.
    #[error("model.toml: {}", .0.join("; "))]
    Problems(Vec<String>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    schema_version: u32,
    model: Name,
    score: String,
    inputs: Vec<RawInput>,
    outputs: Vec<RawOutput>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInput {
    name: String,
    side: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pooling: Option<Pooling>,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOutput {
    name: String,
}

impl ModelSpec {
    /// The only document version there is.
    pub const SCHEMA_VERSION: u32 = 1;
    /// The widest dense input.
    pub const MAX_WIDTH: u32 = 65_536;

    /// Reads and checks the text of a `model.toml`.
    ///
    /// # Errors
    /// [`ModelError`], with every contradiction found.
    pub fn from_toml(text: &str) -> Result<Self, ModelError> {
        let raw: RawModel = toml::from_str(text).map_err(|e| ModelError::Syntax(e.to_string()))?;
        let mut problems = Vec::new();
        if raw.schema_version != Self::SCHEMA_VERSION {
            problems.push(format!(
                "schema_version {}, this build knows {}",
                raw.schema_version,
                Self::SCHEMA_VERSION
            ));
        }
        if raw.inputs.is_empty() {
            problems.push("there are no inputs".into());
        }
        let mut names = BTreeSet::new();
        let inputs: Vec<_> = raw
            .inputs
            .into_iter()
            .filter_map(|input| {
                if !names.insert(input.name.clone()) {
                    problems.push(format!("input {:?} stands twice", input.name));
                }
                input.validate(&mut problems)
            })
            .collect();
        let mut names = BTreeSet::new();
        for output in &raw.outputs {
            if !names.insert(output.name.as_str()) {
                problems.push(format!("output {:?} stands twice", output.name));
            }
        }
        let score = raw.outputs.iter().position(|o| o.name == raw.score);
        let Some(score) = score else {
            problems.push(format!("score {:?} is not one of the outputs", raw.score));
            return Err(ModelError::Problems(problems));
        };
        if !problems.is_empty() {
            return Err(ModelError::Problems(problems));
        }
        let outputs = raw.outputs.into_iter().map(|o| OutputSpec { name: o.name }).collect();
        Ok(Self { model: raw.model, inputs, outputs, score })
    }

    /// The document that [`from_toml`](Self::from_toml) reads back as the same contract.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let raw = RawModel {
            schema_version: Self::SCHEMA_VERSION,
            model: self.model.clone(),
            score: self.outputs[self.score].name.clone(),
            inputs: self.inputs.iter().map(RawInput::from).collect(),
            outputs: self.outputs.iter().map(|o| RawOutput { name: o.name.clone() }).collect(),
        };
        // Strings, numbers and lists of them: there is nothing here that TOML cannot say.
        toml::to_string(&raw).unwrap_or_default()
    }

    /// The tables that the inputs pool from, each once, in order of first use.
    pub fn tables(&self) -> impl Iterator<Item = &Name> {
        let mut seen = BTreeSet::new();
        self.inputs.iter().filter_map(move |input| match &input.source {
            InputSource::Pooled { table, .. } => seen.insert(table).then_some(table),
            InputSource::Dense { .. } => None,
        })
    }
}

impl RawInput {
    fn validate(self, problems: &mut Vec<String>) -> Option<InputSpec> {
        let source = match (self.table, self.width) {
            (Some(table), None) => {
                let pooling = self.pooling.unwrap_or(Pooling::Sum);
                if pooling == Pooling::None {
                    problems.push(format!(
                        "input {:?}: pooling \"none\" gives no vector per row; sum or mean",
                        self.name
                    ));
                    return None;
                }
                InputSource::Pooled { table, pooling }
            }
            (None, Some(width)) => {
                if width == 0 || width > ModelSpec::MAX_WIDTH {
                    problems.push(format!(
                        "input {:?}: width {width} is not from 1 to {}",
                        self.name,
                        ModelSpec::MAX_WIDTH
                    ));
                    return None;
                }
                if self.pooling.is_some() {
                    problems
                        .push(format!("input {:?}: pooling goes with a table, not with a width", self.name));
                    return None;
                }
                InputSource::Dense { width }
            }
            _ => {
                problems.push(format!("input {:?}: give it a table or a width, one of the two", self.name));
                return None;
            }
        };
        Some(InputSpec { name: self.name, side: self.side, source })
    }
}

impl From<&InputSpec> for RawInput {
    fn from(input: &InputSpec) -> Self {
        let (table, pooling, width) = match &input.source {
            InputSource::Pooled { table, pooling } => (Some(table.clone()), Some(*pooling), None),
            InputSource::Dense { width } => (None, None, Some(*width)),
        };
        Self { name: input.name.clone(), side: input.side, table, pooling, width }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        schema_version = 1
        model = "movielens"
        score = "probability"
        [[inputs]]
        name = "user"
        side = "user"
        table = "user"
        [[inputs]]
        name = "genres"
        side = "candidate"
        table = "genre"
        pooling = "mean"
        [[inputs]]
        name = "age"
        side = "user"
        width = 1
        [[outputs]]
        name = "probability"
    "#;

    #[test]
    fn a_good_contract_comes_back_from_its_own_text() {
        let spec = ModelSpec::from_toml(GOOD).unwrap();
        assert_eq!(spec.inputs.len(), 3);
        assert_eq!(spec.tables().map(Name::as_str).collect::<Vec<_>>(), ["user", "genre"]);
        assert_eq!(ModelSpec::from_toml(&spec.to_toml()), Ok(spec));
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let bad = r#"
            schema_version = 2
            model = "m"
            score = "missing"
            inputs = [
                { name = "a", side = "user", table = "t", width = 3 },
                { name = "a", side = "user", width = 0 },
                { name = "b", side = "candidate", table = "t", pooling = "none" },
            ]
            outputs = [ { name = "p" }, { name = "p" } ]
        "#;
        let Err(ModelError::Problems(problems)) = ModelSpec::from_toml(bad) else { panic!("accepted") };
        assert_eq!(problems.len(), 7, "{problems:#?}");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = GOOD.replace("width = 1", "width = 1\nwitdh = 2");
        assert!(matches!(ModelSpec::from_toml(&text), Err(ModelError::Syntax(_))));
    }
}
