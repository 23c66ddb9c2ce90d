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
    /// The input at this place: of the contract's, or of the masks behind them.
    Input(usize),
    /// For each row, the number of its request.
    RequestIndex,
}

/// One input as the caller gives it.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// Its name in the graph.
    pub(crate) name: String,
    /// Whose it is.
    pub(crate) side: Side,
    /// Its shape without the batch: `[width]`, `[max_len, dim]` of a sequence, `[max_len]` of a mask.
    pub(crate) shape: Vec<usize>,
}

impl Given {
    /// Elements per row.
    pub(crate) fn width(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The declared interface of a graph in terms of the contract.
#[derive(Debug)]
pub(crate) struct Interface {
    /// The inputs in the order of the contract, then the masks of its sequences.
    pub(crate) given: Vec<Given>,
    /// Elements per row of each input, in the order of the contract.
    pub(crate) widths: Vec<usize>,
    /// For each mask, which of the contract's inputs it goes with.
    pub(crate) masks: Vec<usize>,
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
    let (given, masks) = given(spec, table_dims);
    let mut inputs = Vec::new();
    for input in &declared {
        match given.iter().position(|given| given.name == input.name) {
            Some(at) => inputs.push(Fed::Input(at)),
            None if input.name == REQUEST_INDEX => {
                check_request_index(input, &mut problems);
                inputs.push(Fed::RequestIndex);
            }
            None => problems.push(format!("graph input {:?} is not in model.toml", input.name)),
        }
    }
    for (at, given) in given.iter().enumerate() {
        let table = spec.inputs.get(at).and_then(|input| input.source.table());
        if let Some(table) = table.filter(|table| table_dims(table).is_none()) {
            problems.push(format!("input {:?}: there is no table {table}", given.name));
        }
        match declared.iter().find(|d| d.name == given.name) {
            Some(found) => check_input(found, given, &mut problems),
            None => problems.push(format!("input {:?} of model.toml is not in the graph", given.name)),
        }
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
    if !problems.is_empty() {
        return Err(problems);
    }
    let widths = given[..spec.inputs.len()].iter().map(Given::width).collect();
    Ok(Interface { given, widths, masks, inputs, outputs })
}

/// What the caller gives: the contract's inputs, then the masks, and which input each mask goes with. A width that
/// is not known, since its table is not there, is 0.
fn given(spec: &ModelSpec, table_dims: &dyn Fn(&Name) -> Option<u32>) -> (Vec<Given>, Vec<usize>) {
    let mut given = Vec::new();
    let (mut masks, mut of) = (Vec::new(), Vec::new());
    for (at, input) in spec.inputs.iter().enumerate() {
        let dim_of = |table: &Name| table_dims(table).unwrap_or_default() as usize;
        let shape = match &input.source {
            InputSource::Dense { width } => vec![*width as usize],
            InputSource::Pooled { table, .. } => vec![dim_of(table)],
            InputSource::Sequence { table, max_len, mask } => {
                if let Some(name) = mask {
                    let shape = vec![*max_len as usize];
                    masks.push(Given { name: name.clone(), side: input.side, shape });
                    of.push(at);
                }
                vec![*max_len as usize, dim_of(table)]
            }
        };
        given.push(Given { name: input.name.clone(), side: input.side, shape });
    }
    given.append(&mut masks);
    (given, of)
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

/// An input must be f32 with an open batch, and further dimensions as the contract says; the graph may leave those open.
fn check_input(input: &ValueInfoProto, given: &Given, problems: &mut Vec<String>) {
    let mut problem = |text: String| problems.push(format!("input {:?}: {text}", input.name));
    let wanted = if given.shape.len() == 2 { "[batch, max_len, dim]" } else { "[batch, width]" };
    let Some(Type::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return problem("the graph gives it no tensor type".into());
    };
    if tensor.elem_type != DataType::Float as i32 {
        let found = DataType::try_from(tensor.elem_type).map_or("unknown", |t| t.as_str_name());
        problem(format!("its elements are {found}, they must be FLOAT (f32)"));
    }
    let Some(shape) = &tensor.shape else {
        return problem(format!("the graph gives it no shape; it must be {wanted}"));
    };
    if shape.dim.len() != given.shape.len() + 1 {
        return problem(format!("it has rank {}, it must be {wanted}", shape.dim.len()));
    }
    if let Some(Dim::DimValue(fixed)) = &shape.dim[0].value {
        problem(format!("its batch is fixed at {fixed}, it must be symbolic"));
    }
    for (at, (dim, &width)) in shape.dim[1..].iter().zip(&given.shape).enumerate() {
        let what = if given.shape.len() == 2 && at == 0 { "length" } else { "width" };
        if let Some(Dim::DimValue(found)) = &dim.value
            && width != 0
            && *found != i64::try_from(width).unwrap_or(i64::MAX)
        {
            problem(format!("its {what} is {found} in the graph, {width} by model.toml and tables"));
        }
    }
}
