//! Two towers: a vector of the user, a vector of the item, and the sigmoid of their dot product. Nothing of the item
//! meets the user before that, so the item's vectors are worked out once, after training, and are served as a table.
//!
//! Each tower adds to its entity's row what a ReLU stack makes of all its features: what contrastive pretraining put
//! into the rows stays in the dot product.

use super::{Built, Inputs, ModelSize, OUTPUT_CTR, hidden_layers};
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
    let layers: &[usize] = match size {
        ModelSize::Small => &[64],
        ModelSize::Large => &[512, 256],
    };
    let Inputs { user, item, genres, occupation, age, gender } = *inputs;
    let of_user = tower(tape, user, &[user, occupation, age, gender], layers, dropout, rng);
    let of_item = tower(tape, item, &[item, genres], layers, dropout, rng);
    let logit = tape.dot(of_user, of_item);
    let probability = tape.sigmoid(logit);
    let output = tape.name(probability, OUTPUT_CTR);
    Built { logits: vec![logit], outputs: vec![output], item_vector: Some(of_item) }
}

fn tower(
    tape: &mut Tape,
    row: Value,
    features: &[Value],
    layers: &[usize],
    dropout: f32,
    rng: &mut Rng,
) -> Value {
    let x = tape.concat(features);
    let hidden = hidden_layers(tape, x, layers, dropout, rng);
    let scale = (1.0 / tape.width(hidden) as f32).sqrt();
    let added = tape.affine(hidden, tape.width(row), 0.5 * scale, rng);
    tape.add(row, added)
}
