//! Lookups against partitions that are plain maps, with answers computed the slow way.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use prometheus::Registry;
use proptest::prelude::*;
use tidepool_kernels::RowKernel;
use tidepool_proto::pack::{pack, unpack};
use tidepool_types::{
    Epoch, Keying, Name, PartitionCount, PartitionIndex, RowFormat, TableSchema, TableVersion,
};

use super::*;
use crate::metrics::Metrics;

const DIM: u32 = 4;
const LIMITS: Limits = Limits { ids_per_request: 100_000, response_bytes: 1 << 20 };

/// A partition that is a map from key to f32 row.
#[derive(Default)]
pub(crate) struct Plain(HashMap<u64, Vec<u8>>);

impl PartitionRows for Plain {
    type Probe = u64;

    fn bytes(&self) -> u64 {
        0
    }

    fn row(&self, key: u64) -> &[u8] {
        self.seek(key)
    }

    fn probe(&self, key: u64) -> u64 {
        key
    }

    fn seek(&self, key: u64) -> &[u8] {
        self.0.get(&key).map_or(&[], Vec::as_slice)
    }

    fn is_of(row: &[u8], _row_bytes: usize, _key: u64) -> bool {
        !row.is_empty()
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn schema(keying: Keying, partitions: u32) -> TableSchema {
    TableSchema {
        table_version: TableVersion { table: name("user"), version: name("v1") },
        dim: DIM,
        format: RowFormat::F32,
        keying,
        partitions: PartitionCount::new(partitions).unwrap(),
        rows: 0,
        default_row: Vec::new(),
        composite: None,
    }
}

/// Every third id is missing. Sums of these values are exact in f32, whatever their order.
fn value(id: u64) -> Option<[f32; DIM as usize]> {
    (!id.is_multiple_of(3)).then(|| [0.0, 1.0, 2.0, 3.0].map(|d| (id % 64) as f32 + d * 0.25))
}

/// Ids 0..rows over `partitions`, without the partition `unheld`.
pub(crate) fn snapshot(keying: Keying, partitions: u32, rows: u64, unheld: Option<u32>) -> Snapshot<Plain> {
    let schema = schema(keying, partitions);
    let mut parts: Vec<Plain> = schema.partitions.indexes().map(|_| Plain::default()).collect();
    for (id, row) in (0..rows).filter_map(|id| Some((id, value(id)?))) {
        let at = keying.locate(id, schema.partitions);
        parts[at.partition.0 as usize].0.insert(at.key, pack(&row).to_vec());
    }
    let mut snapshot = Snapshot::at(Epoch(7));
    let kernel = RowKernel::new(schema.format, schema.dim);
    for (p, part) in (0u32..).zip(parts).filter(|(p, _)| Some(*p) != unheld) {
        let series = |table: &Name| Metrics::new(&Registry::new()).unwrap().table(table);
        snapshot.insert(&schema, kernel, series, (PartitionIndex(p), Arc::new(part)));
    }
    snapshot
}

pub(crate) fn feature(partitions: u32, ids: &[u64]) -> v1::FeatureRequest {
    v1::FeatureRequest {
        table_version: Some(v1::TableVersion { table: "user".into(), version: "v1".into() }),
        partitions,
        wire_form: v1::WireForm::Gather.into(),
        ids: pack(ids),
        ..v1::FeatureRequest::default()
    }
}

fn pooled(
    partitions: u32,
    ids: &[u64],
    bags: &[Vec<u32>],
    weights: Option<&[Vec<f32>]>,
) -> v1::FeatureRequest {
    let lengths: Vec<u32> = bags.iter().map(|b| b.len() as u32).collect();
    v1::FeatureRequest {
        wire_form: v1::WireForm::Pool.into(),
        members: pack(&bags.concat()),
        bag_lengths: pack(&lengths),
        weights: weights.map(|w| pack(&w.concat())).unwrap_or_default(),
        ..feature(partitions, ids)
    }
}

fn ask(snapshot: &Snapshot<Plain>, features: Vec<v1::FeatureRequest>) -> Result<Answer, LookupError> {
    let request = v1::LookupRequest { features, ..v1::LookupRequest::default() };
    prepare(request, snapshot, LIMITS, Deadline(None))?.answer(&NodeId(name("n")))
}

fn missing_bits(ids: &[u64], rows: u64) -> Vec<u8> {
    let gone = |id: &u64| *id >= rows || value(*id).is_none();
    if !ids.iter().any(gone) {
        return Vec::new();
    }
    let mut bits = vec![0; ids.len().div_ceil(8)];
    for (at, _) in ids.iter().enumerate().filter(|(_, id)| gone(id)) {
        bits[at / 8] |= 1 << (at % 8);
    }
    bits
}

fn keyings() -> impl Strategy<Value = Keying> {
    prop_oneof![Just(Keying::Dense), Just(Keying::Hashed)]
}

proptest! {
    #[test]
    fn gather_gives_each_row_in_order(
        keying in keyings(),
        log in 0u32..4,
        ids in proptest::collection::vec(0u64..400, 0..300),
    ) {
        let snapshot = snapshot(keying, 1 << log, 300, None);
        let answer = ask(&snapshot, vec![feature(1 << log, &ids)]).unwrap();
        let response = &answer.response.features[0];
        let expected: Vec<f32> =
            ids.iter().flat_map(|&id| value(id).filter(|_| id < 300).unwrap_or_default()).collect();
        prop_assert_eq!(&response.rows, &pack(&expected));
        prop_assert_eq!(&response.missing[..], &missing_bits(&ids, 300)[..]);
        let gone = ids.iter().filter(|id| **id >= 300 || value(**id).is_none()).count();
        prop_assert_eq!(response.missing_ids as usize, gone);
        let share = &answer.shares[0];
        prop_assert_eq!((share.rows, share.missing), (ids.len() as u64, gone as u64));
    }

    #[test]
    fn pool_gives_sums_counts_and_weight_sums(
        keying in keyings(),
        ids in proptest::collection::vec(0u64..400, 1..80),
        shape in proptest::collection::vec(proptest::collection::vec((any::<u32>(), -4i8..4), 0..600), 0..6),
        weighted: bool,
    ) {
        let snapshot = snapshot(keying, 4, 300, None);
        // Ids without a single member could not be told from ids that are one each.
        let ids = if shape.iter().all(Vec::is_empty) { Vec::new() } else { ids };
        let bags: Vec<Vec<u32>> =
            shape.iter().map(|b| b.iter().map(|(m, _)| m % ids.len() as u32).collect()).collect();
        let weights: Vec<Vec<f32>> =
            shape.iter().map(|b| b.iter().map(|(_, w)| f32::from(*w)).collect()).collect();
        let answer = ask(&snapshot, vec![pooled(4, &ids, &bags, weighted.then_some(&weights[..]))]).unwrap();
        let response = &answer.response.features[0];
        let (mut sums, mut counts, mut weight_sums) = (Vec::new(), Vec::new(), Vec::new());
        for (bag, bag_weights) in bags.iter().zip(&weights) {
            let (mut sum, mut count, mut weight_sum) = ([0.0f32; DIM as usize], 0u32, 0.0f32);
            for (&member, &weight) in bag.iter().zip(bag_weights) {
                let id = ids[member as usize];
                let Some(row) = value(id).filter(|_| id < 300) else { continue };
                let weight = if weighted { weight } else { 1.0 };
                row.iter().zip(&mut sum).for_each(|(v, s)| *s += v * weight);
                count += 1;
                weight_sum += weight;
            }
            sums.extend(sum);
            counts.push(count);
            weight_sums.push(weight_sum);
        }
        prop_assert_eq!(unpack::<f32>(&response.sums).unwrap().collect::<Vec<_>>(), sums);
        prop_assert_eq!(&response.counts, &pack(&counts));
        // A pooled request without any member has no weights either.
        let expected = if weighted && !bags.concat().is_empty() { pack(&weight_sums) } else { Bytes::new() };
        prop_assert_eq!(&response.weight_sums, &expected);
        prop_assert_eq!(&response.missing[..], &missing_bits(&ids, 300)[..]);
    }

    #[test]
    fn members_that_are_each_id_once_may_be_left_out(
        keying in keyings(),
        lengths in proptest::collection::vec(0usize..70, 0..9),
        weighted: bool,
    ) {
        let snapshot = snapshot(keying, 4, 300, None);
        let ids: Vec<u64> = (200..).take(lengths.iter().sum()).collect();
        let mut positions = 0..ids.len() as u32;
        let bags: Vec<Vec<u32>> = lengths.iter().map(|len| positions.by_ref().take(*len).collect()).collect();
        let weights: Vec<Vec<f32>> = bags.iter().map(|b| b.iter().map(|m| *m as f32 - 9.0).collect()).collect();
        let whole = pooled(4, &ids, &bags, weighted.then_some(&weights[..]));
        let short = v1::FeatureRequest { members: Bytes::new(), ..whole.clone() };
        let answers = [whole, short].map(|feature| ask(&snapshot, vec![feature]).unwrap().response);
        prop_assert_eq!(&answers[0], &answers[1]);
    }

    #[test]
    fn no_message_makes_a_lookup_panic(
        ids in proptest::collection::vec(any::<u8>(), 0..64),
        members in proptest::collection::vec(0u8..3, 0..64),
        lengths in proptest::collection::vec(0u8..3, 0..64),
        weights in proptest::collection::vec(any::<u8>(), 0..64),
        partitions in 0u32..6,
        form in -1i32..4,
    ) {
        let hostile = v1::FeatureRequest {
            wire_form: form,
            ids: ids.into(),
            members: members.into(),
            bag_lengths: lengths.into(),
            weights: weights.into(),
            ..feature(partitions, &[])
        };
        if let Err(error) = ask(&snapshot(Keying::Hashed, 4, 30, Some(1)), vec![hostile]) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn several_blocks_of_ids_keep_their_places() {
    let ids: Vec<u64> = (0..10_000).rev().collect();
    let answer = ask(&snapshot(Keying::Hashed, 8, 10_000, None), vec![feature(8, &ids)]).unwrap();
    let expected: Vec<f32> = ids.iter().flat_map(|&id| value(id).unwrap_or_default()).collect();
    assert_eq!(answer.response.features[0].rows, pack(&expected));
}

#[test]
fn what_is_not_served_is_named() {
    let held = snapshot(Keying::Dense, 4, 100, Some(2));
    let reason = |features| match ask(&held, features) {
        Err(LookupError::NotServed { feature: 1, reason, epoch: Epoch(7), .. }) => reason,
        other => panic!("{other:?}"),
    };
    let good = || feature(4, &[0, 1, 3, 5]);
    assert_eq!(
        reason(vec![good(), feature(4, &[1, 6])]),
        NotServed::Partition(PartitionIndex(2)),
        "id 6 lives in partition 2"
    );
    let [four, eight] = [4, 8].map(|p| PartitionCount::new(p).unwrap());
    assert_eq!(reason(vec![good(), feature(8, &[1])]), NotServed::Layout { held: four, asked: eight });
    let rename = |table: &str, version: &str| {
        let table_version = Some(v1::TableVersion { table: table.into(), version: version.into() });
        v1::FeatureRequest { table_version, ..good() }
    };
    assert_eq!(reason(vec![good(), rename("user", "v2")]), NotServed::Version);
    assert_eq!(reason(vec![good(), rename("pin", "v1")]), NotServed::Table);
    assert!(ask(&held, vec![good(), good()]).is_ok(), "the rest is served");
}

#[test]
fn an_answer_that_is_too_large_is_refused_by_its_size_alone() {
    let held = snapshot(Keying::Dense, 1, 10, None);
    let bags = vec![Vec::new(); 60_000];
    let error = ask(&held, vec![pooled(1, &[], &bags, None)]).unwrap_err();
    let LookupError::AnswerTooLarge { bytes, limit } = error else { panic!("{error}") };
    assert!(bytes >= 60_000 * 20 && limit == LIMITS.response_bytes);
    let fits = ask(&held, vec![pooled(1, &[], &bags[..50_000], None)]).unwrap();
    assert_eq!(fits.response.features[0].sums.len(), 50_000 * 16);
}

#[test]
fn expired_work_is_dropped() {
    let now = Instant::now();
    let past = Deadline::new(now.checked_sub(Duration::from_secs(1)).unwrap(), 1000);
    let request = || v1::LookupRequest { features: vec![feature(1, &[1])], ..v1::LookupRequest::default() };
    let held = snapshot(Keying::Dense, 1, 10, None);
    let ask = |deadline| prepare(request(), &held, LIMITS, deadline);
    assert_eq!(ask(past).err(), Some(LookupError::DeadlineExceeded));
    for budget_us in [0, 60_000_000, u64::MAX] {
        assert!(ask(Deadline::new(now, budget_us)).is_ok(), "{budget_us}");
    }
}

/// A pooled feature as a client sends it that keeps each id once: ids in the order of their first use. Which
/// ids there are follows from the bags.
fn in_order_of_first_use(bags: &[Vec<u64>], weights: Option<&[Vec<f32>]>) -> v1::FeatureRequest {
    let (mut ids, mut places) = (Vec::new(), HashMap::new());
    let mut place = |id: &u64| {
        *places.entry(*id).or_insert_with(|| {
            ids.push(*id);
            ids.len() as u32 - 1
        })
    };
    let members: Vec<Vec<u32>> = bags.iter().map(|bag| bag.iter().map(&mut place).collect()).collect();
    pooled(4, &ids, &members, weights)
}

proptest! {
    #[test]
    fn however_it_is_cut_the_answer_is_the_same_to_the_bit(
        keying in keyings(),
        gathered in proptest::collection::vec(0u64..400, 0..200),
        shape in proptest::collection::vec(proptest::collection::vec((0u64..400, -4i8..4), 0..40), 0..40),
        anyhow in proptest::collection::vec(proptest::collection::vec(0u32..200, 0..40), 0..10),
        weighted: bool,
        each_once: bool,
        piece_rows in 1u64..200,
    ) {
        let snapshot = snapshot(keying, 4, 300, None);
        let bags: Vec<Vec<u64>> = shape.iter().map(|b| b.iter().map(|(id, _)| *id).collect()).collect();
        let weights: Vec<Vec<f32>> =
            shape.iter().map(|b| b.iter().map(|(_, w)| f32::from(*w) * 0.3).collect()).collect();
        let weights = weighted.then_some(&weights[..]);
        // Without any member, each id would be one.
        let anyhow = [anyhow, vec![vec![7]]].concat();
        let ids: Vec<u64> = (100..300).collect();
        let mut features = vec![
            feature(4, &gathered),
            in_order_of_first_use(&bags, weights),
            feature(4, &[]),
            // Ids that no bag has, in any order.
            pooled(4, &ids, &anyhow, None),
        ];
        if each_once {
            let all = bags.concat();
            features.push(v1::FeatureRequest { members: Bytes::new(), ..pooled(4, &all, &[], None) });
            let last = features.last_mut().unwrap();
            last.bag_lengths = pack(&bags.iter().map(|bag| bag.len() as u32).collect::<Vec<_>>());
            last.weights = weights.map(|w| pack(&w.concat())).unwrap_or_default();
        }
        let request = v1::LookupRequest { features, ..v1::LookupRequest::default() };
        let prepared = prepare(request, &snapshot, LIMITS, Deadline(None)).unwrap();
        let (node, rows) = (NodeId(name("n")), prepared.features.iter().map(|r| r.feature.rows()).sum::<u64>());
        let whole = prepared.answer(&node).unwrap();
        let pieces = prepared.pieces(piece_rows);
        prop_assert_eq!(pieces.iter().map(|piece| piece.rows).sum::<u64>(), rows);
        // The last first: their order is not that in which they are done.
        let done = pieces.into_iter().rev().map(|piece| prepared.piece(piece, Deadline(None)).unwrap());
        let done: Vec<_> = done.collect::<Vec<_>>().into_iter().rev().flatten().collect();
        let cut = prepared.put_together(done, &node);
        prop_assert_eq!(&cut.response, &whole.response);
        prop_assert_eq!((cut.gather_bytes, cut.pool_bytes), (whole.gather_bytes, whole.pool_bytes));
    }
}

#[test]
fn pieces_are_about_as_large_as_they_should_be() {
    let snapshot = snapshot(Keying::Dense, 4, 300, None);
    let rows_of = |features: Vec<v1::FeatureRequest>| {
        let request = v1::LookupRequest { features, ..v1::LookupRequest::default() };
        let prepared = prepare(request, &snapshot, LIMITS, Deadline(None)).unwrap();
        prepared.pieces(1000).iter().map(|piece| piece.rows).collect::<Vec<_>>()
    };
    let ids: Vec<u64> = (0..4000).map(|i| i % 300).collect();
    assert_eq!(rows_of(vec![feature(4, &ids)]), [1000; 4]);
    let small = || feature(4, &ids[..400]);
    assert_eq!(rows_of((0..5).map(|_| small()).collect()), [800, 800, 400], "small features share a piece");
    // 200 bags of 20: 4000 members of 300 ids, and the bags.
    let bags: Vec<Vec<u64>> = ids.chunks(20).map(<[u64]>::to_vec).collect();
    let pieces = rows_of(vec![in_order_of_first_use(&bags, None)]);
    assert!(pieces.len() == 5 && pieces.iter().all(|rows| (800..=1000).contains(rows)), "{pieces:?}");
    // A bag stays whole, and so does a feature with ids that no bag has.
    assert_eq!(rows_of(vec![in_order_of_first_use(std::slice::from_ref(&ids), None)]), [4001]);
    assert_eq!(rows_of(vec![pooled(4, &ids, &[vec![1; 2000]], None)]), [4001]);
    assert_eq!(rows_of(Vec::new()), [0]);
}

#[test]
fn a_piece_whose_deadline_has_passed_is_not_worked_on() {
    let snapshot = snapshot(Keying::Dense, 1, 10, None);
    let request = v1::LookupRequest { features: vec![feature(1, &[1; 50])], ..Default::default() };
    let prepared = prepare(request, &snapshot, LIMITS, Deadline(None)).unwrap();
    let mut pieces = prepared.pieces(10).into_iter();
    let now = Instant::now();
    let past = Deadline::new(now.checked_sub(Duration::from_secs(1)).unwrap(), 1000);
    assert_eq!(prepared.piece(pieces.next().unwrap(), past).err(), Some(LookupError::DeadlineExceeded));
    assert!(prepared.piece(pieces.next().unwrap(), Deadline(None)).is_ok());
}
