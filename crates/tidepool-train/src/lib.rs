//! Training, enough to make a real release from real ratings on one machine: MovieLens-100K or a synthetic set with a
//! planted truth, contrastive pretraining of user and item tables, fine-tuning of all tables together with a small
//! DCN-v2 ranker, evaluation in every row format, and export of tables, ONNX graph and release. Beside it, the reference models: DCN-v2
//! with MMoE, two-tower, DLRM.
//!
//! **Invariant:** training knows no server and no network. Its gradients are written out by hand, for the demo's net
//! layer by layer (docs/decisions/0002-hand-derived-gradients.md) and for the reference models operation by operation
//! (docs/decisions/0005-a-tape-of-operations.md), and each is checked against finite differences; offline evaluation pools rows by the same
//! rules as serving.
//!
//! Read first: [`Dataset`], [`train`], [`TrainedModel`], [`train_reference`].

#[cfg(test)]
mod check;
mod contrastive;
mod data;
mod embedding;
mod error;
mod evaluate;
mod export;
mod graph;
mod metrics;
mod model;
mod movielens;
mod net;
mod options;
mod ranker;
mod reference;
mod report;
mod rng;
mod sample;
mod synthetic;
mod tape;
mod train;

pub use data::{Dataset, Event, FeatureValue, Item, TestCandidate, TestRequest, User};
pub use error::{DataError, TrainError};
pub use evaluate::{Change, Estimate, Evaluation, Tally};
pub use export::{ExportOptions, export_release};
pub use metrics::{Comparison, Interval, Quality, auc, log_loss, paired_bootstrap};
pub use model::{
    FEATURE_AGE, FEATURE_GENDER, FEATURE_GENRES, FEATURE_ITEM, FEATURE_OCCUPATION, FEATURE_USER,
    OUTPUT_PROBABILITY, TrainedModel, TrainedTable,
};
pub use movielens::{LIKED_FROM, LOVED_FROM, load_movielens};
pub use options::{PretrainOptions, RankerOptions, TrainOptions};
pub use reference::{
    Architecture, HeadReport, ModelSize, OUTPUT_CTR, OUTPUT_CVR, ReferenceModel, ReferenceOptions,
    ReferenceOutcome, ReferenceReport, train_reference, untrained_reference,
};
pub use report::{QualityByFormat, TrainingReport};
pub use sample::write_test_sample;
pub use synthetic::{SyntheticSize, synthetic};
pub use train::{Phase, Progress, TrainingOutcome, train};
