//! What a training run says of itself: small enough to keep beside the release.

use serde::{Deserialize, Serialize};

use crate::metrics::{Comparison, Quality};

/// Quality on the test slice with the tables stored in each row format.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QualityByFormat {
    /// As trained.
    pub f32: Quality,
    /// Half precision.
    pub f16: Quality,
    /// 8-bit codes.
    pub int8: Quality,
    /// 4-bit codes.
    pub int4: Quality,
}

/// What a run measured. All qualities are of the test slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingReport {
    /// Of this document: 1.
    pub schema_version: u32,
    /// `movielens` or `synthetic`.
    pub data: String,
    /// Decided every random number.
    pub seed: u64,
    /// Events learnt from.
    pub train_examples: usize,
    /// Events that decided when to stop.
    pub validation_examples: usize,
    /// Events measured with.
    pub test_examples: usize,
    /// Tables that began contrastively pretrained: the model that is exported.
    pub with_pretraining: Quality,
    /// The same from random tables.
    pub without_pretraining: Quality,
    /// The exported model, by how its tables are stored; `f32` equals `with_pretraining`.
    pub offline: QualityByFormat,
    /// What INT4 rows cost: int4 less f32.
    pub int4_minus_f32: Comparison,
    /// The exported model when every id is missing from its table.
    pub tables_missing: Quality,
    /// What the true probabilities reach, where the data was made with known ones.
    pub planted_optimum: Option<Quality>,
    /// How long it took.
    pub seconds: f64,
}

impl TrainingReport {
    /// The only document version there is.
    pub const SCHEMA_VERSION: u32 = 1;
}
