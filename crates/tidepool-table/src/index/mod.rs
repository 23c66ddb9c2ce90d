//! The index of a hashed partition: a minimal perfect hash from `mix64(id)` to the row.
//!
//! This file is the evaluation, which is part of the file format (docs/table-format.md); [`build`] finds
//! the pilots. It answers *some* row for an id that is not in the partition: the caller compares the key
//! check of that row. The answer is below the row count whatever the bytes of pilots and remap are.

mod build;
mod place;

#[cfg(test)]
pub(crate) use build::build;
pub(crate) use build::{BuiltIndex, IndexError, build_owned};
use tidepool_types::mix64;

/// Spreads a pilot over 64 bits. Part of the file format.
const PILOT_SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// The odd multiplier that turns a key xor a pilot into a slot. Part of the file format.
const SLOT_SPREAD: u64 = 0x9fb2_1c65_1e98_df25;

/// The numbers that, with pilots and remap, are an index. They stand in the footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexShape {
    /// Keys of the partition, below 2^32.
    pub(crate) rows: u32,
    /// The seed with which every part could be placed.
    pub(crate) seed: u64,
    /// Parts, each with its own range of buckets and slots; 0 when there are no rows.
    pub(crate) parts: u32,
    /// Buckets of each part: one pilot byte each.
    pub(crate) buckets_per_part: u32,
    /// Slots of each part.
    pub(crate) slots_per_part: u32,
}

/// The high 64 bits of a product: `a` scaled from 0..2^64 to 0..`n`.
#[inline]
const fn scale(a: u64, n: u64) -> u64 {
    ((a as u128 * n as u128) >> 64) as u64
}

impl IndexShape {
    /// The shape of an index over nothing.
    pub(crate) const EMPTY: Self =
        Self { rows: 0, seed: 0, parts: 0, buckets_per_part: 0, slots_per_part: 0 };

    /// How many pilot bytes there are.
    pub(crate) const fn pilots(&self) -> u64 {
        self.parts as u64 * self.buckets_per_part as u64
    }

    /// How many slots there are in all parts.
    pub(crate) const fn slots(&self) -> u64 {
        self.parts as u64 * self.slots_per_part as u64
    }

    /// How many slots lie past the last row: each has an entry in the remap.
    pub(crate) const fn remapped(&self) -> u64 {
        self.slots().saturating_sub(self.rows as u64)
    }

    /// Whether such an index can exist: parts with buckets, and a slot for every row.
    pub(crate) const fn is_sound(&self) -> bool {
        if self.rows == 0 {
            self.seed == 0 && self.parts == 0 && self.buckets_per_part == 0 && self.slots_per_part == 0
        } else {
            self.parts > 0 && self.buckets_per_part > 0 && self.slots() >= self.rows as u64
        }
    }

    /// The key spread once more, by the seed of this index. A bijection: distinct keys stay distinct.
    #[inline]
    pub(crate) const fn spread(&self, key: u64) -> u64 {
        mix64(key ^ self.seed)
    }

    /// The part of a spread key, and its bucket within the part.
    #[inline]
    const fn part_and_bucket(&self, x: u64) -> (u64, u64) {
        let product = x as u128 * self.parts as u128;
        let part = (product >> 64) as u64;
        (part, scale(product as u64, self.buckets_per_part as u64))
    }

    /// The slot of a spread key within its part, under the pilot of its bucket.
    #[inline]
    const fn slot(&self, x: u64, pilot: u8) -> u64 {
        let turned = x ^ (pilot as u64 + 1).wrapping_mul(PILOT_SPREAD);
        scale(turned.wrapping_mul(SLOT_SPREAD), self.slots_per_part as u64)
    }
}

/// An index as it lies in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Index<'a> {
    shape: IndexShape,
    pilots: &'a [u8],
    remap: &'a [u8],
}

/// A key on its way to its row: what is known before its pilot is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probe {
    x: u64,
    part: u64,
    /// Where the pilot stands.
    pub(crate) pilot_at: usize,
}

impl<'a> Index<'a> {
    /// `pilots` has [`IndexShape::pilots`] bytes and `remap` four times [`IndexShape::remapped`]; with
    /// fewer, answers are wrong but still below the row count.
    pub(crate) const fn new(shape: IndexShape, pilots: &'a [u8], remap: &'a [u8]) -> Self {
        Self { shape, pilots, remap }
    }

    /// First half of a lookup: arithmetic only.
    #[inline]
    pub(crate) fn probe(&self, key: u64) -> Probe {
        let x = self.shape.spread(key);
        let (part, bucket) = self.shape.part_and_bucket(x);
        let at = part * u64::from(self.shape.buckets_per_part) + bucket;
        Probe { x, part, pilot_at: usize::try_from(at).unwrap_or(usize::MAX) }
    }

    /// Second half: reads the pilot, and for about one key in a hundred the remap. `None` only when the
    /// index has no rows.
    #[inline]
    pub(crate) fn row(&self, probe: Probe) -> Option<u64> {
        let rows = u64::from(self.shape.rows);
        let last = rows.checked_sub(1)?;
        let pilot = self.pilots.get(probe.pilot_at).copied().unwrap_or(0);
        let slot = probe.part * u64::from(self.shape.slots_per_part) + self.shape.slot(probe.x, pilot);
        Some(if slot < rows { slot } else { self.remapped(slot - rows).min(last) })
    }

    #[cold]
    fn remapped(&self, past: u64) -> u64 {
        let at = usize::try_from(past).unwrap_or(usize::MAX).saturating_mul(4);
        let entry = self.remap.get(at..).and_then(|tail| tail.first_chunk::<4>());
        entry.map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)))
    }
}

#[cfg(test)]
mod tests;
