//! Runs a graph on one row in f64, and says how far f32 may be off.
//!
//! **The bound.** Whatever computes the graph in f32 rounds each intermediate number. A sum of `n` products, fused or not,
//! is rounded `n` times or so by a share `u = 2^-24` of a partial sum, in whatever order: as roundings do not know of each
//! other, together by no more than `sqrt(n) u` times the sum of the magnitudes of its terms, as a standard deviation.
//! Other operations are off by a few `u` of their result. What that does to the output is the output's derivative by
//! that number times the error, and derivatives come from one pass backwards. The bound is eight standard deviations of
//! all of them together. (Were all roundings of one mind, it could be some hundred times as much: such a bound would
//! let wrong rows pass.)

use std::collections::BTreeMap;

use super::onnx::{Graph, Node, Tensor};

/// What f32 rounds by, as a share.
const UNIT: f64 = 1.0 / 16_777_216.0;
/// What a function that is no arithmetic (an exponential, a sigmoid) may be off by: as a share of its result, or, as a
/// sigmoid saturates, of one.
const FUNCTION: f64 = 16.0 * UNIT;
/// So many standard deviations are allowed.
const DEVIATIONS: f64 = 8.0;

/// A number, and how far f32 may be off it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounded {
    pub(super) value: f64,
    pub(super) bound: f64,
}

/// How the elements of an output hang on those of the operands.
enum Slopes {
    /// Element of the output, number of the operand, its element, the derivative.
    Each(Vec<(usize, usize, usize, f64)>),
    /// The output is the first operand times this constant, `[rows, columns]`.
    Matrix(String),
}

/// A tensor that was worked out, and how far each of its numbers may be off by what was done last.
struct Made {
    tensor: Tensor,
    rounding: Vec<f64>,
    /// How it was worked out; `None`: it was given.
    by: Option<(Vec<String>, Slopes)>,
}

/// The numbers of one output, each with its bound. `given` are the inputs, of one row, with their own errors.
///
/// # Errors
/// What of the graph this does not know.
pub(super) fn run(
    graph: &Graph,
    given: &BTreeMap<String, (Tensor, Vec<f64>)>,
    output: &str,
) -> Result<Bounded, String> {
    let mut made: BTreeMap<&str, Made> = BTreeMap::new();
    for (name, (tensor, rounding)) in given {
        made.insert(name, Made { tensor: tensor.clone(), rounding: rounding.clone(), by: None });
    }
    for node in &graph.nodes {
        let step = step(graph, &made, node)
            .ok_or_else(|| format!("operation {} of {:?} is not one that it knows", node.op, node.output))?;
        made.insert(&node.output, step);
    }
    let found = made.get(output).ok_or_else(|| format!("the graph has no output {output:?}"))?;
    let value = *found.tensor.values.first().ok_or("an output without numbers")?;
    // Derivatives of the output, backwards.
    let mut slopes: BTreeMap<&str, Vec<f64>> = BTreeMap::from([(output, vec![1.0])]);
    let mut variance = 0.0;
    let order = graph.nodes.iter().rev().map(|node| node.output.as_str());
    for name in order.chain(given.keys().map(String::as_str)) {
        let (Some(slope), Some(made_here)) = (slopes.remove(name), made.get(name)) else { continue };
        variance +=
            slope.iter().zip(&made_here.rounding).map(|(slope, off)| (slope * off).powi(2)).sum::<f64>();
        let Some((operands, how)) = &made_here.by else { continue };
        let mut add = |operand: &String, at: usize, slope: f64| {
            let Some((name, of)) = made.get_key_value(operand.as_str()) else { return };
            let sums = slopes.entry(*name).or_insert_with(|| vec![0.0; of.tensor.values.len()]);
            sums[at] += slope;
        };
        match how {
            Slopes::Each(each) => {
                for (to, operand, from, derivative) in each {
                    add(&operands[*operand], *from, slope[*to] * derivative);
                }
            }
            Slopes::Matrix(matrix) => {
                let Some(matrix) = graph.constants.get(matrix) else { continue };
                for (from, row) in matrix.values.chunks_exact(slope.len().max(1)).enumerate() {
                    let sum: f64 = row.iter().zip(&slope).map(|(weight, slope)| weight * slope).sum();
                    add(&operands[0], from, sum);
                }
            }
        }
    }
    Ok(Bounded { value, bound: DEVIATIONS * variance.sqrt() })
}

/// What a node makes; `None`: it is not known here.
fn step(graph: &Graph, made: &BTreeMap<&str, Made>, node: &Node) -> Option<Made> {
    let step = Step { graph, made, node };
    match node.op.as_str() {
        "Gemm" | "MatMul" if graph.constants.contains_key(node.inputs.get(1)?) => step.affine(),
        "MatMul" => step.product(),
        "Add" | "Mul" => step.both(),
        "Relu" => step.each_by_itself(|x| (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }, 0.0)),
        "Sigmoid" => step.each_by_itself(|x| {
            let y = 1.0 / (1.0 + (-x).exp());
            (y, y * (1.0 - y), FUNCTION)
        }),
        "Softmax" => step.softmax(),
        "ReduceSum" => step.sum(),
        _ => step.elsewhere(),
    }
}

/// A node, and what it can see.
struct Step<'a, 'n> {
    graph: &'a Graph,
    made: &'a BTreeMap<&'n str, Made>,
    node: &'a Node,
}

impl<'a> Step<'a, '_> {
    fn operand(&self, at: usize) -> Option<&'a Tensor> {
        let name = self.node.inputs.get(at)?;
        let made = self.made.get(name.as_str()).map(|made| &made.tensor);
        made.or_else(|| self.graph.constants.get(name))
    }

    /// A constant of whole numbers.
    fn whole(&self, at: usize) -> Option<Vec<i64>> {
        Some(self.operand(at)?.values.iter().map(|value| *value as i64).collect())
    }

    fn made(&self, tensor: Tensor, rounding: Vec<f64>, slopes: Vec<(usize, usize, usize, f64)>) -> Made {
        Made { tensor, rounding, by: Some((self.node.inputs.clone(), Slopes::Each(slopes))) }
    }

    /// Times a constant matrix, plus a constant.
    fn affine(&self) -> Option<Made> {
        let (x, weights) = (self.operand(0)?, self.operand(1)?);
        let bias = self.node.inputs.get(2).and_then(|_| self.operand(2));
        let (&[rows, columns], true) = (&weights.shape[..], x.values.len() == weights.shape[0]) else {
            return None;
        };
        let mut values = bias.map_or_else(|| vec![0.0; columns], |bias| bias.values.clone());
        let mut sizes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
        for (value, row) in x.values.iter().zip(weights.values.chunks_exact(columns.max(1))) {
            for ((sum, size), weight) in values.iter_mut().zip(&mut sizes).zip(row) {
                *sum += value * weight;
                *size += (value * weight).abs();
            }
        }
        let rounding = sizes.iter().map(|size| ((rows + 2) as f64).sqrt() * UNIT * size).collect();
        let by = Some((vec![self.node.inputs[0].clone()], Slopes::Matrix(self.node.inputs[1].clone())));
        Some(Made { tensor: Tensor { shape: vec![1, columns], values }, rounding, by })
    }

    /// One matrix times another.
    fn product(&self) -> Option<Made> {
        let (x, y) = (self.operand(0)?, self.operand(1)?);
        let (&[_, rows, inner], &[_, inner_too, columns]) = (&x.shape[..], &y.shape[..]) else { return None };
        let (mut values, mut rounding, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for to in 0..rows * columns {
            let (row, column) = (to / columns, to % columns);
            let (mut sum, mut size) = (0.0, 0.0);
            for k in 0..inner.min(inner_too) {
                let (a, b) = (row * inner + k, k * columns + column);
                sum += x.values[a] * y.values[b];
                size += (x.values[a] * y.values[b]).abs();
                slopes.extend([(to, 0, a, y.values[b]), (to, 1, b, x.values[a])]);
            }
            values.push(sum);
            rounding.push(((inner + 1) as f64).sqrt() * UNIT * size);
        }
        Some(self.made(Tensor { shape: vec![1, rows, columns], values }, rounding, slopes))
    }

    /// Element by element. Of one row: an operand has as many numbers as the other, or one for all.
    fn both(&self) -> Option<Made> {
        let (x, y) = (self.operand(0)?, self.operand(1)?);
        let (nx, ny) = (x.values.len(), y.values.len());
        if nx != ny && nx != 1 && ny != 1 {
            return None;
        }
        let (mut values, mut rounding, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for to in 0..nx.max(ny) {
            let (a, b) = (to % nx.max(1), to % ny.max(1));
            let (of_x, of_y) = (x.values[a], y.values[b]);
            let (value, by_x, by_y) =
                if self.node.op == "Add" { (of_x + of_y, 1.0, 1.0) } else { (of_x * of_y, of_y, of_x) };
            values.push(value);
            rounding.push(UNIT * value.abs());
            slopes.extend([(to, 0, a, by_x), (to, 1, b, by_y)]);
        }
        let shape = if nx >= ny { x.shape.clone() } else { y.shape.clone() };
        Some(self.made(Tensor { shape, values }, rounding, slopes))
    }

    /// Of each element its value, its derivative, and how it may be off.
    fn each_by_itself(&self, f: impl Fn(f64) -> (f64, f64, f64)) -> Option<Made> {
        let x = self.operand(0)?;
        let (mut values, mut rounding, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for (at, value) in x.values.iter().enumerate() {
            let (value, slope, off) = f(*value);
            values.push(value);
            rounding.push(off);
            slopes.push((at, 0, at, slope));
        }
        Some(self.made(Tensor { shape: x.shape.clone(), values }, rounding, slopes))
    }

    fn softmax(&self) -> Option<Made> {
        let x = self.operand(0)?;
        let largest = x.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = x.values.iter().map(|value| (value - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let values: Vec<f64> = powers.iter().map(|power| power / sum).collect();
        let off = FUNCTION * 2.0 + (values.len() + 3) as f64 * UNIT;
        let rounding = values.iter().map(|value| off * value).collect();
        let mut slopes = Vec::new();
        for (to, of) in values.iter().enumerate() {
            for (from, by) in values.iter().enumerate() {
                slopes.push((to, 0, from, of * (f64::from(u8::from(to == from)) - by)));
            }
        }
        Some(self.made(Tensor { shape: x.shape.clone(), values }, rounding, slopes))
    }

    /// Of all elements.
    fn sum(&self) -> Option<Made> {
        let x = self.operand(0)?;
        let size: f64 = x.values.iter().map(|value| value.abs()).sum();
        let slopes = (0..x.values.len()).map(|from| (0, 0, from, 1.0)).collect();
        let tensor = Tensor { shape: vec![1, 1], values: vec![x.values.iter().sum()] };
        Some(self.made(tensor, vec![(x.values.len() as f64).sqrt() * UNIT * size], slopes))
    }

    /// Operations that only put elements elsewhere.
    fn elsewhere(&self) -> Option<Made> {
        let (node, x) = (self.node, self.operand(0)?);
        let all = || (0..x.values.len()).map(|at| (0, at)).collect::<Vec<(usize, usize)>>();
        let row = |places: Vec<(usize, usize)>| (vec![1, places.len()], places);
        let axis = node.attributes.get("axis").and_then(|axis| axis.first());
        let (shape, places) = match node.op.as_str() {
            "Concat" => {
                let mut places = Vec::new();
                for at in 0..node.inputs.len() {
                    places.extend((0..self.operand(at)?.values.len()).map(|from| (at, from)));
                }
                row(places)
            }
            "Slice" => {
                let (&[from], &[to]) = (&self.whole(1)?[..], &self.whole(2)?[..]) else { return None };
                row((from as usize..(to as usize).min(x.values.len())).map(|at| (0, at)).collect())
            }
            // Rows of requests: there is one.
            "Gather" if axis == Some(&0) => (x.shape.clone(), all()),
            "Gather" => row(self.whole(1)?.into_iter().map(|at| (0, at as usize)).collect()),
            "Reshape" => {
                let shape = self.whole(1)?.into_iter().enumerate();
                let shape = shape.map(|(at, dim)| if dim == 0 { x.shape[at] } else { dim as usize });
                (shape.collect(), all())
            }
            "Transpose" if node.attributes.get("perm")? == &[0, 2, 1] => {
                let &[one, rows, columns] = &x.shape[..] else { return None };
                let places = (0..x.values.len()).map(|to| (0, to % rows * columns + to / rows));
                (vec![one, columns, rows], places.collect())
            }
            _ => return None,
        };
        let values = places.iter().map(|(operand, at)| self.operand(*operand)?.values.get(*at).copied());
        let values: Vec<f64> = values.collect::<Option<_>>()?;
        let slopes = places.iter().enumerate().map(|(to, (operand, from))| (to, *operand, *from, 1.0));
        Some(self.made(Tensor { shape, values }, vec![0.0; places.len()], slopes.collect()))
    }
}
