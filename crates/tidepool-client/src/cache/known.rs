//! What is known of the ids of a request before a node is asked: what whoever asks holds, and a copy of what the cache
//! knew, so that nothing is locked while nodes are asked.

use bytes::Bytes;

use super::segment::Row;
use crate::rows::Holding;

/// Whoever asks has the row.
const HELD: u32 = u32::MAX - 2;
/// No row, and none to be had.
const MISSING: u32 = u32::MAX - 1;
/// Nothing is known.
const UNKNOWN: u32 = u32::MAX;

/// What is known of the unique ids of one table.
#[derive(Debug, Default)]
pub(crate) struct Known {
    row_bytes: usize,
    /// Per unique id the place of its row, or what is said above. Empty: nothing is known of any.
    places: Vec<u32>,
    /// One behind the other.
    rows: Vec<u8>,
    hits: u64,
    held: u64,
}

/// What is known of one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownId {
    /// Nothing: it has to be asked for.
    Unknown,
    /// The table has no such row.
    Missing,
    /// Whoever asks has the row.
    Held,
    /// Its row is at this place of those that are here.
    Row(u32),
}

/// The same while it is found out.
#[derive(Debug)]
pub(crate) struct Finding {
    known: Known,
    count: u32,
}

impl Known {
    /// Whether it has to be asked for.
    #[inline]
    pub(crate) fn is_unknown(&self, id: usize) -> bool {
        self.places.get(id).is_none_or(|place| *place == UNKNOWN)
    }

    /// What is known of an id.
    #[inline]
    pub(crate) fn of(&self, id: usize) -> KnownId {
        match self.places.get(id).copied().unwrap_or(UNKNOWN) {
            UNKNOWN => KnownId::Unknown,
            MISSING => KnownId::Missing,
            HELD => KnownId::Held,
            place => KnownId::Row(place),
        }
    }

    /// The stored row, if it is here.
    #[inline]
    pub(crate) fn row(&self, id: usize) -> Option<&[u8]> {
        let KnownId::Row(place) = self.of(id) else { return None };
        let place = place as usize;
        self.rows.get(place * self.row_bytes..(place + 1) * self.row_bytes)
    }

    /// Takes the rows that are here, one behind the other, to hand them on: what was known is still known, but no
    /// [`row`](Self::row) is here any more.
    pub(crate) fn take_rows(&mut self) -> Bytes {
        std::mem::take(&mut self.rows).into()
    }

    /// Ids that the cache knew.
    pub(crate) const fn hits(&self) -> u64 {
        self.hits
    }

    /// Ids that nobody was asked for, not even the cache.
    pub(crate) const fn held(&self) -> u64 {
        self.held
    }

    /// Goes on finding out about the `ids` ids of a table whose rows have `row_bytes`. Rows must not be here yet.
    pub(crate) fn more(self, row_bytes: usize, ids: usize) -> Finding {
        let places = if self.places.is_empty() { vec![UNKNOWN; ids] } else { self.places };
        Finding { known: Self { row_bytes, places, ..self }, count: 0 }
    }
}

impl Finding {
    /// Nothing is known of any of so many ids.
    pub(crate) fn nothing(row_bytes: usize, ids: usize) -> Self {
        Known::default().more(row_bytes, ids)
    }

    /// What whoever asks says of each id. Of those that nothing is said of, nothing is known.
    pub(crate) fn hold(&mut self, holdings: &[Holding]) {
        for (place, holding) in self.known.places.iter_mut().zip(holdings) {
            *place = match holding {
                Holding::Ask => continue,
                Holding::Held => HELD,
                Holding::Missing => MISSING,
            };
            self.known.held += 1;
        }
    }

    /// The places of the ids that nothing is known of; None: of all.
    pub(crate) fn unknown(&self) -> Option<Vec<u32>> {
        (self.known.held > 0).then(|| {
            let places = (0u32..).zip(&self.known.places);
            places.filter(|(_, place)| **place == UNKNOWN).map(|(at, _)| at).collect()
        })
    }

    /// What the cache has of an id.
    #[inline]
    pub(super) fn put(&mut self, id: usize, row: &Row) {
        self.known.hits += 1;
        match row.bytes() {
            None => self.known.places[id] = MISSING,
            Some(bytes) => self.add(id, bytes),
        }
    }

    /// The row of an id, as long as rows are; another is left out.
    pub(crate) fn put_bytes(&mut self, id: usize, bytes: &[u8]) {
        if id < self.known.places.len() && bytes.len() == self.known.row_bytes {
            self.add(id, bytes);
        }
    }

    #[inline]
    fn add(&mut self, id: usize, bytes: &[u8]) {
        self.known.rows.extend_from_slice(bytes);
        self.known.places[id] = self.count;
        self.count += 1;
    }

    /// Ids that the cache knew so far.
    pub(super) const fn hits(&self) -> u64 {
        self.known.hits
    }

    /// That is all that there is to know: ids that nothing is known of have no row.
    pub(crate) fn whole(mut self) -> Known {
        let unknown = self.known.places.iter_mut().filter(|place| **place == UNKNOWN);
        unknown.for_each(|place| *place = MISSING);
        self.done()
    }

    /// That is what is known; the rest has to be asked for.
    pub(crate) fn done(self) -> Known {
        self.known
    }
}
