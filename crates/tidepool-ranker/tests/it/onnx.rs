//! Two tiny ONNX models, written as protobuf bytes field by field.

/// A field that holds bytes: a message, a string, packed numbers.
fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn int(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A graph input or output `[batch, width]` of f32.
fn value(name: &str, width: u64) -> Vec<u8> {
    let batch = bytes(1, &bytes(2, b"batch"));
    let shape = [batch, bytes(1, &int(1, width))].concat();
    let tensor = [int(1, 1), bytes(2, &shape)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: &[u8]) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input.as_bytes())).collect();
    node.extend([bytes(2, output.as_bytes()), bytes(3, output.as_bytes()), bytes(4, op.as_bytes())].concat());
    node.extend_from_slice(attribute);
    bytes(1, &node)
}

fn model(graph: &[u8]) -> Vec<u8> {
    [int(1, 8), bytes(7, graph), bytes(8, &int(2, 17))].concat()
}

/// `score = [inputs] . weights`: the inputs side by side, times one weight per column.
pub(crate) fn linear(inputs: &[(&str, u64)], weights: &[f32]) -> Vec<u8> {
    let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
    let axis = bytes(5, &[bytes(1, b"axis"), int(3, 1), int(20, 2)].concat());
    let raw: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let dims = [int(1, weights.len() as u64), int(1, 1)].concat();
    let tensor = [dims, int(2, 1), bytes(8, b"w"), bytes(9, &raw)].concat();
    let mut graph = node("Concat", &names, "x", &axis);
    graph.extend(node("MatMul", &["x", "w"], "score", &[]));
    graph.extend(bytes(2, b"linear"));
    graph.extend(bytes(5, &tensor));
    for (name, width) in inputs {
        graph.extend(bytes(11, &value(name, *width)));
    }
    graph.extend(bytes(12, &value("score", 1)));
    model(&graph)
}

/// `score = log(price)`: infinite at 0, no number below.
pub(crate) fn log_of_price() -> Vec<u8> {
    let mut graph = node("Log", &["price"], "score", &[]);
    graph.extend(bytes(2, b"log"));
    graph.extend(bytes(11, &value("price", 1)));
    graph.extend(bytes(12, &value("score", 1)));
    model(&graph)
}
