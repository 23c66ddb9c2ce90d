//! What the training of a reference model says of itself.

use serde::{Deserialize, Serialize};

use super::{Architecture, ModelSize};
use crate::metrics::Quality;

/// How well one head, or the product of both, tells the test events apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadReport {
    /// `ctr`, `cvr`, or `ctr * cvr`.
    pub output: String,
    /// What counts as positive, and among which events.
    pub label: String,
    /// Events that it is measured with.
    pub examples: usize,
    /// Positive ones.
    pub positives: usize,
    /// With rows as they were trained.
    pub f32: Quality,
    /// With rows as they are served: INT4.
    pub int4: Quality,
    /// What the true probabilities reach, where the data was made with known ones.
    pub planted_optimum: Option<Quality>,
}

/// What was made, and what it reaches on the test slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceReport {
    /// Of this document: 1.
    pub schema_version: u32,
    /// How the model is built.
    pub architecture: Architecture,
    /// How large it is.
    pub size: ModelSize,
    /// False: its numbers are random, and its scores mean nothing.
    pub trained: bool,
    /// `movielens` or `synthetic`.
    pub data: String,
    /// Decided every random number.
    pub seed: u64,
    /// Numbers in the dense model.
    pub parameters: usize,
    /// Events learnt from.
    pub train_examples: usize,
    /// Events that decided when to stop.
    pub validation_examples: usize,
    /// A line per head; with two heads one more, for their product.
    pub heads: Vec<HeadReport>,
    /// How long it took.
    pub seconds: f64,
}

impl ReferenceReport {
    /// The only document version there is.
    pub const SCHEMA_VERSION: u32 = 1;
}
