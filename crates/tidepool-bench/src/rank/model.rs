//! What is served: a contract, its graph, and what is known of its tables.

use tidepool_types::{Keying, ModelSpec};

/// A model that a bench can serve.
#[derive(Clone, Debug)]
pub struct RankModel {
    /// The contract.
    pub spec: ModelSpec,
    /// The graph, as the bytes of an ONNX file.
    pub onnx: Vec<u8>,
    /// Numbers in the graph.
    pub parameters: usize,
    /// The tables that the contract names.
    pub tables: Vec<KnownTable>,
}

/// What a bench must know of a table to make one like it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTable {
    /// Its name in the contract.
    pub name: String,
    /// Elements of a row.
    pub dim: u32,
    /// Which ids it has.
    pub keying: Keying,
    /// Rows of a table whose ids are dense.
    pub rows: u64,
}
