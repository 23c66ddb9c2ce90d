//! DCN-v2 with a mixture of experts for several tasks (MMoE). Every expert crosses the inputs with themselves, once with
//! a full matrix and once with one of low rank:
//!
//! `x1 = x0 * (W x0 + b) + x0`, `x2 = x0 * (U V^T x1 + c) + x1`, then ReLU layers: `f_e(x0)`.
//!
//! Each task has a gate over the experts and a head: `y_t = h_t(sum_e softmax(G_t(x0))_e f_e(x0))`. The heads also see
//! the element-wise product of user and item rows, where contrastive pretraining put its knowledge.

use super::{Built, Inputs, ModelSize, OUTPUT_CTR, OUTPUT_CVR, hidden_layers, logit};
use crate::{
    rng::Rng,
    tape::{Tape, Value},
};

struct Shape {
    experts: usize,
    rank: usize,
    expert_layers: &'static [usize],
    head_layers: &'static [usize],
}

const SMALL: Shape = Shape { experts: 4, rank: 16, expert_layers: &[64, 32], head_layers: &[32] };
const LARGE: Shape = Shape { experts: 6, rank: 64, expert_layers: &[640, 256], head_layers: &[128, 64] };

pub(super) fn build(
    size: ModelSize,
    dropout: f32,
    tape: &mut Tape,
    inputs: &Inputs<Value>,
    rng: &mut Rng,
) -> Built {
    let shape = match size {
        ModelSize::Small => SMALL,
        ModelSize::Large => LARGE,
    };
    let x =
        tape.concat(&[inputs.user, inputs.item, inputs.genres, inputs.occupation, inputs.age, inputs.gender]);
    let experts: Vec<Value> = (0..shape.experts).map(|_| expert(&shape, dropout, tape, x, rng)).collect();
    let product = tape.mul(inputs.user, inputs.item);
    let mut built = Built { logits: Vec::new(), outputs: Vec::new(), item_vector: None };
    for output in [OUTPUT_CTR, OUTPUT_CVR] {
        let gate = tape.affine(x, shape.experts, (1.0 / tape.width(x) as f32).sqrt(), rng);
        let gate = tape.softmax(gate);
        let mut mixed = tape.weigh(experts[0], gate, 0);
        for (column, &expert) in experts.iter().enumerate().skip(1) {
            let weighed = tape.weigh(expert, gate, column);
            mixed = tape.add(mixed, weighed);
        }
        let seen = tape.concat(&[mixed, product]);
        let hidden = hidden_layers(tape, seen, shape.head_layers, dropout, rng);
        let logit = logit(tape, hidden, rng);
        let probability = tape.sigmoid(logit);
        built.logits.push(logit);
        built.outputs.push(tape.name(probability, output));
    }
    built
}

fn expert(shape: &Shape, dropout: f32, tape: &mut Tape, x: Value, rng: &mut Rng) -> Value {
    let width = tape.width(x);
    let scale = (1.0 / width as f32).sqrt();
    let gate = tape.affine(x, width, 0.5 * scale, rng);
    let full = cross(tape, x, x, gate);
    let narrow = tape.product(full, shape.rank, scale, rng);
    let gate = tape.affine(narrow, width, 0.5 * (1.0 / shape.rank as f32).sqrt(), rng);
    let low_rank = cross(tape, x, full, gate);
    hidden_layers(tape, low_rank, shape.expert_layers, dropout, rng)
}

/// `first * gate + current`.
fn cross(tape: &mut Tape, first: Value, current: Value, gate: Value) -> Value {
    let term = tape.mul(first, gate);
    tape.add(term, current)
}
