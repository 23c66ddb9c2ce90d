//! Lookups that hand on stored rows.

use std::time::{Duration, Instant};

use tidepool_types::TableVersion;

use crate::{
    Client, ClientError,
    account::LookupAccount,
    client::{Attempt, Manner},
    fanout::Gathered,
    hand_on::{self, hand_on},
    request::{LookupOptions, LookupOutcome, LookupRequest},
    rows::{FeatureRows, FetchedRows, Held, UniqueRow},
    split::{Ahead, Ids, Split, Unique},
};

/// Row ids that are asked for at a time, at most: few enough that the lookups of others do not wait for them.
pub(crate) const PIECE_IDS: usize = 4096;
/// Bytes of rows that are asked for at a time, unless one row has more.
const PIECE_BYTES: usize = 4 << 20;

impl Client {
    /// Looks up every feature of `request` as [`lookup_noting`](Self::lookup_noting) does, but hands on stored rows and which
    /// of them each bag has, for somebody else to expand and pool. Rows always travel as stored, whatever wire form `options`
    /// ask for. `held` is asked once per table, with its unique ids (once more when the lookup is tried again by a newer map);
    /// what it holds, or knows to be missing, is asked neither of a node nor of the cache.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub async fn lookup_rows(
        &self,
        request: &LookupRequest,
        options: &LookupOptions,
        held: Option<&dyn Held>,
        account: Option<&LookupAccount>,
    ) -> Result<LookupOutcome<FeatureRows>, ClientError> {
        let ahead = Ahead { held, cache: self.cache() };
        let manner = Manner { ahead, only_rows: true, ids: Ids::Asked, account };
        let rows = |split: &mut Split<'_>, gathered: &Gathered| hand_on(request, split, &gathered.answers);
        self.look_up(request, options, manner, rows).await
    }

    /// The stored rows of `row_ids` (of a composite table: numbers of rows), of those that exist, in the order asked: all of
    /// them, or an error. An id that is named twice is given once, where it stands first. They are asked for in pieces, one
    /// after the other, all within `timeout`. What the cache knows is not asked for; what comes is not put into it,
    /// and nothing of this is seen in its metrics or in what it holds to be asked for often.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup), of the first piece that fails.
    pub async fn fetch_rows(
        &self,
        table_version: &TableVersion,
        row_ids: &[u64],
        timeout: Duration,
    ) -> Result<FetchedRows, ClientError> {
        let start = Instant::now();
        let late = |node| ClientError::DeadlineExceeded { timeout, node };
        if u32::try_from(row_ids.len()).is_err() {
            let problem = "more than 2^32 - 1 rows are asked for".to_owned();
            return Err(ClientError::Invalid { feature: 0, table: table_version.clone(), problem });
        }
        let map = self.map();
        let row_bytes = map.layout(table_version).map_or(0, |layout| layout.schema.row_bytes());
        let piece_ids = (PIECE_BYTES / row_bytes.max(1)).clamp(1, PIECE_IDS);
        let (mut unique, mut seen) = (Unique::new(row_ids.len(), self.seed()), Vec::new());
        let (mut fetched, mut sequence) = (FetchedRows::default(), None);
        // Growing would take twice as much for a moment. Where there is not so much, there may be enough for rows that exist.
        let _ = fetched.rows.try_reserve_exact(row_ids.len().saturating_mul(row_bytes));
        for piece in row_ids.chunks(piece_ids) {
            let before = seen.len();
            for id in piece {
                unique.position(*id, &mut seen);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(late(None));
            }
            let gathered = self.gather_rows("fetch-rows", table_version, &seen[before..], left, |attempt| {
                let answers = &attempt.gathered.answers;
                (hand_on::tables(attempt.split, answers), answers.iter().map(|answer| answer.sequence).min())
            });
            let (tables, of_piece) = gathered.await.map_err(|error| match error {
                ClientError::DeadlineExceeded { node, .. } => late(node),
                other => other,
            })?;
            sequence = sequence.into_iter().chain(of_piece).min();
            for table in tables {
                for (at, id) in table.ids.iter().enumerate() {
                    if let UniqueRow::Stored(row) = table.row(at) {
                        fetched.ids.push(*id);
                        fetched.rows.extend_from_slice(row);
                    }
                }
            }
        }
        fetched.sequence = sequence.unwrap_or(0);
        Ok(fetched)
    }

    /// Gathers the rows of a piece of row ids: all of them, or an error. Of a composite table those are left out that it does
    /// not have: another version may have had more rows than this one.
    pub(crate) async fn gather_rows<T>(
        &self,
        request_id: &str,
        table_version: &TableVersion,
        ids: &[u64],
        left: Duration,
        finish: impl Fn(Attempt<'_, '_>) -> T,
    ) -> Result<T, ClientError> {
        let map = self.map();
        let schema = map.layout(table_version).map(|layout| &layout.schema);
        let rows = schema.filter(|schema| schema.composite.is_some()).map(|schema| schema.rows);
        let ids = ids.iter().copied().filter(|id| rows.is_none_or(|rows| *id < rows)).collect();
        let (request, options) = self.asking_for(request_id, table_version, ids, left);
        let ahead = Ahead { held: None, cache: self.cache() };
        let manner = Manner { ahead, only_rows: true, ids: Ids::Rows, account: None };
        self.gather(&request, &options, manner, finish).await
    }
}
