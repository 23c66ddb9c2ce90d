//! Writes a small dense model as an ONNX file, for those who train or make one.

mod proto;
mod shape;

use prost::Message;

use proto::{
    ATTRIBUTE_INT, Attribute, Dimension, DimensionValue, FLOAT, Graph, Model, Node, OperatorSet, Shape,
    Tensor, TensorType, Type, ValueInfo,
};

/// Version of the operator set: the operators of small models have had the same meaning since 13.
const OPSET: i64 = 17;
/// The file format version that goes with it.
const IR_VERSION: i64 = 8;

/// An ONNX graph under construction: rows of f32 go in, rows of f32 come out. It checks nothing;
/// [`DenseModel::load`](crate::DenseModel::load) does.
#[derive(Clone, Debug)]
pub struct GraphWriter(Graph);

impl GraphWriter {
    /// An empty graph of this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Graph { name: name.into(), ..Graph::default() })
    }

    /// An input: a `[batch, width]` tensor.
    pub fn input(&mut self, name: &str, width: usize) {
        self.0.input.push(value(name, width));
    }

    /// An output: a `[batch, width]` tensor.
    pub fn output(&mut self, name: &str, width: usize) {
        self.0.output.push(value(name, width));
    }

    /// A constant, row-major.
    pub fn constant(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        self.0.initializer.push(Tensor {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: FLOAT,
            name: name.into(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    /// An operation with one output and no attributes: Add, Mul, Gemm, Relu, Sigmoid and the like.
    pub fn node(&mut self, op_type: &str, inputs: &[&str], output: &str) {
        self.0.node.push(Node {
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: vec![output.into()],
            name: format!("node.{output}"),
            op_type: op_type.into(),
            attribute: Vec::new(),
        });
    }

    /// Columns of several tensors side by side.
    pub fn concat(&mut self, inputs: &[&str], output: &str) {
        self.node("Concat", inputs, output);
        self.attribute(Attribute { name: "axis".into(), i: Some(1), kind: ATTRIBUTE_INT, ints: Vec::new() });
    }

    /// The bytes of the ONNX file.
    #[must_use]
    pub fn into_file(self) -> Vec<u8> {
        Model {
            ir_version: IR_VERSION,
            producer_name: "tidepool".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.0),
            opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
        }
        .encode_to_vec()
    }
}

/// A `[batch, width]` tensor of f32.
fn value(name: &str, width: usize) -> ValueInfo {
    typed(name, FLOAT, &[DimensionValue::Param("batch".into()), DimensionValue::Value(width as i64)])
}

fn typed(name: &str, elem_type: i32, dims: &[DimensionValue]) -> ValueInfo {
    let dim = dims.iter().map(|value| Dimension { value: Some(value.clone()) }).collect();
    let tensor_type = Some(TensorType { elem_type, shape: Some(Shape { dim }) });
    ValueInfo { name: name.into(), r#type: Some(Type { tensor_type }) }
}
