//! What each operation makes of its operands, and what it hands back to them of a gradient.

use ndarray::{Array2, Axis, Zip, linalg::general_mat_mul, s};

use super::{Pass, Value, Weight};
use crate::{
    net::{Param, sigmoid},
    rng::Rng,
};

/// An operation over values that stand before it. What each is: the methods of [`Tape`](super::Tape) that make them.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The input of this place.
    Input(usize),
    Affine {
        x: Value,
        weight: Weight,
        bias: Option<Weight>,
    },
    Normalise {
        x: Value,
        mean: f32,
        inverse_deviation: f32,
    },
    Add(Value, Value),
    Mul(Value, Value),
    Relu(Value),
    Sigmoid(Value),
    Softmax(Value),
    Dropout {
        x: Value,
        share: f32,
    },
    Concat(Vec<Value>),
    Weigh {
        x: Value,
        gates: Value,
        column: usize,
    },
    Dot(Value, Value),
    Pairs(Vec<Value>),
}

impl Op {
    /// What it is worked out from.
    pub(super) fn operands(&self) -> Vec<Value> {
        match self {
            Self::Input(_) => Vec::new(),
            Self::Affine { x, .. }
            | Self::Normalise { x, .. }
            | Self::Dropout { x, .. }
            | Self::Relu(x)
            | Self::Sigmoid(x)
            | Self::Softmax(x) => vec![*x],
            Self::Add(a, b) | Self::Mul(a, b) | Self::Dot(a, b) => vec![*a, *b],
            Self::Weigh { x, gates, .. } => vec![*x, *gates],
            Self::Concat(parts) | Self::Pairs(parts) => parts.clone(),
        }
    }

    /// The same operation on another tape, where operands and parameters stand elsewhere.
    pub(super) fn moved(&self, places: &[Value], weight: &mut dyn FnMut(Weight) -> Weight) -> Self {
        let of = |value: &Value| places[value.0];
        match self {
            Self::Input(at) => Self::Input(*at),
            Self::Affine { x, weight: matrix, bias } => {
                Self::Affine { x: of(x), weight: weight(*matrix), bias: bias.map(weight) }
            }
            Self::Normalise { x, mean, inverse_deviation } => {
                Self::Normalise { x: of(x), mean: *mean, inverse_deviation: *inverse_deviation }
            }
            Self::Add(a, b) => Self::Add(of(a), of(b)),
            Self::Mul(a, b) => Self::Mul(of(a), of(b)),
            Self::Relu(x) => Self::Relu(of(x)),
            Self::Sigmoid(x) => Self::Sigmoid(of(x)),
            Self::Softmax(x) => Self::Softmax(of(x)),
            Self::Dropout { x, share } => Self::Dropout { x: of(x), share: *share },
            Self::Concat(parts) => Self::Concat(parts.iter().map(of).collect()),
            Self::Weigh { x, gates, column } => Self::Weigh { x: of(x), gates: of(gates), column: *column },
            Self::Dot(a, b) => Self::Dot(of(a), of(b)),
            Self::Pairs(vectors) => Self::Pairs(vectors.iter().map(of).collect()),
        }
    }

    /// The value, `[examples, width]`. Inputs and dropout are the tape's own business.
    pub(super) fn value(&self, params: &[Param], values: &[Array2<f32>], width: usize) -> Array2<f32> {
        let of = |value: &Value| &values[value.0];
        match self {
            Self::Input(_) => Array2::zeros((0, width)),
            Self::Affine { x, weight, bias } => {
                let mut y = Array2::zeros((of(x).nrows(), width));
                if let Some(bias) = bias {
                    y.assign(&params[bias.0].value);
                }
                general_mat_mul(1.0, of(x), &params[weight.0].value, 1.0, &mut y);
                y
            }
            Self::Normalise { x, mean, inverse_deviation } => of(x).mapv(|v| (v - mean) * inverse_deviation),
            Self::Add(a, b) => of(a) + of(b),
            Self::Mul(a, b) => of(a) * of(b),
            Self::Relu(x) => of(x).mapv(|v| v.max(0.0)),
            Self::Sigmoid(x) => of(x).mapv(sigmoid),
            Self::Softmax(x) => {
                let mut y = of(x).clone();
                for mut row in y.rows_mut() {
                    let largest = row.fold(f32::NEG_INFINITY, |max, &v| max.max(v));
                    row.mapv_inplace(|v| (v - largest).exp());
                    let total = row.sum();
                    row /= total;
                }
                y
            }
            Self::Dropout { x, .. } => of(x).clone(),
            Self::Concat(parts) => {
                let rows = parts.first().map_or(0, |part| of(part).nrows());
                let mut y = Array2::zeros((rows, width));
                let mut from = 0;
                for part in parts.iter().map(of) {
                    y.slice_mut(s![.., from..from + part.ncols()]).assign(part);
                    from += part.ncols();
                }
                y
            }
            Self::Weigh { x, gates, column } => {
                let gate = of(gates).column(*column);
                of(x) * &gate.insert_axis(Axis(1))
            }
            Self::Dot(a, b) => (of(a) * of(b)).sum_axis(Axis(1)).insert_axis(Axis(1)),
            Self::Pairs(vectors) => {
                let rows = vectors.first().map_or(0, |vector| of(vector).nrows());
                let mut y = Array2::zeros((rows, width));
                for (mut column, (a, b)) in y.columns_mut().into_iter().zip(pairs(vectors.len())) {
                    column.assign(&(of(&vectors[a]) * of(&vectors[b])).sum_axis(Axis(1)));
                }
                y
            }
        }
    }

    /// Hands the gradient `d` of this operation, which stands at `at`, to its operands and parameters.
    pub(super) fn gradient(
        &self,
        params: &mut [Param],
        pass: &Pass,
        at: Value,
        d: Array2<f32>,
        gradients: &mut [Option<Array2<f32>>],
    ) {
        let of = |value: &Value| pass.value(*value);
        match self {
            Self::Input(_) => {}
            Self::Affine { x, weight, bias } => {
                general_mat_mul(1.0, &of(x).t(), &d, 1.0, &mut params[weight.0].grad);
                if let Some(bias) = bias {
                    params[bias.0].grad += &d.sum_axis(Axis(0)).insert_axis(Axis(0));
                }
                add_to(gradients, *x, d.dot(&params[weight.0].value.t()));
            }
            Self::Normalise { x, inverse_deviation, .. } => add_to(gradients, *x, d * *inverse_deviation),
            Self::Add(a, b) => {
                add_to(gradients, *a, d.clone());
                add_to(gradients, *b, d);
            }
            Self::Mul(a, b) => {
                add_to(gradients, *a, &d * of(b));
                add_to(gradients, *b, d * of(a));
            }
            Self::Relu(x) => {
                let mut d = d;
                Zip::from(&mut d).and(of(x)).for_each(|d, &x| *d = if x > 0.0 { *d } else { 0.0 });
                add_to(gradients, *x, d);
            }
            Self::Sigmoid(x) => {
                let y = of(&at);
                add_to(gradients, *x, d * &y.mapv(|y| y * (1.0 - y)));
            }
            Self::Softmax(x) => {
                let y = of(&at);
                let along = (&d * y).sum_axis(Axis(1)).insert_axis(Axis(1));
                add_to(gradients, *x, (d - &along) * y);
            }
            Self::Dropout { x, .. } => add_to(gradients, *x, d),
            Self::Concat(parts) => {
                let mut from = 0;
                for part in parts {
                    let to = from + of(part).ncols();
                    add_to(gradients, *part, d.slice(s![.., from..to]).to_owned());
                    from = to;
                }
            }
            Self::Weigh { x, gates, column } => {
                let mut d_gates = Array2::zeros(of(gates).dim());
                d_gates.column_mut(*column).assign(&(&d * of(x)).sum_axis(Axis(1)));
                add_to(gradients, *gates, d_gates);
                let gate = of(gates).column(*column).insert_axis(Axis(1));
                add_to(gradients, *x, &d * &gate);
            }
            Self::Dot(a, b) => {
                add_to(gradients, *a, &d * of(b));
                add_to(gradients, *b, &d * of(a));
            }
            Self::Pairs(vectors) => {
                for (column, (a, b)) in d.columns().into_iter().zip(pairs(vectors.len())) {
                    let (a, b) = (vectors[a], vectors[b]);
                    let column = column.insert_axis(Axis(1));
                    add_to(gradients, a, of(&b) * &column);
                    add_to(gradients, b, of(&a) * &column);
                }
            }
        }
    }
}

/// The places of every pair of `count` vectors, in the order of [`Tape::pairs`](super::Tape::pairs): the later one first.
pub(super) fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(|later| (0..later).map(move |earlier| (later, earlier)))
}

/// What dropout multiplies by: zero for this share of the numbers.
pub(super) fn dropout_mask(dim: (usize, usize), share: f32, rng: &mut Rng) -> Array2<f32> {
    let keep = 1.0 / (1.0 - share);
    Array2::from_shape_simple_fn(dim, || if (rng.uniform() as f32) < share { 0.0 } else { keep })
}

/// Adds to the gradient of `value`, which may have none so far.
pub(super) fn add_to(gradients: &mut [Option<Array2<f32>>], value: Value, gradient: Array2<f32>) {
    match &mut gradients[value.0] {
        Some(sum) => *sum += &gradient,
        none => *none = Some(gradient),
    }
}
