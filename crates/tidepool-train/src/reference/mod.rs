//! Reference models: three architectures that ads rankers are made of, trained for real on the same data as the demo's
//! model and exported as ONNX, so that serving is measured and tested with graphs like those it is for.
//!
//! Each is defined once, on a [`Tape`](crate::tape::Tape). What each is, and what it reaches: docs/reference-models.md.

mod dcn_mmoe;
mod dlrm;
mod features;
mod fit;
mod heads;
mod model;
mod report;
mod run;
#[cfg(test)]
mod tests;
mod two_tower;

use serde::{Deserialize, Serialize};

use self::features::Inputs;
pub use self::{
    model::ReferenceModel,
    report::{HeadReport, ReferenceReport},
    run::{ReferenceOutcome, train_reference, untrained_reference},
};
use crate::{
    options::TrainOptions,
    rng::Rng,
    tape::{Tape, Value},
};

/// The graph's output: the probability of a click. In MovieLens a click is a rating of 4 or 5.
pub const OUTPUT_CTR: &str = "ctr";
/// The graph's output: the probability of a conversion, given a click. In MovieLens a conversion is a rating of 5.
pub const OUTPUT_CVR: &str = "cvr";

/// How a model is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// Experts of full- and low-rank cross layers (DCN-v2), mixed by a gate for each of two heads: click and conversion.
    DcnMmoe,
    /// The sigmoid of the dot product of a user's and an item's vector; the item's come from a table of their own.
    TwoTower,
    /// Dot products of all pairs of feature vectors, between two stacks of layers.
    Dlrm,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DcnMmoe, Self::TwoTower, Self::Dlrm];

    /// As it is written: `dcn-mmoe`, `two-tower`, `dlrm`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DcnMmoe => "dcn-mmoe",
            Self::TwoTower => "two-tower",
            Self::Dlrm => "dlrm",
        }
    }

    /// The tables that a model of it has, in their order.
    #[must_use]
    pub const fn tables(self) -> &'static [&'static str] {
        match self {
            Self::TwoTower => &["user", fit::ITEM_TOWER, "occupation"],
            Self::DcnMmoe | Self::Dlrm => &["user", "item", "genre", "occupation"],
        }
    }
}

/// How large the dense model and the rows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelSize {
    /// As much as a hundred thousand ratings can teach.
    #[default]
    Small,
    /// As heavy as a served model: the DCN-v2 with MMoE has about two million parameters. It is for speed; so little
    /// data teaches it no more than the small one.
    Large,
}

impl ModelSize {
    /// As it is written: `small`, `large`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

/// What can be chosen about a reference model.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceOptions {
    /// How it is built.
    pub architecture: Architecture,
    /// How large.
    pub size: ModelSize,
    /// The seed, and how it is trained. Cross layers, hidden layers and resamples are the demo's model's alone: an
    /// architecture and a size bring their own.
    pub training: TrainOptions,
}

impl ReferenceOptions {
    /// The defaults of this architecture and size.
    #[must_use]
    pub fn new(architecture: Architecture, size: ModelSize, seed: u64) -> Self {
        let mut training = TrainOptions { seed, ..TrainOptions::default() };
        if architecture == Architecture::Dlrm {
            // Its top stack sees few numbers, all of them small: what is dropped or decays is most of what there is.
            training.ranker.dropout = 0.1;
            training.ranker.weight_decay = 0.05;
            training.ranker.pretrained_learning_rate = 1e-3;
            training.pretrain.row_length = 0.35;
        }
        Self { architecture, size, training }
    }
}

/// Dimensions of rows.
#[derive(Clone, Copy, Debug)]
struct RowDims {
    /// Of users and of items.
    entity: usize,
    genre: usize,
    occupation: usize,
}

impl RowDims {
    fn of(architecture: Architecture, size: ModelSize) -> Self {
        match (architecture, size) {
            // Dot products want one dimension for all.
            (Architecture::Dlrm, ModelSize::Small) => Self { entity: 16, genre: 16, occupation: 16 },
            (Architecture::Dlrm, ModelSize::Large) => Self { entity: 64, genre: 64, occupation: 64 },
            (_, ModelSize::Small) => Self { entity: 32, genre: 16, occupation: 8 },
            (_, ModelSize::Large) => Self { entity: 64, genre: 32, occupation: 16 },
        }
    }
}

/// What an architecture has put on the tape.
struct Built {
    /// Of each head: a click, then a conversion where there is a head for it.
    logits: Vec<Value>,
    /// Their sigmoids, called as the graph's outputs are.
    outputs: Vec<Value>,
    /// What is worked out from the item alone, if it is to be a table.
    item_vector: Option<Value>,
}

fn build(options: &ReferenceOptions, tape: &mut Tape, inputs: &Inputs<Value>, rng: &mut Rng) -> Built {
    let (size, dropout) = (options.size, options.training.ranker.dropout);
    match options.architecture {
        Architecture::DcnMmoe => dcn_mmoe::build(size, dropout, tape, inputs, rng),
        Architecture::TwoTower => two_tower::build(size, dropout, tape, inputs, rng),
        Architecture::Dlrm => dlrm::build(size, dropout, tape, inputs, rng),
    }
}

/// ReLU layers of these widths, one on the other, each with its dropout.
fn hidden_layers(tape: &mut Tape, mut x: Value, widths: &[usize], dropout: f32, rng: &mut Rng) -> Value {
    for &width in widths {
        let scale = (2.0 / tape.width(x) as f32).sqrt();
        let affine = tape.affine(x, width, scale, rng);
        let active = tape.relu(affine);
        x = tape.dropout(active, dropout);
    }
    x
}

/// One number from `x`.
fn logit(tape: &mut Tape, x: Value, rng: &mut Rng) -> Value {
    let scale = (1.0 / tape.width(x) as f32).sqrt();
    tape.affine(x, 1, scale, rng)
}
