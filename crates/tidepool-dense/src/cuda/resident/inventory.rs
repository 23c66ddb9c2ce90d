//! What is resident, as the host knows it: which ids of which tables, and how often they were asked for.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use tidepool_types::{RowFormat, TableVersion};

use super::{
    ResidentError, ResidentOptions,
    budget::{Fit, Offer, fit},
    table::{Key, KeyTable},
};

/// The host's side of a [`ResidentSet`](super::ResidentSet): all that is decided before a node is asked. It needs no device.
#[derive(Debug)]
pub struct Inventory {
    keys: KeyTable,
    tables: Vec<Held>,
    numbers: HashMap<TableVersion, u32>,
    told: Vec<Fit>,
}

impl Inventory {
    /// Decides what of `segments` fits into the budget.
    ///
    /// # Errors
    /// [`ResidentError`]: segments that do not fit together, ids that stand there twice or collide.
    pub fn new(segments: &[Segment<'_>], options: &ResidentOptions) -> Result<Self, ResidentError> {
        let told = fit(&offers(segments)?, options.budget_bytes, options.load);
        let kept = kept(segments, &told);
        let ids: Vec<&[u64]> = kept.iter().map(|(segment, _)| segment.ids).collect();
        let keys = KeyTable::build(Keys::of(&ids), options.load, options.seed)?;
        let tables = kept.iter().map(|(segment, fit)| Held {
            fit: (*fit).clone(),
            format: segment.format,
            dim: segment.dim,
            whole: segment.whole,
            asked: AtomicU64::new(0),
            resident: AtomicU64::new(0),
        });
        let tables: Vec<_> = tables.collect();
        let numbers = (0u32..).zip(&tables).map(|(at, held)| (held.fit.table.clone(), at)).collect();
        Ok(Self { keys, tables, numbers, told })
    }

    /// What became of each segment, in their order.
    #[must_use]
    pub fn told(&self) -> &[Fit] {
        &self.told
    }

    /// The number of a table in the set; `None`: all of its ids have to be fetched.
    #[must_use]
    pub fn number(&self, table: &TableVersion) -> Option<u32> {
        self.numbers.get(table).copied()
    }

    /// The tables of the set, by their numbers.
    pub fn tables(&self) -> impl Iterator<Item = &TableVersion> {
        self.tables.iter().map(|held| &held.fit.table)
    }

    /// Whether all of a table is resident, by its number.
    #[must_use]
    pub fn is_whole(&self, number: u32) -> bool {
        self.tables.get(number as usize).is_some_and(|held| held.whole)
    }

    /// How the rows of a table are stored, by its number: their format and dimension.
    #[must_use]
    pub fn rows_of(&self, number: u32) -> Option<(RowFormat, u32)> {
        self.tables.get(number as usize).map(|held| (held.format, held.dim))
    }

    /// The ids of a table that are resident, in the order in which they were offered. It looks at all keys of all tables.
    #[must_use]
    pub fn ids(&self, number: u32) -> Vec<u64> {
        self.keys.ids(number)
    }

    /// Where the rows of these ids are to be had, appended to `places`; before any node is asked. They are counted.
    ///
    /// # Panics
    /// When the set has no table of this number.
    pub fn place(&self, number: u32, ids: &[u64], places: &mut Vec<Place>) {
        let held = &self.tables[number as usize];
        let elsewhere = if held.whole { Place::Missing } else { Place::Fetch };
        let mut fetched = 0;
        places.extend(ids.iter().map(|&id| match self.keys.find(Key { table: number, id }) {
            Some(_) => Place::Resident,
            None => {
                fetched += u64::from(!held.whole);
                elsewhere
            }
        }));
        held.asked.fetch_add(ids.len() as u64, Ordering::Relaxed);
        held.resident.fetch_add(ids.len() as u64 - fetched, Ordering::Relaxed);
    }

    /// What [`place`](Self::place) has counted, of each table.
    #[must_use]
    pub fn hits(&self) -> Vec<Hits> {
        let one = |held: &Held| Hits {
            table: held.fit.table.clone(),
            asked: held.asked.load(Ordering::Relaxed),
            resident: held.resident.load(Ordering::Relaxed),
        };
        self.tables.iter().map(one).collect()
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &KeyTable {
        &self.keys
    }
}

/// The segments of which something is kept, cut to that: the tables of the set, by their numbers.
pub(super) fn kept<'a, 'f>(segments: &[Segment<'a>], told: &'f [Fit]) -> Vec<(Segment<'a>, &'f Fit)> {
    let one = |(segment, fit): (&Segment<'a>, &'f Fit)| {
        let ids = usize::try_from(fit.kept).unwrap_or(usize::MAX);
        let bytes = ids.saturating_mul(segment.format.row_bytes(segment.dim));
        let is_there = ids > 0 || (segment.whole && segment.ids.is_empty());
        is_there
            .then(|| (Segment { ids: &segment.ids[..ids], rows: &segment.rows[..bytes], ..*segment }, fit))
    };
    segments.iter().zip(told).filter_map(one).collect()
}

/// Rows that are offered for residence, the most wanted first.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The table.
    pub table: &'a TableVersion,
    /// How its rows are stored.
    pub format: RowFormat,
    /// Elements of a row.
    pub dim: u32,
    /// Whether these are all ids of the table: see [`Offer::whole`].
    pub whole: bool,
    /// The ids; of a composite table, the numbers of rows.
    pub ids: &'a [u64],
    /// Their stored rows, one behind the other.
    pub rows: &'a [u8],
}

/// Where the row of an id is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the device.
    Resident,
    /// At a node.
    Fetch,
    /// Nowhere: all of the table is on the device, and this is not.
    Missing,
}

/// How often ids of a table were asked for since the set was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hits {
    /// The table.
    pub table: TableVersion,
    /// Ids asked for.
    pub asked: u64,
    /// Those of them that no node had to be asked for.
    pub resident: u64,
}

/// A table of the set.
#[derive(Debug)]
struct Held {
    fit: Fit,
    format: RowFormat,
    dim: u32,
    whole: bool,
    asked: AtomicU64,
    resident: AtomicU64,
}

/// Checks the segments against what they say of themselves.
fn offers(segments: &[Segment<'_>]) -> Result<Vec<Offer>, ResidentError> {
    let one = |(at, segment): (usize, &Segment<'_>)| {
        let wrong = |problem| Err(ResidentError::Offer { table: segment.table.to_string(), problem });
        if segments[..at].iter().any(|before| before.table == segment.table) {
            return wrong("they are offered twice".into());
        }
        let row_bytes = segment.format.row_bytes(segment.dim);
        if segment.ids.len().checked_mul(row_bytes) != Some(segment.rows.len()) {
            let (bytes, ids) = (segment.rows.len(), segment.ids.len());
            return wrong(format!("{bytes} bytes, {ids} rows of {row_bytes} were to come"));
        }
        if segment.ids.len() >= 1 << 31 {
            return wrong(format!("{} ids, there may be {}", segment.ids.len(), (1u32 << 31) - 1));
        }
        let ids = segment.ids.len() as u64;
        let Segment { table, format, dim, whole, .. } = *segment;
        Ok(Offer { table: table.clone(), format, dim, ids, whole })
    };
    segments.iter().enumerate().map(one).collect()
}

/// All keys with their rows: the ids of each table, numbered from 0.
#[derive(Clone)]
struct Keys<'a> {
    ids: &'a [&'a [u64]],
    table: u32,
    row: u32,
    left: usize,
}

impl<'a> Keys<'a> {
    fn of(ids: &'a [&'a [u64]]) -> Self {
        Self { ids, table: 0, row: 0, left: ids.iter().map(|ids| ids.len()).sum() }
    }
}

impl Iterator for Keys<'_> {
    type Item = (Key, u32);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let ids = self.ids.get(self.table as usize)?;
            if let Some(&id) = ids.get(self.row as usize) {
                let next = (Key { table: self.table, id }, self.row);
                self.row += 1;
                self.left -= 1;
                return Some(next);
            }
            self.table += 1;
            self.row = 0;
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Keys<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(table: &str) -> TableVersion {
        let name = |text: &str| tidepool_types::Name::new(text).unwrap();
        TableVersion { table: name(table), version: name("v1") }
    }

    fn segment<'a>(table: &'a TableVersion, whole: bool, ids: &'a [u64], rows: &'a [u8]) -> Segment<'a> {
        Segment { table, format: RowFormat::F32, dim: 1, whole, ids, rows }
    }

    #[test]
    fn what_is_kept_is_placed_counted_and_listed_as_it_was_offered() {
        let (users, items, none) = (version("users"), version("items"), version("none"));
        let (ids, rows) = ([7, 3, u64::MAX, 0], [0; 16]);
        let segments = [
            segment(&users, true, &ids, &rows),
            segment(&items, false, &ids, &rows),
            segment(&none, true, &[], &[]),
        ];
        let room = super::super::fixed_bytes(3) + 6 * super::super::bytes_per_id(RowFormat::F32, 1, 0.6);
        let inventory = Inventory::new(&segments, &ResidentOptions::new(room, 5)).unwrap();
        assert_eq!(inventory.told().iter().map(|fit| fit.kept).collect::<Vec<_>>(), [4, 2, 0]);
        assert_eq!(inventory.tables().collect::<Vec<_>>(), [&users, &items, &none]);
        assert_eq!(inventory.ids(0), ids);
        assert_eq!(inventory.ids(1), [7, 3], "the most wanted are kept");
        assert_eq!((inventory.ids(2), inventory.ids(9)), (vec![], vec![]));
        let mut places = Vec::new();
        inventory.place(0, &[3, 4], &mut places);
        inventory.place(1, &[3, 0], &mut places);
        inventory.place(2, &[3], &mut places);
        use Place::{Fetch, Missing, Resident};
        assert_eq!(places, [Resident, Missing, Resident, Fetch, Missing], "nothing is in a table of no rows");
        let hits: Vec<_> = inventory.hits().iter().map(|hits| (hits.asked, hits.resident)).collect();
        assert_eq!(hits, [(2, 2), (2, 1), (1, 1)]);
        assert_eq!((inventory.rows_of(1), inventory.rows_of(3)), (Some((RowFormat::F32, 1)), None));
    }
}
