//! A loaded model: made runnable once, run for any number of rows.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use tidepool_types::{ModelSpec, Name, Side};
use tract_onnx::{pb::ModelProto, prelude::*, tract_hir::infer::InferenceFact};

use crate::{
    DenseError,
    contract::{self, Fed, Given, Interface},
    file,
    guard::{brief, guarded},
    plan::{self, Inputs, Plan},
};

/// The name of the batch dimension in the prepared graph, whatever the file calls it.
const ROWS: &str = "tidepool_rows";
/// The name of the batch dimension of user inputs, in a graph that brings them together with rows itself.
const REQUESTS: &str = "tidepool_requests";

/// What one run computes: rows of one or more requests. User inputs have one row per *request*, candidate inputs one
/// per *row*; a request's rows need not lie together.
#[derive(Clone, Copy, Debug)]
pub struct DenseBatch<'a> {
    /// Rows to score.
    pub rows: usize,
    /// Requests that they belong to.
    pub requests: usize,
    /// For each row, the number of its request: `[rows]`, each below `requests`.
    pub request_of: &'a [u32],
    /// The inputs in the order of the contract, row-major: `[requests, width]` of the user, `[rows, width]` of the
    /// candidates. Masks of sequences follow, see [`DenseModel::masks`].
    pub inputs: &'a [&'a [f32]],
}

/// A dense model that fits its contract, ready to run. It may be shared between threads.
pub struct DenseModel {
    path: PathBuf,
    interface: Interface,
    plan: Plan,
}

impl fmt::Debug for DenseModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DenseModel").field("path", &self.path).finish_non_exhaustive()
    }
}

impl DenseModel {
    /// Reads the ONNX file, checks it against the contract, and simplifies it: every input of the graph is
    /// declared, f32, `[batch, width]` (the width of a pooled input is that of its table's vectors,
    /// from `table_dims`); every output is declared, f32, `[batch]` or `[batch, 1]`. The batch is a symbolic
    /// dimension of any name. It takes milliseconds to seconds: call it off the async threads.
    ///
    /// # Errors
    /// [`DenseError::Contract`] lists every mismatch at once; the others name the file.
    pub fn load(
        onnx: &Path,
        spec: &ModelSpec,
        table_dims: &dyn Fn(&Name) -> Option<u32>,
    ) -> Result<Self, DenseError> {
        let model = file::read(onnx)?;
        // `file::read` refuses a model without a graph.
        let graph = model.graph.as_ref().ok_or_else(|| DenseError::Syntax {
            path: onnx.to_path_buf(),
            problem: "there is no graph in it".into(),
        })?;
        let interface = contract::check(graph, spec, table_dims).map_err(DenseError::Contract)?;
        let plan = guarded(onnx, "prepared the graph", || prepare(onnx, &model, spec, &interface))?;
        Ok(Self { path: onnx.to_path_buf(), interface, plan })
    }

    /// Elements per row of each input, in the order of the contract; of a sequence `max_len * dim`.
    #[must_use]
    pub fn widths(&self) -> &[usize] {
        &self.interface.widths
    }

    /// The masks that are given behind the contract's inputs, `[rows or requests, max_len]` each: for each, which of
    /// the contract's inputs it goes with.
    #[must_use]
    pub fn masks(&self) -> &[usize] {
        &self.interface.masks
    }

    /// What the plan does, a line for each step: `request` or `row` for how often, the node that asked for it, what it
    /// is, and how many numbers it makes each time.
    #[must_use]
    pub fn steps(&self) -> Vec<String> {
        self.plan.describe()
    }

    /// Bytes that a run of so many rows and requests works in, beside its inputs and outputs. Rows go in blocks, so beyond
    /// some hundred it is only requests that it grows with. The model keeps what a run worked in for the next one: as
    /// many arenas as there were runs at the same time, 64 at most, and none of more than 64 MiB.
    #[must_use]
    pub fn arena_bytes(&self, rows: usize, requests: usize) -> u64 {
        self.plan.arena_bytes(rows, requests)
    }

    /// Floating point operations of the model's matrix products, per request and per row; a product and a sum are two.
    #[must_use]
    pub fn flops(&self) -> [u64; 2] {
        self.plan.flops()
    }

    /// Runs the graph. The outputs are in the order of the contract, each `[rows]`. No rows give empty outputs. Values are returned
    /// as the graph made them, infinities and NaN included: judging them is the caller's business. So is
    /// judging the inputs, since a NaN that goes in may well come out as a number (a sigmoid clamps it).
    ///
    /// # Errors
    /// [`DenseError::Input`] when a length is wrong or a row belongs to no request; [`DenseError::Panicked`] would
    /// be a defect of the plan.
    pub fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        check(&self.interface.given, batch)?;
        if batch.rows == 0 {
            return Ok(vec![Vec::new(); self.interface.outputs.len()]);
        }
        let &DenseBatch { rows, requests, request_of, inputs: values } = batch;
        let inputs = Inputs { rows, requests, request_of, values };
        guarded(&self.path, "ran the graph", || Ok(self.plan.run(inputs)))
    }
}

/// Judges the lengths of a batch, and that every row's request is there.
pub(crate) fn check(given: &[Given], batch: &DenseBatch<'_>) -> Result<(), DenseError> {
    let &DenseBatch { rows, requests, request_of, inputs } = batch;
    let list = |problem| DenseError::Input { input: "list".into(), problem };
    if inputs.len() != given.len() {
        return Err(list(format!("{} inputs were given, the model has {}", inputs.len(), given.len())));
    }
    if request_of.len() != rows {
        return Err(list(format!("requests were given for {} of {rows} rows", request_of.len())));
    }
    if let Some(row) = request_of.iter().position(|&request| request as usize >= requests) {
        let of = request_of[row];
        return Err(list(format!("row {row} belongs to request {of}, there are {requests} requests")));
    }
    for (values, given) in inputs.iter().zip(given) {
        let (count, what) = if given.side == Side::User { (requests, "requests") } else { (rows, "rows") };
        let width = given.width();
        if count.checked_mul(width) != Some(values.len()) {
            return Err(DenseError::Input {
                input: format!("{:?}", given.name),
                problem: format!("{} numbers were given for {count} {what} of {width}", values.len()),
            });
        }
    }
    Ok(())
}

/// The parts of a model that a device needs.
pub(crate) fn plan_of(model: &DenseModel) -> &Plan {
    &model.plan
}

pub(crate) fn given_of(model: &DenseModel) -> &[Given] {
    &model.interface.given
}

pub(crate) fn path_of(model: &DenseModel) -> &Path {
    &model.path
}

/// Types and simplifies the graph with a batch of unknown size, checks what comes out of it, and makes its plan.
fn prepare(
    path: &Path,
    model: &ModelProto,
    spec: &ModelSpec,
    interface: &Interface,
) -> Result<Plan, DenseError> {
    let failed = |e: TractError| DenseError::Graph { path: path.to_path_buf(), problem: brief(&e) };
    // Shapes inside the file may speak of the batch by another name, so they are inferred again.
    let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    let mut graph = onnx.model_for_proto_model(model).map_err(failed)?;
    let (rows, requests) = (graph.sym(ROWS), graph.sym(REQUESTS));
    for (at, &fed) in interface.inputs.iter().enumerate() {
        let fact = match fed {
            Fed::RequestIndex => InferenceFact::dt_shape(i64::datum_type(), [TDim::from(rows.clone())]),
            Fed::Input(input) => {
                let given = &interface.given[input];
                let apart = interface.has_request_index() && given.side == Side::User;
                let batch = TDim::from(if apart { requests.clone() } else { rows.clone() });
                let shape: TVec<TDim> =
                    std::iter::once(batch).chain(given.shape.iter().map(|&len| TDim::from(len))).collect();
                InferenceFact::dt_shape(f32::datum_type(), shape)
            }
        };
        graph.set_input_fact(at, fact).map_err(failed)?;
    }
    let typed = graph.into_typed().and_then(TypedModel::into_decluttered).map_err(failed)?;
    let mut problems = Vec::new();
    for (output, &at) in spec.outputs.iter().zip(&interface.outputs) {
        let fact = typed.output_fact(at).map_err(failed)?;
        if fact.datum_type != f32::datum_type() {
            problems.push(format!(
                "output {:?}: its elements are {:?}, they must be f32",
                output.name, fact.datum_type
            ));
        }
        let shape = fact.shape.dims();
        let batch = TDim::from(rows.clone());
        let fits = match shape {
            [first] => *first == batch,
            [first, second] => *first == batch && *second == TDim::from(1),
            _ => false,
        };
        if !fits {
            let shape: Vec<_> = shape
                .iter()
                .map(|d| d.to_string().replace(ROWS, "batch").replace(REQUESTS, "requests"))
                .collect();
            problems.push(format!(
                "output {:?}: its shape is [{}], it must be [batch] or [batch, 1]",
                output.name,
                shape.join(", ")
            ));
        }
    }
    if !problems.is_empty() {
        return Err(DenseError::Contract(problems));
    }
    plan::lower(&typed, [rows, requests], interface).map_err(|uncovered| DenseError::NotCovered {
        path: path.to_path_buf(),
        node: uncovered.node,
        op: uncovered.op,
        problem: uncovered.problem,
    })
}
