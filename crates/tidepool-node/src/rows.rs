//! From ids to stored rows: ids are located, sorted by partition block by block, and each partition is
//! asked for all of its keys at once, so that it can run ahead of itself in memory.

use tidepool_types::{Location, PartitionIndex};

use crate::partitions::{FindRows, LayoutSlots};

/// Ids that are located and sorted together. Large enough that a partition gets a list to prefetch from,
/// small enough that the lists stay in the cache.
const BLOCK_IDS: usize = 4096;

/// Room that one request works in, used again for each block and each feature.
#[derive(Default)]
pub(crate) struct Finder<'a> {
    located: Vec<Location>,
    /// Where the keys of each partition start in `keys`; one more than there are partitions.
    starts: Vec<u32>,
    keys: Vec<u64>,
    /// The place in the block of each of `keys`.
    places: Vec<u32>,
    found: Vec<Option<&'a [u8]>>,
    block: Vec<Option<&'a [u8]>>,
}

impl<'a> Finder<'a> {
    /// Hands the row of every id to `take`, in the order of `ids`: its position, and its row or `None`.
    ///
    /// # Errors
    /// The first partition that an id falls into and that is not held.
    pub(crate) fn find<P: FindRows>(
        &mut self,
        layout: &'a LayoutSlots<P>,
        mut ids: impl Iterator<Item = u64>,
        mut take: impl FnMut(usize, Option<&'a [u8]>),
    ) -> Result<(), PartitionIndex> {
        let schema = &layout.schema;
        // A block has at least as many ids as there are partitions, or counting would cost more than finding.
        let block_ids = BLOCK_IDS.max(schema.partitions.get() as usize);
        let mut position = 0;
        loop {
            self.located.clear();
            let locate = |id| schema.keying.locate(id, schema.partitions);
            self.located.extend(ids.by_ref().take(block_ids).map(locate));
            if self.located.is_empty() {
                return Ok(());
            }
            self.find_block(layout)?;
            for row in self.block.drain(..) {
                take(position, row);
                position += 1;
            }
        }
    }

    /// Fills `block` with the rows of `located`.
    fn find_block<P: FindRows>(&mut self, layout: &'a LayoutSlots<P>) -> Result<(), PartitionIndex> {
        self.sort_by_partition(layout.schema.partitions.get() as usize);
        self.block.clear();
        self.block.resize(self.located.len(), None);
        for (partition, bounds) in (0u32..).zip(self.starts.windows(2)) {
            let (from, to) = (bounds[0] as usize, bounds[1] as usize);
            if from == to {
                continue;
            }
            let partition = PartitionIndex(partition);
            let file = layout.partition(partition).ok_or(partition)?;
            self.found.clear();
            file.find_many(&self.keys[from..to], &mut self.found);
            for (&place, row) in self.places[from..to].iter().zip(&self.found) {
                self.block[place as usize] = *row;
            }
        }
        Ok(())
    }

    /// A counting sort of `located`, into `starts`, `keys` and `places`.
    #[expect(clippy::cast_possible_truncation, reason = "a block is at most 65,536 ids long")]
    fn sort_by_partition(&mut self, partitions: usize) {
        self.starts.clear();
        self.starts.resize(partitions + 1, 0);
        for at in &self.located {
            self.starts[at.partition.0 as usize] += 1;
        }
        let mut end = 0;
        for start in &mut self.starts {
            end += *start;
            *start = end;
        }
        self.keys.resize(self.located.len(), 0);
        self.places.resize(self.located.len(), 0);
        // Backwards: every partition's end moves down to its start, and its ids keep their order.
        for (place, at) in self.located.iter().enumerate().rev() {
            let slot = &mut self.starts[at.partition.0 as usize];
            *slot -= 1;
            self.keys[*slot as usize] = at.key;
            self.places[*slot as usize] = place as u32;
        }
    }
}

/// One bit per id, lowest first, 1 for missing; no bytes at all while nothing is missing.
#[derive(Default)]
pub(crate) struct Missing {
    bits: Vec<u8>,
    count: u32,
}

impl Missing {
    /// Marks the id at `position` of `ids`.
    pub(crate) fn mark(&mut self, position: usize, ids: usize) {
        if self.bits.is_empty() {
            self.bits.resize(ids.div_ceil(8), 0);
        }
        self.bits[position / 8] |= 1 << (position % 8);
        self.count += 1;
    }

    /// The bitmap and how many bits are set.
    pub(crate) fn finish(self) -> (Vec<u8>, u32) {
        (self.bits, self.count)
    }
}
