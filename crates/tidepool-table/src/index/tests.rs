//! Tests of the index: it is perfect, bounded, the same everywhere, and its bytes never change.

use std::num::NonZeroUsize;

use proptest::prelude::*;
use tidepool_types::mix64;

use super::*;

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

fn keys(count: u64) -> Vec<u64> {
    (0..count).map(mix64).collect()
}

/// Builds, and checks that the rows of the keys are 0..n, each once.
fn perfect(keys: &[u64], seed: u64) -> BuiltIndex {
    let built = build(keys, seed, one()).unwrap();
    let remap = built.remap_bytes();
    let index = built.view(&remap);
    let mut rows: Vec<u64> = keys.iter().filter_map(|&key| index.row(index.probe(key))).collect();
    rows.sort_unstable();
    assert!(rows.iter().copied().eq(0..keys.len() as u64), "{} keys, seed {seed}", keys.len());
    assert!(built.shape.is_sound());
    assert_eq!(built.pilots.len() as u64, built.shape.pilots());
    assert_eq!(built.remap.len() as u64, built.shape.remapped());
    built
}

#[test]
fn every_small_size_is_perfect() {
    for count in 0..500 {
        perfect(&keys(count), count);
    }
}

#[test]
fn several_parts_are_perfect_and_small() {
    let count = 600_000;
    let built = perfect(&keys(count), 1);
    assert_eq!(built.shape.parts, 3);
    let bits = (built.pilots.len() + 4 * built.remap.len()) as f64 * 8.0 / count as f64;
    assert!(bits < 3.0, "{bits} bits per key");
}

#[test]
fn neither_order_nor_threads_change_the_index() {
    let mut keys = keys(600_000);
    let first = build(&keys, 5, one()).unwrap();
    keys.reverse();
    for threads in [2, 3, 16] {
        assert!(build(&keys, 5, NonZeroUsize::new(threads).unwrap()).unwrap() == first, "{threads} threads");
    }
    assert!(build(&keys, 6, one()).unwrap() != first);
}

#[test]
fn keys_that_are_not_distinct_end() {
    assert_eq!(build(&[7, 7], 0, one()), Err(IndexError::Duplicate));
    let mut keys = keys(1000);
    keys[500] = keys[3];
    assert_eq!(build(&keys, 0, one()), Err(IndexError::Duplicate));
}

#[test]
fn the_empty_index_finds_nothing() {
    let built = build(&[], 3, one()).unwrap();
    assert_eq!(built.shape, IndexShape::EMPTY);
    let index = built.view(&[]);
    assert_eq!(index.row(index.probe(42)), None);
    assert!(IndexShape::EMPTY.is_sound());
    assert!(!IndexShape { seed: 1, ..IndexShape::EMPTY }.is_sound(), "an empty file has one form");
}

/// Pilots and rows of docs/table-format.md. They are part of the format: if this test fails, files that
/// were written before can no longer be read.
#[test]
fn golden_index() {
    let built = perfect(&keys(10), 7);
    let remap = built.remap_bytes();
    let index = built.view(&remap);
    let rows: Vec<u64> = keys(10).into_iter().filter_map(|key| index.row(index.probe(key))).collect();
    let golden = BuiltIndex {
        shape: IndexShape {
            rows: 10,
            seed: 0x63cb_e1e4_5932_0dd7,
            parts: 1,
            buckets_per_part: 3,
            slots_per_part: 11,
        },
        pilots: vec![3, 0, 4],
        remap: vec![7],
    };
    assert_eq!((built, rows), (golden, vec![8, 0, 7, 3, 4, 2, 9, 1, 6, 5]));
}

/// A larger one, in one number: the crc32c of its pilots and of its remap.
#[test]
fn golden_index_of_two_parts() {
    let built = build(&keys(300_000), 7, one()).unwrap();
    let sums = [crc32c::crc32c(&built.pilots), crc32c::crc32c(&built.remap_bytes())];
    assert_eq!((built.shape.slots_per_part, sums), (152_436, [0x28da_75bd, 0x46a9_3570]));
}

proptest! {
    #[test]
    fn any_keys_are_perfect(keys in proptest::collection::btree_set(any::<u64>(), 0..2000), seed: u64) {
        perfect(&keys.into_iter().collect::<Vec<_>>(), seed);
    }

    #[test]
    fn keys_close_together_are_perfect(first: u64, step in 1u64..1000, count in 1u64..2000, seed: u64) {
        let keys: Vec<u64> = (0..count).map(|n| first.wrapping_add(n * step)).collect();
        perfect(&keys, seed);
    }

    #[test]
    fn answers_are_bounded_whatever_the_bytes(
        rows in 1u32..1000,
        parts in 1u32..5,
        buckets_per_part in 1u32..500,
        more_slots in 0u32..50,
        seed: u64,
        pilots in proptest::collection::vec(any::<u8>(), 0..600),
        remap in proptest::collection::vec(any::<u8>(), 0..200),
        key: u64,
    ) {
        let slots_per_part = rows.div_ceil(parts) + more_slots;
        let shape = IndexShape { rows, seed, parts, buckets_per_part, slots_per_part };
        let index = Index::new(shape, &pilots, &remap);
        let row = index.row(index.probe(key));
        prop_assert!(row.is_some_and(|row| row < u64::from(rows)));
    }
}
