//! Golden files: three partition files that were written once and are committed. `docs/table-format.md`
//! explains their bytes. What fails here would make files that exist unreadable, or rebuilds differ: the
//! files are never written anew, a changed format gets another version number and files of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tidepool_table::{KeyCheck, PartitionFile, SectionBytes, TableBuilder, TableSpec};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion};

/// The row whose INT4 and INT8 bytes are FBGEMM's, and two more that are special cases of its rule.
const STEPS: [f32; 8] = [-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0];

fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn spec(format: RowFormat, dim: u32, keying: Keying, partitions: u32) -> TableSpec {
    TableSpec {
        table_version: TableVersion {
            table: Name::new("golden").unwrap(),
            version: Name::new("2026-11-22").unwrap(),
        },
        dim,
        format,
        keying,
        partitions: PartitionCount::new(partitions).unwrap(),
        default_row: Vec::new(),
        composite: None,
        full_keys: false,
        seed: 7,
    }
}

/// The ids of the golden vectors of `mix64`, with their vectors.
fn hashed_rows() -> Vec<(u64, Vec<f32>)> {
    vec![
        (0, (0u8..8).map(f32::from).collect()),
        (1, STEPS.to_vec()),
        (2, vec![0.0; 8]),
        (42, vec![0.1; 8]),
        (0xdead_beef, STEPS.map(|value| value * -0.5).to_vec()),
        (u64::MAX, STEPS.iter().rev().copied().collect()),
    ]
}

/// Its name does not fit the 16 bytes that the footer has for a name, and is stored apart.
fn full_keys_spec() -> TableSpec {
    let mut spec = spec(RowFormat::Int8, 8, Keying::Hashed, 2);
    spec.table_version.table = Name::new("golden-with-a-name-longer-than-16-bytes").unwrap();
    spec.full_keys = true;
    spec
}

/// Builds a version anew and gives the bytes of one of its files.
fn rebuilt(spec: TableSpec, rows: &[(u64, Vec<f32>)], partition: usize) -> Vec<u8> {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("v");
    let partitions = spec.partitions;
    let mut builder = TableBuilder::new(spec).unwrap();
    for (id, values) in rows {
        builder.push(*id, values).unwrap();
    }
    builder.publish(&dir, &mut |_, _| ()).unwrap();
    fs::read(tidepool_types::paths::partition_path(
        &dir,
        partitions,
        partitions.indexes().nth(partition).unwrap(),
    ))
    .unwrap()
}

/// Compares bytes, and says where they differ rather than printing them all.
fn assert_same(rebuilt: &[u8], name: &str) {
    let committed = fs::read(committed(name)).unwrap();
    let differs = rebuilt.iter().zip(&committed).position(|(a, b)| a != b);
    assert_eq!((differs, rebuilt.len()), (None, committed.len()), "{name}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Ids and rows in row order.
fn entries(file: &PartitionFile) -> Vec<(u64, String)> {
    file.entries().map(|(id, row)| (id, hex(row))).collect()
}

fn expect(rows: &[(u64, &str)]) -> Vec<(u64, String)> {
    rows.iter().map(|&(id, row)| (id, row.to_owned())).collect()
}

#[test]
fn hashed_file_is_rebuilt_to_the_byte() {
    let spec = spec(RowFormat::Int4, 8, Keying::Hashed, 1);
    assert_same(&rebuilt(spec, &hashed_rows(), 0), "hashed-int4.tide");
}

#[test]
fn full_keys_file_is_rebuilt_to_the_byte() {
    assert_same(&rebuilt(full_keys_spec(), &hashed_rows(), 1), "full-keys-int8.tide");
}

#[test]
fn dense_file_is_rebuilt_to_the_byte() {
    let rows: Vec<_> = (0u8..5).map(|id| (u64::from(id), vec![f32::from(id), -0.5])).collect();
    assert_same(&rebuilt(spec(RowFormat::F16, 2, Keying::Dense, 2), &rows, 1), "dense-f16.tide");
}

#[test]
fn the_committed_hashed_file_is_read() {
    let file = PartitionFile::open(&committed("hashed-int4.tide")).unwrap();
    file.verify().unwrap();
    let meta = file.meta();
    assert_eq!(meta.table_version.to_string(), "golden@2026-11-22");
    assert_eq!((meta.dim, meta.format, meta.keying), (8, RowFormat::Int4, Keying::Hashed));
    assert_eq!((meta.key_check, meta.stride()), (KeyCheck::Fingerprint32, 12));
    assert_eq!((meta.partition.0, meta.partitions.get()), (0, 1));
    assert_eq!((meta.rows, meta.table_rows, meta.build_seed), (6, 6, 7));
    let bytes = SectionBytes {
        rows: 136,
        cold_keys: 24,
        index: 6,
        checksums: 16,
        footer: 80,
        header_and_padding: 4362,
    };
    assert_eq!(file.section_bytes(), bytes);
    let rows = [
        (0, "20 64 b9 fd 77 37 00 00"),
        (0xdead_beef, "df ab 89 04 44 30 00 be"),
        (2, "00 00 00 00 00 3c 00 00"),
        (u64::MAX, "bf 68 45 02 44 34 00 bc"),
        (1, "20 54 86 fb 44 34 00 bc"),
        (42, "ff ff ff ff 1b 00 66 2e"),
    ];
    assert_eq!(entries(&file), expect(&rows));
    for (id, row) in entries(&file) {
        assert_eq!(file.find(id).map(hex), Some(row));
    }
    assert_eq!(file.find(3), None);
}

#[test]
fn the_committed_full_keys_file_is_read() {
    let file = PartitionFile::open(&committed("full-keys-int8.tide")).unwrap();
    file.verify().unwrap();
    let meta = file.meta();
    assert_eq!((meta.key_check, meta.stride()), (KeyCheck::FullKeys, 24));
    assert_eq!((meta.partition.0, meta.partitions.get(), meta.table_rows), (1, 2, 6));
    let rows = [
        (u64::MAX, "ff bf 80 60 50 40 20 00 81 80 80 3c 00 00 80 bf"),
        (1, "00 20 40 50 60 80 bf ff 81 80 80 3c 00 00 80 bf"),
    ];
    assert_eq!(entries(&file), expect(&rows));
    assert_eq!(meta.table_version.table.as_str(), "golden-with-a-name-longer-than-16-bytes");
    assert!(file.find(1).is_some() && file.find(3).is_none());
}

#[test]
fn the_committed_dense_file_is_read() {
    let file = PartitionFile::open(&committed("dense-f16.tide")).unwrap();
    file.verify().unwrap();
    let meta = file.meta();
    assert_eq!((meta.key_check, meta.stride(), meta.rows, meta.table_rows), (KeyCheck::None, 4, 2, 5));
    assert_eq!(entries(&file), expect(&[(1, "00 3c 00 b8"), (3, "00 42 00 b8")]));
    assert_eq!(file.find(3).map(hex).as_deref(), Some("00 42 00 b8"));
    for absent in [0, 2, 4, 5, u64::MAX] {
        assert_eq!(file.find(absent), None);
    }
}
