//! A lookup whose rows are handed on as they are stored: who asks for them expands and pools them elsewhere, on a GPU above
//! all, where some of them may be already.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use tidepool_types::{TableSchema, TableVersion};

use crate::{
    request::{Counted, FeatureCounts},
    split::as_u32,
};

/// Whether the row of an id has to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// A node has to be asked.
    Ask,
    /// Whoever asks has the row.
    Held,
    /// The table has no such row, as whoever asks knows.
    Missing,
}

/// Rows that whoever asks has already, so that no node is asked for them.
pub trait Held: fmt::Debug + Send + Sync {
    /// Says of each of `ids`, which are all different, whether it has to be asked for: appended to `into` in their order. Of a
    /// composite table ids are the numbers of rows. False: nothing of the table is held, and nothing was appended.
    fn hold(&self, table: &TableVersion, ids: &[u64], into: &mut Vec<Holding>) -> bool;
}

/// What there is of one unique id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UniqueRow<'a> {
    /// Its row as stored, without fingerprint.
    Stored(&'a [u8]),
    /// Whoever asked has the row.
    Held,
    /// The table has no such row.
    Missing,
    /// Nobody answered for its partition.
    Unavailable,
}

/// Where a row is among what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowAt {
    /// Which of the bodies, and the byte at which it begins.
    Body(u32, u32),
    Held,
    Missing,
    Unavailable,
}

/// The unique rows of one table: what all features of a lookup that use it share.
#[derive(Clone, Debug, PartialEq)]
pub struct TableRows {
    /// The table: how its rows are stored, and what stands for a vector of nothing.
    pub schema: TableSchema,
    /// The smallest number of deltas that any node had applied; 0 when no node had to be asked.
    pub sequence: u64,
    /// Each id once; of a composite table the numbers of rows.
    pub ids: Vec<u64>,
    /// One per id.
    pub(crate) rows: Vec<RowAt>,
    /// Answers of nodes, and what a cache knew; rows stand one behind the other.
    pub(crate) bodies: Vec<Bytes>,
    /// Whether some of `rows` are missing or unavailable.
    pub(crate) lacking: bool,
}

impl TableRows {
    /// What there is of the id at `at` of [`ids`](Self::ids).
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn row(&self, at: usize) -> UniqueRow<'_> {
        match self.rows[at] {
            RowAt::Body(body, begin) => {
                let begin = begin as usize;
                UniqueRow::Stored(&self.bodies[body as usize][begin..begin + self.schema.row_bytes()])
            }
            RowAt::Held => UniqueRow::Held,
            RowAt::Missing => UniqueRow::Missing,
            RowAt::Unavailable => UniqueRow::Unavailable,
        }
    }

    /// The stored rows of the ids from `at` on, up to `end` at most, that lie one behind the other, as a node has sent them: for
    /// who copies many at once. Nothing when the first of them is not stored.
    ///
    /// # Panics
    /// When there are not so many ids.
    #[must_use]
    pub fn run(&self, at: usize, end: usize) -> &[u8] {
        let RowAt::Body(body, begin) = self.rows[at] else { return &[] };
        let (begin, row_bytes) = (begin as usize, self.schema.row_bytes());
        let follows = |(place, row): (usize, &RowAt)| match row {
            RowAt::Body(of, at) => *of == body && *at as usize == begin + place * row_bytes,
            RowAt::Held | RowAt::Missing | RowAt::Unavailable => false,
        };
        let rows = self.rows[at..end].iter().enumerate().take_while(|place| follows(*place)).count();
        &self.bodies[body as usize][begin..begin + rows * row_bytes]
    }
}

/// The rows of one feature: the unique rows of its table, and which of them each of its ids has.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureRows {
    /// Shared by the features that use the table.
    pub table: Arc<TableRows>,
    /// Places among the table's unique ids: so many for each id of the feature as it has [`hashes`](Self::hashes). Of a composite
    /// table whose rows follow each other in a vector (concat), and where the feature is pooled, first those of all ids of a bag by
    /// the first hash, then those by the second; else all rows of an id, then all of the next.
    pub members: Vec<u32>,
    /// Rows of an id: 1, or the hashes of a composite table.
    pub hashes: u32,
    /// Whether the members of a bag stand hash by hash; else they stand id by id.
    pub by_hash: bool,
    /// What is counted of the feature as a whole, before anything is pooled: see [`BagCounts`].
    pub counts: FeatureCounts,
    /// The ids that lack a row, ascending. Bags are counted by these alone, so that members are gone through once, however often
    /// and by whomever.
    pub(crate) lacking: Vec<Lacking>,
}

/// An id of a feature that lacks a row, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lacking {
    /// Its place among the ids of the feature.
    pub(crate) id: u32,
    /// Whether nobody answered for a row of it; else the table does not have one.
    pub(crate) unavailable: bool,
}

/// What is counted of one bag: as of a vector that the client makes, with one exception. A bag with rows whose sum, or whose
/// mean, is not finite becomes the default row where it is pooled: whoever pools can tell, and nothing here can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BagCounts {
    /// Ids found; one that stands twice in the bag counts twice, here and below.
    pub found: u32,
    /// Ids that the table does not have.
    pub missing: u32,
    /// Ids whose partition nobody answered for; of a composite table those that lack any of their rows.
    pub unavailable: u32,
    /// Whether the vector lacks some rows of an id, so that it is none: the bag is of a composite table, and has unavailable ids.
    pub torn: bool,
}

impl BagCounts {
    /// Whether the vector is the table's default row for want of rows: nothing was found (as of an empty bag), or it is torn.
    #[must_use]
    pub const fn defaulted(&self) -> bool {
        self.found == 0 || self.torn
    }
}

/// Rows of a table by their ids.
///
/// Pieces may come at different numbers of deltas, and a piece of several nodes too: some rows are then as of
/// [`sequence`](Self::sequence), others newer, and which is not told. Who keeps such rows must take all of them for rows as of
/// `sequence`, and apply every delta after it, in order, before they serve: a delta has whole rows, so one that a row has already
/// changes nothing. Versions never change today, and every sequence is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchedRows {
    /// The smallest number of deltas that any node had applied which was asked for any of the pieces; 0 when no node had to be
    /// asked. Rows that the cache knew count for nothing: it keeps those of versions that never change.
    pub sequence: u64,
    /// The ids that have a row, each once, in the order in which they were asked for first.
    pub ids: Vec<u64>,
    /// The row of each of them as stored, without fingerprint, one behind the other.
    pub rows: Vec<u8>,
}

impl FeatureRows {
    /// The members of a bag, whose ids stand at `ids` of those of the feature. Of a feature that is not pooled any range of ids is one.
    ///
    /// # Panics
    /// When there are not so many ids.
    #[must_use]
    pub fn members_of(&self, ids: Range<usize>) -> &[u32] {
        let hashes = self.hashes as usize;
        &self.members[ids.start * hashes..ids.end * hashes]
    }

    /// What is counted of a bag, whose ids stand at `ids` of those of the feature: of any range of ids, if need be. Ids that are
    /// found cost nothing: those that are not have been noted, once.
    ///
    /// # Panics
    /// When there are not so many ids.
    #[must_use]
    pub fn bag_counts(&self, ids: Range<usize>) -> BagCounts {
        let asked = self.members_of(ids.clone()).len() / self.hashes as usize;
        let place = |id: usize| self.lacking.partition_point(|lacking| (lacking.id as usize) < id);
        let lacking = if self.lacking.is_empty() { 0..0 } else { place(ids.start)..place(ids.end) };
        self.counts_of(asked, &self.lacking[lacking])
    }

    /// What is counted of so many ids, with those of them that lack a row.
    pub(crate) fn counts_of(&self, ids: usize, lacking: &[Lacking]) -> BagCounts {
        let unavailable = lacking.iter().filter(|lacking| lacking.unavailable).count();
        BagCounts {
            found: as_u32(ids - lacking.len()),
            missing: as_u32(lacking.len() - unavailable),
            unavailable: as_u32(unavailable),
            torn: unavailable > 0 && self.table.schema.composite.is_some(),
        }
    }
}

impl Counted for FeatureRows {
    fn counts(&self) -> FeatureCounts {
        self.counts
    }
}
