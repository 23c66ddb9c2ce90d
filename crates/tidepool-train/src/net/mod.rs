//! The dense model, small DCN-v2: full-rank cross layers over all inputs, then a ReLU stack; the last layer also sees
//! the element-wise product of user and item vectors, where contrastive pretraining put its knowledge. Forward and
//! backward are written out by hand and checked against finite differences.

mod cross;
mod linear;

use ndarray::{Array1, Array2, Axis, Zip, s};

pub(crate) use self::linear::{Adam, Linear, Param};
use crate::rng::Rng;

/// Layers and their parameters.
#[derive(Clone, Debug)]
pub(crate) struct RankerNet {
    /// Inputs `0..paired` and `paired..2 * paired` are the two vectors whose product the head sees.
    pub(crate) paired: usize,
    /// Cross layers, width to width.
    pub(crate) cross: Vec<Linear>,
    /// ReLU layers.
    pub(crate) hidden: Vec<Linear>,
    /// From the last hidden layer and the product to one logit.
    pub(crate) head: Linear,
}

/// What a forward pass leaves for the backward pass.
pub(crate) struct Pass {
    /// The input, then the output of each cross layer.
    crossed: Vec<Array2<f32>>,
    /// `W x + b` of each cross layer.
    gates: Vec<Array2<f32>>,
    /// Output of each hidden layer, after ReLU and dropout.
    activations: Vec<Array2<f32>>,
    /// What dropout multiplied each hidden output by.
    masks: Vec<Option<Array2<f32>>>,
    /// What the head saw.
    head_input: Array2<f32>,
    /// One per example.
    pub(crate) logits: Array1<f32>,
}

/// How a net is shaped.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Inputs per example.
    pub(crate) width: usize,
    /// Length of the user vector and of the item vector, which stand first.
    pub(crate) paired: usize,
    /// Cross layers.
    pub(crate) cross_layers: usize,
    /// Widths of the hidden layers.
    pub(crate) hidden: Vec<usize>,
}

impl RankerNet {
    /// A net with random weights and zero biases.
    pub(crate) fn new(shape: &Shape, rng: &mut Rng) -> Self {
        let cross = (0..shape.cross_layers)
            .map(|_| Linear::new(shape.width, shape.width, (1.0 / shape.width as f32).sqrt() * 0.5, rng))
            .collect();
        let mut hidden = Vec::new();
        let mut width = shape.width;
        for &next in &shape.hidden {
            hidden.push(Linear::new(width, next, (2.0 / width as f32).sqrt(), rng));
            width = next;
        }
        let inputs = width + shape.paired;
        let head = Linear::new(inputs, 1, (1.0 / inputs as f32).sqrt(), rng);
        Self { paired: shape.paired, cross, hidden, head }
    }

    /// Runs `x`, `[examples, width]`. With `dropout` each hidden output is zeroed with that probability and the rest
    /// scaled up, as training wants it.
    pub(crate) fn forward(&self, x: Array2<f32>, mut dropout: Option<(f32, &mut Rng)>) -> Pass {
        let mut crossed = vec![x];
        let mut gates = Vec::new();
        for layer in &self.cross {
            let (gate, next) = cross::forward(layer, &crossed[0], &crossed[crossed.len() - 1]);
            gates.push(gate);
            crossed.push(next);
        }
        let mut activations: Vec<Array2<f32>> = Vec::new();
        let mut masks = Vec::new();
        for layer in &self.hidden {
            let input = activations.last().unwrap_or(&crossed[crossed.len() - 1]);
            let mut output = layer.forward(input);
            output.mapv_inplace(|v| v.max(0.0));
            let mask = dropout.as_mut().map(|(rate, rng)| {
                let keep = 1.0 / (1.0 - *rate);
                Array2::from_shape_simple_fn(output.dim(), || {
                    if (rng.uniform() as f32) < *rate { 0.0 } else { keep }
                })
            });
            if let Some(mask) = &mask {
                output *= mask;
            }
            masks.push(mask);
            activations.push(output);
        }
        let last = activations.last().unwrap_or(&crossed[crossed.len() - 1]);
        let (d, x) = (self.paired, &crossed[0]);
        let width = last.ncols();
        let mut head_input = Array2::zeros((x.nrows(), width + d));
        head_input.slice_mut(s![.., ..width]).assign(last);
        Zip::from(head_input.slice_mut(s![.., width..]))
            .and(x.slice(s![.., ..d]))
            .and(x.slice(s![.., d..2 * d]))
            .for_each(|out, &user, &item| *out = user * item);
        let logits = self.head.forward(&head_input).remove_axis(Axis(1));
        Pass { crossed, gates, activations, masks, head_input, logits }
    }

    /// Adds the gradients of all parameters, and gives the gradient of the input. `d_logits` is the gradient of each
    /// example's logit.
    pub(crate) fn backward(&mut self, pass: &Pass, d_logits: Array1<f32>) -> Array2<f32> {
        let x = &pass.crossed[0];
        let d_head = self.head.backward(&pass.head_input, &d_logits.insert_axis(Axis(1)));
        let d = self.paired;
        let width = d_head.ncols() - d;
        let mut upstream = d_head.slice(s![.., ..width]).to_owned();
        for (at, layer) in self.hidden.iter_mut().enumerate().rev() {
            // Where ReLU or dropout gave zero, nothing flows back.
            Zip::from(&mut upstream).and(&pass.activations[at]).for_each(|d, &out| {
                if out <= 0.0 {
                    *d = 0.0;
                }
            });
            if let Some(mask) = &pass.masks[at] {
                upstream *= mask;
            }
            let input =
                if at == 0 { &pass.crossed[pass.crossed.len() - 1] } else { &pass.activations[at - 1] };
            upstream = layer.backward(input, &upstream);
        }
        let mut d_first = Array2::zeros(x.dim());
        for (at, layer) in self.cross.iter_mut().enumerate().rev() {
            upstream = cross::backward(layer, x, &pass.crossed[at], &pass.gates[at], upstream, &mut d_first);
        }
        d_first += &upstream;
        let product = d_head.slice(s![.., width..]);
        Zip::from(d_first.slice_mut(s![.., ..d]))
            .and(product)
            .and(x.slice(s![.., d..2 * d]))
            .for_each(|out, &up, &item| *out += up * item);
        Zip::from(d_first.slice_mut(s![.., d..2 * d]))
            .and(product)
            .and(x.slice(s![.., ..d]))
            .for_each(|out, &up, &user| *out += up * user);
        d_first
    }

    /// The probabilities of `x`, `[examples, width]`.
    pub(crate) fn probabilities(&self, x: Array2<f32>) -> Array1<f32> {
        self.forward(x, None).logits.mapv(sigmoid)
    }

    /// One step of the optimiser on every parameter; clears the gradients.
    pub(crate) fn step(&mut self, adam: &Adam) {
        for layer in self.cross.iter_mut().chain(&mut self.hidden) {
            layer.step(adam);
        }
        self.head.step(adam);
    }
}

/// The logistic function.
pub(crate) fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Mean log loss of `logits` in nats, and its gradient.
pub(crate) fn log_loss_of_logits(logits: &Array1<f32>, labels: &[f32]) -> (f64, Array1<f32>) {
    let share = 1.0 / labels.len() as f32;
    let mut loss = 0.0;
    let gradient = logits
        .iter()
        .zip(labels)
        .map(|(&logit, &label)| {
            // ln(1 + e^z) - y z, without overflow for large z.
            loss += f64::from(logit.max(0.0) - label * logit) + f64::from(-logit.abs()).exp().ln_1p();
            (sigmoid(logit) - label) * share
        })
        .collect();
    (loss * f64::from(share), gradient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::assert_gradient;

    fn example() -> (RankerNet, Array2<f32>, Vec<f32>) {
        let mut rng = Rng::new(11);
        let shape = Shape { width: 7, paired: 2, cross_layers: 2, hidden: vec![6, 5] };
        let mut net = RankerNet::new(&shape, &mut rng);
        for layer in net.cross.iter_mut().chain(&mut net.hidden) {
            layer.bias.value.mapv_inplace(|_| rng.normal() * 0.3);
        }
        let x = Array2::from_shape_simple_fn((9, 7), || rng.normal());
        let labels = (0..9).map(|k| f32::from(u8::from(k % 3 == 0))).collect();
        (net, x, labels)
    }

    fn loss(net: &RankerNet, x: &Array2<f32>, labels: &[f32]) -> f64 {
        log_loss_of_logits(&net.forward(x.clone(), None).logits, labels).0
    }

    #[test]
    fn gradients_of_all_parameters_are_those_of_finite_differences() {
        let (mut net, x, labels) = example();
        let pass = net.forward(x.clone(), None);
        let (_, d_logits) = log_loss_of_logits(&pass.logits, &labels);
        net.backward(&pass, d_logits);
        type Pick = fn(&mut RankerNet) -> &mut linear::Param;
        let params: [(&str, Pick); 8] = [
            ("cross 0 weight", |n| &mut n.cross[0].weight),
            ("cross 0 bias", |n| &mut n.cross[0].bias),
            ("cross 1 weight", |n| &mut n.cross[1].weight),
            ("hidden 0 weight", |n| &mut n.hidden[0].weight),
            ("hidden 0 bias", |n| &mut n.hidden[0].bias),
            ("hidden 1 weight", |n| &mut n.hidden[1].weight),
            ("head weight", |n| &mut n.head.weight),
            ("head bias", |n| &mut n.head.bias),
        ];
        for (name, pick) in params {
            let gradient = pick(&mut net).grad.clone();
            let start = pick(&mut net).value.clone();
            let mut net = net.clone();
            assert_gradient(name, &start, &gradient, |value| {
                pick(&mut net).value = value.clone();
                loss(&net, &x, &labels)
            });
        }
    }

    #[test]
    fn the_gradient_of_the_input_is_that_of_finite_differences() {
        let (mut net, x, labels) = example();
        let pass = net.forward(x.clone(), None);
        let (_, d_logits) = log_loss_of_logits(&pass.logits, &labels);
        let gradient = net.backward(&pass, d_logits);
        assert_gradient("input", &x, &gradient, |x| loss(&net, x, &labels));
    }

    #[test]
    fn dropout_is_the_same_for_both_directions() {
        let (mut net, x, labels) = example();
        let run = |net: &RankerNet, x: &Array2<f32>| net.forward(x.clone(), Some((0.4, &mut Rng::new(3))));
        let pass = run(&net, &x);
        assert!(pass.masks.iter().flatten().any(|m| m.iter().any(|&v| v == 0.0)), "something is dropped");
        let (_, d_logits) = log_loss_of_logits(&pass.logits, &labels);
        let gradient = net.backward(&pass, d_logits);
        assert_gradient("input under dropout", &x, &gradient, |x| {
            log_loss_of_logits(&run(&net, x).logits, &labels).0
        });
    }

    #[test]
    fn the_loss_of_huge_logits_is_finite() {
        let (loss, gradient) = log_loss_of_logits(&Array1::from(vec![200.0, -200.0]), &[0.0, 0.0]);
        assert!((loss - 100.0).abs() < 1e-9, "{loss}");
        assert!((gradient[0] - 0.5).abs() < 1e-6 && gradient[1].abs() < 1e-6, "{gradient}");
    }
}
