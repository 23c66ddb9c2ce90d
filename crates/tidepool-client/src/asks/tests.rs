//! The wire forms that are chosen, against all others: by the bytes of the messages that would travel.

use std::{collections::BTreeMap, time::Instant};

use prost::Message;
use tidepool_types::{Keying, RowFormat, mix64};

use super::*;
use crate::{
    layouts_tests::{Shape, Table, choice, feature, map_of, node_answers, table, topology_of},
    request::LookupRequest,
    route::Router,
    topology::Topology,
};

/// Bytes of the features of questions and answers, per node.
fn message_bytes(
    tables: &[Table],
    topology: &Topology,
    split: &Split<'_>,
    questions: &[NodeAsk],
) -> BTreeMap<u32, usize> {
    let size = |question: &NodeAsk| {
        let asks = question.asks.iter().map(|ask| ask.encode(split));
        let answer =
            |ask: &v1::FeatureRequest| node_answers(tables, &topology.map, topology.id(question.node), ask);
        let both = asks.map(|ask| [ask.encoded_len(), answer(&ask).encoded_len()]);
        // Each is a field of its message.
        both.flatten().map(|len| 1 + prost::length_delimiter_len(len) + len).sum()
    };
    questions.iter().map(|question| (question.node.0, size(question))).collect()
}

/// A ranking request: the 50 last pins of a user, and 500 candidates with 3 ids each, from `user` and
/// `candidates`. Ids by a long tail, as people's are.
fn ranking(user: &Table, candidates: &Table) -> LookupRequest {
    let id = |n: u64| {
        let unit = (mix64(n) >> 11) as f64 / (1u64 << 53) as f64;
        (4096f64.powf(unit) - 1.0) as u64
    };
    let bags = |count: u64, length: u64, salt: u64| -> Vec<Vec<(u64, u8)>> {
        (0..count).map(|b| (0..length).map(|n| (id(salt + b * length + n), 0)).collect()).collect()
    };
    let features = vec![
        feature(user, Pooling::Sum, &bags(1, 50, 1 << 40), false, true),
        feature(candidates, Pooling::Sum, &bags(500, 3, 0), false, true),
    ];
    LookupRequest { request_id: String::new(), features }
}

#[test]
fn the_forms_of_a_ranking_request_are_the_smallest_of_all() {
    let tables: Vec<Table> =
        (0..2).map(|at| table(at, 32, RowFormat::Int4, Keying::Hashed, 4096, false)).collect();
    for (words, user) in [("two tables", &tables[1]), ("one table", &tables[0])] {
        let request = ranking(user, &tables[0]);
        for nodes in [1, 2, 10] {
            let topology = topology_of(map_of(&tables, &Shape { nodes, groups: 1, partitions: 32 }));
            let split = Split::new(&request, &topology.map, 1).unwrap();
            let (route, _) = Router::new(&topology, &split, choice(0), Instant::now()).first();
            let chosen = build(&split, &route, &LookupOptions::default());
            let chosen = message_bytes(&tables, &topology, &split, &chosen);
            // A node's bytes depend on the forms at that node alone, so all combinations are these four.
            let mut smallest: BTreeMap<u32, usize> = BTreeMap::new();
            for combination in 0..4 {
                let form = |feature: usize| {
                    if combination >> feature & 1 == 1 { WireForm::Pool } else { WireForm::Gather }
                };
                let forms: Vec<_> = (0..2).map(|feature| vec![form(feature); nodes]).collect();
                let mut marks: Vec<Vec<Mark>> =
                    split.tables.iter().map(|t| vec![Mark::default(); t.ids.len()]).collect();
                let asked = in_forms(&split, &route, &forms, &mut marks);
                for (node, bytes) in message_bytes(&tables, &topology, &split, &asked) {
                    let least = smallest.entry(node).or_insert(bytes);
                    *least = bytes.min(*least);
                }
            }
            assert_eq!(chosen, smallest, "{words}, {nodes} nodes");
            // What a lookup of f32 rows would take, id by id: 8 bytes of id and 128 of row.
            let occurrences: usize = request.features.iter().map(|f| f.ids.len()).sum();
            let total: usize = chosen.values().sum();
            let factor = (occurrences * (8 + 128)) as f64 / total as f64;
            assert!(factor > 10.0, "{words}, {nodes} nodes: {total} bytes, {factor} times fewer");
        }
    }
}

#[test]
fn what_is_gathered_anyway_is_not_pooled() {
    let tables = [table(0, 32, RowFormat::Int4, Keying::Hashed, 100, false)];
    // By itself the long bag would be pooled; but its ids come for others all the same.
    let single: Vec<Vec<(u64, u8)>> = (0..60).map(|n| vec![(n, 0)]).collect();
    let long = |to: u64| vec![(0..to).map(|n| (n, 0)).collect::<Vec<_>>()];
    let forms_of = |first: &[Vec<(u64, u8)>], second: &[Vec<(u64, u8)>]| {
        let of = |bags| feature(&tables[0], Pooling::Sum, bags, false, true);
        let request = LookupRequest { request_id: String::new(), features: vec![of(first), of(second)] };
        let topology = topology_of(map_of(&tables, &Shape { nodes: 1, groups: 1, partitions: 4 }));
        let split = Split::new(&request, &topology.map, 1).unwrap();
        let (route, _) = Router::new(&topology, &split, choice(0), Instant::now()).first();
        let mut marks = vec![vec![Mark::default(); split.tables[0].ids.len()]];
        forms(&split, &route, &LookupOptions::default(), &mut marks).concat()
    };
    use WireForm::{Gather, Pool};
    assert_eq!(forms_of(&single, &long(60)), [Gather, Gather]);
    assert_eq!(forms_of(&long(60), &single), [Gather, Gather], "in any order");
    assert_eq!(forms_of(&single, &long(63)), [Gather, Gather], "a few more are cheaper than a sum");
    assert_eq!(forms_of(&single, &long(100)), [Gather, Pool]);
    assert_eq!(forms_of(&long(100), &long(100)), [Pool, Pool]);
}
