//! What verification finds where every checksum is right, and how it counts where they are not.

use std::{fs::File, num::NonZeroUsize, path::PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use tidepool_types::{Name, PartitionCount, PartitionIndex, RowFormat, TableVersion, mix64};

use super::*;
use crate::{
    header::Header,
    index::{BuiltIndex, IndexShape, build},
    write::{PartitionPlan, write_partition},
};

/// Partition 0 of 2.
fn plan(table_rows: u64) -> PartitionPlan {
    PartitionPlan {
        table_version: TableVersion { table: Name::new("user").unwrap(), version: Name::new("v1").unwrap() },
        table_rows,
        build_seed: 0,
        dim: 2,
        format: RowFormat::F32,
        keying: Keying::Hashed,
        key_check: KeyCheck::Fingerprint32,
        partition: PartitionIndex(0),
        partitions: PartitionCount::new(2).unwrap(),
    }
}

/// Writes a partition with `keys` in the given row order, over an index of the same keys: every checksum
/// is right whatever the keys are.
fn write(dir: &TempDir, keys: &[u64]) -> PathBuf {
    let plan = plan(keys.len() as u64);
    let index = build(keys, 0, NonZeroUsize::MIN).unwrap();
    let path = dir.path().join("part-00000.tide");
    write_partition(File::create(&path).unwrap(), &plan, keys, &index, |_| &[0; 8]).unwrap();
    path
}

/// Keys of partition 0, in the row order of their index.
fn keys_in_order() -> Vec<u64> {
    let keys: Vec<u64> = (1..).map(mix64).filter(|key| key % 2 == 0).take(50).collect();
    let built = build(&keys, 0, NonZeroUsize::MIN).unwrap();
    let remap = built.remap_bytes();
    let view = built.view(&remap);
    let mut in_order = keys.clone();
    in_order.sort_by_key(|&key| view.row(view.probe(key)));
    in_order
}

#[test]
fn keys_in_the_order_of_their_index_pass() {
    let dir = TempDir::new().unwrap();
    PartitionFile::open(&write(&dir, &keys_in_order())).unwrap().verify().unwrap();
}

#[test]
fn rows_that_the_index_does_not_find_are_noticed() {
    let dir = TempDir::new().unwrap();
    let mut keys = keys_in_order();
    keys.swap(3, 17);
    let damage = PartitionFile::open(&write(&dir, &keys)).unwrap().verify().unwrap_err();
    let rows: Vec<u64> = damage
        .problems
        .iter()
        .map(|problem| match problem {
            VerifyError::Key { row, problem: "the index finds another row for it", .. } => *row,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!((rows, damage.count()), (vec![3, 17], 2));
    assert!(damage.to_string().ends_with("and 1 more problems"), "{damage}");
}

#[test]
fn rows_of_another_partition_are_noticed() {
    let dir = TempDir::new().unwrap();
    let odd = mix64(1);
    let damage = PartitionFile::open(&write(&dir, &[odd])).unwrap().verify().unwrap_err();
    assert!(
        matches!(
            damage.problems[..],
            [VerifyError::Key { row: 0, id: 1, problem: "it belongs to another partition", .. }]
        ),
        "{damage}"
    );
}

#[test]
fn a_tail_pad_that_is_not_zero_is_noticed_though_checksums_are_right() {
    let dir = TempDir::new().unwrap();
    let path = write(&dir, &keys_in_order());
    let mut bytes = std::fs::read(&path).unwrap();
    let file_bytes = bytes.len() as u64;
    let mut header = Header::decode(bytes.first_chunk().unwrap(), file_bytes).unwrap();
    let range = |kind| {
        let section = header.section(kind).unwrap();
        section.offset as usize..section.end() as usize
    };
    let (rows, checksums, footer) =
        (range(SectionKind::Rows), range(SectionKind::Checksums), range(SectionKind::Footer));
    let pad = rows.end - 1;
    bytes[pad] = 1;
    // The rows are one block. Its checksum, that of the checksums (in footer and section table), that
    // of the footer: all made right.
    let block = crc32c::crc32c(&bytes[rows]);
    bytes[checksums.start..checksums.start + 4].copy_from_slice(&block.to_le_bytes());
    let whole = crc32c::crc32c(&bytes[checksums]);
    let in_footer = footer.end - 8;
    bytes[in_footer..in_footer + 4].copy_from_slice(&whole.to_le_bytes());
    let footer = crc32c::crc32c(&bytes[footer]);
    for section in &mut header.sections {
        match section.kind {
            SectionKind::Checksums => section.crc32c = whole,
            SectionKind::Footer => section.crc32c = footer,
            _ => {}
        }
    }
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    std::fs::write(&path, bytes).unwrap();
    let damage = PartitionFile::open(&path).unwrap().verify().unwrap_err();
    assert!(
        matches!(damage.problems[..], [VerifyError::TailPad { offset, .. }] if offset == pad as u64),
        "{damage}"
    );
}

/// Many units, one after the other and side by side: the same problems, the list of them bounded.
#[test]
fn every_bad_block_is_counted_and_the_first_hundred_are_listed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("part-00000.tide");
    // 20 MB of rows in three units, with rows that lie across units and blocks.
    let rows = 300_000;
    let plan = PartitionPlan { dim: 16, ..plan(rows) };
    let keys: Vec<u64> = (1..).map(mix64).filter(|key| key % 2 == 0).take(rows as usize).collect();
    let index = build(&keys, 0, NonZeroUsize::MIN).unwrap();
    let remap = index.remap_bytes();
    let mut in_order = keys;
    in_order.sort_by_key(|&key| index.view(&remap).row(index.view(&remap).probe(key)));
    write_partition(File::create(&path).unwrap(), &plan, &in_order, &index, |_| &[7; 64]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let file = PartitionFile::open(&path).unwrap();
    let section = *file.header().section(SectionKind::Rows).unwrap();
    let mut told = 0;
    file.verify_with(3, None, &mut |bytes| told += bytes).unwrap();
    assert_eq!(told, file.file_bytes());
    drop(file);

    let blocks = section.length.div_ceil(BLOCK_BYTES as u64);
    assert!(blocks > 2 * UNIT_BLOCKS, "{blocks} blocks");
    for bad in [vec![1, UNIT_BLOCKS, UNIT_BLOCKS + 5, blocks - 1], (0..blocks).collect()] {
        let mut bytes = whole.clone();
        for block in &bad {
            bytes[(section.offset + block * BLOCK_BYTES as u64) as usize] ^= 0x20;
        }
        std::fs::write(&path, bytes).unwrap();
        let file = PartitionFile::open(&path).unwrap();
        let damage = file.verify_with(3, None, &mut |_| ()).unwrap_err();
        assert_eq!(damage.count(), bad.len() as u64, "{damage}");
        let listed = damage.problems.iter().map(|problem| match problem {
            VerifyError::Block { section: SectionKind::Rows, block, .. } => *block,
            other => panic!("{other}"),
        });
        assert!(listed.eq(bad.into_iter().take(MAX_LISTED_PROBLEMS)));
        let alone = file.verify().unwrap_err();
        assert_eq!((alone.to_string(), alone.count()), (damage.to_string(), damage.count()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Files of somebody who means harm: every checksum is right, and the index is any bytes at all.
    #[test]
    fn a_file_with_any_index_is_refused_or_answers_from_its_own_rows(
        keys in proptest::collection::vec(any::<u64>(), 0..60),
        full_keys: bool,
        (parts, buckets_per_part, slots_per_part) in prop_oneof![
            (0u32..4, 0u32..20, 0u32..40),
            (any::<u32>(), any::<u32>(), any::<u32>()),
        ],
        seed: u64,
        (more_pilots, more_remap) in prop_oneof![Just((0, 0)), Just((0, 0)), (0usize..3, 0usize..3)],
        bytes in proptest::collection::vec(any::<u8>(), 200),
        entries in proptest::collection::vec(any::<u32>(), 130),
        asked in proptest::collection::vec(any::<u64>(), 20),
    ) {
        let rows = keys.len() as u64;
        let shape = IndexShape { rows: rows as u32, seed, parts, buckets_per_part, slots_per_part };
        let of = |count: u64, more: usize, all: usize| usize::try_from(count).unwrap_or(all).min(all - more) + more;
        let index = BuiltIndex {
            shape,
            pilots: bytes[..of(shape.pilots(), more_pilots, bytes.len())].to_vec(),
            remap: entries[..of(shape.remapped(), more_remap, entries.len())].to_vec(),
        };
        let key_check = if full_keys { KeyCheck::FullKeys } else { KeyCheck::Fingerprint32 };
        let plan = PartitionPlan { key_check, ..plan(rows) };
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("part-00000.tide");
        write_partition(File::create(&path).unwrap(), &plan, &keys, &index, |_| &[9; 8]).unwrap();
        let opened = PartitionFile::open(&path);
        let fits = shape.is_sound()
            && index.pilots.len() as u64 == shape.pilots()
            && index.remap.len() as u64 == shape.remapped();
        prop_assert_eq!(opened.is_ok(), fits, "{:?}", opened);
        let Ok(file) = opened else { return Ok(()) };
        for &key in keys.iter().chain(&asked) {
            prop_assert!(file.index_row(key).is_none_or(|row| row < rows));
            if let Some(row) = file.find(unmix64(key)) {
                prop_assert_eq!(row, &[9; 8]);
            }
        }
        prop_assert_eq!(file.entries().count() as u64, rows);
        let found = |key: &u64| key.is_multiple_of(2) && file.index_row(*key).is_some_and(|row| keys[row as usize] == *key);
        let in_place = (0..rows).filter(|&row| {
            let key = keys[row as usize];
            key.is_multiple_of(2) && file.index_row(key) == Some(row)
        });
        let wrong = rows - in_place.count() as u64;
        prop_assert_eq!(file.verify().map_or_else(|damage| damage.count(), |()| 0), wrong);
        if wrong == 0 {
            prop_assert!(keys.iter().all(found));
        }
    }
}
