//! Scores without a cluster: what a release would answer, computed by the batcher and the arithmetic of the ranker, from
//! whatever vectors somebody brings. `tidepool release skew` gives a release the tables of another one.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;
use tidepool_dense::DenseModel;
use tidepool_runtime::pool::CpuPool;
use tidepool_types::{ModelSpec, Name, TableVersion};

use crate::{
    RankError,
    batch::{BatchMetrics, BatchModel, BatchOptions, Batcher, Batchers, Job, Results, VectorSource},
    finish::{Finishing, Graph},
    loaded::batch_inputs,
    request::InputRows,
};

/// Nobody waits for an answer: whoever takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Rows of a batch.
const MAX_ROWS: u64 = 2048;

/// A release cannot be run with these tables.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// An input takes vectors from a table that is not among them.
    #[error("input {input:?} takes vectors from table {table}, and there is none of it")]
    NoTable {
        /// Of the contract.
        input: String,
        /// The table.
        table: Name,
    },
    /// Counters could not be made.
    #[error("counting batches")]
    Metrics(#[from] prometheus::Error),
}

/// A request that fits a contract.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(crate) rows: Vec<InputRows>,
    pub(crate) finishing: Finishing,
    /// How many candidates it has.
    pub candidates: u32,
    pub(crate) request_id: String,
}

/// What the candidates of a request got, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// Each output, calibrated, in the contract's order.
    pub outputs: Vec<Vec<f32>>,
    /// What candidates are ranked by.
    pub scores: Vec<f32>,
}

/// A dense model with tables, its own or others.
#[derive(Debug)]
pub struct OfflineModel {
    spec: Arc<ModelSpec>,
    release: Name,
    model: Arc<BatchModel>,
    batcher: Batcher,
}

impl OfflineModel {
    /// A release's dense model, which takes its vectors from these versions of its tables, out of `source`.
    ///
    /// # Errors
    /// [`OfflineError::NoTable`].
    pub fn new(
        (spec, release): (&Arc<ModelSpec>, &Name),
        dense: Arc<DenseModel>,
        tables: &[TableVersion],
        source: Arc<dyn VectorSource>,
        (pool, threads): (&CpuPool, usize),
    ) -> Result<Self, OfflineError> {
        let table_of = spec.inputs.iter().map(|input| {
            let Some(table) = input.source.table() else { return Ok(None) };
            let version = tables.iter().find(|version| version.table == *table);
            let none = || OfflineError::NoTable { input: input.name.clone(), table: table.clone() };
            version.cloned().map(Some).ok_or_else(none)
        });
        let table_of = table_of.collect::<Result<Vec<_>, _>>()?;
        let model = Arc::new(BatchModel {
            model: spec.model.clone(),
            release: release.clone(),
            inputs: batch_inputs(spec, &table_of, dense.widths()),
            scorer: dense,
        });
        let places = threads.max(1) * 2;
        let options = BatchOptions {
            max_rows: MAX_ROWS,
            max_requests: 64,
            max_ids: u32::MAX.into(),
            places,
            max_delay: Duration::ZERO,
            max_concurrent_batches: places,
            // Whoever asks bounds what waits.
            max_waiting_rows: u64::MAX,
            max_waiting_requests: usize::MAX,
            max_waiting_bytes: u64::MAX,
            exact: true,
        };
        let batchers = Batchers::new(options, BTreeMap::new(), pool.clone(), source, BatchMetrics::new()?);
        let batcher = batchers.of(&spec.model);
        Ok(Self { spec: spec.clone(), release: release.clone(), model, batcher })
    }

    /// What it gives the candidates of a request that was held against its contract.
    ///
    /// # Errors
    /// [`RankError`]; [`RankError::NotFinite`] when a score or an output is NaN or infinite.
    pub async fn score(&self, request: &Prepared) -> Result<Scored, RankError> {
        let rows = request.candidates as usize;
        if rows == 0 {
            return Ok(Scored { outputs: vec![Vec::new(); self.spec.outputs.len()], scores: Vec::new() });
        }
        let job = Job {
            model: self.model.clone(),
            rows: request.candidates,
            inputs: request.rows.clone(),
            // Candidates are to get all that the model says of them, not the best of it.
            finishing: Arc::default(),
            tenant: None,
            deadline: Instant::now() + PATIENCE,
            budget: PATIENCE,
            request_id: request.request_id.clone(),
            traceparent: None,
            background: false,
            noted: false,
        };
        let (spec, release, finishing) = (self.spec.clone(), self.release.clone(), request.finishing.clone());
        let ticket =
            self.batcher.submit(job, move |results| finish((&spec, &release), rows, results, &finishing))?;
        ticket.wait().await
    }
}

fn finish(
    of: (&ModelSpec, &Name),
    rows: usize,
    results: Results,
    finishing: &Finishing,
) -> Result<Scored, RankError> {
    let raw = match results {
        Results::Outputs(outputs) => outputs,
        // A model on the CPU gives its outputs whole, and nothing is selected of them.
        Results::Selected(parts) => {
            return Err(RankError::Selection { what: "parts", found: parts.len(), expected: 0 });
        }
    };
    let graph = Graph { of, rows, raw: &raw, finishing };
    let outputs = (0..of.0.outputs.len()).map(|at| graph.output(at)).collect::<Result<_, _>>()?;
    Ok(Scored { outputs, scores: graph.scores()? })
}
