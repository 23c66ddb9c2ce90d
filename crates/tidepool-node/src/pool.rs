//! The pool form: one sum per bag, over the members that were found, in the order of the request.

use tidepool_types::PartitionIndex;

use crate::{
    decode::{Bags, Feature},
    partitions::{FindRows, LayoutSlots},
    rows::{Finder, Missing},
};

/// Members whose rows are handed to the kernel in one call.
const BLOCK_ROWS: usize = 256;

/// Packed numbers, as they travel.
#[derive(Default)]
pub(crate) struct Pooled {
    pub(crate) sums: Vec<u8>,
    pub(crate) counts: Vec<u8>,
    /// Empty when the request has no weights.
    pub(crate) weight_sums: Vec<u8>,
}

/// The bytes of an answer's `sums`, `counts` and `weight_sums`, before any work is done.
pub(crate) const fn answer_bytes(bags: usize, dim: u32, weighted: bool) -> u64 {
    let numbers_per_bag = dim as u64 + 1 + weighted as u64;
    (bags as u64).saturating_mul(numbers_per_bag * size_of::<f32>() as u64)
}

/// The sums of a feature's bags.
///
/// # Errors
/// The first partition that is needed and not held.
pub(crate) fn pool<'a, P: FindRows>(
    layout: &'a LayoutSlots<P>,
    feature: &Feature,
    bags: &Bags,
    finder: &mut Finder<'a>,
) -> Result<(Pooled, Missing), PartitionIndex> {
    let ids = feature.id_count();
    let mut rows = Vec::with_capacity(ids);
    let mut missing = Missing::default();
    finder.find(layout, feature.ids(), |position, row| {
        if row.is_none() {
            missing.mark(position, ids);
        }
        rows.push(row);
    })?;
    let pooled = match bags.weights() {
        None => sum(layout, bags, &rows),
        Some(weights) => weighted_sum(layout, bags, weights, &rows),
    };
    Ok((pooled, missing))
}

impl Pooled {
    fn with_room(bags: usize, dim: usize, weighted: bool) -> Self {
        let number = size_of::<f32>();
        Self {
            sums: Vec::with_capacity(bags * dim * number),
            counts: Vec::with_capacity(bags * number),
            weight_sums: Vec::with_capacity(if weighted { bags * number } else { 0 }),
        }
    }

    fn push(&mut self, sum: &[f32], count: u32) {
        self.sums.extend(sum.iter().flat_map(|v| v.to_le_bytes()));
        self.counts.extend(count.to_le_bytes());
    }
}

fn sum<P>(layout: &LayoutSlots<P>, bags: &Bags, rows: &[Option<&[u8]>]) -> Pooled {
    let kernel = &layout.kernel;
    let mut acc = vec![0.0; kernel.dim() as usize];
    let mut pooled = Pooled::with_room(bags.bag_count(), acc.len(), false);
    let mut block = Vec::with_capacity(BLOCK_ROWS);
    let mut members = bags.members();
    for length in bags.lengths() {
        acc.fill(0.0);
        let mut count = 0;
        for row in members.by_ref().take(length as usize).filter_map(|m| rows[m as usize]) {
            if block.len() == BLOCK_ROWS {
                kernel.accumulate(&block, &mut acc);
                block.clear();
            }
            block.push(row);
            count += 1;
        }
        kernel.accumulate(&block, &mut acc);
        block.clear();
        pooled.push(&acc, count);
    }
    pooled
}

fn weighted_sum<P>(
    layout: &LayoutSlots<P>,
    bags: &Bags,
    weights: impl Iterator<Item = f32>,
    rows: &[Option<&[u8]>],
) -> Pooled {
    let kernel = &layout.kernel;
    let mut acc = vec![0.0; kernel.dim() as usize];
    let mut pooled = Pooled::with_room(bags.bag_count(), acc.len(), true);
    let mut block = Vec::with_capacity(BLOCK_ROWS);
    let mut block_weights = Vec::with_capacity(BLOCK_ROWS);
    let mut members = bags.members().zip(weights);
    for length in bags.lengths() {
        acc.fill(0.0);
        let (mut count, mut weight_sum) = (0, 0.0f32);
        for (member, weight) in members.by_ref().take(length as usize) {
            let Some(row) = rows[member as usize] else { continue };
            if block.len() == BLOCK_ROWS {
                kernel.accumulate_weighted(&block, &block_weights, &mut acc);
                block.clear();
                block_weights.clear();
            }
            block.push(row);
            block_weights.push(weight);
            count += 1;
            weight_sum += weight;
        }
        kernel.accumulate_weighted(&block, &block_weights, &mut acc);
        block.clear();
        block_weights.clear();
        pooled.push(&acc, count);
        pooled.weight_sums.extend(weight_sum.to_le_bytes());
    }
    pooled
}
