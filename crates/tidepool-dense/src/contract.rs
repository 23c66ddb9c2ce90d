//! What the graph declares, held against what `model.toml` and the tables say.

use tidepool_types::{InputSource, ModelSpec, Name, Side};
use tract_onnx::pb::{
    GraphProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto::dimension::Value as Dim,
    type_proto::Value as Type,
};

/// The input by which a graph says itself which request a row belongs to: i64 `[rows]`. A graph that has it takes
/// its user inputs with one row per request, and brings the two together where it likes.
pub(crate) const REQUEST_INDEX: &str = "request_index";

/// What an input of the graph is fed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// The contract's input at this place.
    Input(usize),
    /// For each row, the number of its request.
    RequestIndex,
}

/// The declared interface of a graph in terms of the contract.
#[derive(Debug)]
pub(crate) struct Interface {
    /// Elements per row of each input, in the order of the contract.
    pub(crate) widths: Vec<usize>,
    /// Whose feature each input is, in the order of the contract.
    pub(crate) sides: Vec<Side>,
    /// For each input of the graph, in its order: what it is fed with.
    pub(crate) inputs: Vec<Fed>,
    /// For each output of the contract, in its order: which of the graph's outputs it is.
    pub(crate) outputs: Vec<usize>,
}

/// Matches names, element types and widths, and returns every problem found.
pub(crate) fn check(
    graph: &GraphProto,
    spec: &ModelSpec,
    table_dims: &dyn Fn(&Name) -> Option<u32>,
) -> Result<Interface, Vec<String>> {
    let mut problems = Vec::new();
    // Graphs of before ONNX IR 4 list their weights among the inputs.
    let is_weight = |name: &str| graph.initializer.iter().any(|t| t.name == name);
    let declared: Vec<&ValueInfoProto> = graph.input.iter().filter(|i| !is_weight(&i.name)).collect();
    duplicates("input", &declared, &mut problems);
    let mut inputs = Vec::new();
    for input in &declared {
        match spec.inputs.iter().position(|i| i.name == input.name) {
            Some(at) => inputs.push(Fed::Input(at)),
            None if input.name == REQUEST_INDEX => {
                check_request_index(input, &mut problems);
                inputs.push(Fed::RequestIndex);
            }
            None => problems.push(format!("graph input {:?} is not in model.toml", input.name)),
        }
    }
    let mut widths = Vec::new();
    for input in &spec.inputs {
        let width = match &input.source {
            InputSource::Dense { width } => Some(*width),
            InputSource::Sequence { .. } => {
                problems.push(format!("input {:?}: sequences are not run yet", input.name));
                None
            }
            InputSource::Pooled { table, .. } => {
                let dim = table_dims(table);
                if dim.is_none() {
                    problems.push(format!("input {:?}: there is no table {table}", input.name));
                }
                dim
            }
        };
        match declared.iter().find(|d| d.name == input.name) {
            Some(found) => check_input(found, width, &mut problems),
            None => problems.push(format!("input {:?} of model.toml is not in the graph", input.name)),
        }
        widths.push(width.unwrap_or_default() as usize);
    }
    let results: Vec<&ValueInfoProto> = graph.output.iter().collect();
    duplicates("output", &results, &mut problems);
    let mut outputs = Vec::new();
    for output in &spec.outputs {
        match results.iter().position(|o| o.name == output.name) {
            Some(at) => outputs.push(at),
            None => problems.push(format!("output {:?} of model.toml is not in the graph", output.name)),
        }
    }
    for output in &results {
        if !spec.outputs.iter().any(|o| o.name == output.name) {
            problems.push(format!("graph output {:?} is not in model.toml", output.name));
        }
        if !produced(graph, &output.name) {
            problems.push(format!("graph output {:?} is made by no node", output.name));
        }
    }
    let sides = spec.inputs.iter().map(|input| input.side).collect();
    if problems.is_empty() { Ok(Interface { widths, sides, inputs, outputs }) } else { Err(problems) }
}

impl Interface {
    /// Whether the graph takes its user inputs with one row per request.
    pub(crate) fn has_request_index(&self) -> bool {
        self.inputs.contains(&Fed::RequestIndex)
    }
}

fn produced(graph: &GraphProto, name: &str) -> bool {
    graph.node.iter().any(|n| n.output.iter().any(|o| o == name))
        || graph.input.iter().any(|i| i.name == name)
        || graph.initializer.iter().any(|t| t.name == name)
}

fn duplicates(what: &str, values: &[&ValueInfoProto], problems: &mut Vec<String>) {
    for (at, value) in values.iter().enumerate() {
        if values[..at].iter().any(|earlier| earlier.name == value.name) {
            problems.push(format!("graph {what} {:?} stands twice", value.name));
        }
    }
}

/// The numbers of the requests must be i64 `[rows]` with an open batch.
fn check_request_index(input: &ValueInfoProto, problems: &mut Vec<String>) {
    let tensor = match input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(Type::TensorType(tensor)) => Some(tensor),
        _ => None,
    };
    let of_integers = tensor.is_some_and(|t| t.elem_type == DataType::Int64 as i32);
    let open = tensor
        .and_then(|t| t.shape.as_ref())
        .is_some_and(|shape| matches!(&shape.dim[..], [dim] if !matches!(dim.value, Some(Dim::DimValue(_)))));
    if !of_integers || !open {
        problems
            .push(format!("input {:?}: it must be INT64 (i64) of shape [rows], rows symbolic", input.name));
    }
}

/// An input must be f32 `[batch, width]` with an open batch; the width may be left open by the graph.
fn check_input(input: &ValueInfoProto, width: Option<u32>, problems: &mut Vec<String>) {
    let mut problem = |text: String| problems.push(format!("input {:?}: {text}", input.name));
    let Some(Type::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return problem("the graph gives it no tensor type".into());
    };
    if tensor.elem_type != DataType::Float as i32 {
        let found = DataType::try_from(tensor.elem_type).map_or("unknown", |t| t.as_str_name());
        problem(format!("its elements are {found}, they must be FLOAT (f32)"));
    }
    let Some(shape) = &tensor.shape else {
        return problem("the graph gives it no shape; it must be [batch, width]".into());
    };
    if shape.dim.len() != 2 {
        return problem(format!("it has rank {}, it must be [batch, width]", shape.dim.len()));
    }
    if let Some(Dim::DimValue(fixed)) = &shape.dim[0].value {
        problem(format!("its batch is fixed at {fixed}, it must be symbolic"));
    }
    if let (Some(Dim::DimValue(found)), Some(width)) = (&shape.dim[1].value, width)
        && *found != i64::from(width)
    {
        problem(format!("its width is {found} in the graph, {width} by model.toml and tables"));
    }
}
