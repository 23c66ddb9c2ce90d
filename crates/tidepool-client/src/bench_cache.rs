//! The hit path of the cache, for its bench alone: no part of what this crate promises.

use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableSchema, TableVersion};

use crate::cache::RowCache;

/// A cache that holds rows of one table.
#[derive(Debug)]
pub struct HitPath {
    cache: RowCache,
    schema: TableSchema,
}

impl HitPath {
    /// A cache of `bytes` with INT4 rows of the ids from 0 to `rows`.
    ///
    /// # Panics
    /// When `bytes` is 0.
    #[must_use]
    pub fn new(dim: u32, bytes: u64, rows: u64) -> Self {
        let name = || Name::new("bench").unwrap_or_else(|error| panic!("{error}"));
        let schema = TableSchema {
            table_version: TableVersion { table: name(), version: name() },
            dim,
            format: RowFormat::Int4,
            keying: Keying::Hashed,
            partitions: PartitionCount::ONE,
            rows,
            default_row: Vec::new(),
            composite: None,
        };
        let Some(cache) = RowCache::new(bytes, 0x5eed, None) else { panic!("a cache of no bytes") };
        let row = vec![7; schema.row_bytes()];
        let ids: Vec<u64> = (0..rows).collect();
        for ids in ids.chunks(10_000) {
            cache.put(&schema, &ids.iter().map(|id| (*id, Some(&row[..]))).collect::<Vec<_>>());
        }
        Self { cache, schema }
    }

    /// Reads the rows of `ids`, and says how many there were.
    #[must_use]
    pub fn read(&self, ids: &[u64]) -> u64 {
        self.cache.read(&self.schema, ids).hits()
    }
}
