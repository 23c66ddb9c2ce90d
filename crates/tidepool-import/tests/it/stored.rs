//! Rows out of a table and into another: values, and stored rows to the byte.

use std::path::{Path, PathBuf};

use tidepool_import::{
    CsvSource, ImportError, NpySource, StoredSource, export_csv, export_npy, export_stored, import_stored,
};
use tidepool_table::{LayoutReader, TableBuilder, TableSpec};
use tidepool_types::{Keying, PartitionCount, RowFormat, TableVersion};

use crate::{Files, all_rows};

fn spec(format: RowFormat, dim: u32) -> TableSpec {
    TableSpec {
        table_version: TableVersion { table: "items".parse().unwrap(), version: "v1".parse().unwrap() },
        dim,
        format,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(4).unwrap(),
        default_row: vec![],
        composite: None,
        full_keys: false,
        seed: 1,
    }
}

fn table(dir: &Path, format: RowFormat) -> LayoutReader {
    let mut builder = TableBuilder::new(spec(format, 6)).unwrap();
    for id in 0..500u64 {
        let values: Vec<f32> = (0..6).map(|column| ((id * 7 + column) % 101) as f32 * 0.37 - 11.0).collect();
        builder.push(id * id, &values).unwrap();
    }
    builder.publish(dir, &mut |_, _| {}).unwrap();
    LayoutReader::open(dir).unwrap()
}

fn paths(files: &Files) -> (PathBuf, PathBuf) {
    (files.dir.path().join("rows.npy"), files.dir.path().join("ids.npy"))
}

#[test]
fn stored_rows_go_out_and_in_to_the_byte() {
    for format in [RowFormat::Int4, RowFormat::Int8] {
        let files = Files::new();
        let layout = table(&files.version_dir(), format);
        let (rows, ids) = paths(&files);
        export_stored(&layout, &rows, &ids, &mut |_| {}).unwrap();

        let source = StoredSource::open(&rows, Some(&ids), format).unwrap();
        assert_eq!((source.dim(), source.rows()), (6, 500));
        let mut builder = TableBuilder::new(spec(format, source.dim())).unwrap();
        let mut told = 0;
        assert_eq!(import_stored(source, &mut builder, &mut |rows| told = rows).unwrap(), 500);
        assert_eq!(told, 500);
        let again = files.dir.path().join("again/v1");
        builder.publish(&again, &mut |_, _| {}).unwrap();
        for (before, after) in
            layout.partitions().iter().zip(LayoutReader::open(&again).unwrap().partitions())
        {
            assert!(std::fs::read(before.path()).unwrap() == std::fs::read(after.path()).unwrap());
        }
    }
}

#[test]
fn values_go_out_as_they_are_read() {
    for format in RowFormat::ALL {
        let files = Files::new();
        let layout = table(&files.version_dir(), format);
        let kernel = tidepool_kernels::RowKernel::new(format, 6);
        let expected: Vec<(u64, Vec<f32>)> = layout
            .entries()
            .map(|(id, row)| {
                let mut values = vec![0.0; 6];
                kernel.dequantize(row, &mut values);
                (id, values)
            })
            .collect();
        let (rows, ids) = paths(&files);
        export_npy(&layout, &rows, &ids, &mut |_| {}).unwrap();
        assert_eq!(all_rows(&mut NpySource::open(&rows, Some(&ids)).unwrap()), expected);
        let csv = files.dir.path().join("rows.csv");
        export_csv(&layout, &csv, &mut |_| {}).unwrap();
        assert_eq!(all_rows(&mut CsvSource::open(&csv).unwrap()), expected);

        let error = export_csv(&layout, &csv, &mut |_| {}).unwrap_err();
        assert!(matches!(error, ImportError::Exists { .. }), "{error}");
    }
}

#[test]
fn rows_of_another_kind_are_refused() {
    let files = Files::new();
    let layout = table(&files.version_dir(), RowFormat::Int4);
    let (rows, ids) = paths(&files);
    export_stored(&layout, &rows, &ids, &mut |_| {}).unwrap();
    let error = StoredSource::open(&rows, None, RowFormat::Int8).unwrap_err();
    assert!(matches!(error, ImportError::StoredBytes { found: 7, .. }), "{error}");
    let error = StoredSource::open(&ids, None, RowFormat::Int4).unwrap_err();
    assert!(matches!(error, ImportError::Dtype { .. }), "{error}");

    // Rows of int4 with dimension 6 into a table of another dimension.
    let mut builder = TableBuilder::new(spec(RowFormat::Int4, 8)).unwrap();
    let source = StoredSource::open(&rows, Some(&ids), RowFormat::Int4).unwrap();
    let error = import_stored(source, &mut builder, &mut |_| {}).unwrap_err();
    assert!(matches!(error, ImportError::Row { .. }), "{error}");

    let bytes = std::fs::read(&rows).unwrap();
    let short = files.write("short.npy", &bytes[..bytes.len() - 1]);
    let error = StoredSource::open(&short, None, RowFormat::Int4).unwrap_err();
    assert!(matches!(error, ImportError::Length { .. }), "{error}");
}
