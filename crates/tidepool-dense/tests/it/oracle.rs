//! The oracle: the same file run by tract, which the plan does not use to run anything.

use std::io::Cursor;

use tidepool_dense::{DenseBatch, DenseModel};
use tidepool_types::{ModelSpec, Side};
use tract_onnx::prelude::*;

use crate::{
    file,
    onnx::{Graph, numbers},
    spec,
};

/// A graph, its contract, and its plan.
pub(crate) struct Case {
    bytes: Vec<u8>,
    pub(crate) spec: ModelSpec,
    pub(crate) model: DenseModel,
}

/// Inputs of a batch, per input of the contract.
pub(crate) struct Batch {
    pub(crate) rows: usize,
    pub(crate) requests: usize,
    pub(crate) request_of: Vec<u32>,
    pub(crate) values: Vec<Vec<f32>>,
}

impl Case {
    /// Takes all inputs for numbers; those named `user`, `history` and `mask` are the user's.
    pub(crate) fn new(graph: Graph) -> Self {
        use std::fmt::Write as _;
        use tract_onnx::pb::{tensor_shape_proto::dimension::Value as Dim, type_proto::Value as Type};
        let mut text = String::new();
        for input in graph.0.input.iter().filter(|input| input.name != "request_index") {
            let side =
                if ["user", "history", "mask"].contains(&input.name.as_str()) { "user" } else { "candidate" };
            let Some(Type::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
                panic!("an input without a type")
            };
            let Some(Dim::DimValue(width)) = tensor.shape.as_ref().unwrap().dim[1].value else {
                panic!("an input without a width")
            };
            writeln!(text, "[[inputs]]\nname = {:?}\nside = {side:?}\nwidth = {width}", input.name).unwrap();
        }
        for output in &graph.0.output {
            writeln!(text, "[[outputs]]\nname = {:?}", output.name).unwrap();
        }
        let spec = spec(&format!("score = {:?}\n{text}", graph.0.output[0].name));
        let bytes = graph.bytes();
        let (_dir, path) = file(&bytes);
        let model = DenseModel::load(&path, &spec, &|_| None).unwrap_or_else(|e| panic!("{e}"));
        Self { bytes, spec, model }
    }

    /// Numbers from -1 to 1; those of a mask are 0 or 1.
    pub(crate) fn batch(&self, rows: usize, requests: usize, seed: u64) -> Batch {
        let request_of = numbers(seed ^ 99, rows).map(|x| ((x + 1.0) / 2.0 * requests as f32) as u32);
        let request_of = request_of.map(|r| r.min(requests as u32 - 1)).collect();
        let widths = self.spec.inputs.iter().zip(self.model.widths()).enumerate();
        let values = widths.map(|(at, (input, &width))| {
            let count = if input.side == Side::User { requests } else { rows } * width;
            let values = numbers(seed + at as u64, count);
            if input.name == "mask" {
                // The first is never masked: a line of which nothing is left has no softmax.
                values.enumerate().map(|(i, x)| f32::from(x > 0.0 || i % width == 0)).collect()
            } else {
                values.collect()
            }
        });
        let values = values.collect();
        Batch { rows, requests, request_of, values }
    }

    /// What the plan says.
    pub(crate) fn run(&self, batch: &Batch) -> Vec<Vec<f32>> {
        let inputs: Vec<&[f32]> = batch.values.iter().map(Vec::as_slice).collect();
        let &Batch { rows, requests, ref request_of, .. } = batch;
        self.model.run(&DenseBatch { rows, requests, request_of, inputs: &inputs }).unwrap()
    }

    /// What tract says, of inputs that are expanded for it.
    pub(crate) fn oracle(&self, batch: &Batch) -> Vec<Vec<f32>> {
        let mut graph = tract_onnx::onnx().model_for_read(&mut Cursor::new(&self.bytes)).unwrap();
        let mut tensors = TVec::new();
        let names: Vec<String> =
            graph.inputs.iter().map(|outlet| graph.nodes()[outlet.node].name.clone()).collect();
        let explicit = names.iter().any(|name| name == "request_index");
        for (slot, name) in names.iter().enumerate() {
            let tensor = if name == "request_index" {
                let numbers: Vec<i64> = batch.request_of.iter().map(|&r| r.into()).collect();
                Tensor::from_shape(&[batch.rows], &numbers).unwrap()
            } else {
                let at = self.spec.inputs.iter().position(|input| input.name == *name).unwrap();
                let (width, values) = (self.model.widths()[at], &batch.values[at]);
                if self.spec.inputs[at].side == Side::User && !explicit {
                    let of = |&request: &u32| &values[request as usize * width..][..width];
                    let rows: Vec<f32> = batch.request_of.iter().flat_map(of).copied().collect();
                    Tensor::from_shape(&[batch.rows, width], &rows).unwrap()
                } else {
                    Tensor::from_shape(&[values.len() / width, width], values).unwrap()
                }
            };
            let fact =
                tract_onnx::tract_hir::infer::InferenceFact::dt_shape(tensor.datum_type(), tensor.shape());
            graph.set_input_fact(slot, fact).unwrap();
            tensors.push(tensor.into_tvalue());
        }
        let runnable = graph.into_optimized().unwrap().into_runnable().unwrap();
        let results = runnable.run(tensors).unwrap();
        let column = |value: &TValue| value.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
        results.iter().map(column).collect()
    }

    /// Compares the two.
    pub(crate) fn check(&self, name: &str, batch: &Batch) {
        let (found, expected) = (self.run(batch), self.oracle(batch));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (output, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.len(), expected.len(), "{name}, output {output}");
            for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
                let off = (found - expected).abs();
                let (rows, requests) = (batch.rows, batch.requests);
                assert!(
                    off <= 3e-6 * expected.abs().max(1.0),
                    "{name}, output {output}, row {row} of {rows} in {requests}: {found}, tract says {expected}"
                );
            }
        }
    }
}
