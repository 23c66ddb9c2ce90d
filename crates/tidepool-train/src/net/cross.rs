//! A cross layer of DCN-v2: `next = first * (W current + b) + current`, so that each layer multiplies in one more
//! factor of the input.

use ndarray::{Array2, Zip};

use super::linear::Linear;

/// Gives `W current + b`, which the backward pass needs, and the layer's output.
pub(super) fn forward(
    layer: &Linear,
    first: &Array2<f32>,
    current: &Array2<f32>,
) -> (Array2<f32>, Array2<f32>) {
    let gate = layer.forward(current);
    let mut next = current.clone();
    Zip::from(&mut next).and(first).and(&gate).for_each(|next, &first, &gate| *next += first * gate);
    (gate, next)
}

/// Adds the gradients of the layer and of `first`, and gives that of `current`.
pub(super) fn backward(
    layer: &mut Linear,
    first: &Array2<f32>,
    current: &Array2<f32>,
    gate: &Array2<f32>,
    d_next: Array2<f32>,
    d_first: &mut Array2<f32>,
) -> Array2<f32> {
    Zip::from(d_first).and(&d_next).and(gate).for_each(|d, &up, &gate| *d += up * gate);
    let d_gate = &d_next * first;
    let mut d_current = d_next;
    d_current += &layer.backward(current, &d_gate);
    d_current
}
