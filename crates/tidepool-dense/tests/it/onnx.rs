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

/// Whole numbers as an attribute.
pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

/// A number as an attribute.
pub(crate) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Float as i32,
        f: value,
        ..AttributeProto::default()
    }
}

/// Numbers from -1 to 1 that follow from the seed.
pub(crate) fn numbers(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    (0..count as u64).map(move |i| {
        let mut x = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
    })
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

    /// Whole numbers: shapes, axes, indices.
    pub(crate) fn integers(mut self, name: &str, dims: &[i64], values: &[i64]) -> Self {
        self.0.initializer.push(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: DataType::Int64 as i32,
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..TensorProto::default()
        });
        self
    }

    /// Weights that are a function of their name and place, small enough for any depth.
    pub(crate) fn random(self, name: &str, dims: &[i64]) -> Self {
        let seed = name.bytes().fold(17u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let count: i64 = dims.iter().product();
        let depth = if dims.len() > 1 { dims[dims.len() - 2] as f32 } else { 4.0 };
        let values: Vec<f32> = numbers(seed, count as usize).map(|x| x / depth.sqrt()).collect();
        self.weights(name, dims, &values)
    }

    pub(crate) fn node(self, op: &str, inputs: &[&str], output: &str, attribute: &[AttributeProto]) -> Self {
        self.split(op, inputs, &[output], attribute)
    }

    /// A node of several outputs.
    pub(crate) fn split(
        mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attribute: &[AttributeProto],
    ) -> Self {
        self.0.node.push(NodeProto {
            op_type: op.into(),
            name: format!("make_{}", outputs[0]),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: outputs.iter().map(ToString::to_string).collect(),
            attribute: attribute.to_vec(),
            ..NodeProto::default()
        });
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        let opset = OperatorSetIdProto { domain: String::new(), version: 20 };
        let graph = Some(self.0);
        ModelProto { ir_version: 9, opset_import: vec![opset], graph, ..ModelProto::default() }
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
