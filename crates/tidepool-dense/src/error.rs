//! What can be wrong with a model file, with its contract, or with one run of it.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::CudaError;

/// Why a model was not loaded, or did not run.
#[derive(Debug, Error)]
pub enum DenseError {
    /// The operating system did not give the file.
    #[error("could not read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// More bytes, nodes or tensors than a dense model of ours can have.
    #[error("{path} has {found} {what}, a model may have {limit}", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// "bytes", "nodes" or "elements in one tensor".
        what: &'static str,
        /// How many.
        found: u64,
        /// How many there may be.
        limit: u64,
    },
    /// The bytes are no ONNX model.
    #[error("{path} is not an ONNX model: {problem}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What does not parse.
        problem: String,
    },
    /// A tensor lies in another file; a release has one file, whose hash is checked.
    #[error("{path}: tensor {tensor:?} lies in another file; a release's model must be one file", path = path.display())]
    ExternalData {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// The graph is not what `model.toml` and the tables say: everything that differs, at once.
    #[error("the model does not match its contract: {}", .0.join("; "))]
    Contract(Vec<String>),
    /// A graph that cannot be made runnable: an operator that is not known, or shapes that do not fit.
    #[error("{path} cannot be prepared: {problem}", path = path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
    /// An operator, or a form of one, that the static plan does not cover (docs/dense.md lists what it does).
    #[error("{path}: node {node:?} ({op}): {problem}; docs/dense.md lists what is covered", path = path.display())]
    NotCovered {
        /// The file.
        path: PathBuf,
        /// The node, as the file or the simplified graph names it.
        node: String,
        /// Its operator.
        op: String,
        /// What is not covered.
        problem: String,
    },
    /// The library that reads the graph broke down over it.
    #[error("{path}: the engine broke down while it {doing}: {problem}", path = path.display())]
    Panicked {
        /// The file.
        path: PathBuf,
        /// "read the graph", "ran the graph".
        doing: &'static str,
        /// The last words.
        problem: String,
    },
    /// The caller's inputs are not those of the contract.
    #[error("input {input}: {problem}")]
    Input {
        /// Which one, by name, or "list" when their number is wrong.
        input: String,
        /// What was expected and what came.
        problem: String,
    },
    /// The graph was run and failed.
    #[error("{path} failed on {rows} rows: {problem}", path = path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// Rows in the batch.
        rows: usize,
        /// Where and why.
        problem: String,
    },
    /// The device that the model is on could not be used, or broke down.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// Stored rows that do not fit the model or its bucket.
    #[error("the rows of a batch: {0}")]
    Rows(#[from] crate::cuda::rows::RowsError),
    /// A selection that does not fit the model or its bucket.
    #[error("the selection of a batch: {0}")]
    Select(#[from] crate::cuda::select::SelectError),
}
