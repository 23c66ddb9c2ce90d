//! Files into tables and back out of them, and every way in which a file can be wrong.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking; the helpers are part of the tests")]

mod arrays;
mod batches;
mod csv;
mod npy;
mod parquet;
mod parquet_damage;
mod stored;

use std::{ffi::OsStr, fs, path::PathBuf};

use tempfile::TempDir;
use tidepool_import::{ImportError, RowSource, import};
use tidepool_table::{LayoutReader, TableBuilder, TableSpec};
use tidepool_types::{Keying, PartitionCount, RowFormat, TableVersion};

/// A directory with a file in it.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: impl AsRef<OsStr>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name.as_ref());
        fs::write(&path, bytes).unwrap();
        path
    }

    fn version_dir(&self) -> PathBuf {
        self.dir.path().join("tables/items/v1")
    }
}

/// A builder of f32 rows, so that what comes back is what was in the file.
fn builder(dim: u32) -> TableBuilder {
    TableBuilder::new(TableSpec {
        table_version: TableVersion { table: "items".parse().unwrap(), version: "v1".parse().unwrap() },
        dim,
        format: RowFormat::F32,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(2).unwrap(),
        default_row: vec![],
        composite: None,
        full_keys: false,
        seed: 1,
    })
    .unwrap()
}

/// Imports all of `source` into a table, publishes it, and reads the rows back, by id.
fn through_a_table(files: &Files, source: &mut dyn RowSource) -> Vec<(u64, Vec<f32>)> {
    let mut builder = builder(source.dim());
    let hint = source.rows_hint();
    let mut told = 0;
    let rows = import(source, &mut builder, &mut |rows| told = rows).unwrap();
    assert_eq!(told, rows, "progress ends with all rows");
    assert!(hint.is_none_or(|hint| hint == rows));
    builder.publish(&files.version_dir(), &mut |_, _| {}).unwrap();

    let layout = LayoutReader::open(&files.version_dir()).unwrap();
    let mut back: Vec<_> = layout
        .entries()
        .map(|(id, row)| (id, row.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()))
        .collect();
    back.sort_by_key(|&(id, _)| id);
    assert_eq!(back.len() as u64, rows);
    back
}

/// What a source gives, without a table.
fn all_rows(source: &mut dyn RowSource) -> Vec<(u64, Vec<f32>)> {
    let mut rows = vec![];
    let mut values = vec![f32::NAN; source.dim() as usize];
    while let Some(id) = source.next_row(&mut values).unwrap() {
        rows.push((id, values.clone()));
    }
    rows
}

/// The error of reading everything.
fn error_of(opened: Result<impl RowSource, ImportError>) -> ImportError {
    let mut source = match opened {
        Ok(source) => source,
        Err(error) => return error,
    };
    let mut builder = builder(source.dim());
    import(&mut source, &mut builder, &mut |_| {}).unwrap_err()
}

#[test]
fn a_source_of_another_dimension_than_the_table_is_refused() {
    let files = Files::new();
    let path = files.write("rows.csv", "1,0.5,0.25\n");
    let mut source = tidepool_import::CsvSource::open(&path).unwrap();
    let error = import(&mut source, &mut builder(4), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ImportError::DimMismatch { found: 2, dim: 4, .. }), "{error}");
    assert!(error.to_string().contains("rows.csv"));
}
