//! Filling a cache before it is needed, and touching rows at the nodes: ids that were hot elsewhere are
//! gathered in batches.

use std::time::{Duration, Instant};

use tidepool_types::TableVersion;

use super::HotIds;
use crate::{Client, ClientError, client::Attempt, row_lookup::PIECE_IDS};

/// What came of a warming.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Ids gone through. Fewer than were given: the time was up.
    pub ids: u64,
    /// Those of them that were in the cache before.
    pub known: u64,
    /// Those that were asked of nodes.
    pub asked: u64,
}

impl Client {
    /// The ids of a table version whose rows the cache holds, those asked for most since they came in first; of
    /// equals the smaller id. Empty without a cache. Of a composite table: numbers of rows.
    ///
    /// It looks at every row of the cache (10 million take some tenths of a second): call it off the async
    /// threads.
    #[must_use]
    pub fn hot_ids(&self, table_version: &TableVersion, limit: usize) -> HotIds {
        let ids = self.cache().map_or_else(Vec::new, |cache| cache.hot_ids(table_version, limit));
        HotIds { table_version: table_version.clone(), ids }
    }

    /// The version of the same table that came last into the cache, other than `table_version`: whose hot ids
    /// are those to warm it with.
    #[must_use]
    pub fn cached_version_before(&self, table_version: &TableVersion) -> Option<TableVersion> {
        self.cache()?.version_before(table_version)
    }

    /// Gathers `ids` of a table version in batches, one after the other, until `within` is over. With a cache
    /// what comes is kept; without one the rows have been touched at the nodes, and that is all. Of a composite
    /// table `ids` are numbers of rows, as [`hot_ids`](Self::hot_ids) gives them.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup), for the first batch that fails before the time is up; what came before is
    /// kept.
    pub async fn warm(
        &self,
        table_version: &TableVersion,
        ids: &[u64],
        within: Duration,
    ) -> Result<Warmed, ClientError> {
        let mut warmed = Warmed::default();
        let start = Instant::now();
        for batch in ids.chunks(PIECE_IDS) {
            let left = within.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            match self.warm_batch(table_version, batch, left).await {
                Ok((known, asked)) => {
                    warmed.ids += batch.len() as u64;
                    warmed.known += known;
                    warmed.asked += asked;
                }
                Err(_) if start.elapsed() >= within => break,
                Err(error) => return Err(error),
            }
        }
        Ok(warmed)
    }

    async fn warm_batch(
        &self,
        table_version: &TableVersion,
        ids: &[u64],
        left: Duration,
    ) -> Result<(u64, u64), ClientError> {
        self.gather_rows("warm", table_version, ids, left, |Attempt { split, gathered, .. }| {
            if let Some(cache) = self.cache() {
                cache.fill(split, &gathered.answers);
            }
            (split.cache_hits(), gathered.rows_requested)
        })
        .await
    }
}
