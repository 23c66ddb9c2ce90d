//! What a cache knew of the ids of a request: a copy, so that nothing is locked while nodes are asked.

use super::segment::Row;

/// No row, and none to be had.
const MISSING: u32 = u32::MAX - 1;
/// Not in the cache.
const UNKNOWN: u32 = u32::MAX;

/// Rows of the unique ids of one table, as far as they were in the cache.
#[derive(Debug, Default)]
pub(crate) struct Known {
    row_bytes: usize,
    /// Per unique id the place of its row, or what is said above. Empty: nothing is known of any.
    places: Vec<u32>,
    rows: Vec<u8>,
    count: u32,
    hits: u64,
}

impl Known {
    pub(super) fn new(row_bytes: usize, ids: usize) -> Self {
        Self { row_bytes, places: vec![UNKNOWN; ids], ..Self::default() }
    }

    /// All that there is to know of so many ids: none of them has a row, but those that [`put_bytes`](Self::put_bytes) is
    /// given.
    pub(crate) fn whole(row_bytes: usize, ids: usize) -> Self {
        Self { row_bytes, places: vec![MISSING; ids], ..Self::default() }
    }

    /// The row of an id, as long as rows are; another is left out.
    pub(crate) fn put_bytes(&mut self, id: usize, bytes: &[u8]) {
        if let Some(place) = self.places.get_mut(id)
            && bytes.len() == self.row_bytes
        {
            self.rows.extend_from_slice(bytes);
            *place = self.count;
            self.count += 1;
        }
    }

    #[inline]
    pub(super) fn put(&mut self, id: usize, row: &Row) {
        self.hits += 1;
        self.places[id] = match row.bytes() {
            None => MISSING,
            Some(bytes) => {
                self.rows.extend_from_slice(bytes);
                self.count += 1;
                self.count - 1
            }
        };
    }

    /// Whether it has to be asked for.
    #[inline]
    pub(crate) fn is_unknown(&self, id: usize) -> bool {
        self.places.get(id).is_none_or(|place| *place == UNKNOWN)
    }

    /// The stored row, if it is known and there is one.
    #[inline]
    pub(crate) fn row(&self, id: usize) -> Option<&[u8]> {
        let place = *self.places.get(id).filter(|place| **place < MISSING)? as usize;
        self.rows.get(place * self.row_bytes..(place + 1) * self.row_bytes)
    }

    /// Ids that need not be asked for.
    pub(crate) const fn hits(&self) -> u64 {
        self.hits
    }
}
