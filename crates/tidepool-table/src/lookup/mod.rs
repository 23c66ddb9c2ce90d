//! Lookups over a layout: packed ids to stored rows, or to one sum per bag. A node and the benches call
//! the same two functions, [`LayoutView::gather`] and [`LayoutView::pool`].
//!
//! Rows are found and asked for a stretch ahead of their use (`resolve.rs`), and sums are taken while they are
//! on their way. Nothing is allocated per id, and no lock is taken.

mod gather;
mod pool;
mod resolve;

use std::sync::Arc;

pub use gather::Gathered;
pub use pool::{Bags, Pooled, SumsRoom};
use thiserror::Error;
use tidepool_kernels::RowKernel;
use tidepool_types::{PartitionIndex, TableSchema};

use crate::partition::PartitionFile;

/// One layout of one table version, and those of its partitions that are held. Cloning it copies
/// pointers, not rows: a holder changes a copy and swaps it in.
#[derive(Debug)]
pub struct LayoutView<P = PartitionFile> {
    schema: TableSchema,
    kernel: RowKernel,
    partitions: Vec<Option<Arc<P>>>,
    /// Of the partitions that are held.
    held_bytes: u64,
}

/// What one lookup after the other works in, so that none of them has to make room first.
#[derive(Debug, Default)]
pub struct LookupScratch {
    /// Rows of the ids of a request; empty between lookups, it only keeps the room.
    rows: Vec<&'static [u8]>,
    /// Rows of a piece of a bag, as `rows`.
    piece: Vec<&'static [u8]>,
    weights: Vec<f32>,
    sum: Vec<f32>,
}

/// Rows by key: a [`PartitionFile`], or in tests whatever they like. Hashed keys are found in steps, so that
/// the cache misses of many of them overlap. Keys are those of
/// [`Keying::locate`](tidepool_types::Keying::locate).
pub trait PartitionRows: Send + Sync + 'static {
    /// What is known of a hashed key before memory is read.
    type Probe: Copy + Default;

    /// Bytes that lookups read.
    fn bytes(&self) -> u64;

    /// The row of a dense key; empty when there is none. Does not read it.
    fn row(&self, key: u64) -> &[u8];

    /// The first step to the row of a hashed key: asks the memory for what [`seek`](Self::seek) reads.
    fn probe(&self, key: u64) -> Self::Probe;

    /// The row that has the hashed key if any has it, with its key check; empty when there is none. Does
    /// not read it.
    fn seek(&self, probe: Self::Probe) -> &[u8];

    /// Whether a row that [`seek`](Self::seek) gave is that of `key`: what follows its first `row_bytes`
    /// bytes says so.
    fn is_of(row: &[u8], row_bytes: usize, key: u64) -> bool;
}

/// Which ids have no row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// One bit per id, lowest first, 1 for missing; no bytes at all while nothing is missing.
    pub bits: Vec<u8>,
    /// How many bits are set.
    pub count: u32,
}

/// An id falls into a partition that is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("partition {0} is not held")]
pub struct NotHeld(pub PartitionIndex);

impl<P> LayoutView<P> {
    /// A layout of which nothing is held yet. `kernel` is for the rows of `schema`.
    #[must_use]
    pub fn new(schema: TableSchema, kernel: RowKernel) -> Self {
        let partitions = schema.partitions.indexes().map(|_| None).collect();
        Self { schema, kernel, partitions, held_bytes: 0 }
    }

    /// What the rows are, and how they are cut.
    #[must_use]
    pub fn schema(&self) -> &TableSchema {
        &self.schema
    }

    /// What adds them up.
    #[must_use]
    pub fn kernel(&self) -> &RowKernel {
        &self.kernel
    }

    /// A partition, if it is held.
    #[inline]
    #[must_use]
    pub fn partition(&self, partition: PartitionIndex) -> Option<&Arc<P>> {
        self.partitions.get(partition.0 as usize)?.as_ref()
    }

    /// Every partition that is held, in order.
    pub fn partitions(&self) -> impl Iterator<Item = &Arc<P>> {
        self.partitions.iter().flatten()
    }
}

impl<P: PartitionRows> LayoutView<P> {
    /// Puts a partition in its place. One that the layout does not have is ignored.
    pub fn insert(&mut self, partition: PartitionIndex, rows: Arc<P>) {
        if let Some(place) = self.partitions.get_mut(partition.0 as usize) {
            let bytes = rows.bytes();
            let before = place.replace(rows).map_or(0, |before| before.bytes());
            self.held_bytes = self.held_bytes - before + bytes;
        }
    }
}

// Derived, this would ask for `P: Clone`.
impl<P> Clone for LayoutView<P> {
    fn clone(&self) -> Self {
        Self {
            schema: self.schema.clone(),
            kernel: self.kernel,
            partitions: self.partitions.clone(),
            held_bytes: self.held_bytes,
        }
    }
}

impl Missing {
    fn clear(&mut self) {
        self.bits.clear();
        self.count = 0;
    }

    /// Marks the id at `position` of `ids`.
    #[cold]
    fn mark(&mut self, position: usize, ids: usize) {
        if self.bits.is_empty() {
            self.bits.resize(ids.div_ceil(8), 0);
        }
        self.bits[position / 8] |= 1 << (position % 8);
        self.count += 1;
    }
}

/// The room of a list of rows, for rows of another life.
fn recycle<'to>(mut rows: Vec<&[u8]>) -> Vec<&'to [u8]> {
    rows.clear();
    // Nothing is left to map, and the standard library collects into the same allocation.
    rows.into_iter().map(|_| [].as_slice()).collect()
}

#[cfg(test)]
mod tests;
