//! Rows that are handed on, pooled by a few plain loops: to the bit, and to the count, the vectors of an exact lookup.

use std::{ops::Range, sync::Mutex, time::Instant};

use proptest::prelude::*;
use tidepool_kernels::RowKernel;
use tidepool_types::{Combine, Keying, Pooling, RowFormat, TableVersion, mix64};

use crate::{
    asks,
    cache::{Finding, Known, KnownId, RowCache},
    hand_on::hand_on,
    layouts_tests::{
        Shape, Table, all_answer, any_feature, any_table, choice, feature, look_up_with, map_of, table,
        topology_of,
    },
    local::LocalTables,
    merge::merge,
    request::{Counted, FeatureLookup, FeatureVectors, LookupOptions, LookupRequest},
    route::{Piece, Router, Tried},
    rows::{BagCounts, FeatureRows, Held, Holding, TableRows, UniqueRow},
    split::{Ahead, Ids, Split, TableSplit},
};

/// Whoever asks has a part of the rows, and knows of some ids that they have none.
#[derive(Debug)]
struct Holder<'a> {
    tables: &'a [Table],
    /// Which ids.
    seed: u64,
    /// What was asked of it.
    asked: Mutex<Vec<(TableVersion, Vec<u64>)>>,
}

impl Holder<'_> {
    fn says(&self, table: &Table, id: u64) -> Holding {
        match mix64(id ^ self.seed) % 3 {
            0 if table.stored.contains_key(&id) => Holding::Held,
            // Rows that a composite table is asked for are there.
            0 if table.composite.is_none() || table.rows == 0 => Holding::Missing,
            _ => Holding::Ask,
        }
    }
}

impl Held for Holder<'_> {
    fn hold(&self, version: &TableVersion, ids: &[u64], into: &mut Vec<Holding>) -> bool {
        self.asked.lock().unwrap().push((version.clone(), ids.to_vec()));
        let table = self.tables.iter().find(|table| table.version == *version).unwrap();
        if self.seed.is_multiple_of(2) && table.version == self.tables[0].version {
            return false;
        }
        into.extend(ids.iter().map(|id| self.says(table, *id)));
        true
    }
}

/// How a lookup goes.
#[derive(Debug)]
struct Course<'a> {
    shape: Shape,
    turn: usize,
    /// Which node of the first route fails, so that others are asked.
    fails: Option<usize>,
    /// Which node nobody stands in for.
    gone: Option<usize>,
    ahead: Ahead<'a>,
}

/// The rows that are handed on, and the vectors that the client makes of the same answers.
fn look_up(
    tables: &[Table],
    request: &LookupRequest,
    course: &Course<'_>,
) -> (Vec<FeatureRows>, Vec<FeatureVectors>) {
    let topology = topology_of(map_of(tables, &course.shape));
    let seed = 0xfeed ^ course.turn as u64;
    let mut split = Split::with(request, &topology.map, seed, course.ahead, Ids::Asked).unwrap();
    let options = LookupOptions { exact: true, ..LookupOptions::default() };
    let mut unavailable: Vec<Piece> = Vec::new();
    let answers = {
        let mut router = Router::new(&topology, &split, choice(course.turn), Instant::now());
        let mut questions = asks::build(&split, &router.first().0, &options);
        if let Some(fails) = course.fails.filter(|_| !questions.is_empty()) {
            let lost = questions.swap_remove(fails % questions.len());
            let mut tried = Tried::default();
            tried.add(&split, &lost.pieces, lost.node);
            let (route, nobody) = router.elsewhere(&lost.pieces, &tried);
            assert!(nobody.is_empty());
            questions.extend(asks::build(&split, &route, &options));
        }
        if let Some(gone) = course.gone.filter(|_| !questions.is_empty()) {
            unavailable = questions.swap_remove(gone % questions.len()).pieces;
        }
        for ask in questions.iter().flat_map(|question| &question.asks) {
            let table = &split.tables[ask.table(&split)];
            assert!(ask.ids().iter().all(|id| table.known.of(*id as usize) == KnownId::Unknown));
        }
        all_answer(tables, &topology, &split, questions)
    };
    if let Some(cache) = course.ahead.cache {
        cache.fill(&split, &answers);
    }
    let rows = hand_on(request, &mut split, &answers);
    for of_split in &mut split.tables {
        let table = tables.iter().find(|t| t.version == of_split.layout.schema.table_version).unwrap();
        of_split.known = with_held_rows(table, of_split);
    }
    (rows, merge(&split, &answers, &unavailable))
}

/// What is known, with the rows that whoever asks has.
fn with_held_rows(table: &Table, split: &TableSplit<'_>) -> Known {
    let ids = || (0..split.ids.len()).map(|at| (at, split.known.of(at)));
    let mut found = Finding::nothing(split.layout.schema.row_bytes(), split.ids.len());
    let missing = ids().map(|(_, of)| if of == KnownId::Missing { Holding::Missing } else { Holding::Ask });
    found.hold(&missing.collect::<Vec<_>>());
    for (at, of) in ids() {
        match of {
            // Those that were here have been handed on, and are held against the table's where they are pooled.
            KnownId::Held | KnownId::Row(_) => found.put_bytes(at, &table.stored[&split.ids[at]]),
            KnownId::Missing | KnownId::Unknown => {}
        }
    }
    found.done()
}

/// The row of a member, wherever it is; None: there is none, or nobody has answered for it.
fn row_of<'a>(table: &'a Table, rows: &'a FeatureRows, member: u32) -> Option<&'a [u8]> {
    let at = member as usize;
    match rows.table.row(at) {
        UniqueRow::Stored(row) => {
            assert_eq!(table.stored.get(&rows.table.ids[at]).unwrap(), row, "another id's row");
            Some(row)
        }
        UniqueRow::Held => Some(&table.stored[&rows.table.ids[at]]),
        UniqueRow::Missing | UniqueRow::Unavailable => None,
    }
}

/// The bags of a feature, as places of its ids.
fn bags(asked: &FeatureLookup) -> Vec<Range<usize>> {
    let lengths = match (&asked.lengths, asked.pooling) {
        (Some(lengths), Pooling::Sum | Pooling::Mean) => lengths.clone(),
        _ => vec![1; asked.ids.len()],
    };
    crate::compose::bag_ranges(Some(&lengths), asked.ids.len()).collect()
}

/// The vectors of a feature, from what was handed on alone.
fn pool(table: &Table, asked: &FeatureLookup, rows: &FeatureRows) -> FeatureVectors {
    let kernel = RowKernel::new(table.format, table.dim);
    let (dim, hashes) = (table.dim as usize, rows.hashes as usize);
    let concat = table.composite.as_ref().is_some_and(|c| c.combine == Combine::Concat);
    let parts = if concat { hashes } else { 1 };
    let mut out = FeatureVectors {
        table_version: rows.table.schema.table_version.clone(),
        sequence: rows.table.sequence,
        dim: rows.table.schema.vector_dim(),
        values: Vec::new(),
        found: Vec::new(),
        missing_ids: 0,
        unavailable_ids: 0,
        unavailable: Vec::new(),
        defaulted_bags: 0,
        defaulted: Vec::new(),
    };
    for bag in bags(asked) {
        let counts = rows.bag_counts(bag.clone());
        let members = rows.members_of(bag.clone());
        assert_eq!(members.len(), bag.len() * hashes);
        let mut vector = vec![0.0f32; dim * parts];
        // Rows that are added up stand id by id, those that follow each other hash by hash.
        for (part, vector) in vector.chunks_exact_mut(dim).enumerate() {
            let per_part = members.len() / parts;
            let mut found = Vec::new();
            let mut weights = Vec::new();
            for (at, member) in members[part * per_part..(part + 1) * per_part].iter().enumerate() {
                let Some(row) = row_of(table, rows, *member) else { continue };
                found.push(row);
                let id = if concat { at } else { at / hashes };
                weights.extend(asked.weights.as_ref().map(|weights| weights[bag.start + id]));
            }
            match (asked.pooling, hashes) {
                (Pooling::None, hashes) if concat || hashes == 1 => {
                    found.iter().for_each(|row| kernel.dequantize(row, vector));
                }
                _ if asked.weights.is_some() => {
                    kernel.accumulate_weighted(&found, &weights, &[], vector);
                }
                _ => kernel.accumulate(&found, &[], vector),
            }
        }
        if asked.pooling == Pooling::Mean && counts.found > 0 {
            let weighs = |id: &usize| {
                let member = members[if rows.by_hash { id - bag.start } else { (id - bag.start) * hashes }];
                table.composite.is_some() || row_of(table, rows, member).is_some()
            };
            let sum = |weights: &Vec<f32>| bag.clone().filter(weighs).map(|id| weights[id]).sum::<f32>();
            let divisor = asked.weights.as_ref().map_or(counts.found as f32, sum);
            vector.iter_mut().for_each(|v| *v /= if divisor.is_finite() { divisor } else { f32::NAN });
        }
        if counts.defaulted() || vector.iter().any(|v| !v.is_finite()) {
            let default = &rows.table.schema.default_row;
            vector = if default.is_empty() { vec![0.0; vector.len()] } else { default.clone() };
            out.defaulted.push(out.found.len() as u32);
        }
        out.values.extend(vector);
        out.found.push(counts.found);
        out.missing_ids += counts.missing;
        out.unavailable_ids += counts.unavailable;
        out.unavailable.push(counts.unavailable);
    }
    out.defaulted_bags = out.defaulted.len() as u32;
    if out.unavailable_ids == 0 {
        out.unavailable.clear();
    }
    out
}

/// Equal to the bit.
fn assert_same(got: &FeatureVectors, want: &FeatureVectors) {
    let bits = |of: &FeatureVectors| of.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(got), bits(want), "{got:?} {want:?}");
    assert_eq!(got, want);
}

/// Every feature of a lookup.
fn check(tables: &[Table], request: &LookupRequest, rows: &[FeatureRows], vectors: &[FeatureVectors]) {
    assert_eq!((rows.len(), vectors.len()), (request.features.len(), request.features.len()));
    for ((asked, rows), want) in request.features.iter().zip(rows).zip(vectors) {
        let table = tables.iter().find(|table| table.version == asked.table_version).unwrap();
        let got = pool(table, asked, rows);
        assert_same(&got, want);
        assert_eq!(rows.counts, got.counts(), "nothing here is beyond f32");
        check_counts(asked, rows);
        check_runs(&rows.table);
    }
}

/// That bags, and any other ranges of ids, are counted as their ids one by one.
fn check_counts(asked: &FeatureLookup, rows: &FeatureRows) {
    let mut fates = Vec::new();
    for bag in bags(asked) {
        let (ids, members) = (bag.len(), rows.members_of(bag));
        for id in 0..ids {
            let place = |hash| if rows.by_hash { hash * ids + id } else { id * rows.hashes as usize + hash };
            let of_id = (0..rows.hashes as usize).map(|hash| rows.table.row(members[place(hash)] as usize));
            let of_id: Vec<_> = of_id.collect();
            let has = |row| of_id.contains(&row);
            fates.push((has(UniqueRow::Unavailable), has(UniqueRow::Missing)));
        }
    }
    assert_eq!(fates.len(), asked.ids.len());
    for start in 0..=fates.len() {
        for end in start..=fates.len() {
            let of_range = || fates[start..end].iter();
            let unavailable = of_range().filter(|(gone, _)| *gone).count() as u32;
            let missing = of_range().filter(|(gone, missing)| *missing && !gone).count() as u32;
            let found = (end - start) as u32 - missing - unavailable;
            let torn = unavailable > 0 && rows.table.schema.composite.is_some();
            assert_eq!(rows.bag_counts(start..end), BagCounts { found, missing, unavailable, torn });
        }
    }
}

/// Rows that are told as one run are those of the ids one by one, and all runs together are all rows.
fn check_runs(table: &TableRows) {
    let stored = |at: usize| match table.row(at) {
        UniqueRow::Stored(row) => Some(row),
        UniqueRow::Held | UniqueRow::Missing | UniqueRow::Unavailable => None,
    };
    let (mut at, end) = (0, table.ids.len());
    while at < end {
        let run = table.run(at, end);
        let rows = run.len() / table.schema.row_bytes();
        let one_by_one: Vec<u8> = (at..at + rows).filter_map(stored).flatten().copied().collect();
        assert_eq!(run, one_by_one);
        assert_eq!(rows == 0, stored(at).is_none());
        at += rows.max(1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn pooled_they_are_the_vectors_of_an_exact_lookup(
        tables in (any_table(0), any_table(1)),
        requests in prop::collection::vec(prop::collection::vec(any_feature(), 0..5), 1..4),
        nodes in 1usize..4,
        partitions in prop::sample::select(vec![1u32, 4, 16]),
        fails in prop::option::of(0usize..4),
        gone in prop::option::of(0usize..4),
        holder in prop::option::of(any::<u64>()),
        cache_bytes in prop::sample::select(vec![0u64, 1_500, 1 << 20]),
    ) {
        let tables = [tables.0, tables.1];
        let holder = holder.map(|seed| Holder { tables: &tables, seed, asked: Mutex::default() });
        let cache = RowCache::new(cache_bytes, 5, None);
        for (turn, seeds) in requests.iter().enumerate() {
            let features = seeds.iter().map(|(t, pooling, bags, weighted, lengths)| {
                feature(&tables[usize::from(*t)], *pooling, bags, *weighted, *lengths)
            });
            let request = LookupRequest { request_id: "r".into(), features: features.collect() };
            let shape = Shape { nodes, groups: 2, partitions };
            let held = holder.as_ref().map(|holder| holder as &dyn Held);
            let ahead = Ahead { held, cache: cache.as_ref() };
            let course = Course { shape: shape.clone(), turn, fails, gone, ahead };
            let (rows, vectors) = look_up(&tables, &request, &course);
            check(&tables, &request, &rows, &vectors);
            if let Some(holder) = &holder {
                // Once per table, with each id once.
                for (version, mut ids) in holder.asked.lock().unwrap().drain(..) {
                    let of_table = rows.iter().find(|r| r.table.schema.table_version == version).unwrap();
                    prop_assert_eq!(&ids, &of_table.table.ids);
                    let count = ids.len();
                    ids.sort_unstable();
                    ids.dedup();
                    prop_assert_eq!(ids.len(), count);
                }
            }
            if gone.is_none() {
                let exact = LookupOptions { exact: true, ..Default::default() };
                let (want, _) = look_up_with(&tables, &request, &shape, &exact, turn, fails, None);
                check(&tables, &request, &rows, &want);
            }
            // The same of rows that are at hand.
            let maps = map_of(&tables, &shape);
            let local = LocalTables::new(maps.layouts.iter().map(|layout| layout.schema.clone()).collect());
            let mut asked = 0;
            let outcome = local.look_up_rows(&request, held, |at, ids, put| {
                asked += ids.len() as u64;
                for (place, id) in ids.iter().enumerate() {
                    let said = holder.as_ref().map(|holder| holder.says(&tables[at], *id));
                    let holds = holder.as_ref().is_some_and(|holder| at > 0 || holder.seed % 2 == 1);
                    assert!(!holds || said == Some(Holding::Ask), "{id} is held");
                    if let Some(row) = tables[at].stored.get(id) {
                        put(place, row);
                    }
                }
                Ok(())
            });
            let outcome = outcome.unwrap();
            prop_assert_eq!(outcome.rows_requested, asked);
            let unique: usize =
                local_tables(&outcome.features).iter().map(|rows| rows.table.ids.len()).sum();
            prop_assert_eq!(outcome.held_ids + asked, unique as u64);
            if gone.is_none() {
                check(&tables, &request, &outcome.features, &vectors);
            }
            if let Some(holder) = &holder {
                holder.asked.lock().unwrap().clear();
            }
        }
    }
}

/// One feature of each table.
fn local_tables(features: &[FeatureRows]) -> Vec<&FeatureRows> {
    let mut out: Vec<&FeatureRows> = Vec::new();
    for feature in features {
        if !out.iter().any(|other| std::sync::Arc::ptr_eq(&other.table, &feature.table)) {
            out.push(feature);
        }
    }
    out
}

#[test]
fn sums_beyond_f32_are_default_rows_that_only_whoever_pools_can_count() {
    let mut tables = [table(0, 2, RowFormat::F32, Keying::Dense, 4, true)];
    let row = [f32::MAX, 1.0].map(f32::to_le_bytes).concat();
    tables[0].stored.values_mut().for_each(|stored| stored.clone_from(&row));
    let bags = [vec![(1, 0), (2, 0)], vec![(9, 0)], vec![]];
    let features = vec![feature(&tables[0], Pooling::Sum, &bags, false, true)];
    let request = LookupRequest { request_id: String::new(), features };
    let course = Course {
        shape: Shape { nodes: 2, groups: 1, partitions: 4 },
        turn: 0,
        fails: None,
        gone: None,
        ahead: Ahead::default(),
    };
    let (rows, vectors) = look_up(&tables, &request, &course);
    assert_same(&pool(&tables[0], &request.features[0], &rows[0]), &vectors[0]);
    assert_eq!((vectors[0].defaulted_bags, rows[0].counts.defaulted_bags), (3, 2));
    let counts: Vec<_> = [0..2, 2..3, 3..3].map(|bag| rows[0].bag_counts(bag)).to_vec();
    assert_eq!(counts.iter().map(|counts| counts.defaulted()).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!((counts[0].found, counts[1].missing, counts[2].found), (2, 1, 0));
}
