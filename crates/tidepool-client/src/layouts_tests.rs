//! Split, route, ask, check and merge against a naive oracle: random requests over random layouts, with
//! nodes played by a few lines that know nothing of this crate but the messages.

use std::{collections::HashMap, sync::Arc, time::Instant};

use proptest::prelude::*;
use tidepool_cluster::{ClusterMap, NodeEntry, Placement, TableLayout};
use tidepool_kernels::RowKernel;
use tidepool_proto::{pack, v1};
use tidepool_types::{
    Combine, Composite, Epoch, Keying, Name, NodeId, PartitionCount, Pooling, RowFormat, TableSchema,
    TableVersion, mix64,
};

use crate::{
    answer::{self, Answered},
    asks::{self, NodeAsk},
    cache::RowCache,
    config::BreakerConfig,
    merge::merge,
    peer::Peer,
    request::{FeatureLookup, FeatureVectors, LookupOptions, LookupRequest, WireForm},
    route::{Choice, Router, Tried},
    split::{Ahead, Ids, Split},
    topology::Topology,
};

/// What a table holds, whatever its layout.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) version: TableVersion,
    pub(crate) dim: u32,
    pub(crate) format: RowFormat,
    pub(crate) keying: Keying,
    pub(crate) rows: u64,
    pub(crate) default_row: Vec<f32>,
    pub(crate) composite: Option<Composite>,
    pub(crate) stored: HashMap<u64, Vec<u8>>,
}

impl Table {
    /// The `n`-th id that tests ask for; those from `rows` on are missing, unless the table is composite.
    fn id(&self, n: u64) -> u64 {
        match (self.keying, &self.composite) {
            (Keying::Dense, None) => n,
            _ => mix64(n ^ 0x5eed),
        }
    }

    /// Elements of a vector.
    fn vector_dim(&self) -> usize {
        match &self.composite {
            Some(Composite { seeds, combine: Combine::Concat }) => seeds.len() * self.dim as usize,
            _ => self.dim as usize,
        }
    }

    /// The rows of an id, each with its first element in the vector; None: one of them is missing.
    fn rows_of(&self, id: u64) -> Option<Vec<(usize, &Vec<u8>)>> {
        let Some(Composite { seeds, combine }) = &self.composite else {
            return Some(vec![(0, self.stored.get(&id)?)]);
        };
        let row = |(hash, seed): (usize, &u64)| {
            let at = if *combine == Combine::Concat { hash * self.dim as usize } else { 0 };
            Some((at, self.stored.get(&Composite::row(id, *seed, self.rows))?))
        };
        seeds.iter().enumerate().map(row).collect()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) groups: usize,
    pub(crate) partitions: u32,
}

pub(crate) fn name(text: impl Into<String>) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn table(
    at: usize,
    dim: u32,
    format: RowFormat,
    keying: Keying,
    rows: u64,
    defaults: bool,
) -> Table {
    let mut table = Table {
        version: TableVersion { table: name(format!("t{at}")), version: name("v1") },
        dim,
        format,
        keying,
        rows,
        default_row: Vec::new(),
        composite: None,
        stored: HashMap::new(),
    };
    table.fill(at, defaults);
    table
}

impl Table {
    /// Makes the rows, and the default row as long as a vector.
    fn fill(&mut self, at: usize, defaults: bool) {
        let kernel = RowKernel::new(self.format, self.dim);
        let stored = (0..self.rows).map(|n| {
            let values: Vec<f32> = (0..self.dim)
                .map(|d| (mix64(n * 1031 + u64::from(d) + at as u64 * 7) % 2001) as f32 / 1000.0 - 1.0)
                .collect();
            let mut row = vec![0; kernel.row_bytes()];
            kernel.quantize(&values, &mut row).unwrap();
            (if self.keying == Keying::Dense { n } else { self.id(n) }, row)
        });
        self.stored = stored.collect();
        let default = (0..self.vector_dim()).map(|d| 0.25 + d as f32);
        self.default_row = default.take_while(|_| defaults).collect();
    }

    /// The same table with ids that have several rows.
    fn composed(self, at: usize, hashes: u8, combine: Combine) -> Self {
        let defaults = !self.default_row.is_empty();
        let composite = Some(Composite::from_build_seed(at as u64, hashes, combine));
        let mut table = Self { keying: Keying::Dense, composite, ..self };
        table.fill(at, defaults);
        table
    }
}

pub(crate) fn map_of(tables: &[Table], shape: &Shape) -> ClusterMap {
    let groups: Vec<Name> = (0..shape.groups).map(|g| name(format!("g{g}"))).collect();
    let id = |g: &Name, n: usize| NodeId(name(format!("{g}-{n}")));
    let entry = |group: &Name| NodeEntry {
        draining: false,
        group: group.clone(),
        grpc_address: "-".into(),
        http_address: "-".into(),
        up: true,
    };
    let nodes = groups.iter().flat_map(|g| (0..shape.nodes).map(move |n| (id(g, n), entry(g))));
    let layout = |t: &Table| {
        let schema = TableSchema {
            table_version: t.version.clone(),
            dim: t.dim,
            format: t.format,
            keying: t.keying,
            partitions: PartitionCount::new(shape.partitions).unwrap(),
            rows: t.rows,
            default_row: t.default_row.clone(),
            composite: t.composite.clone(),
        };
        let place = |(at, g): (usize, &Name)| {
            // Each group places differently, so that a fallback scatters.
            let nodes = (0..shape.partitions as usize).map(|p| id(g, (p * (at + 1) + p / 3) % shape.nodes));
            (g.clone(), nodes.collect())
        };
        TableLayout {
            schema,
            placement: Placement { groups: groups.iter().enumerate().map(place).collect() },
        }
    };
    let map = ClusterMap {
        epoch: Epoch(1),
        nodes: nodes.collect(),
        layouts: tables.iter().map(layout).collect(),
        releases: Vec::new(),
        traffic: Default::default(),
    };
    map.validate().unwrap();
    map
}

pub(crate) fn topology_of(map: ClusterMap) -> Topology {
    let connect = |_: &_| Peer::new("-", Err("-".into()), BreakerConfig::default());
    Topology::new(Arc::new(map), None, Instant::now(), connect)
}

pub(crate) fn choice(turn: usize) -> Choice<'static> {
    Choice { preferred: None, spill_factor: 4.0, random: turn as u64, skip_sick: false }
}

/// The schema of a table of INT4 rows.
pub(crate) fn schema(of: &str, dim: u32) -> TableSchema {
    let mut table = table(0, dim, RowFormat::Int4, Keying::Hashed, 0, false);
    table.version.table = name(of);
    map_of(&[table], &Shape { nodes: 1, groups: 1, partitions: 4 }).layouts.remove(0).schema
}

/// A map of tables that are nowhere.
pub(crate) fn map_of_schemas(epoch: u64, schemas: &[&TableSchema]) -> ClusterMap {
    let layout = |schema: &&TableSchema| TableLayout {
        schema: TableSchema::clone(schema),
        placement: Placement { groups: Default::default() },
    };
    let layouts = schemas.iter().map(layout).collect();
    ClusterMap { epoch: Epoch(epoch), layouts, ..ClusterMap::default() }
}

/// One feature as a node answers it: from the message alone, one id at a time.
pub(crate) fn node_answers(
    tables: &[Table],
    map: &ClusterMap,
    node: &NodeId,
    ask: &v1::FeatureRequest,
) -> v1::FeatureResponse {
    let version: TableVersion = ask.table_version.clone().unwrap().try_into().unwrap();
    let table = tables.iter().find(|t| t.version == version).unwrap();
    let layout = map.layout(&version).unwrap();
    let ids: Vec<u64> = pack::unpack(&ask.ids).unwrap().collect();
    assert!(!ids.is_empty());
    let group = &map.nodes[node].group;
    for id in &ids {
        let partition = table.keying.locate(*id, layout.schema.partitions).partition;
        assert_eq!(layout.placement.node(group, partition), Some(node), "an id went to the wrong node");
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 1, "an id was sent twice");
    }
    let mut out = v1::FeatureResponse { table_version: ask.table_version.clone(), ..Default::default() };
    let mut missing = vec![0u8; ids.len().div_ceil(8)];
    for (at, id) in ids.iter().enumerate() {
        if !table.stored.contains_key(id) {
            missing[at / 8] |= 1 << (at % 8);
            out.missing_ids += 1;
        }
    }
    if out.missing_ids > 0 {
        out.missing = missing.into();
    }
    let kernel = RowKernel::new(table.format, table.dim);
    if ask.wire_form() == v1::WireForm::Gather {
        let nothing = vec![0; kernel.row_bytes()];
        out.rows = ids.iter().flat_map(|id| table.stored.get(id).unwrap_or(&nothing).clone()).collect();
        return out;
    }
    let mut members: Vec<u32> = pack::unpack(&ask.members).unwrap().collect();
    let each_once: Vec<u32> = (0..ids.len() as u32).collect();
    assert_ne!(members, each_once, "members were sent that need not be");
    if members.is_empty() {
        members = each_once;
    }
    let weights: Vec<f32> = pack::unpack(&ask.weights).unwrap().collect();
    let (mut sums, mut counts, mut weight_sums, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for length in pack::unpack::<u32>(&ask.bag_lengths).unwrap() {
        assert!(length > 0, "a bag without members here was sent");
        let (mut sum, mut count, mut weight_sum) = (vec![0.0f32; table.dim as usize], 0u32, 0.0f32);
        for _ in 0..length {
            if let Some(row) = table.stored.get(&ids[members[at] as usize]) {
                let weight = weights.get(at).copied();
                match weight {
                    Some(w) => kernel.accumulate_weighted(&[row], &[w], &[], &mut sum),
                    None => kernel.accumulate(&[row], &[], &mut sum),
                }
                count += 1;
                weight_sum += weight.unwrap_or(0.0);
            }
            at += 1;
        }
        sums.extend(sum);
        counts.push(count);
        weight_sums.push(weight_sum);
    }
    assert_eq!(at, members.len());
    out.sums = pack::pack(&sums);
    out.counts = pack::pack(&counts);
    out.weight_sums = if weights.is_empty() { Default::default() } else { pack::pack(&weight_sums) };
    out
}

/// The answers of all nodes that are asked.
pub(crate) fn all_answer(
    tables: &[Table],
    topology: &Topology,
    split: &Split<'_>,
    questions: Vec<NodeAsk>,
) -> Vec<Answered> {
    let mut answers = Vec::new();
    for question in questions {
        let node = topology.id(question.node);
        let encoded = question.asks.iter().map(|ask| ask.encode(split));
        let features = encoded.map(|ask| node_answers(tables, &topology.map, node, &ask)).collect();
        let response =
            v1::LookupResponse { features, epoch: 1, node: node.to_string(), ..Default::default() };
        answers.extend(answer::check(split, question.asks, response).unwrap());
    }
    answers
}

/// The oracle: plain loops over the values, one id after the other, and per element the sum of
/// `|weight x value|` (over the divisor).
pub(crate) fn oracle(table: &Table, feature: &FeatureLookup) -> (FeatureVectors, Vec<f32>) {
    let dim = table.vector_dim();
    let kernel = RowKernel::new(table.format, table.dim);
    let lengths = match (&feature.lengths, feature.pooling) {
        (Some(lengths), Pooling::Sum | Pooling::Mean) => lengths.clone(),
        _ => vec![1; feature.ids.len()],
    };
    let default = if table.default_row.is_empty() { vec![0.0; dim] } else { table.default_row.clone() };
    let mut out = FeatureVectors {
        table_version: table.version.clone(),
        sequence: 0,
        dim: dim as u32,
        values: Vec::new(),
        found: Vec::new(),
        missing_ids: 0,
        unavailable_ids: 0,
        unavailable: Vec::new(),
        defaulted_bags: 0,
        defaulted: Vec::new(),
    };
    // A sum that begins with 0 has no negative zeros.
    let sums = table.composite.as_ref().is_some_and(|composite| composite.combine == Combine::Sum);
    let as_stored = feature.pooling == Pooling::None && !sums;
    let (mut scales, mut at) = (Vec::new(), 0);
    for length in lengths {
        let (mut acc, mut scale) = (vec![0.0f32; dim], vec![0.0f32; dim]);
        let (mut found, mut weight_sum) = (0u32, 0.0f32);
        for _ in 0..length {
            let weight = feature.weights.as_ref().map(|w| w[at]);
            let rows = table.rows_of(feature.ids[at]);
            at += 1;
            let Some(rows) = rows else {
                out.missing_ids += 1;
                continue;
            };
            for (start, row) in rows {
                let mut values = vec![0.0; table.dim as usize];
                kernel.dequantize(row, &mut values);
                let parts = acc[start..].iter_mut().zip(&mut scale[start..]);
                for (value, (acc, scale)) in values.iter().zip(parts) {
                    *acc = match weight {
                        Some(weight) => weight.mul_add(*value, *acc),
                        None if as_stored => *value,
                        None => *acc + value,
                    };
                    *scale += (weight.unwrap_or(1.0) * value).abs();
                }
            }
            found += 1;
            weight_sum += weight.unwrap_or(1.0);
        }
        if feature.pooling == Pooling::Mean && found > 0 {
            acc.iter_mut().for_each(|v| *v /= weight_sum);
            scale.iter_mut().for_each(|v| *v /= weight_sum.abs());
        }
        if found == 0 {
            acc.clone_from(&default);
            out.defaulted_bags += 1;
            out.defaulted.push(out.found.len() as u32);
        }
        out.values.extend(acc);
        out.found.push(found);
        scales.extend(scale);
    }
    (out, scales)
}

/// The whole way, with one node of the first route failing when `fails` says which.
fn look_up(
    tables: &[Table],
    request: &LookupRequest,
    shape: &Shape,
    options: &LookupOptions,
    turn: usize,
    fails: Option<usize>,
) -> Vec<FeatureVectors> {
    look_up_with(tables, request, shape, options, turn, fails, None).0
}

/// The same with a cache; and how many ids were asked for.
pub(crate) fn look_up_with(
    tables: &[Table],
    request: &LookupRequest,
    shape: &Shape,
    options: &LookupOptions,
    turn: usize,
    fails: Option<usize>,
    cache: Option<&RowCache>,
) -> (Vec<FeatureVectors>, usize) {
    let topology = topology_of(map_of(tables, shape));
    let ahead = Ahead { cache, ..Ahead::default() };
    let split = Split::with(request, &topology.map, 0xfeed ^ turn as u64, ahead, Ids::Asked).unwrap();
    let mut router = Router::new(&topology, &split, choice(turn), Instant::now());
    let (route, nobody) = router.first();
    assert!(nobody.is_empty());
    let mut questions = asks::build(&split, &route, options);
    for (at, question) in questions.iter().enumerate() {
        assert!(questions[..at].iter().all(|other| other.node != question.node), "a node was asked twice");
    }
    if let Some(fails) = fails.filter(|_| !questions.is_empty()) {
        let lost = questions.swap_remove(fails % questions.len());
        let mut tried = Tried::default();
        tried.add(&split, &lost.pieces, lost.node);
        let (route, nobody) = router.elsewhere(&lost.pieces, &tried);
        assert!(nobody.is_empty());
        questions.extend(asks::build(&split, &route, options));
    }
    let answers = all_answer(tables, &topology, &split, questions);
    if let Some(cache) = cache {
        cache.fill(&split, &answers);
    }
    (merge(&split, &answers, &[]), answers.iter().map(|answer| answer.ask.ids().len()).sum())
}

pub(crate) fn feature(
    table: &Table,
    pooling: Pooling,
    bags: &[Vec<(u64, u8)>],
    weighted: bool,
    lengths: bool,
) -> FeatureLookup {
    let members = || bags.iter().flatten();
    let ids: Vec<u64> = members().map(|(n, _)| table.id(*n)).collect();
    // A mean's weights are positive: a divisor near 0 has no bound to be held to.
    let weight = |w: u8| match pooling {
        Pooling::Mean => 0.1 + f32::from(w) / 64.0,
        _ => f32::from(w) / 64.0 - 2.0,
    };
    let weights =
        (weighted && pooling != Pooling::None).then(|| members().map(|(_, w)| weight(*w)).collect());
    let lengths = lengths.then(|| bags.iter().map(|b| b.len() as u32).collect());
    FeatureLookup { table_version: table.version.clone(), pooling, ids, lengths, weights }
}

prop_compose! {
    pub(crate) fn any_table(at: usize)(
        dim in prop::sample::select(vec![2u32, 6, 32]),
        format in prop::sample::select(RowFormat::ALL.to_vec()),
        keying in prop::sample::select(vec![Keying::Dense, Keying::Hashed]),
        rows in 0u64..40,
        defaults: bool,
        composite in prop::option::of((1u8..6, prop::sample::select(vec![Combine::Concat, Combine::Sum]))),
    ) -> Table {
        let table = table(at, dim, format, keying, rows, defaults);
        match composite {
            Some((hashes, combine)) => table.composed(at, hashes, combine),
            None => table,
        }
    }
}

pub(crate) type FeatureSeed = (bool, Pooling, Vec<Vec<(u64, u8)>>, bool, bool);

pub(crate) fn any_feature() -> impl Strategy<Value = FeatureSeed> {
    let pooling = prop::sample::select(vec![Pooling::Sum, Pooling::Mean, Pooling::None]);
    // A few ids beyond the rows, so that some are missing, and many twice.
    let bags = prop::collection::vec(prop::collection::vec((0u64..45, any::<u8>()), 0..25), 0..8);
    (any::<bool>(), pooling, bags, any::<bool>(), prop::bool::weighted(0.8))
}

pub(crate) fn bits(features: &[FeatureVectors]) -> Vec<Vec<u32>> {
    features.iter().map(|f| f.values.iter().map(|v| v.to_bits()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_layout_gives_the_same_vectors(
        tables in (any_table(0), any_table(1)),
        seeds in prop::collection::vec(any_feature(), 0..5),
        turn in 0usize..4,
        fails in prop::option::of(0usize..4),
    ) {
        let tables = [tables.0, tables.1];
        let features: Vec<FeatureLookup> = seeds
            .iter()
            .map(|(t, pooling, bags, weighted, lengths)| {
                feature(&tables[usize::from(*t)], *pooling, bags, *weighted, *lengths)
            })
            .collect();
        let expected: Vec<_> =
            seeds.iter().zip(&features).map(|(s, f)| oracle(&tables[usize::from(s.0)], f)).collect();
        let request = LookupRequest { request_id: "r".into(), features };
        for nodes in [1, 2, 4] {
            for partitions in [1, 4, 16] {
                let shape = Shape { nodes, groups: 2, partitions };
                let ask = |exact, wire_form| {
                    let options = LookupOptions { exact, wire_form, ..Default::default() };
                    look_up(&tables, &request, &shape, &options, turn, fails)
                };
                let exact = ask(true, None);
                let want: Vec<_> = expected.iter().map(|(e, _)| e.clone()).collect();
                prop_assert_eq!(bits(&exact), bits(&want), "{:?}", &shape);
                prop_assert_eq!(&exact, &want);
                prop_assert_eq!(&ask(true, Some(WireForm::Pool)), &exact, "exact wins over a forced form");
                for form in [None, Some(WireForm::Pool), Some(WireForm::Gather)] {
                    for (got, (want, scales)) in ask(false, form).iter().zip(&expected) {
                        for ((got, want), scale) in got.values.iter().zip(&want.values).zip(scales) {
                            prop_assert!((got - want).abs() <= 1e-5 * scale, "{got} {want} {form:?} {shape:?}");
                        }
                        let rest = FeatureVectors { values: want.values.clone(), ..got.clone() };
                        prop_assert_eq!(&rest, want);
                        prop_assert_eq!(got.values.len(), want.values.len());
                    }
                }
            }
        }
    }
}

#[test]
fn weights_that_cancel_and_sums_beyond_f32_become_the_default_row() {
    let tables = [table(0, 2, RowFormat::F32, Keying::Dense, 4, true)];
    let of = |pooling, ids: [u64; 2], weights: [f32; 2]| FeatureLookup {
        table_version: tables[0].version.clone(),
        pooling,
        ids: ids.to_vec(),
        lengths: Some(vec![2]),
        weights: Some(weights.to_vec()),
    };
    let features = vec![
        of(Pooling::Mean, [1, 2], [1.5, -1.5]),
        of(Pooling::Sum, [1, 2], [f32::MAX; 2]),
        // The sum of these stays within f32, that of their weights does not.
        of(Pooling::Mean, [3, 3], [f32::MAX; 2]),
    ];
    let mut huge = tables.clone();
    let rows = [[3.0f32, 4.0], [3.0, 4.0], [3.0, 4.0], [0.1, 0.2]];
    huge[0].stored = (0..).zip(rows.map(|row| row.map(f32::to_le_bytes).concat())).collect();
    let request = LookupRequest { request_id: String::new(), features };
    for wire_form in [WireForm::Gather, WireForm::Pool] {
        let options = LookupOptions { wire_form: Some(wire_form), ..Default::default() };
        for got in look_up(&huge, &request, &Shape { nodes: 2, groups: 1, partitions: 4 }, &options, 0, None)
        {
            assert_eq!((got.values.as_slice(), got.defaulted_bags), (&[0.25, 1.25][..], 1), "{wire_form:?}");
            assert_eq!(
                (got.found.as_slice(), got.missing_ids),
                (&[2][..], 0),
                "both ids were found all the same"
            );
        }
    }
}

#[test]
fn a_user_feature_travels_once_and_the_cheaper_form_is_taken() {
    let tables = [0, 1].map(|at| table(at, 32, RowFormat::Int4, Keying::Hashed, 40, false));
    let bags = |count: u64, length: u64| -> Vec<Vec<(u64, u8)>> {
        (0..count).map(|b| (0..length).map(|n| ((b * 7 + n) % 40, 0)).collect()).collect()
    };
    let features = vec![
        feature(&tables[0], Pooling::Sum, &bags(100, 1), false, true),
        feature(&tables[0], Pooling::None, &bags(100, 1), false, false),
        feature(&tables[1], Pooling::Sum, &bags(1, 40), false, true),
    ];
    let request = LookupRequest { request_id: String::new(), features };
    let map = map_of(&tables, &Shape { nodes: 1, groups: 1, partitions: 4 });
    let split = Split::new(&request, &map, 1).unwrap();
    assert_eq!(split.tables[0].ids.len(), 40, "one list of unique ids for all features");
    let topology = topology_of(map.clone());
    let (route, _) = Router::new(&topology, &split, choice(0), Instant::now()).first();
    let questions = asks::build(&split, &route, &LookupOptions::default());
    let [question] = questions.as_slice() else { panic!("{} nodes", questions.len()) };
    // 40 stored rows of 20 bytes beat 100 sums of 128; one sum of 40 members beats its 40 rows.
    let sizes: Vec<_> =
        question.asks.iter().map(|a| (matches!(a, asks::Ask::Pool(_)), a.ids().len())).collect();
    assert_eq!(sizes, [(false, 40), (true, 40)]);
}

#[test]
fn bags_of_a_composite_table_without_a_finite_result_become_its_whole_default_row() {
    let plain = table(0, 2, RowFormat::F32, Keying::Dense, 3, true);
    for (combine, dim) in [(Combine::Concat, 6), (Combine::Sum, 2)] {
        let mut tables = [plain.clone().composed(0, 3, combine)];
        let row = [f32::MAX, 1.0].map(f32::to_le_bytes).concat();
        tables[0].stored.values_mut().for_each(|stored| stored.clone_from(&row));
        let of = |pooling, weights: Option<Vec<f32>>| FeatureLookup {
            table_version: tables[0].version.clone(),
            pooling,
            ids: vec![77, 77],
            lengths: Some(vec![2]),
            weights,
        };
        let features = vec![of(Pooling::Sum, None), of(Pooling::Mean, Some(vec![0.5, -0.5]))];
        let request = LookupRequest { request_id: String::new(), features };
        for wire_form in [WireForm::Gather, WireForm::Pool] {
            let options = LookupOptions { wire_form: Some(wire_form), ..Default::default() };
            let shape = Shape { nodes: 2, groups: 1, partitions: 2 };
            for got in look_up(&tables, &request, &shape, &options, 0, None) {
                let default: Vec<_> = (0..dim).map(|d| 0.25 + d as f32).collect();
                assert_eq!((got.values, got.dim, got.defaulted_bags), (default, dim, 1), "{combine}");
                assert_eq!((got.found, got.missing_ids), (vec![2], 0), "both ids were found all the same");
            }
        }
    }
}
