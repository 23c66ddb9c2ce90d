//! A loaded model: made runnable once, run for any number of rows.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidepool_types::{ModelSpec, Name, Side};
use tract_onnx::{pb::ModelProto, prelude::*, tract_hir::infer::InferenceFact};

use crate::{
    DenseError,
    contract::{self, Fed, Interface},
    file,
    guard::{brief, guarded},
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
    /// candidates.
    pub inputs: &'a [&'a [f32]],
}

/// A dense model that fits its contract, ready to run. It may be shared between threads.
pub struct DenseModel {
    path: PathBuf,
    input_names: Vec<String>,
    interface: Interface,
    plan: Arc<TypedRunnableModel>,
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
        let input_names = spec.inputs.iter().map(|i| i.name.clone()).collect();
        Ok(Self { path: onnx.to_path_buf(), input_names, interface, plan })
    }

    /// Elements per row of each input, in the order of the contract.
    #[must_use]
    pub fn widths(&self) -> &[usize] {
        &self.interface.widths
    }

    /// Runs the graph. The outputs are in the order of the contract, each `[rows]`. No rows give empty outputs. Values are returned
    /// as the graph made them, infinities and NaN included: judging them is the caller's business. So is
    /// judging the inputs, since a NaN that goes in may well come out as a number (a sigmoid clamps it).
    ///
    /// # Errors
    /// [`DenseError::Input`] when a length is wrong or a row belongs to no request; [`DenseError::Run`] and [`DenseError::Panicked`] when
    /// the graph cannot be evaluated.
    pub fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        self.check(batch)?;
        if batch.rows == 0 {
            return Ok(vec![Vec::new(); self.interface.outputs.len()]);
        }
        guarded(&self.path, "ran the graph", || self.evaluate(batch))
    }

    fn check(&self, batch: &DenseBatch<'_>) -> Result<(), DenseError> {
        let &DenseBatch { rows, requests, request_of, inputs } = batch;
        let widths = &self.interface.widths;
        let list = |problem| DenseError::Input { input: "list".into(), problem };
        if inputs.len() != widths.len() {
            return Err(list(format!("{} inputs were given, the model has {}", inputs.len(), widths.len())));
        }
        if request_of.len() != rows {
            return Err(list(format!("requests were given for {} of {rows} rows", request_of.len())));
        }
        if let Some(row) = request_of.iter().position(|&request| request as usize >= requests) {
            let of = request_of[row];
            return Err(list(format!("row {row} belongs to request {of}, there are {requests} requests")));
        }
        let expected = self.interface.sides.iter().zip(widths);
        for ((name, values), (&side, &width)) in self.input_names.iter().zip(inputs).zip(expected) {
            let (count, what) = if side == Side::User { (requests, "requests") } else { (rows, "rows") };
            if count.checked_mul(width) != Some(values.len()) {
                return Err(DenseError::Input {
                    input: format!("{name:?}"),
                    problem: format!("{} numbers were given for {count} {what} of {width}", values.len()),
                });
            }
        }
        Ok(())
    }

    fn evaluate(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        let rows = batch.rows;
        let failed = |problem| DenseError::Run { path: self.path.clone(), rows, problem };
        let expands = !self.interface.has_request_index();
        let mut tensors = TVec::new();
        for &fed in &self.interface.inputs {
            let tensor = match fed {
                Fed::RequestIndex => {
                    let numbers: Vec<i64> = batch.request_of.iter().map(|&r| r.into()).collect();
                    Tensor::from_shape(&[rows], &numbers)
                }
                Fed::Input(at) => {
                    let (width, values) = (self.interface.widths[at], batch.inputs[at]);
                    match self.interface.sides[at] {
                        Side::User if expands => {
                            let of = |&request: &u32| &values[request as usize * width..][..width];
                            let expanded: Vec<f32> = batch.request_of.iter().flat_map(of).copied().collect();
                            Tensor::from_shape(&[rows, width], &expanded)
                        }
                        Side::User => Tensor::from_shape(&[batch.requests, width], values),
                        Side::Candidate => Tensor::from_shape(&[rows, width], values),
                    }
                }
            };
            tensors.push(tensor.map_err(|e| failed(brief(&e)))?.into_tvalue());
        }
        let results = self.plan.run(tensors).map_err(|e| failed(brief(&e)))?;
        let column = |&at: &usize| {
            let values = results.get(at).ok_or_else(|| failed(format!("there is no output {at}")))?;
            let values = values.try_as_plain_ram().map_err(|e| failed(brief(&e)))?;
            let values = values.as_slice::<f32>().map_err(|e| failed(brief(&e)))?;
            if values.len() != rows {
                return Err(failed(format!("output {at} has {} values", values.len())));
            }
            Ok(values.to_vec())
        };
        self.interface.outputs.iter().map(column).collect()
    }
}

/// Types, simplifies and plans the graph with a batch of unknown size, and checks what comes out of it.
fn prepare(
    path: &Path,
    model: &ModelProto,
    spec: &ModelSpec,
    interface: &Interface,
) -> Result<Arc<TypedRunnableModel>, DenseError> {
    let failed = |e: TractError| DenseError::Graph { path: path.to_path_buf(), problem: brief(&e) };
    // Shapes inside the file may speak of the batch by another name, so they are inferred again.
    let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    let mut graph = onnx.model_for_proto_model(model).map_err(failed)?;
    let (rows, requests) = (graph.sym(ROWS), graph.sym(REQUESTS));
    for (at, &fed) in interface.inputs.iter().enumerate() {
        let fact = match fed {
            Fed::RequestIndex => InferenceFact::dt_shape(i64::datum_type(), [TDim::from(rows.clone())]),
            Fed::Input(input) => {
                let apart = interface.has_request_index() && interface.sides[input] == Side::User;
                let batch = if apart { &requests } else { &rows };
                let shape = [TDim::from(batch.clone()), TDim::from(interface.widths[input])];
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
    typed.into_optimized().and_then(IntoRunnable::into_runnable).map_err(failed)
}
