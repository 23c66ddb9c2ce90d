//! One segment of a shard: rows in `quick_cache`, and what they weigh.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::atomic::{AtomicU32, Ordering},
};

use quick_cache::{Lifecycle, Weighter, unsync::Cache};
use tidepool_types::mix64;

/// Rows up to this length lie in their entry; longer ones in an allocation of their own. INT4 up to dimension
/// 64 fits, and a longer array would cost every shorter row its length.
const INLINE_BYTES: usize = 38;

/// What an entry takes, whatever its row: 80 bytes in the cache's slab, and in its index 5 bytes for each of up
/// to 2.3 buckets.
const ENTRY_BYTES: u64 = 92;

/// What an allocation takes beside its bytes, at most.
const ALLOCATION_BYTES: u64 = 24;

/// One part in so many of a segment is for ghosts, the memory of ids that were evicted; each takes an entry.
const GHOST_PART: u64 = 4;

/// A part of the rows of a shard.
#[derive(Debug)]
pub(super) struct Segment {
    cache: Rows,
    /// What it may take in all.
    limit: u64,
    seed: u64,
}

type Rows = Cache<Key, Row, ByBytes, Spread, CountEvictions>;

/// What a row is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(4))]
pub(super) struct Key {
    id: u64,
    table: u32,
}

/// A row, or that there is none.
#[derive(Debug)]
pub(super) struct Row {
    /// How often it was asked for. Threads may lose each other's counts: it is for ranking only.
    uses: AtomicU32,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Missing,
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Boxed(Box<[u8]>),
}

#[derive(Clone, Debug)]
struct ByBytes;

/// Keys are spread by a secret of the process, so that nobody who chooses ids can make them collide.
#[derive(Clone, Copy, Debug)]
struct Spread(u64);

#[derive(Clone, Debug)]
struct CountEvictions;

/// What came of putting a row in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Inserted {
    /// Rows that had to go; a row too large for its segment goes itself.
    pub(super) evicted: u64,
    /// Rows that were moved to a new slab.
    pub(super) moved: u64,
}

impl Segment {
    /// A segment that takes at most `limit` bytes.
    pub(super) fn new(limit: u64, seed: u64) -> Self {
        Self { cache: empty(limit, seed), limit, seed }
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&Row> {
        let row = self.cache.get(&key)?;
        let uses = row.uses.load(Ordering::Relaxed);
        row.uses.store(uses.saturating_add(1), Ordering::Relaxed);
        Some(row)
    }

    /// The same, but leaves no trace: neither a use nor that the row is wanted.
    #[inline]
    pub(super) fn peek(&self, key: Key) -> Option<&Row> {
        self.cache.peek(&key)
    }

    /// Puts a row in.
    pub(super) fn insert(&mut self, key: Key, row: Row) -> Inserted {
        let mut evicted = 0;
        self.cache.insert_with_lifecycle(key, row, &mut evicted);
        let moved = if self.taken() > self.limit { self.compact() } else { 0 };
        Inserted { evicted, moved }
    }

    /// What it takes: entries ever used, the index, and allocations of rows.
    pub(super) fn taken(&self) -> u64 {
        let allocated = self.bytes() - self.rows() * ENTRY_BYTES;
        self.cache.memory_used().total() as u64 + allocated
    }

    /// Entries that short rows have left behind are not given back, so where long rows follow them all rows move
    /// to a new slab. The ghosts are lost, a quarter of the limit: it takes that many evictions to come here
    /// again.
    #[cold]
    fn compact(&mut self) -> u64 {
        let mut old = std::mem::replace(&mut self.cache, empty(self.limit, self.seed));
        let moved = old.len() as u64;
        for (key, row) in old.drain() {
            self.cache.insert(key, row);
        }
        moved
    }

    pub(super) fn retain(&mut self, keep: impl Fn(Key) -> bool) {
        self.cache.retain(|key, _| keep(*key));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &Row)> {
        self.cache.iter().map(|(key, row)| (*key, row))
    }

    /// What its rows weigh.
    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// What its rows may weigh.
    pub(super) fn capacity(&self) -> u64 {
        self.cache.capacity()
    }

    pub(super) fn rows(&self) -> u64 {
        self.cache.len() as u64
    }
}

fn empty(limit: u64, seed: u64) -> Rows {
    let for_ghosts = limit / GHOST_PART;
    let for_rows = limit - for_ghosts;
    let entries = |bytes: u64| usize::try_from(bytes / ENTRY_BYTES).unwrap_or(usize::MAX);
    // There are half as many ghosts as items expected.
    let expected = entries(for_ghosts).saturating_mul(2);
    let mut cache = Cache::with(expected, for_rows, ByBytes, Spread(seed), CountEvictions);
    // Now: growing later would copy all of it, and take up to twice as much. Memory that is not touched costs
    // nothing.
    cache.reserve(entries(for_rows));
    cache
}

impl Key {
    pub(super) const fn new(table: u32, id: u64) -> Self {
        Self { id, table }
    }

    pub(super) const fn id(self) -> u64 {
        self.id
    }

    pub(super) const fn table(self) -> u32 {
        self.table
    }

    fn spread(self, seed: u64) -> u64 {
        // An odd factor, so that neighbouring tables do not put equal ids side by side.
        mix64(self.id ^ seed ^ u64::from(self.table).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Bits that neither segments nor the cache's own table go by: that one takes the lowest and the highest.
    #[inline]
    pub(super) fn shard(self, seed: u64) -> usize {
        (self.spread(seed) >> 40) as usize
    }

    /// Bits that neither shards nor the cache's own table go by: that of a segment has at most 2^15 places.
    #[inline]
    pub(super) fn segment(self, seed: u64) -> usize {
        (self.spread(seed) >> 16) as usize & 0xff_ffff
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.id);
        state.write_u32(self.table);
    }
}

impl Row {
    /// None: there is no such row.
    pub(super) fn new(row: Option<&[u8]>) -> Self {
        let bytes = match row {
            None => Bytes::Missing,
            Some(row) => match u8::try_from(row.len()) {
                Ok(len) if row.len() <= INLINE_BYTES => {
                    let mut bytes = [0; INLINE_BYTES];
                    bytes[..row.len()].copy_from_slice(row);
                    Bytes::Inline { len, bytes }
                }
                _ => Bytes::Boxed(row.into()),
            },
        };
        Self { uses: AtomicU32::new(0), bytes }
    }

    /// None: there is no such row.
    #[inline]
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match &self.bytes {
            Bytes::Missing => None,
            Bytes::Inline { len, bytes } => Some(&bytes[..usize::from(*len)]),
            Bytes::Boxed(bytes) => Some(bytes),
        }
    }

    pub(super) const fn found(&self) -> bool {
        !matches!(self.bytes, Bytes::Missing)
    }

    pub(super) fn uses(&self) -> u32 {
        self.uses.load(Ordering::Relaxed)
    }
}

impl Weighter<Key, Row> for ByBytes {
    #[inline]
    fn weight(&self, _: &Key, row: &Row) -> u64 {
        match &row.bytes {
            Bytes::Missing | Bytes::Inline { .. } => ENTRY_BYTES,
            Bytes::Boxed(bytes) => ENTRY_BYTES + ALLOCATION_BYTES + bytes.len() as u64,
        }
    }
}

impl Lifecycle<Key, Row> for CountEvictions {
    type RequestState = u64;

    fn on_evict(&self, evicted: &mut u64, _: Key, _: Row) {
        *evicted += 1;
    }
}

impl BuildHasher for Spread {
    type Hasher = Spreading;

    fn build_hasher(&self) -> Spreading {
        Spreading { seed: self.0, id: 0, table: 0 }
    }
}

/// Hashes a [`Key`], as [`Key::spread`] does.
struct Spreading {
    seed: u64,
    id: u64,
    table: u32,
}

impl Hasher for Spreading {
    #[inline]
    fn finish(&self) -> u64 {
        Key::new(self.table, self.id).spread(self.seed)
    }

    #[inline]
    fn write_u64(&mut self, id: u64) {
        self.id = id;
    }

    #[inline]
    fn write_u32(&mut self, table: u32) {
        self.table = table;
    }

    /// Not how keys are hashed; right all the same.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.id = mix64(self.id ^ u64::from(*byte));
        }
    }
}
