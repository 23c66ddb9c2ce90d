//! The oracle of rankings: what the bench's own model makes of the bench's own rows, in f64. It decodes stored rows by
//! itself, reads the graph by itself and runs it by itself: it calls neither tidepool-kernels nor tidepool-dense nor a
//! table. How far an answer in f32 may be off is derived from the graph (`evaluate.rs`).

mod evaluate;
mod onnx;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;
use tidepool_ranker::InputRows;
use tidepool_types::{InputSource, ModelSpec, Pooling, RowFormat, Side};

use self::{
    evaluate::Bounded,
    onnx::{Graph, Tensor},
};
use super::{
    RankModel,
    tables::{FORMAT, RankTable, VERSION},
};
use crate::{BenchError, oracle::decode, rows::stored_row};

/// Candidates of an answer that are computed again: each costs some milliseconds.
const CANDIDATES: usize = 2;
/// What f32 rounds by, as a share.
const UNIT: f64 = 1.0 / 16_777_216.0;

/// What the oracle has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct OracleFound {
    /// Scores that it has computed again.
    pub checked_scores: u64,
    /// Those that were off by more than they may be.
    pub wrong_scores: u64,
    /// The largest distance between a score and the oracle's.
    pub largest_error: f64,
    /// The largest distance that a score was allowed.
    pub largest_bound: f64,
}

/// Knows what every answer must be.
#[derive(Debug)]
pub(super) struct Truth {
    graph: Graph,
    spec: ModelSpec,
    tables: Vec<RankTable>,
    found: OracleFound,
}

impl Truth {
    pub(super) fn new(model: &RankModel, tables: &[RankTable]) -> Result<Self, BenchError> {
        let graph = onnx::read(&model.onnx).map_err(|problem| BenchError::Table(problem.to_owned()))?;
        Ok(Self { graph, spec: model.spec.clone(), tables: tables.to_vec(), found: OracleFound::default() })
    }

    pub(super) const fn found(&self) -> OracleFound {
        self.found
    }

    /// Whether the first outputs of some candidates of request `number`, of these `rows`, are what they must be. Which
    /// candidates, changes from request to request.
    ///
    /// # Errors
    /// [`BenchError::Table`]: a model that the oracle cannot run.
    pub(super) fn is_right(
        &mut self,
        number: u64,
        rows: &[InputRows],
        scores: &[f32],
    ) -> Result<bool, BenchError> {
        let (mut right, count) = (!scores.is_empty(), scores.len());
        for at in 0..CANDIDATES.min(count) {
            let candidate = (number as usize).wrapping_mul(31).wrapping_add(at * (count / 2 + 1)) % count;
            let Bounded { value, bound } = self.score(candidate, rows).map_err(BenchError::Table)?;
            let error = (f64::from(scores[candidate]) - value).abs();
            // Written so that NaN is wrong.
            let within = error <= bound;
            self.found.checked_scores += 1;
            self.found.wrong_scores += u64::from(!within);
            self.found.largest_error = self.found.largest_error.max(error);
            self.found.largest_bound = self.found.largest_bound.max(bound);
            right &= within;
        }
        Ok(right)
    }

    /// The first output of a candidate.
    fn score(&self, candidate: usize, rows: &[InputRows]) -> Result<Bounded, String> {
        let mut given = BTreeMap::new();
        for (input, rows) in self.spec.inputs.iter().zip(rows) {
            let row = if input.side == Side::User { 0 } else { candidate };
            let (values, rounding) = match (rows, &input.source) {
                (InputRows::Numbers(values), InputSource::Dense { width }) => {
                    let width = *width as usize;
                    let of_row =
                        values.get(row * width..(row + 1) * width).ok_or("numbers that are missing")?;
                    (of_row.iter().map(|value| f64::from(*value)).collect(), vec![0.0; width])
                }
                (InputRows::Bags { ids, lengths, .. }, InputSource::Pooled { pooling, .. }) => {
                    let table = RankTable::find(&self.tables, &self.spec, &input.name);
                    let table = table.ok_or("an input without a table")?;
                    let length = |at: usize| lengths.as_ref().map_or(1, |lengths| lengths[at] as usize);
                    let begin: usize = (0..row).map(length).sum();
                    let bag = ids.get(begin..begin + length(row)).ok_or("ids that are missing")?;
                    pooled(bag, table.dim, *pooling)
                }
                _ => return Err("an input that the oracle does not know".into()),
            };
            let shape = vec![1, values.len()];
            given.insert(input.name.clone(), (Tensor { shape, values }, rounding));
        }
        evaluate::run(&self.graph, &given, &self.spec.outputs[0].name)
    }
}

/// The pooled rows of a bag, and how far f32 may be off: a row is decoded with one rounding or two, then added.
fn pooled(bag: &[u64], dim: u32, pooling: Pooling) -> (Vec<f64>, Vec<f64>) {
    let dim_here = dim as usize;
    let (mut sums, mut sizes) = (vec![0.0; dim_here], vec![0.0; dim_here]);
    let (mut row, mut values) = (vec![0; FORMAT.row_bytes(dim)], vec![0.0; dim_here]);
    for id in bag {
        stored_row(FORMAT, *id, VERSION, &mut row);
        decode(FORMAT, &row, &mut values);
        for ((sum, size), value) in sums.iter_mut().zip(&mut sizes).zip(&values) {
            *sum += value;
            // A code times its scale may be larger than what is left of it beside the bias, which is below one.
            *size += value.abs() + 2.0;
        }
    }
    let count = bag.len().max(1) as f64;
    let share = if pooling == Pooling::Mean { 1.0 / count } else { 1.0 };
    sums.iter_mut().for_each(|sum| *sum *= share);
    let rounding = sizes.iter().map(|size| (count + 3.0).sqrt() * UNIT * size * share);
    (sums, rounding.collect())
}

/// Rows are stored so, and nothing else is known of them here.
const _: () = assert!(matches!(FORMAT, RowFormat::Int4));
