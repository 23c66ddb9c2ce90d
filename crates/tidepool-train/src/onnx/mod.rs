//! The dense model as an ONNX file.

mod graph;
mod proto;

pub(crate) use graph::ranker_graph;
