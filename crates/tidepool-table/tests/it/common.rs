//! What the tests share: specs, rows that are a function of the id, and building in a fresh directory.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableManifest, TableVersion, mix64};

/// Dense, hashed with fingerprints, hashed with full keys.
pub(crate) const KEYINGS: [(Keying, bool); 3] =
    [(Keying::Dense, false), (Keying::Hashed, false), (Keying::Hashed, true)];

pub(crate) fn spec(
    format: RowFormat,
    dim: u32,
    (keying, full_keys): (Keying, bool),
    partitions: u32,
) -> TableSpec {
    TableSpec {
        table_version: TableVersion { table: Name::new("user").unwrap(), version: Name::new("v1").unwrap() },
        dim,
        format,
        keying,
        partitions: PartitionCount::new(partitions).unwrap(),
        default_row: Vec::new(),
        composite: None,
        full_keys,
        seed: 7,
    }
}

/// The ids of a table of `rows` rows: 0..N, or any.
pub(crate) fn ids(keying: Keying, rows: u64) -> Vec<u64> {
    match keying {
        Keying::Dense => (0..rows).collect(),
        // 0 and the largest are ids like any other.
        Keying::Hashed => {
            let any = (2..rows).map(|n| mix64(n << 20));
            [0, u64::MAX].into_iter().take(rows.min(2) as usize).chain(any).collect()
        }
    }
}

/// A vector that is a function of the id: elements from -1 to 1.
pub(crate) fn vector(id: u64, dim: u32) -> Vec<f32> {
    (0..u64::from(dim))
        .map(|d| (mix64(id.wrapping_add(d << 32) ^ d) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

/// A stored row that is a function of the id: any bytes.
pub(crate) fn stored(id: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (mix64(id ^ at.wrapping_mul(0x1234_5678_9abc_def1)) >> 17) as u8).collect()
}

/// A published version in a directory that goes away with it.
pub(crate) struct Published {
    _root: TempDir,
    pub(crate) dir: PathBuf,
    pub(crate) manifest: TableManifest,
}

pub(crate) fn build(spec: &TableSpec, ids: &[u64]) -> Published {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("tables/user/v1");
    let manifest = build_in(&dir, spec, ids);
    Published { _root: root, dir, manifest }
}

pub(crate) fn build_in(dir: &Path, spec: &TableSpec, ids: &[u64]) -> TableManifest {
    let mut builder = TableBuilder::new(spec.clone()).unwrap();
    for &id in ids {
        builder.push(id, &vector(id, spec.dim)).unwrap();
    }
    builder.publish(dir, &mut |_, _| ()).unwrap()
}

/// Every file below `dir` with its bytes, by relative path.
pub(crate) fn all_files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push((path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
