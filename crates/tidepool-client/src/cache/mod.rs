//! Rows that are asked for often, kept by whoever asks: a lookup takes them from here and asks no node.
//!
//! A row is known by its table version and id (of a composite table, by its number): versions never change, so
//! nothing kept can be wrong, and that an id has no row is kept like a row. Which rows stay is decided by
//! `quick_cache`, a clock with hot, cold and ghost entries: what is asked for once does not push out what is
//! asked for often (docs/decisions/0003-hot-row-cache.md).
//!
//! **Invariant:** all that is held, overhead included, stays below the bytes that were granted. Locks are held
//! for one batch on one shard or for the rows of one segment, and never across an await.

mod hot_ids;
mod known;
mod metrics;
mod segment;
mod shard;
mod warm;

#[cfg(test)]
mod tests;

use std::{
    collections::{BinaryHeap, HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use tidepool_cluster::ClusterMap;
use tidepool_types::{TableSchema, TableVersion};

pub use self::hot_ids::{BadHotIds, HotIds};
pub(crate) use self::known::{Finding, Known, KnownId};
pub use self::warm::Warmed;
use self::{
    metrics::{CacheMetrics, TableCounts},
    segment::{Key, Row},
    shard::Shard,
};
use crate::{answer::Answered, asks::Ask, split::Split};

/// Bytes of a shard, at least. A cache of few bytes is one shard.
const SHARD_BYTES: u64 = 4 << 20;
/// Shards, at most: enough that threads rarely meet on one.
const MAX_SHARDS: u64 = 64;
/// How many lookups of pooled features are for one that gathers, though pooling may take fewer bytes: what the
/// cache does not hold is otherwise pooled at the nodes for ever, and never comes to be held.
const LEARN_EVERY: u64 = 16;

/// The cache of one client.
#[derive(Debug)]
pub(crate) struct RowCache {
    shards: Vec<RwLock<Shard>>,
    seed: u64,
    /// What the shards may hold of rows.
    capacity: u64,
    /// What they hold, and how many rows that is.
    bytes: AtomicU64,
    rows: AtomicU64,
    evicted: AtomicU64,
    tables: RwLock<HashMap<TableVersion, Arc<CachedTable>>>,
    next_table: AtomicU32,
    /// Of the last map whose tables were looked through.
    epoch: AtomicU64,
    lookups: AtomicU64,
    metrics: Option<CacheMetrics>,
}

/// A table version of which rows are kept.
#[derive(Debug)]
pub(crate) struct CachedTable {
    /// Stands for the version in keys. Given once, so that rows of a version that was dropped are never found.
    number: u32,
    row_bytes: usize,
    /// None without metrics.
    counts: Option<TableCounts>,
}

/// What a batch did to a shard.
#[derive(Debug, Default)]
struct Change {
    bytes: i64,
    rows: i64,
}

impl RowCache {
    /// None: `bytes` is 0, and nothing is kept. `seed` spreads ids, as in the deduplication table.
    pub(crate) fn new(bytes: u64, seed: u64, registry: Option<&prometheus::Registry>) -> Option<Self> {
        if bytes == 0 {
            return None;
        }
        let metrics = registry.and_then(|registry| {
            CacheMetrics::new(registry)
                .inspect_err(|error| tracing::warn!(%error, "cache metrics are not registered"))
                .ok()
        });
        let count = (bytes / SHARD_BYTES).clamp(1, MAX_SHARDS);
        // A power of two, so that a shard is a few bits of the hash.
        let count = 1 << count.ilog2();
        let shards: Vec<_> = (0..count).map(|_| Shard::new(bytes / count, seed)).collect();
        Some(Self {
            capacity: shards.iter().map(Shard::capacity).sum(),
            shards: shards.into_iter().map(RwLock::new).collect(),
            seed,
            bytes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            tables: RwLock::default(),
            next_table: AtomicU32::new(0),
            epoch: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            metrics,
        })
    }

    /// Whether this lookup should gather what it may, so that the cache learns: all of them until it is full,
    /// and some ever after.
    pub(crate) fn learns(&self) -> bool {
        let full = self.bytes.load(Ordering::Relaxed) >= self.capacity / 16 * 15;
        !full || self.lookups.fetch_add(1, Ordering::Relaxed).is_multiple_of(LEARN_EVERY)
    }

    /// The table of `schema`, which is made when it is new.
    pub(crate) fn table(&self, schema: &TableSchema) -> Arc<CachedTable> {
        if let Some(known) = self.known_table(schema) {
            return known;
        }
        let row_bytes = schema.row_bytes();
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have made it meanwhile.
        if let Some(known) = tables.get(&schema.table_version).filter(|t| t.row_bytes == row_bytes) {
            return known.clone();
        }
        let number = self.next_table.fetch_add(1, Ordering::Relaxed);
        let counts = self.metrics.as_ref().map(|metrics| metrics.table(&schema.table_version.table));
        let table = Arc::new(CachedTable { number, row_bytes, counts });
        tables.insert(schema.table_version.clone(), table.clone());
        table
    }

    /// The table of `schema`, if rows of it have been asked for or kept.
    fn known_table(&self, schema: &TableSchema) -> Option<Arc<CachedTable>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(&schema.table_version).filter(|t| t.row_bytes == schema.row_bytes()).cloned()
    }

    /// What is known of `ids`, which are all different.
    pub(crate) fn read(&self, schema: &TableSchema, ids: &[u64]) -> Known {
        let mut found = Finding::nothing(schema.row_bytes(), ids.len());
        self.read_rest(schema, ids, &mut found);
        found.done()
    }

    /// Adds to what has been `found` of `ids`, which are all different. What something is known of already is not looked for,
    /// and neither a hit nor a miss.
    pub(crate) fn read_rest(&self, schema: &TableSchema, ids: &[u64], found: &mut Finding) {
        let table = self.table(schema);
        let before = found.hits();
        let looked_for = self.look_for(&table, ids, Shard::get, found);
        if let Some(counts) = &table.counts {
            let hits = found.hits() - before;
            counts.read(hits, looked_for as u64 - hits);
        }
    }

    /// The same, but leaves no trace: it is no lookup of somebody who wants these rows, so no hit, no miss and no use is
    /// counted, and no row stays for longer.
    pub(crate) fn peek_rest(&self, schema: &TableSchema, ids: &[u64], found: &mut Finding) {
        if let Some(table) = self.known_table(schema) {
            self.look_for(&table, ids, Shard::peek, found);
        }
    }

    /// Looks for those of `ids` that nothing has been found of, and says how many they are.
    fn look_for(
        &self,
        table: &CachedTable,
        ids: &[u64],
        get: impl for<'s> Fn(&'s Shard, Key) -> Option<&'s Row>,
        found: &mut Finding,
    ) -> usize {
        match found.unknown() {
            None => {
                self.read_items(table, ids, |id| *id, |at, _| at, get, found);
                ids.len()
            }
            Some(places) => {
                self.read_items(table, &places, |place| ids[*place as usize], |_, place| *place, get, found);
                places.len()
            }
        }
    }

    /// Looks for items of which each has an id, and a place among those of which something is found out.
    fn read_items<T>(
        &self,
        table: &CachedTable,
        items: &[T],
        id_of: impl Fn(&T) -> u64,
        place_of: impl Fn(u32, &T) -> u32,
        get: impl for<'s> Fn(&'s Shard, Key) -> Option<&'s Row>,
        found: &mut Finding,
    ) {
        self.by_shard(
            items,
            |item| Key::new(table.number, id_of(item)),
            |shard, positions| {
                let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
                for at in positions {
                    let item = &items[*at as usize];
                    if let Some(row) = get(&shard, Key::new(table.number, id_of(item))) {
                        found.put(place_of(*at, item) as usize, row);
                    }
                }
            },
        );
    }

    /// Keeps what was gathered.
    pub(crate) fn fill(&self, split: &Split<'_>, answers: &[Answered]) {
        for answer in answers {
            let Ask::Gather { table, ids } = &answer.ask else { continue };
            let of = &split.tables[*table];
            let row_bytes = of.layout.schema.row_bytes();
            let rows = ids.iter().zip(answer.body.chunks_exact(row_bytes)).enumerate();
            let rows =
                rows.map(|(at, (id, row))| (of.ids[*id as usize], (!answer.is_missing(at)).then_some(row)));
            self.put(&of.layout.schema, &rows.collect::<Vec<_>>());
        }
        if let Some(metrics) = &self.metrics {
            let held = |count: &AtomicU64| count.load(Ordering::Relaxed);
            metrics.held(held(&self.bytes), held(&self.rows), held(&self.evicted));
        }
    }

    /// Keeps rows; None: the id has none.
    pub(crate) fn put(&self, schema: &TableSchema, rows: &[(u64, Option<&[u8]>)]) {
        let table = self.table(schema);
        self.by_shard(
            rows,
            |(id, _)| Key::new(table.number, *id),
            |shard, mut positions| {
                while !positions.is_empty() {
                    positions = self.put_some(shard, &table, rows, positions);
                }
            },
        );
    }

    /// Puts rows into their shard until some others had to be moved for one, and gives the positions that are left:
    /// who waits for the lock has a turn before more are moved.
    fn put_some<'p>(
        &self,
        shard: &RwLock<Shard>,
        table: &CachedTable,
        rows: &[(u64, Option<&[u8]>)],
        positions: &'p [u32],
    ) -> &'p [u32] {
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        let (mut change, mut evicted, mut done) = (Change::before(&shard), 0, 0);
        for at in positions {
            let (id, row) = rows[*at as usize];
            let inserted = shard.insert(Key::new(table.number, id), Row::new(row));
            evicted += inserted.evicted;
            done += 1;
            if inserted.moved > 0 {
                break;
            }
        }
        change.after(&shard);
        drop(shard);
        self.evicted.fetch_add(evicted, Ordering::Relaxed);
        self.note(&change);
        &positions[done..]
    }

    /// Calls `each` once per shard that has items, with their positions.
    fn by_shard<T>(
        &self,
        items: &[T],
        key: impl Fn(&T) -> Key,
        mut each: impl FnMut(&RwLock<Shard>, &[u32]),
    ) {
        let mask = self.shards.len() - 1;
        let shard_of = |item: &T| key(item).shard(self.seed) & mask;
        let mut ends = vec![0u32; self.shards.len()];
        for item in items {
            ends[shard_of(item)] += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            // The start for now; each item that is put moves it on, to the end.
            sum += std::mem::replace(end, sum);
        }
        let mut order = vec![0u32; items.len()];
        for (at, item) in (0u32..).zip(items) {
            let place = &mut ends[shard_of(item)];
            order[*place as usize] = at;
            *place += 1;
        }
        let mut from = 0;
        for (shard, end) in self.shards.iter().zip(ends) {
            let positions = &order[from..end as usize];
            from = end as usize;
            if !positions.is_empty() {
                each(shard, positions);
            }
        }
    }

    fn note(&self, change: &Change) {
        self.bytes.fetch_add(change.bytes.cast_unsigned(), Ordering::Relaxed);
        self.rows.fetch_add(change.rows.cast_unsigned(), Ordering::Relaxed);
    }

    /// Forgets the tables that `map` no longer has: they are not found any more when this returns. Their rows
    /// are let go by [`drop_rows`](Self::drop_rows), if there are any.
    pub(crate) fn follow(&self, map: &ClusterMap) -> Option<HashSet<u32>> {
        if self.epoch.fetch_max(map.epoch.0, Ordering::Relaxed) >= map.epoch.0 {
            return None;
        }
        let mut gone = HashSet::new();
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.retain(|version, table| {
            let there = map.layout(version).is_some();
            if !there {
                gone.insert(table.number);
            }
            there
        });
        if let Some(metrics) = &self.metrics {
            metrics.follow(map);
        }
        (!gone.is_empty()).then_some(gone)
    }

    /// Lets the rows of tables go. It looks at every row, so it is called off the async threads.
    pub(crate) fn drop_rows(&self, gone: &HashSet<u32>) {
        self.each_segment(|shard, segment| {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            let mut change = Change::before(&shard);
            shard.retain(segment, |key| !gone.contains(&key.table()));
            change.after(&shard);
            self.note(&change);
        });
        tracing::debug!(tables = gone.len(), "rows of tables that are gone were let go");
    }

    /// Calls `each` with every segment of every shard, so that nobody waits for a lock until all of a shard has
    /// been looked at.
    fn each_segment(&self, mut each: impl FnMut(&RwLock<Shard>, usize)) {
        for shard in &self.shards {
            let segments = shard.read().unwrap_or_else(PoisonError::into_inner).segments();
            (0..segments).for_each(|segment| each(shard, segment));
        }
    }

    /// The ids of a table version whose rows are kept, those asked for most since they came first; of equals
    /// the smaller id. It looks at every row.
    pub(crate) fn hot_ids(&self, version: &TableVersion, limit: usize) -> Vec<u64> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let Some(number) = tables.get(version).map(|table| table.number) else { return Vec::new() };
        drop(tables);
        // The least wanted of the best is on top.
        let mut best = BinaryHeap::new();
        self.each_segment(|shard, segment| {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            for (key, row) in shard.iter(segment).filter(|(key, row)| key.table() == number && row.found()) {
                best.push((std::cmp::Reverse(row.uses()), key.id()));
                if best.len() > limit {
                    best.pop();
                }
            }
        });
        best.into_sorted_vec().into_iter().map(|(_, id)| id).collect()
    }

    /// The version of `table` that came last into the cache, other than `but`.
    pub(crate) fn version_before(&self, but: &TableVersion) -> Option<TableVersion> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let others = tables.iter().filter(|(version, _)| version.table == but.table && *version != but);
        others.max_by_key(|(_, table)| table.number).map(|(version, _)| version.clone())
    }

    /// Bytes and rows, as they are counted.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.rows.load(Ordering::Relaxed))
    }

    /// What the shards really take.
    #[cfg(test)]
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.read().unwrap().taken()).sum()
    }
}

impl Change {
    fn before(shard: &Shard) -> Self {
        Self { bytes: -shard.bytes().cast_signed(), rows: -shard.rows().cast_signed() }
    }

    fn after(&mut self, shard: &Shard) {
        self.bytes += shard.bytes().cast_signed();
        self.rows += shard.rows().cast_signed();
    }
}
