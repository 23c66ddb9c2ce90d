//! Answers without some partitions, against the oracle of the other tests: what is lost is flagged bag by bag,
//! and the rest is as if the lost ids had not been asked for.

use std::time::Instant;

use proptest::prelude::*;
use tidepool_types::{Composite, Pooling};

use crate::{
    account::{FeatureNote, LookupAccount, not_found},
    asks,
    fanout::Gathered,
    layouts_tests::{
        FeatureSeed, Shape, Table, all_answer, any_feature, any_table, choice, feature, map_of, oracle,
        topology_of,
    },
    merge::merge,
    request::{Counted, FeatureLookup, FeatureVectors, LookupOptions, LookupRequest, WireForm},
    route::{Piece, Router},
    split::Split,
};

/// The answer when the node of one question is gone, and whether an id of a table is lost with it.
fn without_one_node(
    tables: &[Table],
    request: &LookupRequest,
    shape: &Shape,
    options: &LookupOptions,
    gone: usize,
) -> (Vec<FeatureVectors>, Vec<FeatureNote>, Vec<(usize, u64)>) {
    let topology = topology_of(map_of(tables, shape));
    let split = Split::new(request, &topology.map, 7).unwrap();
    let (route, _) = Router::new(&topology, &split, choice(0), Instant::now()).first();
    let mut questions = asks::build(&split, &route, options);
    let unavailable: Vec<Piece> = match questions.len() {
        0 => Vec::new(),
        some => questions.swap_remove(gone % some).pieces,
    };
    let mut lost = Vec::new();
    for (at, table) in split.tables.iter().enumerate() {
        let of_ids =
            table.ids.iter().zip(&table.slot_of).filter(|(_, slot)| unavailable.contains(&(at, **slot)));
        let schema = &table.layout.schema;
        let number = tables.iter().position(|t| t.version == schema.table_version).unwrap();
        lost.extend(of_ids.map(|(row, _)| (number, *row)));
    }
    let answers = all_answer(tables, &topology, &split, questions);
    let vectors = merge(&split, &answers, &unavailable);
    let gathered = Gathered { answers, unavailable, ..Gathered::default() };
    let counts: Vec<_> = vectors.iter().map(Counted::counts).collect();
    let notes = not_found(&split, &gathered, &counts);
    (vectors, notes, lost)
}

/// What is told of a feature: the different ids that are missing, and those that are lost, in the order of the
/// request.
fn check_note(
    (number, table): (usize, &Table),
    asked: &FeatureLookup,
    got: &FeatureVectors,
    note: Option<&FeatureNote>,
    lost: &[(usize, u64)],
) {
    let (mut missing, mut unavailable) = (Vec::new(), Vec::new());
    for id in &asked.ids {
        let rows = match &table.composite {
            Some(composite) => {
                composite.seeds.iter().map(|seed| Composite::row(*id, *seed, table.rows)).collect()
            }
            None => vec![*id],
        };
        let absent = if table.composite.is_some() { table.rows == 0 } else { !table.stored.contains_key(id) };
        let list = if rows.iter().any(|row| lost.contains(&(number, *row))) {
            &mut unavailable
        } else if absent {
            &mut missing
        } else {
            continue;
        };
        if !list.contains(id) {
            list.push(*id);
        }
    }
    missing.truncate(LookupAccount::MAX_IDS);
    unavailable.truncate(LookupAccount::MAX_IDS);
    let told = note.cloned().unwrap_or_default();
    assert_eq!((told.missing_ids, told.unavailable_ids), (missing, unavailable));
    assert_eq!(
        (told.missing, told.unavailable, told.defaulted_bags),
        (got.missing_ids, got.unavailable_ids, got.defaulted_bags)
    );
}

/// Holds one feature against the oracle, a bag at a time.
fn check(number: usize, table: &Table, asked: &FeatureLookup, got: &FeatureVectors, lost: &[(usize, u64)]) {
    let rows = |id: u64| -> Vec<u64> {
        match &table.composite {
            Some(composite) => {
                composite.seeds.iter().map(|seed| Composite::row(id, *seed, table.rows)).collect()
            }
            None => vec![id],
        }
    };
    let is_lost = |id: u64| rows(id).iter().any(|row| lost.contains(&(number, *row)));
    let lengths = match (&asked.lengths, asked.pooling) {
        (Some(lengths), Pooling::Sum | Pooling::Mean) => lengths.clone(),
        _ => vec![1; asked.ids.len()],
    };
    let dim = got.dim as usize;
    let (mut at, mut missing, mut defaulted, mut unavailable) = (0, 0, 0, Vec::new());
    for (bag, length) in lengths.iter().enumerate() {
        let range = at..at + *length as usize;
        at = range.end;
        let kept: Vec<usize> = range.clone().filter(|n| !is_lost(asked.ids[*n])).collect();
        unavailable.push((range.len() - kept.len()) as u32);
        let torn = table.composite.is_some() && kept.len() < range.len();
        let rest = FeatureLookup {
            ids: kept.iter().map(|n| asked.ids[*n]).collect(),
            lengths: Some(vec![kept.len() as u32]),
            weights: asked.weights.as_ref().map(|w| kept.iter().map(|n| w[*n]).collect()),
            ..asked.clone()
        };
        let (mut want, scales) = oracle(table, &rest);
        missing += want.missing_ids;
        assert_eq!(got.found[bag], want.found.first().copied().unwrap_or(0));
        if torn || got.found[bag] == 0 {
            want.values =
                if table.default_row.is_empty() { vec![0.0; dim] } else { table.default_row.clone() };
            defaulted += 1;
        }
        for (n, value) in got.values[bag * dim..(bag + 1) * dim].iter().enumerate() {
            let scale = scales.get(n).copied().unwrap_or(0.0);
            assert!((value - want.values[n]).abs() <= 1e-5 * scale, "{value} {}", want.values[n]);
        }
    }
    let sum: u32 = unavailable.iter().sum();
    assert_eq!((got.missing_ids, got.defaulted_bags, got.unavailable_ids), (missing, defaulted, sum));
    assert_eq!(got.unavailable, if sum > 0 { unavailable } else { Vec::new() });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_lost_is_flagged_and_the_rest_is_right(
        tables in (any_table(0), any_table(1)),
        seeds in prop::collection::vec(any_feature(), 1..5),
        gone in 0usize..4,
    ) {
        let tables = [tables.0, tables.1];
        let number = |seed: &FeatureSeed| usize::from(seed.0);
        let features: Vec<FeatureLookup> = seeds
            .iter()
            .map(|seed| feature(&tables[number(seed)], seed.1, &seed.2, seed.3, seed.4))
            .collect();
        let request = LookupRequest { request_id: "r".into(), features };
        for (nodes, partitions) in [(1, 4), (2, 4), (4, 16)] {
            let shape = Shape { nodes, groups: 1, partitions };
            for form in [None, Some(WireForm::Pool), Some(WireForm::Gather)] {
                let options = LookupOptions { wire_form: form, ..Default::default() };
                let (got, notes, lost) = without_one_node(&tables, &request, &shape, &options, gone);
                for (at, ((seed, asked), got)) in seeds.iter().zip(&request.features).zip(&got).enumerate() {
                    let table = (number(seed), &tables[number(seed)]);
                    check(table.0, table.1, asked, got, &lost);
                    let note = notes.iter().find(|note| note.feature == at);
                    check_note(table, asked, got, note, &lost);
                }
            }
        }
    }
}
