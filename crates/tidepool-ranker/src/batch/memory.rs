//! The memory of a model: what its batches take at most, what dense runs work in, and what its releases have taken of
//! `max_memory_bytes`.

use std::sync::{Arc, PoisonError};

use tidepool_dense::DenseModel;

use super::{BatchModel, Batcher, Inner};

/// What an id of a batch takes beside its stored rows: itself, its weight and its place in the feature, itself and the place of its
/// row among the unique ones, and where that is staged.
const BESIDE_ID: u64 = 8 + 4 + 4 + 8 + 12 + 5;

impl Batcher {
    /// Bytes that the inputs of the batches of `model` take here at most, all that may be under way together: numbers, and
    /// vectors or the stored rows in their place.
    #[must_use]
    pub fn batch_bytes(&self, model: &BatchModel) -> u64 {
        let limits = self.inner.limits_of(model);
        let (user, candidate) = model.elements();
        let requests = user.saturating_mul(limits.requests as u64);
        let elements = candidate.saturating_add(user).saturating_mul(limits.rows).saturating_add(requests);
        let rows = model.scorer.by_rows().map_or(0, |scorer| {
            // A piece that is more than `max_ids` goes alone, so what bounds ids is the room for them, where it is known.
            let looked_up = model.inputs.iter().enumerate().filter(|(_, input)| input.looked_up().is_some());
            let room = looked_up.map(|(at, _)| limits.room.get(at).copied().unwrap_or(limits.ids));
            let ids = room.fold(0, u64::saturating_add);
            ids.saturating_mul(scorer.limits().id_bytes.saturating_add(BESIDE_ID))
        });
        let bytes = elements.saturating_mul(4).saturating_add(rows);
        bytes.saturating_mul(self.inner.options.max_concurrent_batches as u64)
    }

    /// Bytes that the dense runs of `dense`, a release whose batches are those of `model`, work in at most: as many at a
    /// time as there are threads, and no more than batches.
    #[must_use]
    pub fn arena_bytes(&self, model: &BatchModel, dense: &DenseModel) -> u64 {
        let limits = self.inner.limits_of(model);
        let rows = usize::try_from(limits.rows).unwrap_or(usize::MAX);
        dense.arena_bytes(rows, limits.requests).saturating_mul(self.inner.options.runs() as u64)
    }

    /// Takes `bytes` of what the releases of the model may have in memory, besides what its batches may.
    ///
    /// # Errors
    /// Gives the bytes that other releases have, and the limit.
    pub fn reserve(&self, bytes: u64, batch_bytes: u64) -> Result<Reserved, (u64, u64)> {
        let mut loaded = self.inner.loaded_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.inner.limits.max_memory_bytes.unwrap_or(u64::MAX);
        if loaded.saturating_add(bytes).saturating_add(batch_bytes) > limit {
            return Err((*loaded, limit));
        }
        *loaded += bytes;
        drop(loaded);
        Ok(Reserved { inner: self.inner.clone(), bytes })
    }
}

/// Memory of a release; given back when it is dropped.
#[derive(Debug)]
pub struct Reserved {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut loaded = self.inner.loaded_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *loaded = loaded.saturating_sub(self.bytes);
    }
}
