//! Builds an index: bucketed 8-bit pilots with eviction, part by part. The method is that of PtrHash
//! (Groot Koerkamp, 2025), written for one purpose; docs/decisions/0001 says why it is our own.

use std::num::NonZeroUsize;

use thiserror::Error;
use tidepool_types::{mix64, unmix64};

use super::{
    Index, IndexShape,
    place::{Taken, place},
};

/// Keys of a part, about: its slots then fit a core's cache while it is being placed.
const KEYS_PER_PART: u64 = 1 << 18;
/// Keys per bucket in tenths. One pilot byte for 3.5 keys is 2.29 bits per key.
const KEYS_PER_BUCKET_TENTHS: u64 = 35;
/// Of a thousand slots in the fullest part, so many are taken. What is left costs four bytes of remap each.
const LOAD_PER_MILLE: u64 = 985;
/// How many seeds are tried. One nearly always does; a set of keys that fails with all of them is refused.
const SEEDS: u64 = 32;

/// An index as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BuiltIndex {
    pub(crate) shape: IndexShape,
    /// One byte per bucket.
    pub(crate) pilots: Vec<u8>,
    /// The row of each slot past the last row.
    pub(crate) remap: Vec<u32>,
}

/// Why there is no index over these keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum IndexError {
    /// More keys than rows can be counted.
    #[error("{0} rows in one partition: more than 4,294,967,295; choose more partitions")]
    TooMany(u64),
    /// Two keys are the same.
    #[error("a key stands twice")]
    Duplicate,
    /// Bounded work was not enough.
    #[error("no perfect hash found with {SEEDS} seeds")]
    Unplaceable,
}

impl BuiltIndex {
    fn empty() -> Self {
        Self { shape: IndexShape::EMPTY, pilots: Vec::new(), remap: Vec::new() }
    }

    /// The remap as it lies in the file.
    pub(crate) fn remap_bytes(&self) -> Vec<u8> {
        self.remap.iter().flat_map(|row| row.to_le_bytes()).collect()
    }
}

/// Builds the index over distinct `keys` (in any order: the result depends on the set and `seed` alone)
/// with at most `threads` threads, whose number does not change the result either. The keys are worked on
/// in place: with them it needs `8 + 0.6` bytes a key.
///
/// # Errors
/// [`IndexError`].
pub(crate) fn build_owned(
    mut keys: Vec<u64>,
    seed: u64,
    threads: NonZeroUsize,
) -> Result<BuiltIndex, IndexError> {
    let rows = u32::try_from(keys.len()).map_err(|_| IndexError::TooMany(keys.len() as u64))?;
    if rows == 0 {
        return Ok(BuiltIndex::empty());
    }
    for attempt in 0..SEEDS {
        let seed = nth_seed(seed, attempt);
        let shape = IndexShape { rows, seed, ..IndexShape::EMPTY };
        keys.iter_mut().for_each(|key| *key = shape.spread(*key));
        // In ascending order the keys of a part lie together, and within it those of a bucket.
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(IndexError::Duplicate);
        }
        if let Some(built) = try_seed(&keys, rows, seed, threads) {
            return Ok(built);
        }
        keys.iter_mut().for_each(|x| *x = unmix64(*x) ^ seed);
    }
    Err(IndexError::Unplaceable)
}

/// As [`build_owned`], of keys that are still needed.
#[cfg(test)]
pub(crate) fn build(keys: &[u64], seed: u64, threads: NonZeroUsize) -> Result<BuiltIndex, IndexError> {
    build_owned(keys.to_vec(), seed, threads)
}

/// The seed of each attempt.
const fn nth_seed(seed: u64, attempt: u64) -> u64 {
    mix64(seed.wrapping_add((attempt + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// `spread` are the spread keys in ascending order.
fn try_seed(spread: &[u64], rows: u32, seed: u64, threads: NonZeroUsize) -> Option<BuiltIndex> {
    let parts = u64::from(rows).div_ceil(KEYS_PER_PART) as u32;
    let mut shape = IndexShape { rows, seed, parts, buckets_per_part: 1, slots_per_part: 1 };
    let mut part_keys: Vec<&[u64]> = Vec::with_capacity(parts as usize);
    let mut rest = spread;
    for part in 0..u64::from(parts) {
        let (these, later) = rest.split_at(rest.partition_point(|&x| shape.part_and_bucket(x).0 == part));
        part_keys.push(these);
        rest = later;
    }
    let fullest = part_keys.iter().map(|keys| keys.len()).max()? as u64;
    shape.slots_per_part = u32::try_from((fullest * 1000).div_ceil(LOAD_PER_MILLE)).ok()?;
    let average = u64::from(rows).div_ceil(u64::from(parts));
    shape.buckets_per_part = (average * 10).div_ceil(KEYS_PER_BUCKET_TENTHS) as u32;

    let mut pilots = vec![0u8; usize::try_from(shape.pilots()).ok()?];
    let taken = place_all(shape, &part_keys, &mut pilots, threads)?;
    let remap = remap(shape, &taken);
    Some(BuiltIndex { shape, pilots, remap })
}

/// Places every part, on `threads` threads, each with a run of consecutive parts.
fn place_all(
    shape: IndexShape,
    part_keys: &[&[u64]],
    pilots: &mut [u8],
    threads: NonZeroUsize,
) -> Option<Vec<Taken>> {
    let run = part_keys.len().div_ceil(threads.get()).max(1);
    let buckets = shape.buckets_per_part as usize;
    let one_run = |keys: &[&[u64]], pilots: &mut [u8]| -> Option<Vec<Taken>> {
        keys.iter().zip(pilots.chunks_mut(buckets)).map(|(keys, pilots)| place(shape, keys, pilots)).collect()
    };
    if run >= part_keys.len() {
        return one_run(part_keys, pilots);
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = part_keys
            .chunks(run)
            .zip(pilots.chunks_mut(run * buckets))
            .map(|(keys, pilots)| scope.spawn(move || one_run(keys, pilots)))
            .collect();
        let mut all = Vec::with_capacity(part_keys.len());
        for worker in workers {
            // A panic in placing is a defect of ours: it goes on as one, not as "no index".
            let taken = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.extend(taken?);
        }
        Some(all)
    })
}

/// Sends each taken slot past the last row to a free slot below it; there are as many of one as of the other.
fn remap(shape: IndexShape, taken: &[Taken]) -> Vec<u32> {
    let slots = shape.slots_per_part as usize;
    let rows = shape.rows as usize;
    let mut flags = taken.iter().flat_map(|part| (0..slots).map(|slot| part.has(slot)));
    let free: Vec<u32> =
        (0..rows).zip(&mut flags).filter(|(_, taken)| !taken).map(|(row, _)| row as u32).collect();
    let mut free = free.into_iter();
    // A slot that nobody holds is reached by absent keys only: row 0 then says that it is not theirs.
    flags.map(|taken| if taken { free.next().unwrap_or(0) } else { 0 }).collect()
}

impl BuiltIndex {
    /// The index for evaluation; `remap` is [`Self::remap_bytes`].
    pub(crate) fn view<'a>(&'a self, remap: &'a [u8]) -> Index<'a> {
        Index::new(self.shape, &self.pilots, remap)
    }
}
