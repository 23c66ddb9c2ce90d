//! Lays a tape out as ONNX nodes: the plain ones that exporters write, so that the graph of a reference model is a fair
//! sample of what the dense engine meets.

use std::collections::BTreeSet;

use tidepool_dense::GraphWriter;

use super::{
    Tape, Value,
    op::{self, Op},
};

/// What of a tape has a row per request instead of one per candidate: some inputs, and whatever is worked out from them
/// alone. The graph brings both together by its input `request_index`, where something of both is needed first.
struct PerRequest {
    of_node: Vec<bool>,
    /// What has been brought to a row per candidate.
    expanded: BTreeSet<usize>,
}

/// Writes inputs, outputs, parameters and nodes. Inputs that `per_request` names have a row per request; when it names
/// none, the graph knows of no requests.
pub(super) fn write(tape: &Tape, outputs: &[Value], per_request: &[&str], graph: &mut GraphWriter) {
    let mut of_node: Vec<bool> = Vec::with_capacity(tape.nodes.len());
    for node in &tape.nodes {
        let operands = node.op.operands();
        of_node.push(match node.op {
            Op::Input(_) => per_request.contains(&node.name.as_str()),
            _ => operands.iter().all(|operand| of_node[operand.0]),
        });
    }
    for &Value(at) in &tape.inputs {
        let node = &tape.nodes[at];
        if of_node[at] {
            graph.request_input(&node.name, node.width);
        } else {
            graph.input(&node.name, node.width);
        }
    }
    if !per_request.is_empty() {
        graph.request_index();
    }
    for &output in outputs {
        graph.output(tensor(tape, output), tape.width(output));
    }
    let mut requests = PerRequest { of_node, expanded: BTreeSet::new() };
    for at in 0..tape.nodes.len() {
        let operands = tape.nodes[at].op.operands();
        let names: Vec<String> =
            operands.iter().map(|&operand| requests.operand(tape, at, operand, graph)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        node(tape, at, &names, graph);
    }
}

impl PerRequest {
    /// The tensor of an operand of the node at `at`, with a row per candidate where the node has.
    fn operand(&mut self, tape: &Tape, at: usize, operand: Value, graph: &mut GraphWriter) -> String {
        let name = tensor(tape, operand);
        if self.of_node[at] || !self.of_node[operand.0] {
            return name.into();
        }
        let expanded = format!("{name}.of_rows");
        if self.expanded.insert(operand.0) {
            graph.rows_of_requests(name, &expanded);
        }
        expanded
    }
}

/// The tensor of a value: what dropout leaves when nothing is dropped is its operand.
fn tensor(tape: &Tape, of: Value) -> &str {
    let node = &tape.nodes[of.0];
    match node.op {
        Op::Dropout { x, .. } => tensor(tape, x),
        _ => &node.name,
    }
}

/// Writes the node at `at`; `of` are the tensors of its operands.
fn node(tape: &Tape, at: usize, of: &[&str], graph: &mut GraphWriter) {
    let node = &tape.nodes[at];
    let name = node.name.as_str();
    match &node.op {
        Op::Input(_) | Op::Dropout { .. } => {}
        Op::Affine { weight, bias, .. } => {
            let (weight_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
            constant(graph, &weight_name, tape.params[weight.0].value.view().into_dyn());
            match bias {
                Some(bias) => {
                    constant(graph, &bias_name, tape.params[bias.0].value.row(0).into_dyn());
                    graph.node("Gemm", &[of[0], &weight_name, &bias_name], name);
                }
                None => graph.node("MatMul", &[of[0], &weight_name], name),
            }
        }
        Op::Normalise { mean, inverse_deviation, .. } => {
            let [minus_mean, inverse, centred] =
                ["minus_mean", "inverse_deviation", "centred"].map(|what| format!("{name}.{what}"));
            graph.constant(&minus_mean, &[1], &[-mean]);
            graph.constant(&inverse, &[1], &[*inverse_deviation]);
            graph.node("Add", &[of[0], &minus_mean], &centred);
            graph.node("Mul", &[&centred, &inverse], name);
        }
        Op::Add(..) => graph.node("Add", of, name),
        Op::Mul(..) => graph.node("Mul", of, name),
        Op::Relu(_) => graph.node("Relu", of, name),
        Op::Sigmoid(_) => graph.node("Sigmoid", of, name),
        // Over the last axis, which is what it means without an attribute.
        Op::Softmax(_) => graph.node("Softmax", of, name),
        Op::Concat(_) => graph.concat(of, name),
        Op::Weigh { column, .. } => {
            let gate = format!("{name}.gate");
            graph.columns(of[1], *column, column + 1, &gate);
            graph.node("Mul", &[of[0], &gate], name);
        }
        Op::Dot(..) => {
            let product = format!("{name}.product");
            graph.node("Mul", of, &product);
            graph.row_sums(&product, name);
        }
        Op::Pairs(vectors) => {
            let dim = vectors.first().map_or(0, |&vector| tape.width(vector));
            pairs(of, dim, name, graph);
        }
    }
}

/// The vectors as rows of one matrix per example, times its transpose; what stands below the diagonal is kept.
fn pairs(vectors: &[&str], dim: usize, name: &str, graph: &mut GraphWriter) {
    let [flat, stacked, turned, all, listed] =
        ["flat", "stacked", "turned", "all", "listed"].map(|what| format!("{name}.{what}"));
    let count = vectors.len();
    graph.concat(vectors, &flat);
    graph.reshape(&flat, &[0, count as i64, dim as i64], &stacked);
    graph.transpose(&stacked, &[0, 2, 1], &turned);
    graph.node("MatMul", &[&stacked, &turned], &all);
    graph.reshape(&all, &[0, (count * count) as i64], &listed);
    let place = |(later, earlier): (usize, usize)| (later * count + earlier) as i64;
    graph.gather_columns(&listed, &op::pairs(count).map(place).collect::<Vec<_>>(), name);
}

fn constant(graph: &mut GraphWriter, name: &str, values: ndarray::ArrayViewD<'_, f32>) {
    graph.constant(name, values.shape(), &values.iter().copied().collect::<Vec<_>>());
}
