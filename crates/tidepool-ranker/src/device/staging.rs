//! The rows of a batch on their way into the staging buffer: which of the rows that a lookup has brought are of use, how
//! much room they take, and their bags.
//!
//! The rows of a table stand once in what a lookup brings, however many bags and inputs have them, and so they are staged.
//! Passengers may have left since: what only they had is not staged.

use std::{ops::Range, sync::Arc};

use tidepool_client::{FeatureRows, TableRows, UniqueRow};
use tidepool_dense::rows::{Position, RowCounts, RowsError, RowsWriter};

use super::{around::Feed, place::ResidentRows};
use crate::batch::RowBags;

/// What is worked out of a batch. It is used again for others, so that staging asks for no memory once it has had as much as
/// batches take.
#[derive(Debug, Default)]
pub(super) struct Staging {
    /// What lookups have brought, each once. Of those beyond `found` only the memory is of use.
    unique: Vec<Unique>,
    found: usize,
    /// Of each feed, which of those its bags are made of.
    unique_of: Vec<usize>,
    /// Members of one bag.
    bag: Vec<Position>,
}

/// The unique rows of a table in one lookup.
#[derive(Debug, Default)]
struct Unique {
    /// The first feed that has them.
    feed: usize,
    /// Of each: whether a bag has it.
    wanted: Vec<bool>,
    /// Of each that is wanted: where it is staged.
    positions: Vec<Position>,
}

/// A batch: the inputs that are made of rows, and per input of the contract its bags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    pub(super) feeds: &'a [Feed],
    pub(super) bags: &'a [Option<RowBags<'a>>],
}

impl<'a> Batch<'a> {
    fn of(self, feed: usize) -> Result<&'a RowBags<'a>, RowsError> {
        let input = self.feeds[feed].input;
        let bags = self.bags.get(input).and_then(Option::as_ref);
        bags.ok_or_else(|| RowsError::Mismatch {
            what: format!("input {input}"),
            problem: "it is made of rows, and the batch brings none for it".into(),
        })
    }
}

impl Staging {
    /// Looks over a batch: how much of it is to be staged, of a model that has so many tables. It goes into `counts`.
    ///
    /// # Errors
    /// [`RowsError::Mismatch`] when an input that is made of rows has none.
    pub(super) fn plan(
        &mut self,
        batch: Batch<'_>,
        tables: usize,
        counts: &mut RowCounts,
    ) -> Result<(), RowsError> {
        counts.rows.clear();
        counts.rows.resize(tables, 0);
        counts.ids.clear();
        counts.keys = 0;
        self.found = 0;
        self.unique_of.clear();
        for (at, feed) in batch.feeds.iter().enumerate() {
            let (of, place) = (batch.of(at)?, self.find(batch, at)?);
            self.unique_of.push(place);
            let unique = &mut self.unique[place];
            let mut ids = 0;
            for bag in &of.ids {
                let members = members(of.rows, feed, bag);
                ids += if members.is_empty() { 0 } else { bag.len() };
                members.iter().for_each(|member| unique.wanted[*member as usize] = true);
            }
            counts.ids.push(ids);
        }
        for unique in &self.unique[..self.found] {
            let (table, number) = (&batch.of(unique.feed)?.rows.table, batch.feeds[unique.feed].table);
            let wanted = unique.wanted.iter().enumerate().filter(|(_, wanted)| **wanted);
            for (at, _) in wanted {
                match table.row(at) {
                    UniqueRow::Stored(_) => counts.rows[number] += 1,
                    UniqueRow::Held => counts.keys += 1,
                    UniqueRow::Missing | UniqueRow::Unavailable => {}
                }
            }
        }
        Ok(())
    }

    /// Writes the batch that was looked over last: the rows of each table, keys in place of those that are `resident`, then the
    /// bags of each feed.
    ///
    /// # Errors
    /// Those of the writer; [`RowsError::Mismatch`] when rows are held that nobody has.
    pub(super) fn write(
        &mut self,
        batch: Batch<'_>,
        counts: &RowCounts,
        resident: Option<&ResidentRows>,
        writer: &mut RowsWriter<'_>,
    ) -> Result<(), RowsError> {
        if counts.keys > 0 {
            let none = || RowsError::Mismatch {
                what: "the resident set".into(),
                problem: "the lookup left rows out, and none are resident".into(),
            };
            let ResidentRows { set, numbers, .. } = resident.ok_or_else(none)?;
            writer.resident(set.clone(), numbers)?;
        }
        for unique in &mut self.unique[..self.found] {
            let (rows, table) = (&batch.of(unique.feed)?.rows.table, batch.feeds[unique.feed].table);
            unique.stage(rows, table, writer)?;
        }
        for (at, (feed, unique)) in batch.feeds.iter().zip(&self.unique_of).enumerate() {
            let (of, unique) = (batch.of(at)?, &self.unique[*unique]);
            for ids in &of.ids {
                let members = members(of.rows, feed, ids);
                self.bag.clear();
                self.bag.extend(members.iter().map(|member| unique.positions[*member as usize]));
                let weights = match of.weights {
                    Some(weights) if !members.is_empty() => &weights[ids.clone()],
                    _ => &[],
                };
                writer.bag(at, &self.bag, weights)?;
            }
        }
        Ok(())
    }

    /// The place among `unique` of the rows that the bags of a feed are made of.
    fn find(&mut self, batch: Batch<'_>, feed: usize) -> Result<usize, RowsError> {
        let table = &batch.of(feed)?.rows.table;
        for (at, known) in self.unique[..self.found].iter().enumerate() {
            if Arc::ptr_eq(&batch.of(known.feed)?.rows.table, table) {
                return Ok(at);
            }
        }
        let at = self.found;
        if self.unique.len() == at {
            self.unique.push(Unique::default());
        }
        self.unique[at].begin(feed, table);
        self.found += 1;
        Ok(at)
    }
}

impl Unique {
    fn begin(&mut self, feed: usize, table: &TableRows) {
        let unique = table.ids.len();
        self.feed = feed;
        self.wanted.clear();
        self.wanted.resize(unique, false);
        self.positions.clear();
        self.positions.resize(unique, Position::MISSING);
    }

    /// Stages the rows that are wanted: those that lie one behind the other at once.
    fn stage(
        &mut self,
        rows: &TableRows,
        table: usize,
        writer: &mut RowsWriter<'_>,
    ) -> Result<(), RowsError> {
        let mut at = 0;
        while at < self.wanted.len() {
            let is_wanted = self.wanted[at];
            let end = self.wanted[at..].iter().position(|wanted| *wanted != is_wanted);
            let end = end.map_or(self.wanted.len(), |more| at + more);
            while is_wanted && at < end {
                at += self.stage_run(rows, table, at..end, writer)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Stages the first of these rows, and those behind it that lie behind it: how many.
    fn stage_run(
        &mut self,
        rows: &TableRows,
        table: usize,
        places: Range<usize>,
        writer: &mut RowsWriter<'_>,
    ) -> Result<usize, RowsError> {
        let at = places.start;
        match rows.row(at) {
            UniqueRow::Stored(row) => {
                let run = rows.run(at, places.end);
                let (first, count) = (writer.rows(table, run)?, run.len() / row.len().max(1));
                let positions = (0u32..).map(|by| RowsWriter::behind(first, by));
                self.positions[at..at + count].iter_mut().zip(positions).for_each(|(to, of)| *to = of);
                return Ok(count);
            }
            UniqueRow::Held => self.positions[at] = writer.key(table, rows.ids[at])?,
            // It stands as missing from the beginning.
            UniqueRow::Missing | UniqueRow::Unavailable => {}
        }
        Ok(1)
    }
}

/// The members of a bag. Of a pooled one that lacks rows of a composite table, of which nobody knows whether they are there,
/// none: half a vector is none, and its place is the default row's.
fn members<'a>(rows: &'a FeatureRows, feed: &Feed, ids: &Range<usize>) -> &'a [u32] {
    let may_be_torn = feed.pooled && rows.table.schema.composite.is_some();
    if may_be_torn && rows.bag_counts(ids.clone()).torn { &[] } else { rows.members_of(ids.clone()) }
}

#[cfg(test)]
mod tests {
    use tidepool_client::{FeatureLookup, Held, Holding, LocalTables, LookupRequest};
    use tidepool_dense::rows::{Pool, RowInput, RowTable, RowsLayout};
    use tidepool_types::{Combine, Composite, Pooling, TableSchema, TableVersion};

    use super::*;
    use crate::device::around::{
        around,
        tests::{schema, spec},
    };

    /// Whoever asks has the rows of these ids of `item`.
    #[derive(Debug)]
    struct Has(&'static [u64]);

    impl Held for Has {
        fn hold(&self, table: &TableVersion, ids: &[u64], into: &mut Vec<Holding>) -> bool {
            let is_item = table.table.as_str() == "item";
            let holding = |id: &u64| if self.0.contains(id) { Holding::Held } else { Holding::Ask };
            into.extend(ids.iter().filter(|_| is_item).map(holding));
            is_item
        }
    }

    fn feature(table: &TableSchema, pooling: Pooling, bags: &[&[u64]]) -> FeatureLookup {
        let lengths = bags.iter().map(|bag| u32::try_from(bag.len()).unwrap()).collect();
        FeatureLookup {
            table_version: table.table_version.clone(),
            pooling,
            ids: bags.concat(),
            lengths: (pooling != Pooling::None).then_some(lengths),
            weights: None,
        }
    }

    /// `liked`, `item` and `last` of two requests with one and two candidates. The table has no item from 40 on, and 7 and 8
    /// are held.
    fn looked_up() -> (Vec<TableSchema>, Vec<FeatureRows>) {
        let composite = Composite { seeds: vec![3, 4], combine: Combine::Sum };
        let tables = vec![schema("item", 8, None), schema("shop", 4, Some(composite))];
        let (item, shop) = (&tables[0], &tables[1]);
        let features = vec![
            feature(item, Pooling::Mean, &[&[1, 2, 7], &[2, 40]]),
            feature(item, Pooling::Sum, &[&[3], &[8, 1], &[5, 5]]),
            feature(shop, Pooling::None, &[&[70], &[71, 72]]),
        ];
        let request = LookupRequest { request_id: String::new(), features };
        let rows = LocalTables::new(tables.clone()).look_up_rows(
            &request,
            Some(&Has(&[7, 8])),
            |table, ids, put| {
                let row = vec![1; tables[table].row_bytes()];
                ids.iter().enumerate().filter(|(_, id)| **id < 40).for_each(|(at, _)| put(at, &row));
                Ok(())
            },
        );
        (tables, rows.unwrap().features)
    }

    /// A layout with so much room in the bags of each feed, and for so many keys.
    fn layout(ids: [u32; 3], keys: u32) -> RowsLayout {
        let input = |table: usize, ids: u32| RowInput {
            table,
            bags: 8,
            ids,
            pool: if table == 0 { Pool::Sum } else { Pool::Sequence { max_len: 5, mask: true } },
            weighted: false,
            hashes: if table == 0 { 1 } else { 2 },
            combine: Combine::Sum,
            default_row: Vec::new(),
        };
        let (format, [liked, item, last]) = (tidepool_types::RowFormat::Int4, ids);
        let tables = vec![RowTable { format, dim: 8, rows: 4 }, RowTable { format, dim: 4, rows: 6 }];
        RowsLayout::new(tables, vec![input(0, liked), input(0, item), input(1, last)], keys).unwrap()
    }

    /// What is planned of these bags of the three features.
    fn planned(
        staging: &mut Staging,
        (tables, rows): &(Vec<TableSchema>, Vec<FeatureRows>),
        ids: [Vec<Range<usize>>; 3],
    ) -> Result<RowCounts, RowsError> {
        let made = around(&spec(), &[Some(&tables[0]), None, Some(&tables[0]), Some(&tables[1])], 4, true);
        let bags = rows.iter().zip(ids).map(|(rows, ids)| Some(RowBags { rows, ids, weights: None }));
        let mut bags: Vec<_> = bags.collect();
        bags.insert(1, None);
        let mut counts = RowCounts { rows: vec![9], ids: vec![9; 9], keys: 9 };
        let batch = Batch { feeds: &made.feeds, bags: &bags };
        staging.plan(batch, made.tables.len(), &mut counts).map(|()| counts)
    }

    #[test]
    fn what_some_bag_has_is_counted_once_and_what_nobody_has_any_more_is_not() {
        let looked_up = looked_up();
        let shops = &looked_up.1[2];
        let mut staging = Staging::default();
        for _ in 0..2 {
            let ids = [vec![0..3, 3..5], vec![0..1, 1..3, 3..5], vec![0..1, 1..3]];
            let counts = planned(&mut staging, &looked_up, ids).unwrap();
            // 1, 2, 3 and 5; 7 and 8 are held, 40 is nowhere.
            let all = RowCounts { rows: vec![4, shops.table.ids.len()], ids: vec![5, 5, 3], keys: 2 };
            assert_eq!(counts, all);
            // The second request has left.
            let counts =
                planned(&mut staging, &looked_up, [0..3, 0..1, 0..1].map(|ids| Vec::from([ids]))).unwrap();
            let of_70 = shops.members_of(0..1).iter().collect::<std::collections::BTreeSet<_>>().len();
            assert_eq!(counts, RowCounts { rows: vec![3, of_70], ids: vec![3, 1, 1], keys: 1 });
            // All have.
            let counts = planned(&mut staging, &looked_up, [vec![], vec![], vec![]]).unwrap();
            assert_eq!(counts, RowCounts { rows: vec![0, 0], ids: vec![0, 0, 0], keys: 0 });
        }
    }

    #[test]
    fn counts_say_whether_a_bucket_has_room() {
        let counts = planned(
            &mut Staging::default(),
            &looked_up(),
            [vec![0..3, 3..5], vec![0..1, 1..3, 3..5], vec![0..1, 1..3]],
        );
        let counts = counts.unwrap();
        let fits = |ids, keys| layout(ids, keys).fits(&counts, &|at| format!("input {at}"));
        assert_eq!(fits([5, 5, 3], 2), Ok(()));
        let too_many = |what: &str, of, room| Err(RowsError::TooMany { what: what.into(), of, room });
        assert_eq!(fits([5, 4, 3], 2), too_many("input 1 with 5 ids", "ids", 4));
        assert_eq!(fits([5, 5, 3], 1), too_many("the resident set with 2 keys", "keys", 1));
    }

    #[test]
    fn an_input_without_rows_is_an_error() {
        let (tables, mut rows) = looked_up();
        rows.pop();
        let found = planned(&mut Staging::default(), &(tables, rows), [vec![], vec![], vec![]]);
        assert!(matches!(found, Err(RowsError::Mismatch { .. })), "{found:?}");
    }
}
