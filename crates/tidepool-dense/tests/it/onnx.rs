//! Small ONNX graphs, put together in memory.

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension::Value as Dim},
    type_proto::{Tensor, Value},
};

/// A graph under construction.
pub(crate) struct Graph(pub(crate) GraphProto);

/// An open dimension by name.
pub(crate) fn open(name: &str) -> Dim {
    Dim::DimParam(name.into())
}

/// A fixed dimension.
pub(crate) fn fixed(size: i64) -> Dim {
    Dim::DimValue(size)
}

/// A float attribute's holder: name and integer.
pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    }
}

impl Graph {
    pub(crate) fn new() -> Self {
        Self(GraphProto { name: "graph".into(), ..GraphProto::default() })
    }

    pub(crate) fn input(mut self, name: &str, dims: &[Dim]) -> Self {
        self.0.input.push(value(name, DataType::Float, dims));
        self
    }

    pub(crate) fn typed_input(mut self, name: &str, of: DataType, dims: &[Dim]) -> Self {
        self.0.input.push(value(name, of, dims));
        self
    }

    pub(crate) fn output(mut self, name: &str, dims: &[Dim]) -> Self {
        self.0.output.push(value(name, DataType::Float, dims));
        self
    }

    pub(crate) fn weights(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        self.0.initializer.push(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: DataType::Float as i32,
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..TensorProto::default()
        });
        self
    }

    pub(crate) fn node(
        mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attribute: &[AttributeProto],
    ) -> Self {
        self.0.node.push(NodeProto {
            op_type: op.into(),
            name: format!("make_{output}"),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.into()],
            attribute: attribute.to_vec(),
            ..NodeProto::default()
        });
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        let opset = OperatorSetIdProto { domain: String::new(), version: 17 };
        let graph = Some(self.0);
        ModelProto { ir_version: 8, opset_import: vec![opset], graph, ..ModelProto::default() }
            .encode_to_vec()
    }
}

fn value(name: &str, of: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |d: &Dim| Dimension { value: Some(d.clone()), ..Dimension::default() };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = Tensor { elem_type: of as i32, shape: Some(shape) };
    let value = Some(Value::TensorType(tensor));
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { value, ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}
