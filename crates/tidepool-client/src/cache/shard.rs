//! One shard: what one lock guards. It is cut into segments, so that what has to be done to many rows at once,
//! like moving them to a new slab or looking at each, is done to few of them while others wait.

use super::segment::{Inserted, Key, Row, Segment};

/// Bytes of a segment, at least, in a shard that has more than one; at most twice as many. That is room for up to
/// 8,500 short rows. Smaller ones would know too little of which rows are wanted.
const SEGMENT_BYTES: u64 = 512 << 10;

/// A part of the rows.
#[derive(Debug)]
pub(super) struct Shard {
    segments: Vec<Segment>,
    seed: u64,
    /// Of all segments.
    bytes: u64,
    rows: u64,
}

impl Shard {
    /// A shard that takes at most `limit` bytes.
    pub(super) fn new(limit: u64, seed: u64) -> Self {
        // A power of two, so that a segment is a few bits of the hash.
        let count = 1 << (limit / SEGMENT_BYTES).max(1).ilog2();
        let segments = (0..count).map(|_| Segment::new(limit / count, seed)).collect();
        Self { segments, seed, bytes: 0, rows: 0 }
    }

    fn place(&self, key: Key) -> usize {
        key.segment(self.seed) & (self.segments.len() - 1)
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&Row> {
        self.segments[self.place(key)].get(key)
    }

    /// The same, but leaves no trace.
    #[inline]
    pub(super) fn peek(&self, key: Key) -> Option<&Row> {
        self.segments[self.place(key)].peek(key)
    }

    /// Puts a row in.
    pub(super) fn insert(&mut self, key: Key, row: Row) -> Inserted {
        let place = self.place(key);
        self.change(place, |segment| segment.insert(key, row))
    }

    /// How many segments it has.
    pub(super) const fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Lets the rows of one segment go that are not to be kept.
    pub(super) fn retain(&mut self, segment: usize, keep: impl Fn(Key) -> bool) {
        self.change(segment, |segment| segment.retain(keep));
    }

    /// The rows of one segment.
    pub(super) fn iter(&self, segment: usize) -> impl Iterator<Item = (Key, &Row)> {
        self.segments[segment].iter()
    }

    fn change<T>(&mut self, segment: usize, change: impl FnOnce(&mut Segment) -> T) -> T {
        let segment = &mut self.segments[segment];
        let (bytes, rows) = (segment.bytes(), segment.rows());
        let out = change(segment);
        // In this order: neither falls below nothing on the way.
        self.bytes = self.bytes + segment.bytes() - bytes;
        self.rows = self.rows + segment.rows() - rows;
        out
    }

    /// What its rows weigh.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) const fn rows(&self) -> u64 {
        self.rows
    }

    /// What its rows may weigh.
    pub(super) fn capacity(&self) -> u64 {
        self.segments.iter().map(Segment::capacity).sum()
    }

    /// What it takes: entries ever used, the indexes, and allocations of rows.
    #[cfg(test)]
    pub(super) fn taken(&self) -> u64 {
        self.segments.iter().map(Segment::taken).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_moved_a_few_at_a_time_however_large_the_shard() {
        let mut shard = Shard::new(64 << 20, 7);
        let (mut at_once, mut moved) = (0, 0);
        let mut insert = |id, row: &[u8]| {
            let inserted = shard.insert(Key::new(0, id), Row::new(Some(row)));
            at_once = at_once.max(inserted.moved);
            moved += inserted.moved;
        };
        // Short rows fill all entries; the long ones after them are asked for again and again, and need the room.
        (0..700_000).for_each(|id| insert(id, &[7; 20]));
        for _ in 0..8 {
            (700_000..740_000).for_each(|id| insert(id, &[7; 1000]));
        }
        assert!(moved > 100_000 && at_once < 10_000, "{moved} rows were moved, {at_once} of them at once");
        let seen: usize = (0..shard.segments()).map(|segment| shard.iter(segment).count()).sum();
        assert_eq!(shard.rows(), seen as u64);
        for segment in 0..shard.segments() {
            shard.retain(segment, |key| key.id() % 2 == 0);
        }
        let rows = (0..shard.segments()).flat_map(|segment| shard.iter(segment));
        let weights = rows.map(|(_, row)| match row.bytes().unwrap().len() {
            1000 => 92 + 24 + 1000,
            _ => 92,
        });
        let (seen, weight) = weights.fold((0, 0), |(seen, sum), weight| (seen + 1, sum + weight));
        assert_eq!((shard.rows(), shard.bytes()), (seen, weight));
    }
}
