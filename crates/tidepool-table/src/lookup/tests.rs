//! Lookups over partitions that are plain maps, against answers computed one id at a time.

use std::collections::HashMap;

use proptest::prelude::*;
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion};

use super::*;

const DIM: u32 = 4;

/// A partition that is a map from key to f32 row; a row is told from that of another key by nothing. It
/// says that it has so many bytes.
struct Plain(HashMap<u64, Vec<u8>>, u64);

impl PartitionRows for Plain {
    type Probe = u64;

    fn bytes(&self) -> u64 {
        self.1
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

/// Every third id is missing.
fn value(id: u64, rows: u64) -> Option<[f32; DIM as usize]> {
    (id < rows && !id.is_multiple_of(3)).then(|| [0.0, 1.1, 2.2, 3.3].map(|d| (id as f32).sqrt() + d))
}

fn view(keying: Keying, partitions: u32, rows: u64, unheld: Option<u32>, bytes: u64) -> LayoutView<Plain> {
    let schema = TableSchema {
        table_version: TableVersion { table: Name::new("user").unwrap(), version: Name::new("v1").unwrap() },
        dim: DIM,
        format: RowFormat::F32,
        keying,
        partitions: PartitionCount::new(partitions).unwrap(),
        rows: 0,
        default_row: Vec::new(),
        composite: None,
    };
    let mut parts: Vec<Plain> = schema.partitions.indexes().map(|_| Plain(HashMap::new(), bytes)).collect();
    for (id, row) in (0..rows).filter_map(|id| Some((id, value(id, rows)?))) {
        let at = keying.locate(id, schema.partitions);
        let row = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        parts[at.partition.0 as usize].0.insert(at.key, row);
    }
    let kernel = RowKernel::new(schema.format, schema.dim);
    let mut view = LayoutView::new(schema, kernel);
    for (partition, part) in (0u32..).zip(parts).filter(|(p, _)| Some(*p) != unheld) {
        view.insert(PartitionIndex(partition), Arc::new(part));
    }
    view
}

fn packed<const N: usize, T: Copy>(numbers: &[T], pack: impl Fn(T) -> [u8; N]) -> Vec<[u8; N]> {
    numbers.iter().map(|&n| pack(n)).collect()
}

fn f32s(packed: &[u8]) -> Vec<f32> {
    packed.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn u32s(packed: &[u8]) -> Vec<u32> {
    packed.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

fn missing(ids: &[u64], rows: u64) -> Missing {
    let mut missing = Missing::default();
    for (at, _) in ids.iter().enumerate().filter(|(_, id)| value(**id, rows).is_none()) {
        missing.mark(at, ids.len());
    }
    missing
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
        bytes in prop_oneof![Just(0), Just(u64::MAX / 16)],
    ) {
        let view = view(keying, 1 << log, 300, None, bytes);
        // What an earlier lookup left behind must not show.
        let mut scratch = LookupScratch::default();
        let mut out = Gathered::default();
        view.gather(&packed(&[3, 1, 2], u64::to_le_bytes), &mut scratch, &mut out).unwrap();
        view.gather(&packed(&ids, u64::to_le_bytes), &mut scratch, &mut out).unwrap();
        let expected: Vec<f32> = ids.iter().flat_map(|&id| value(id, 300).unwrap_or_default()).collect();
        prop_assert_eq!(f32s(&out.rows), expected);
        prop_assert_eq!(&out.missing, &missing(&ids, 300));
    }

    #[test]
    fn sums_add_members_in_the_order_of_the_request(
        keying in keyings(),
        ids in proptest::collection::vec(0u64..400, 1..200),
        shape in proptest::collection::vec(proptest::collection::vec((any::<u32>(), -4i8..4), 0..300), 0..6),
        in_order: bool,
        weighted: bool,
        bytes in prop_oneof![Just(0), Just(u64::MAX / 16)],
    ) {
        let view = view(keying, 4, 300, None, bytes);
        let mut next = 0;
        let bags: Vec<Vec<(u32, f32)>> = shape.iter().map(|bag| bag.iter().map(|&(member, weight)| {
            next += 1;
            let member = if in_order { next - 1 } else { member };
            (member % ids.len() as u32, f32::from(weight) / 3.0)
        }).collect()).collect();
        let all = bags.concat();
        let members: Vec<u32> = all.iter().map(|m| m.0).collect();
        let weights: Vec<f32> = all.iter().map(|m| m.1).collect();
        let lengths: Vec<u32> = bags.iter().map(|b| b.len() as u32).collect();
        let weights = packed(&weights, f32::to_le_bytes);
        let request = Bags {
            members: Some(&packed(&members, u32::to_le_bytes)),
            lengths: &packed(&lengths, u32::to_le_bytes),
            weights: weighted.then_some(&weights[..]),
        };
        let (mut scratch, mut out) = (LookupScratch::default(), Pooled::default());
        for _ in 0..2 {
            view.pool(&packed(&ids, u64::to_le_bytes), request, &mut scratch, &mut out).unwrap();
        }

        let (mut sums, mut counts, mut weight_sums) = (Vec::new(), Vec::new(), Vec::new());
        for bag in &bags {
            let (mut sum, mut count, mut weight_sum) = ([0.0f32; DIM as usize], 0u32, 0.0f32);
            for &(member, weight) in bag {
                let Some(row) = value(ids[member as usize], 300) else { continue };
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum = if weighted { weight.mul_add(value, *sum) } else { *sum + value };
                }
                count += 1;
                weight_sum += weight;
            }
            sums.extend(sum);
            counts.push(count);
            weight_sums.push(weight_sum);
        }
        prop_assert_eq!(f32s(&out.sums), sums);
        prop_assert_eq!(u32s(&out.counts), counts);
        prop_assert_eq!(f32s(&out.weight_sums), if weighted { weight_sums } else { Vec::new() });
        prop_assert_eq!(&out.missing, &missing(&ids, 300));
    }
}

proptest! {
    #[test]
    fn without_members_each_id_is_one_once(
        keying in keyings(),
        lengths in proptest::collection::vec(0u32..90, 0..12),
        from in 0u64..300,
        weighted: bool,
        bytes in prop_oneof![Just(0), Just(u64::MAX / 16)],
    ) {
        let view = view(keying, 4, 300, None, bytes);
        let count = lengths.iter().sum::<u32>();
        let ids: Vec<u64> = (from..).take(count as usize).collect();
        let (ids, lengths) = (packed(&ids, u64::to_le_bytes), packed(&lengths, u32::to_le_bytes));
        let members = packed(&(0..count).collect::<Vec<_>>(), u32::to_le_bytes);
        let weights: Vec<_> = (0..count).map(|n| (n as f32 / 7.0 - 3.0).to_le_bytes()).collect();
        let weights = weighted.then_some(&weights[..]);
        let pool = |members| {
            let mut out = Pooled::default();
            let bags = Bags { members, lengths: &lengths, weights };
            view.pool(&ids, bags, &mut LookupScratch::default(), &mut out).unwrap();
            out
        };
        prop_assert_eq!(pool(None), pool(Some(&members)));
    }
}

#[test]
fn a_partition_that_is_not_held_is_named() {
    for keying in [Keying::Dense, Keying::Hashed] {
        let view = view(keying, 4, 100, Some(2), 0);
        let count = PartitionCount::new(4).unwrap();
        let (gone, held): (Vec<u64>, Vec<u64>) =
            (0..100).partition(|&id| keying.locate(id, count).partition.0 == 2);
        let (mut scratch, mut out) = (LookupScratch::default(), Gathered::default());
        let held = packed(&held, u64::to_le_bytes);
        view.gather(&held, &mut scratch, &mut out).unwrap();
        for at in [0, 1, 40, held.len()] {
            let mut ids = held.clone();
            ids.insert(at, gone[0].to_le_bytes());
            let answer = view.gather(&ids, &mut scratch, &mut out);
            assert_eq!(answer, Err(NotHeld(PartitionIndex(2))));
        }
        view.gather(&held, &mut scratch, &mut out).unwrap();
    }
}
