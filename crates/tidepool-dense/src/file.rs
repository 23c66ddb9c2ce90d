//! Reading an ONNX file with suspicion: bounds are checked on the decoded message, before anything is built
//! from it.

use std::{fs::File, io::Read, path::Path};

use tract_onnx::{
    pb::{GraphProto, ModelProto, TensorProto, tensor_proto::DataLocation},
    prelude::Framework,
};

use crate::{
    DenseError,
    guard::{brief, guarded},
};

/// The largest file; protobuf itself ends at twice as much.
const MAX_BYTES: u64 = 1 << 30;
/// The most nodes, those of nested graphs included.
const MAX_NODES: u64 = 20_000;

/// Reads and decodes the file, and checks sizes and that every tensor is in it.
pub(crate) fn read(path: &Path) -> Result<ModelProto, DenseError> {
    let failed = |source| DenseError::Read { path: path.to_path_buf(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // The size is judged by what was read, since a file may grow or be no regular file.
    file.by_ref().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    bounded(path, "bytes", bytes.len() as u64, MAX_BYTES)?;
    let syntax = |problem| DenseError::Syntax { path: path.to_path_buf(), problem };
    let model = guarded(path, "decoded the file", || {
        tract_onnx::onnx().proto_model_for_read(&mut bytes.as_slice()).map_err(|e| syntax(brief(&e)))
    })?;
    let graph = model.graph.as_ref().ok_or_else(|| syntax("there is no graph in it".into()))?;
    if model.opset_import.is_empty() {
        // Also the only sign of a file that was cut off right behind its graph.
        return Err(syntax("it does not say which operator set it uses".into()));
    }
    let mut nodes = 0;
    check_graph(path, graph, &mut nodes)?;
    Ok(model)
}

/// Walks the graph and the graphs inside it. The depth is bounded by the decoder, which refuses messages
/// nested more than 100 deep.
fn check_graph(path: &Path, graph: &GraphProto, nodes: &mut u64) -> Result<(), DenseError> {
    *nodes += graph.node.len() as u64;
    bounded(path, "nodes", *nodes, MAX_NODES)?;
    graph.initializer.iter().try_for_each(|tensor| check_tensor(path, tensor))?;
    for attribute in graph.node.iter().flat_map(|node| &node.attribute) {
        attribute.t.iter().chain(&attribute.tensors).try_for_each(|tensor| check_tensor(path, tensor))?;
        for inner in attribute.g.iter().chain(&attribute.graphs) {
            check_graph(path, inner, nodes)?;
        }
    }
    Ok(())
}

/// A tensor must be in the file, and must not claim more elements than it has bytes.
fn check_tensor(path: &Path, tensor: &TensorProto) -> Result<(), DenseError> {
    let elsewhere = tensor.data_location == Some(DataLocation::External as i32);
    if elsewhere || !tensor.external_data.is_empty() {
        return Err(DenseError::ExternalData { path: path.to_path_buf(), tensor: tensor.name.clone() });
    }
    let claimed = tensor.dims.iter().fold(1u64, |product, &dim| {
        // A negative dimension is refused below, as more elements than there can be.
        product.saturating_mul(u64::try_from(dim).unwrap_or(u64::MAX))
    });
    let held = tensor.raw_data.len()
        + tensor.float_data.len()
        + tensor.int32_data.len()
        + tensor.int64_data.len()
        + tensor.double_data.len()
        + tensor.uint64_data.len()
        + tensor.string_data.len();
    if claimed > held as u64 {
        return Err(DenseError::Syntax {
            path: path.to_path_buf(),
            problem: format!(
                "tensor {:?} of shape {:?} has data for at most {held} elements",
                tensor.name, tensor.dims
            ),
        });
    }
    Ok(())
}

fn bounded(path: &Path, what: &'static str, found: u64, limit: u64) -> Result<(), DenseError> {
    if found <= limit {
        return Ok(());
    }
    Err(DenseError::TooLarge { path: path.to_path_buf(), what, found, limit })
}
