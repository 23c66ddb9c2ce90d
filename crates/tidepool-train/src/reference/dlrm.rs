//! DLRM: numbers go through a bottom stack to a vector as wide as the rows; the dot products of all pairs of vectors,
//! beside the bottom stack's, go through a top stack to the logit.

use super::{Built, Inputs, ModelSize, OUTPUT_CTR, hidden_layers, logit};
use crate::{
    rng::Rng,
    tape::{Tape, Value},
};

pub(super) fn build(
    size: ModelSize,
    dropout: f32,
    tape: &mut Tape,
    inputs: &Inputs<Value>,
    rng: &mut Rng,
) -> Built {
    let (bottom_layers, top_layers): (&[usize], &[usize]) = match size {
        ModelSize::Small => (&[32], &[64, 32]),
        ModelSize::Large => (&[512, 256], &[1024, 512, 256]),
    };
    let numbers = tape.concat(&[inputs.age, inputs.gender]);
    // Two numbers leave nothing to spare for dropout.
    let bottom = hidden_layers(tape, numbers, bottom_layers, 0.0, rng);
    let scale = (1.0 / tape.width(bottom) as f32).sqrt();
    let bottom = tape.affine(bottom, tape.width(inputs.user), scale, rng);
    let pairs = tape.pairs(&[bottom, inputs.user, inputs.item, inputs.genres, inputs.occupation]);
    let seen = tape.concat(&[bottom, pairs]);
    let top = hidden_layers(tape, seen, top_layers, dropout, rng);
    let logit = logit(tape, top, rng);
    let probability = tape.sigmoid(logit);
    let output = tape.name(probability, OUTPUT_CTR);
    Built { logits: vec![logit], outputs: vec![output], item_vector: None }
}
