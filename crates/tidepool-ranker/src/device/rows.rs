//! A model on a GPU that takes its inputs as stored rows and gives back the best candidates of each request.

use std::sync::{Mutex, PoisonError};

use tidepool_client::Held;
use tidepool_dense::{CudaModel, DenseBatch, DenseError, Usage, rows::RowCounts, select::Selected};
use tidepool_types::{Composite, TableSchema};

use super::{
    around::Feed,
    owned::Owned,
    place::ResidentPlace,
    staging::{Batch, Staging},
};
use crate::batch::{RowBatch, RowLimits, RowScorer, Scorer};

/// The model, and what batches of it are staged by.
#[derive(Debug)]
pub(super) struct RowsOnDevice {
    model: Owned,
    feeds: Vec<Feed>,
    place: ResidentPlace,
    limits: RowLimits,
    /// What batches were staged by before: as many as ran at a time.
    idle: Mutex<Vec<(Staging, RowCounts)>>,
}

impl RowsOnDevice {
    pub(super) fn new(model: Owned, feeds: Vec<Feed>, place: ResidentPlace) -> Self {
        let limits = limits(&model, &place);
        Self { model, feeds, place, limits, idle: Mutex::default() }
    }

    /// Nothing panics while it is held, so a poisoned lock guards a good state.
    fn idle<T>(&self, with: impl FnOnce(&mut Vec<(Staging, RowCounts)>) -> T) -> T {
        with(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Scorer for RowsOnDevice {
    /// An error: its inputs are made on the device, and not of vectors.
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        self.model.model()?.run(batch)
    }

    fn lost(&self) -> Option<String> {
        self.model.lost()
    }

    fn usage(&self) -> Option<Usage> {
        self.model.model().ok().map(CudaModel::usage)
    }

    fn by_rows(&self) -> Option<&dyn RowScorer> {
        Some(self)
    }
}

impl RowScorer for RowsOnDevice {
    fn held(&self) -> Option<&dyn Held> {
        self.place.rows().map(|rows| &*rows.held)
    }

    fn limits(&self) -> RowLimits {
        self.limits.clone()
    }

    fn select(&self, batch: &RowBatch<'_>) -> Result<Vec<Selected>, DenseError> {
        let model = self.model.model()?;
        let (mut staging, mut counts) = self.idle(Vec::pop).unwrap_or_default();
        let rows = Batch { feeds: &self.feeds, bags: batch.bags };
        let answered = staging.plan(rows, self.place.tables().len(), &mut counts).map_err(DenseError::Rows);
        let answered = answered.and_then(|()| {
            model.answer(&batch.dense, &counts, batch.requests, |writer| {
                staging.write(rows, &counts, self.place.rows(), writer)
            })
        });
        self.idle(|idle| idle.push((staging, counts)));
        Ok(answered?.selected)
    }
}

/// What the largest bucket has room for.
fn limits(model: &Owned, place: &ResidentPlace) -> RowLimits {
    let rows_of = |table: &TableSchema| {
        let hashes = table.composite.as_ref().map_or(1, Composite::hashes);
        (table.row_bytes() * hashes) as u64
    };
    let id_bytes = place.tables().iter().map(rows_of).max().unwrap_or(0);
    let mut limits = RowLimits { rows: 1, requests: 1, ids: Vec::new(), id_bytes };
    let Ok(model) = model.model() else { return limits };
    let buckets = model.options().buckets.iter().enumerate();
    if let Some((at, bucket)) = buckets.max_by_key(|(_, bucket)| **bucket) {
        (limits.rows, limits.requests) = (bucket.rows.into(), bucket.requests as usize);
        for (input, ids) in model.room_for_ids(at) {
            limits.ids.resize(limits.ids.len().max(input + 1), u64::MAX);
            limits.ids[input] = ids.into();
        }
    }
    limits
}
