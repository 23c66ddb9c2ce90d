//! Answers become the rows of each feature: nothing is expanded, and no row is copied.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tidepool_types::{Combine, Pooling};

use crate::{
    answer::Answered,
    asks::Ask,
    cache::KnownId,
    compose,
    request::{FeatureCounts, FeatureLookup, LookupRequest},
    rows::{FeatureRows, Lacking, RowAt, TableRows},
    split::{FeatureSplit, Split, TableSplit, as_u32},
};

/// Puts what was gathered for `request` in the order of its features.
/// The rows that were known are taken out of `split`.
pub(crate) fn hand_on(
    request: &LookupRequest,
    split: &mut Split<'_>,
    answers: &[Answered],
) -> Vec<FeatureRows> {
    let tables: Vec<_> = tables(split, answers).into_iter().map(Arc::new).collect();
    let features = request.features.iter().zip(&split.features);
    features.map(|(asked, feature)| feature_rows(asked, feature, &tables[feature.table])).collect()
}

/// What was gathered of each table. Ids that nobody has answered for are unavailable. The rows that were known are taken out
/// of `split`.
pub(crate) fn tables(split: &mut Split<'_>, answers: &[Answered]) -> Vec<TableRows> {
    let mut tables: Vec<TableRows> = split.tables.iter_mut().map(known_rows).collect();
    let mut sequences = vec![None; tables.len()];
    for answer in answers {
        // Questions are in gather form, all of them: sums are nothing that could be handed on.
        let Ask::Gather { table, ids } = &answer.ask else { continue };
        let sequence = &mut sequences[*table];
        *sequence = Some(sequence.map_or(answer.sequence, |s: u64| s.min(answer.sequence)));
        let table = &mut tables[*table];
        let bodies = table.add(&answer.body);
        for (at, id) in ids.iter().enumerate() {
            table.rows[*id as usize] = if answer.is_missing(at) { RowAt::Missing } else { bodies.place(at) };
        }
    }
    for (table, sequence) in tables.iter_mut().zip(sequences) {
        table.sequence = sequence.unwrap_or(0);
        table.lacking = table.rows.iter().any(|row| matches!(row, RowAt::Missing | RowAt::Unavailable));
    }
    tables
}

/// What needed no asking.
fn known_rows(table: &mut TableSplit<'_>) -> TableRows {
    let mut out = TableRows {
        schema: table.layout.schema.clone(),
        sequence: 0,
        ids: table.ids.clone(),
        rows: Vec::with_capacity(table.ids.len()),
        bodies: Vec::new(),
        lacking: false,
    };
    let bodies = out.add(&table.known.take_rows());
    out.rows.extend((0..table.ids.len()).map(|id| match table.known.of(id) {
        KnownId::Unknown => RowAt::Unavailable,
        KnownId::Missing => RowAt::Missing,
        KnownId::Held => RowAt::Held,
        KnownId::Row(place) => bodies.place(place as usize),
    }));
    out
}

fn feature_rows(asked: &FeatureLookup, feature: &FeatureSplit<'_>, table: &Arc<TableRows>) -> FeatureRows {
    let composite = table.schema.composite.as_ref();
    let lengths = compose::asked_lengths(asked);
    let mut out = FeatureRows {
        table: table.clone(),
        members: feature.members.clone(),
        hashes: as_u32(feature.members_per_id()),
        // A bag of one id has one order.
        by_hash: composite.is_some_and(|of| of.combine == Combine::Concat)
            && asked.pooling != Pooling::None
            && lengths.is_some(),
        counts: FeatureCounts::default(),
        lacking: Vec::new(),
    };
    if !table.lacking {
        // Only a bag without ids is the default row.
        let empty = lengths.into_iter().flatten().filter(|length| **length == 0).count();
        out.counts.defaulted_bags = as_u32(empty);
        return out;
    }
    for bag in compose::bag_ranges(lengths, asked.ids.len()) {
        let (before, ids) = (out.lacking.len(), bag.len());
        out.find_lacking(bag);
        let of_bag = out.counts_of(ids, &out.lacking[before..]);
        out.counts.missing_ids += of_bag.missing;
        out.counts.unavailable_ids += of_bag.unavailable;
        out.counts.defaulted_bags += u32::from(of_bag.defaulted());
    }
    out
}

impl FeatureRows {
    /// Notes which ids of a bag lack a row, after those of the bags before it.
    fn find_lacking(&mut self, bag: Range<usize>) {
        let (ids, hashes) = (bag.len(), self.hashes as usize);
        // The members of an id: the first of them, and how far it is from one to the next.
        let (first, step) = if self.by_hash { (1, ids) } else { (hashes, 1) };
        let members = &self.members[bag.start * hashes..bag.end * hashes];
        for id in 0..ids {
            let mut lacks = None;
            for member in members[id * first..].iter().step_by(step).take(hashes) {
                match self.table.rows[*member as usize] {
                    RowAt::Unavailable => lacks = Some(true),
                    RowAt::Missing => lacks = lacks.or(Some(false)),
                    RowAt::Body(..) | RowAt::Held => {}
                }
            }
            let id = as_u32(bag.start + id);
            self.lacking.extend(lacks.map(|unavailable| Lacking { id, unavailable }));
        }
    }
}

/// Where the rows of bytes begin that became bodies of a table.
struct Bodies {
    /// The first of them.
    first: usize,
    /// Rows of each but the last: as many as a place can count the bytes of.
    rows: usize,
    row_bytes: usize,
}

impl Bodies {
    #[inline]
    fn place(&self, at: usize) -> RowAt {
        // Nearly always there is one.
        let (body, at) = if at < self.rows { (0, at) } else { (at / self.rows, at % self.rows) };
        RowAt::Body(as_u32(self.first + body), as_u32(at * self.row_bytes))
    }
}

impl TableRows {
    /// Makes rows, which stand one behind the other, bodies of the table.
    fn add(&mut self, bytes: &Bytes) -> Bodies {
        self.add_in_bodies(bytes, u32::MAX as usize)
    }

    /// The same, with so many bytes in each of the bodies at most, unless a row has more.
    fn add_in_bodies(&mut self, bytes: &Bytes, most: usize) -> Bodies {
        let row_bytes = self.schema.row_bytes().max(1);
        let rows = (most / row_bytes).max(1);
        let first = self.bodies.len();
        let starts = (0..bytes.len()).step_by(rows * row_bytes);
        self.bodies.extend(starts.map(|start| bytes.slice(start..bytes.len().min(start + rows * row_bytes))));
        Bodies { first, rows, row_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{layouts_tests::schema, rows::UniqueRow};

    #[test]
    fn rows_beyond_what_a_place_can_count_lie_in_more_bodies() {
        let schema = schema("t", 2);
        let row_bytes = schema.row_bytes();
        let row = |at: usize| vec![at as u8; row_bytes];
        let ids: Vec<u64> = (0..7).collect();
        let mut table = TableRows {
            schema,
            sequence: 0,
            rows: vec![RowAt::Missing; ids.len()],
            ids,
            bodies: vec![Bytes::from_static(&[9; 3])],
            lacking: false,
        };
        let bytes: Bytes = (0..7).flat_map(row).collect::<Vec<_>>().into();
        // Room for three rows, and for a part of one.
        let bodies = table.add_in_bodies(&bytes, 4 * row_bytes - 1);
        assert_eq!(
            table.bodies[1..].iter().map(Bytes::len).collect::<Vec<_>>(),
            [3, 3, 1].map(|n| n * row_bytes)
        );
        (0..7).for_each(|at| table.rows[at] = bodies.place(at));
        (0..7).for_each(|at| assert_eq!(table.row(at), UniqueRow::Stored(&row(at))));
        assert_eq!(bodies.place(5), RowAt::Body(2, 2 * row_bytes as u32));
    }
}
