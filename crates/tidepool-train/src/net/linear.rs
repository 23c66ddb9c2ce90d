//! An affine layer, its gradients, and the optimiser.

use ndarray::{Array2, Axis, Zip, linalg::general_mat_mul};

use crate::rng::Rng;

/// Adam with decoupled weight decay, at one step of its run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adam {
    rate: f32,
    decay: f32,
    /// What the first and the second moment are multiplied by, so that their start at zero does not show.
    corrections: (f32, f32),
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

impl Adam {
    /// Of step `step`, from 1. `decay` is the share of a weight that is lost per unit of learning rate.
    pub(crate) fn at(step: u32, rate: f32, decay: f32) -> Self {
        let correction = |beta: f32| 1.0 / (1.0 - beta.powf(step as f32));
        Self { rate, decay, corrections: (correction(BETA1), correction(BETA2)) }
    }

    /// The same for weights that do not decay.
    pub(crate) fn without_decay(self) -> Self {
        Self { decay: 0.0, ..self }
    }

    /// Moves one weight against its gradient and clears the gradient.
    pub(crate) fn apply(&self, value: &mut f32, grad: &mut f32, first: &mut f32, second: &mut f32) {
        *first = BETA1 * *first + (1.0 - BETA1) * *grad;
        *second = BETA2 * *second + (1.0 - BETA2) * *grad * *grad;
        let step = *first * self.corrections.0 / ((*second * self.corrections.1).sqrt() + EPSILON);
        *value -= self.rate * (step + self.decay * *value);
        *grad = 0.0;
    }
}

/// A matrix of weights with its gradient and the optimiser's moments.
#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub(crate) value: Array2<f32>,
    pub(crate) grad: Array2<f32>,
    first: Array2<f32>,
    second: Array2<f32>,
}

impl Param {
    /// Starts from these weights.
    pub(crate) fn new(value: Array2<f32>) -> Self {
        let zeros = Array2::zeros(value.dim());
        Self { value, grad: zeros.clone(), first: zeros.clone(), second: zeros }
    }

    /// One step of the optimiser; clears the gradient.
    pub(crate) fn step(&mut self, adam: &Adam) {
        Zip::from(&mut self.value)
            .and(&mut self.grad)
            .and(&mut self.first)
            .and(&mut self.second)
            .for_each(|value, grad, first, second| adam.apply(value, grad, first, second));
    }
}

/// `y = x W + b`, for rows of examples.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[inputs, outputs]`.
    pub(crate) weight: Param,
    /// `[1, outputs]`.
    pub(crate) bias: Param,
}

impl Linear {
    /// Normal weights of standard deviation `scale`, and zero biases.
    pub(crate) fn new(inputs: usize, outputs: usize, scale: f32, rng: &mut Rng) -> Self {
        let weight = Array2::from_shape_simple_fn((inputs, outputs), || rng.normal() * scale);
        Self { weight: Param::new(weight), bias: Param::new(Array2::zeros((1, outputs))) }
    }

    /// `[examples, inputs]` to `[examples, outputs]`.
    pub(crate) fn forward(&self, x: &Array2<f32>) -> Array2<f32> {
        let mut y = Array2::zeros((x.nrows(), self.bias.value.ncols()));
        y.assign(&self.bias.value);
        general_mat_mul(1.0, x, &self.weight.value, 1.0, &mut y);
        y
    }

    /// Adds the gradients of weight and bias, and gives that of `x`.
    pub(crate) fn backward(&mut self, x: &Array2<f32>, d_y: &Array2<f32>) -> Array2<f32> {
        general_mat_mul(1.0, &x.t(), d_y, 1.0, &mut self.weight.grad);
        self.bias.grad += &d_y.sum_axis(Axis(0)).insert_axis(Axis(0));
        let mut d_x = Array2::zeros(x.dim());
        general_mat_mul(1.0, d_y, &self.weight.value.t(), 0.0, &mut d_x);
        d_x
    }

    /// One step of the optimiser; biases do not decay.
    pub(crate) fn step(&mut self, adam: &Adam) {
        self.weight.step(adam);
        self.bias.step(&adam.without_decay());
    }
}
