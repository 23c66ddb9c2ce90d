//! Lays the trained ranker out as ONNX nodes: Add, Mul, Concat, Gemm, Relu and Sigmoid, nothing else.

use ndarray::Array2;
use prost::Message;

use super::proto::{
    ATTRIBUTE_INT, Attribute, Dimension, DimensionValue, FLOAT, Graph, Model, Node, OperatorSet, Shape,
    Tensor, TensorType, Type, ValueInfo,
};
use crate::{
    model::{
        ENTITY_DIM, FEATURE_AGE, FEATURE_GENDER, FEATURE_GENRES, FEATURE_ITEM, FEATURE_OCCUPATION,
        FEATURE_USER, GENRE_DIM, OCCUPATION_DIM, OUTPUT_PROBABILITY, TrainedModel,
    },
    net::Linear,
};

/// Version of the operator set: every operator used here has the same meaning from 13 on.
const OPSET: i64 = 17;
/// The file format version that goes with it.
const IR_VERSION: i64 = 8;

/// The bytes of the ONNX file.
pub(crate) fn ranker_graph(model: &TrainedModel) -> Vec<u8> {
    let mut graph = Builder(Graph { name: "ranker".into(), ..Graph::default() });
    let inputs = [
        (FEATURE_USER, ENTITY_DIM),
        (FEATURE_ITEM, ENTITY_DIM),
        (FEATURE_GENRES, GENRE_DIM),
        (FEATURE_OCCUPATION, OCCUPATION_DIM),
        (FEATURE_AGE, 1),
        (FEATURE_GENDER, 1),
    ];
    graph.0.input = inputs.map(|(name, width)| value(name, width)).to_vec();
    graph.0.output = vec![value(OUTPUT_PROBABILITY, 1)];

    graph.constant("age.minus_mean", &[1], &[-model.age.mean]);
    graph.constant("age.inverse_deviation", &[1], &[model.age.inverse_deviation]);
    graph.node("Add", &[FEATURE_AGE, "age.minus_mean"], "age.centred");
    graph.node("Mul", &["age.centred", "age.inverse_deviation"], "age.scaled");
    graph.concat(
        &[FEATURE_USER, FEATURE_ITEM, FEATURE_GENRES, FEATURE_OCCUPATION, "age.scaled", FEATURE_GENDER],
        "x",
    );
    let mut current = String::from("x");
    for (at, layer) in model.net.cross.iter().enumerate() {
        let (gate, term, next) =
            (format!("cross.{at}.gate"), format!("cross.{at}.term"), format!("cross.{at}"));
        graph.linear(layer, &current, &gate);
        graph.node("Mul", &["x", &gate], &term);
        graph.node("Add", &[&term, &current], &next);
        current = next;
    }
    for (at, layer) in model.net.hidden.iter().enumerate() {
        let (affine, next) = (format!("hidden.{at}.affine"), format!("hidden.{at}"));
        graph.linear(layer, &current, &affine);
        graph.node("Relu", &[&affine], &next);
        current = next;
    }
    graph.node("Mul", &[FEATURE_USER, FEATURE_ITEM], "product");
    graph.concat(&[&current, "product"], "head.input");
    graph.linear(&model.net.head, "head.input", "logit");
    graph.node("Sigmoid", &["logit"], OUTPUT_PROBABILITY);

    Model {
        ir_version: IR_VERSION,
        producer_name: "tidepool".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph.0),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
    }
    .encode_to_vec()
}

/// A `[batch, width]` tensor of f32.
fn value(name: &str, width: usize) -> ValueInfo {
    let dim = [DimensionValue::Param("batch".into()), DimensionValue::Value(width as i64)]
        .map(|value| Dimension { value: Some(value) })
        .to_vec();
    let tensor_type = Some(TensorType { elem_type: FLOAT, shape: Some(Shape { dim }) });
    ValueInfo { name: name.into(), r#type: Some(Type { tensor_type }) }
}

struct Builder(Graph);

impl Builder {
    fn node(&mut self, op_type: &str, inputs: &[&str], output: &str) {
        self.0.node.push(Node {
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: vec![output.into()],
            name: format!("node.{output}"),
            op_type: op_type.into(),
            attribute: Vec::new(),
        });
    }

    fn concat(&mut self, inputs: &[&str], output: &str) {
        self.node("Concat", inputs, output);
        if let Some(node) = self.0.node.last_mut() {
            node.attribute.push(Attribute { name: "axis".into(), i: Some(1), kind: ATTRIBUTE_INT });
        }
    }

    fn constant(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        self.0.initializer.push(Tensor {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: FLOAT,
            name: name.into(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    fn linear(&mut self, layer: &Linear, input: &str, output: &str) {
        let (weight, bias) = (format!("{output}.weight"), format!("{output}.bias"));
        let matrix: &Array2<f32> = &layer.weight.value;
        self.constant(&weight, matrix.shape(), &matrix.iter().copied().collect::<Vec<_>>());
        let row = &layer.bias.value;
        self.constant(&bias, &[row.len()], &row.iter().copied().collect::<Vec<_>>());
        self.node("Gemm", &[input, &weight, &bias], output);
    }
}
