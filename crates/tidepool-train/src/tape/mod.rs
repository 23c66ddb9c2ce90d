//! A model written down once: operations over rows of examples, from which the forward pass, the gradients and the ONNX
//! nodes all come, so that what is trained and what is served cannot differ by a forgotten term.
//!
//! An operation is an arm of [`Op`] with its value, its gradient and its nodes; the tests compare every gradient with
//! finite differences, and every graph with the forward pass.

mod emit;
mod op;
#[cfg(test)]
mod tests;

use ndarray::Array2;
use tidepool_dense::GraphWriter;

use self::op::Op;
use crate::{
    net::{Adam, Param},
    rng::Rng,
};

/// A value of a tape: for each example, a row of as many numbers as it is wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value(usize);

/// Which of a tape's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weight(usize);

#[derive(Clone, Debug)]
struct Node {
    /// Of the tensor in the graph; no two are the same.
    name: String,
    width: usize,
    op: Op,
}

/// Operations in the order in which they are worked out, and the parameters that they share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tape {
    nodes: Vec<Node>,
    params: Vec<Param>,
    inputs: Vec<Value>,
}

/// What a forward pass leaves for the backward pass.
pub(crate) struct Pass {
    /// `[examples, width]` of each node.
    values: Vec<Array2<f32>>,
    /// What each dropout multiplied by.
    masks: Vec<Option<Array2<f32>>>,
}

impl Pass {
    /// `[examples, width]`.
    pub(crate) fn value(&self, of: Value) -> &Array2<f32> {
        &self.values[of.0]
    }
}

/// Building.
impl Tape {
    fn push(&mut self, kind: &str, width: usize, op: Op) -> Value {
        let at = self.nodes.len();
        self.nodes.push(Node { name: format!("{kind}.{at}"), width, op });
        Value(at)
    }

    /// Calls the tensor of `value` so in the graph: what is an output needs the name that `model.toml` has for it.
    pub(crate) fn name(&mut self, value: Value, name: &str) -> Value {
        self.nodes[value.0].name = name.into();
        value
    }

    /// Numbers per example.
    pub(crate) fn width(&self, of: Value) -> usize {
        self.nodes[of.0].width
    }

    /// What is given from outside, called `name` in the graph.
    pub(crate) fn input(&mut self, name: &str, width: usize) -> Value {
        let value = self.push("input", width, Op::Input(self.inputs.len()));
        self.inputs.push(value);
        self.name(value, name)
    }

    fn param(&mut self, rows: usize, columns: usize, scale: f32, rng: &mut Rng) -> Weight {
        let value = Array2::from_shape_simple_fn((rows, columns), || rng.normal() * scale);
        self.params.push(Param::new(value));
        Weight(self.params.len() - 1)
    }

    /// `x W`, with normal weights of standard deviation `scale` at the start.
    pub(crate) fn product(&mut self, x: Value, outputs: usize, scale: f32, rng: &mut Rng) -> Value {
        let weight = self.param(self.width(x), outputs, scale, rng);
        self.push("product", outputs, Op::Affine { x, weight, bias: None })
    }

    /// `x W + b`, with zero biases at the start.
    pub(crate) fn affine(&mut self, x: Value, outputs: usize, scale: f32, rng: &mut Rng) -> Value {
        let weight = self.param(self.width(x), outputs, scale, rng);
        let bias = self.param(1, outputs, 0.0, rng);
        self.push("affine", outputs, Op::Affine { x, weight, bias: Some(bias) })
    }

    /// `(x - mean) * inverse_deviation`: numbers around zero, by constants that are not trained.
    pub(crate) fn normalise(&mut self, x: Value, mean: f32, inverse_deviation: f32) -> Value {
        self.push("normalised", self.width(x), Op::Normalise { x, mean, inverse_deviation })
    }

    /// Element by element; both are of one width.
    pub(crate) fn add(&mut self, a: Value, b: Value) -> Value {
        self.push("sum", self.width(a), Op::Add(a, b))
    }

    /// Element by element; both are of one width.
    pub(crate) fn mul(&mut self, a: Value, b: Value) -> Value {
        self.push("times", self.width(a), Op::Mul(a, b))
    }

    /// What is below zero becomes zero.
    pub(crate) fn relu(&mut self, x: Value) -> Value {
        self.push("relu", self.width(x), Op::Relu(x))
    }

    /// `1 / (1 + e^-x)`.
    pub(crate) fn sigmoid(&mut self, x: Value) -> Value {
        self.push("sigmoid", self.width(x), Op::Sigmoid(x))
    }

    /// Shares that add up to one in each row.
    pub(crate) fn softmax(&mut self, x: Value) -> Value {
        self.push("softmax", self.width(x), Op::Softmax(x))
    }

    /// In training, zeroes this share of the numbers and scales the rest up; otherwise it is `x`.
    pub(crate) fn dropout(&mut self, x: Value, share: f32) -> Value {
        self.push("dropout", self.width(x), Op::Dropout { x, share })
    }

    /// Side by side.
    pub(crate) fn concat(&mut self, parts: &[Value]) -> Value {
        let width = parts.iter().map(|&part| self.width(part)).sum();
        self.push("concat", width, Op::Concat(parts.to_vec()))
    }

    /// Each row of `x` times the number in column `column` of its row of `gates`.
    pub(crate) fn weigh(&mut self, x: Value, gates: Value, column: usize) -> Value {
        self.push("weighed", self.width(x), Op::Weigh { x, gates, column })
    }

    /// The dot product of the two rows of each example.
    pub(crate) fn dot(&mut self, a: Value, b: Value) -> Value {
        self.push("dot", 1, Op::Dot(a, b))
    }

    /// The dot products of all pairs of these, which are of one width: of the second with the first, of the third with
    /// the first and the second, and so on.
    pub(crate) fn pairs(&mut self, vectors: &[Value]) -> Value {
        let width = vectors.len() * vectors.len().saturating_sub(1) / 2;
        self.push("pairs", width, Op::Pairs(vectors.to_vec()))
    }
}

/// Running and training.
impl Tape {
    /// Numbers that are trained.
    pub(crate) fn parameters(&self) -> usize {
        self.params.iter().map(|param| param.value.len()).sum()
    }

    /// Name and width of each input, in the order in which [`Tape::forward`] takes them.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = (&str, usize)> {
        self.inputs.iter().map(|&Value(at)| (self.nodes[at].name.as_str(), self.nodes[at].width))
    }

    /// Works out every value for `[examples, width]` of each input; with `training`, dropout drops.
    ///
    /// # Panics
    /// When an input is missing or is not of its width.
    pub(crate) fn forward(&self, mut inputs: Vec<Array2<f32>>, mut training: Option<&mut Rng>) -> Pass {
        let mut pass = Pass { values: Vec::with_capacity(self.nodes.len()), masks: Vec::new() };
        for node in &self.nodes {
            let mut mask = None;
            let value = match &node.op {
                Op::Input(at) => std::mem::take(&mut inputs[*at]),
                Op::Dropout { x, share } => {
                    let x = &pass.values[x.0];
                    mask = training.as_deref_mut().map(|rng| op::dropout_mask(x.dim(), *share, rng));
                    mask.as_ref().map_or_else(|| x.clone(), |mask| x * mask)
                }
                op => op.value(&self.params, &pass.values, node.width),
            };
            assert_eq!(value.ncols(), node.width, "{}", node.name);
            pass.values.push(value);
            pass.masks.push(mask);
        }
        pass
    }

    /// Adds the gradients of all parameters, and gives those of the inputs, from the gradients of some values.
    pub(crate) fn backward(&mut self, pass: &Pass, of: Vec<(Value, Array2<f32>)>) -> Vec<Array2<f32>> {
        let mut gradients: Vec<Option<Array2<f32>>> = vec![None; self.nodes.len()];
        for (value, gradient) in of {
            op::add_to(&mut gradients, value, gradient);
        }
        let mut of_inputs: Vec<Array2<f32>> =
            self.inputs.iter().map(|&input| Array2::zeros(pass.value(input).dim())).collect();
        for (at, node) in self.nodes.iter().enumerate().rev() {
            // A value that no output depends on has no gradient.
            let Some(gradient) = gradients[at].take() else { continue };
            match &node.op {
                Op::Input(input) => of_inputs[*input] = gradient,
                Op::Dropout { x, .. } => {
                    let mask = pass.masks[at].as_ref();
                    let gradient = mask.map_or_else(|| gradient.clone(), |mask| &gradient * mask);
                    op::add_to(&mut gradients, *x, gradient);
                }
                op => op.gradient(&mut self.params, pass, Value(at), gradient, &mut gradients),
            }
        }
        of_inputs
    }

    /// One step of the optimiser on every parameter; clears the gradients. Biases do not decay.
    pub(crate) fn step(&mut self, adam: &Adam) {
        let mut is_bias = vec![false; self.params.len()];
        for node in &self.nodes {
            if let Op::Affine { bias: Some(bias), .. } = node.op {
                is_bias[bias.0] = true;
            }
        }
        let undecayed = adam.without_decay();
        for (param, is_bias) in self.params.iter_mut().zip(is_bias) {
            param.step(if is_bias { &undecayed } else { adam });
        }
    }
}

/// Serving.
impl Tape {
    /// The part of the tape that `outputs` are worked out from, without dropout, and where they stand in it. A value of
    /// `given` is not worked out but becomes an input of this name. Inputs keep their order; new ones stand where their
    /// value stood.
    pub(crate) fn part(&self, outputs: &[Value], given: &[(Value, &str)]) -> (Self, Vec<Value>) {
        let name_of = |at: usize| given.iter().find(|(value, _)| value.0 == at).map(|&(_, name)| name);
        let mut needed = vec![false; self.nodes.len()];
        outputs.iter().for_each(|output| needed[output.0] = true);
        for at in (0..self.nodes.len()).rev() {
            if needed[at] && name_of(at).is_none() {
                self.nodes[at].op.operands().iter().for_each(|operand| needed[operand.0] = true);
            }
        }
        let mut part = Self::default();
        let mut places = vec![Value(usize::MAX); self.nodes.len()];
        let mut weights: Vec<Option<Weight>> = vec![None; self.params.len()];
        for (at, node) in self.nodes.iter().enumerate().filter(|&(at, _)| needed[at]) {
            places[at] = match (&node.op, name_of(at)) {
                (_, Some(name)) => part.input(name, node.width),
                (Op::Input(_), None) => part.input(&node.name, node.width),
                (Op::Dropout { x, .. }, None) => places[x.0],
                (op, None) => {
                    let mut weight = |of: Weight| {
                        *weights[of.0].get_or_insert_with(|| {
                            part.params.push(Param::new(self.params[of.0].value.clone()));
                            Weight(part.params.len() - 1)
                        })
                    };
                    let op = op.moved(&places, &mut weight);
                    part.nodes.push(Node { name: node.name.clone(), width: node.width, op });
                    Value(part.nodes.len() - 1)
                }
            };
        }
        let outputs = outputs.iter().map(|output| places[output.0]).collect();
        (part, outputs)
    }

    /// The bytes of an ONNX file: the inputs are `[batch, width]` by their names, and so are `outputs`, which depend on
    /// an input with a row per candidate. The inputs that `per_request` names are `[requests, width]`; if it names any,
    /// the graph has the input `request_index` too, and what depends on them alone is worked out once per request.
    pub(crate) fn onnx(&self, title: &str, outputs: &[Value], per_request: &[&str]) -> Vec<u8> {
        let mut graph = GraphWriter::new(title);
        emit::write(self, outputs, per_request, &mut graph);
        graph.into_file()
    }
}
