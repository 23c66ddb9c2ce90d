//! From packed ids to rows, a few blocks ahead of whoever reads them.
//!
//! Block `b` is located and its pilots are asked for; the rows of block `b - 1` are asked for; and block
//! `b - 2`, whose rows have arrived by now, is checked against its keys. Dense ids need no pilot and no
//! check: their rows are asked for at once, and stand ready a stretch ahead of their use.

use tidepool_types::Keying;

use super::{LayoutView, Missing, NotHeld, PartitionRows};

/// Ids that go through one step together: enough to fill the queue of outstanding misses, few enough that
/// what was asked for is still in the first cache when it is read.
const BLOCK_IDS: usize = 16;

/// How far dense rows are asked for ahead of their use.
const DENSE_AHEAD_IDS: usize = 32;

/// An id on its way.
struct Pending<'a, P: PartitionRows> {
    /// `None` only in places that no id has reached.
    partition: Option<&'a P>,
    key: u64,
    probe: P::Probe,
}

impl<P: PartitionRows> Clone for Pending<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: PartitionRows> Copy for Pending<'_, P> {}

/// Finds the rows of `ids`, in order, when they are asked for.
pub(super) struct Resolver<'a, 'q, P: PartitionRows> {
    layout: &'a LayoutView<P>,
    ids: &'q [[u8; 8]],
    /// Rows of the first ids, as many as there are; empty where missing.
    pub(super) rows: Vec<&'a [u8]>,
    pub(super) missing: &'q mut Missing,
    /// Ids before this may be read: their rows are here, or were asked for long enough ago.
    pub(super) ready: usize,
    /// Ids located, ids whose rows were asked for.
    located: usize,
    sought: usize,
    /// The blocks between `rows.len()` and `sought`, and between `sought` and `located`.
    candidates: [(Option<&'a P>, u64, &'a [u8]); BLOCK_IDS],
    probes: [Pending<'a, P>; BLOCK_IDS],
}

impl<'a, 'q, P: PartitionRows> Resolver<'a, 'q, P> {
    /// `rows` is room to work in, and empty.
    pub(super) fn new(
        layout: &'a LayoutView<P>,
        ids: &'q [[u8; 8]],
        mut rows: Vec<&'a [u8]>,
        missing: &'q mut Missing,
    ) -> Self {
        missing.clear();
        rows.reserve(ids.len());
        let none = Pending { partition: None, key: 0, probe: P::Probe::default() };
        Self {
            layout,
            ids,
            rows,
            missing,
            ready: 0,
            located: 0,
            sought: 0,
            candidates: [(None, 0, &[]); BLOCK_IDS],
            probes: [none; BLOCK_IDS],
        }
    }

    /// Finds rows until `position` is ready, or all of them.
    ///
    /// # Errors
    /// [`NotHeld`] for the first id whose partition is not.
    pub(super) fn advance_to(&mut self, position: usize) -> Result<(), NotHeld> {
        while self.ready <= position && self.ready < self.ids.len() {
            match self.layout.schema.keying {
                Keying::Dense => self.step_dense()?,
                Keying::Hashed => self.step_hashed()?,
            }
        }
        Ok(())
    }

    #[inline]
    fn locate(layout: &'a LayoutView<P>, id: [u8; 8]) -> Result<(&'a P, u64), NotHeld> {
        let schema = &layout.schema;
        let at = schema.keying.locate(u64::from_le_bytes(id), schema.partitions);
        let partition = layout.partition(at.partition).ok_or(NotHeld(at.partition))?;
        Ok((partition, at.key))
    }

    /// Asks for the rows of the next block.
    fn step_dense(&mut self) -> Result<(), NotHeld> {
        let from = self.rows.len();
        let to = (from + BLOCK_IDS).min(self.ids.len());
        for &id in &self.ids[from..to] {
            let (partition, key) = Self::locate(self.layout, id)?;
            let row = partition.confirm(partition.seek(partition.probe(key)), key);
            self.push(row);
        }
        self.ready = if to == self.ids.len() { to } else { to.saturating_sub(DENSE_AHEAD_IDS) };
        Ok(())
    }

    /// Moves every block one step on.
    fn step_hashed(&mut self) -> Result<(), NotHeld> {
        // Rows of the block before the last have arrived.
        for at in 0..self.sought - self.rows.len() {
            let (partition, key, candidate) = self.candidates[at];
            let row = partition.map_or(&[][..], |p| p.confirm(candidate, key));
            self.push(row);
        }
        // So have pilots of the last block.
        let block = self.located - self.sought;
        for (candidate, pending) in self.candidates.iter_mut().zip(&self.probes[..block]) {
            let row = pending.partition.map_or(&[][..], |p| p.seek(pending.probe));
            *candidate = (pending.partition, pending.key, row);
        }
        self.sought = self.located;
        let to = (self.located + BLOCK_IDS).min(self.ids.len());
        for (pending, &id) in self.probes.iter_mut().zip(&self.ids[self.located..to]) {
            let (partition, key) = Self::locate(self.layout, id)?;
            *pending = Pending { partition: Some(partition), key, probe: partition.probe(key) };
        }
        self.located = to;
        self.ready = self.rows.len();
        Ok(())
    }

    #[inline]
    fn push(&mut self, row: &'a [u8]) {
        if row.is_empty() {
            self.missing.mark(self.rows.len(), self.ids.len());
        }
        self.rows.push(row);
    }
}
