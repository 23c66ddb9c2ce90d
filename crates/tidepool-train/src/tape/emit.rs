//! Lays a tape out as ONNX nodes: the plain ones that exporters write, so that the graph of a reference model is a fair
//! sample of what the dense engine meets.

use tidepool_dense::GraphWriter;

use super::{
    Tape, Value,
    op::{self, Op},
};

/// Writes inputs, outputs, parameters and nodes.
pub(super) fn write(tape: &Tape, outputs: &[Value], graph: &mut GraphWriter) {
    for (name, width) in tape.inputs() {
        graph.input(name, width);
    }
    for &output in outputs {
        graph.output(tensor(tape, output), tape.width(output));
    }
    for at in 0..tape.nodes.len() {
        node(tape, at, graph);
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

fn node(tape: &Tape, at: usize, graph: &mut GraphWriter) {
    let node = &tape.nodes[at];
    let name = node.name.as_str();
    let of = |value: &Value| tensor(tape, *value);
    match &node.op {
        Op::Input(_) | Op::Dropout { .. } => {}
        Op::Affine { x, weight, bias } => {
            let (weight_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
            constant(graph, &weight_name, tape.params[weight.0].value.view().into_dyn());
            match bias {
                Some(bias) => {
                    constant(graph, &bias_name, tape.params[bias.0].value.row(0).into_dyn());
                    graph.node("Gemm", &[of(x), &weight_name, &bias_name], name);
                }
                None => graph.node("MatMul", &[of(x), &weight_name], name),
            }
        }
        Op::Normalise { x, mean, inverse_deviation } => {
            let [minus_mean, inverse, centred] =
                ["minus_mean", "inverse_deviation", "centred"].map(|what| format!("{name}.{what}"));
            graph.constant(&minus_mean, &[1], &[-mean]);
            graph.constant(&inverse, &[1], &[*inverse_deviation]);
            graph.node("Add", &[of(x), &minus_mean], &centred);
            graph.node("Mul", &[&centred, &inverse], name);
        }
        Op::Add(a, b) => graph.node("Add", &[of(a), of(b)], name),
        Op::Mul(a, b) => graph.node("Mul", &[of(a), of(b)], name),
        Op::Relu(x) => graph.node("Relu", &[of(x)], name),
        Op::Sigmoid(x) => graph.node("Sigmoid", &[of(x)], name),
        // Over the last axis, which is what it means without an attribute.
        Op::Softmax(x) => graph.node("Softmax", &[of(x)], name),
        Op::Concat(parts) => graph.concat(&parts.iter().map(of).collect::<Vec<_>>(), name),
        Op::Weigh { x, gates, column } => {
            let gate = format!("{name}.gate");
            graph.columns(of(gates), *column, column + 1, &gate);
            graph.node("Mul", &[of(x), &gate], name);
        }
        Op::Dot(a, b) => {
            let product = format!("{name}.product");
            graph.node("Mul", &[of(a), of(b)], &product);
            graph.row_sums(&product, name);
        }
        Op::Pairs(vectors) => pairs(tape, vectors, name, graph),
    }
}

/// The vectors as rows of one matrix per example, times its transpose; what stands below the diagonal is kept.
fn pairs(tape: &Tape, vectors: &[Value], name: &str, graph: &mut GraphWriter) {
    let [flat, stacked, turned, all, listed] =
        ["flat", "stacked", "turned", "all", "listed"].map(|what| format!("{name}.{what}"));
    let (count, dim) = (vectors.len(), vectors.first().map_or(0, |&vector| tape.width(vector)));
    graph.concat(&vectors.iter().map(|&vector| tensor(tape, vector)).collect::<Vec<_>>(), &flat);
    graph.reshape(&flat, &[0, count as i64, dim as i64], &stacked);
    graph.transpose(&stacked, &[0, 2, 1], &turned);
    graph.node("MatMul", &[&stacked, &turned], &all);
    graph.reshape(&all, &[0, (count * count) as i64], &listed);
    let place = |of: Value| vectors.iter().position(|&vector| vector == of).unwrap_or_default();
    let places: Vec<i64> =
        op::pairs(vectors).map(|(later, earlier)| (place(later) * count + place(earlier)) as i64).collect();
    graph.gather_columns(&listed, &places, name);
}

fn constant(graph: &mut GraphWriter, name: &str, values: ndarray::ArrayViewD<'_, f32>) {
    graph.constant(name, values.shape(), &values.iter().copied().collect::<Vec<_>>());
}
