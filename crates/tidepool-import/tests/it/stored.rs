//! Rows out of a table and into another: values, and stored rows to the byte.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use tidepool_import::{
    ArrayPath, CsvSource, ImportError, ParquetColumns, ParquetSource, ScaleBias, StoredLayout, StoredSource,
    export_csv, export_npy, export_parquet, export_stored, import_stored,
};
use tidepool_table::{LayoutReader, TableBuilder, TableSpec};
use tidepool_types::{Keying, PartitionCount, RowFormat, TableVersion};

use crate::{Files, all_rows, npy};

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

fn open(rows: &Path, ids: Option<&Path>, format: RowFormat) -> Result<StoredSource, ImportError> {
    open_as(rows, ids, StoredLayout::ours(format))
}

fn open_as(rows: &Path, ids: Option<&Path>, layout: StoredLayout) -> Result<StoredSource, ImportError> {
    let npy = |path: &Path| ArrayPath::Npy(path.into());
    StoredSource::open(&npy(rows), ids.map(npy).as_ref(), layout)
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

        let source = open(&rows, Some(&ids), format).unwrap();
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
        assert_eq!(all_rows(&mut npy::open(&rows, Some(&ids)).unwrap()), expected);
        let csv = files.dir.path().join("rows.csv");
        export_csv(&layout, &csv, &mut |_| {}).unwrap();
        assert_eq!(all_rows(&mut CsvSource::open(&csv).unwrap()), expected);

        let parquet = files.dir.path().join("rows.parquet");
        let mut told = 0;
        export_parquet(&layout, &parquet, &mut |rows| told = rows).unwrap();
        assert_eq!(told, 500);
        let mut source = ParquetSource::open(&parquet, &ParquetColumns::default()).unwrap();
        assert_eq!(all_rows(&mut source), expected);

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
    let error = open(&rows, None, RowFormat::Int8).err().unwrap();
    assert!(matches!(error, ImportError::StoredBytes { found: 7, .. }), "{error}");
    let error = open(&ids, None, RowFormat::Int4).err().unwrap();
    assert!(matches!(error, ImportError::Dtype { .. }), "{error}");

    // Rows of int4 with dimension 6 into a table of another dimension.
    let mut builder = TableBuilder::new(spec(RowFormat::Int4, 8)).unwrap();
    let source = open(&rows, Some(&ids), RowFormat::Int4).unwrap();
    let error = import_stored(source, &mut builder, &mut |_| {}).unwrap_err();
    assert!(matches!(error, ImportError::Row { .. }), "{error}");

    let bytes = std::fs::read(&rows).unwrap();
    let short = files.write("short.npy", &bytes[..bytes.len() - 1]);
    let error = open(&short, None, RowFormat::Int4).err().unwrap();
    assert!(matches!(error, ImportError::Length { .. }), "{error}");
}

/// Rows of FBGEMM's TBE inference, on CPUs and on GPUs, and what a lookup of them gives. From fbgemm-gpu 1.9.0 and
/// torch 2.14.1, for `x = [[-1, -0.5, 0, 0.25, 0.5, 1, 2, 3], [0.1] * 8]` and `bits` of 4 and 8:
/// ```python
/// q = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(x, bits)      # LastHalf
/// t = IntNBitTableBatchedEmbeddingBagsCodegen([("t", 2, 8, ty, EmbeddingLocation.HOST)], device="cpu",
///                                             row_alignment=align, output_dtype=SparseType.FP32)
/// t.fill_random_weights()
/// t.assign_embedding_weights([(q[:, :-4].contiguous(), q[:, -4:].contiguous())])
/// t.split_embedding_weights_with_scale_bias(0)[0][0]                        # First, padded
/// t(torch.tensor([0, 1]), torch.tensor([0, 1, 2]))
/// ```
#[test]
fn rows_of_fbgemms_other_layouts_become_ours() {
    const INT4: [f32; 8] =
        [-1.0, -0.466_796_88, 0.066_406_25, 0.333_007_8, 0.599_609_4, 1.132_812_5, 1.932_617_2, 2.999_023_4];
    const INT8: [f32; 8] =
        [-1.0, -0.498_046_88, 0.003_906_25, 0.254_882_8, 0.505_859_4, 1.007_812_5, 1.996_032_7, 2.999_939];
    let (first, last) = (ScaleBias::First, ScaleBias::LastHalf);
    for (format, scale_bias, align_bytes, rows, expected) in [
        (RowFormat::Int4, first, 1, ["443400bc205486fb", "1b00662effffffff"], INT4),
        (
            RowFormat::Int4,
            first,
            16,
            ["443400bc205486fb0000000000000000", "1b00662effffffff0000000000000000"],
            INT4,
        ),
        (RowFormat::Int4, last, 1, ["205486fb443400bc", "ffffffff1b00662e"], INT4),
        (RowFormat::Int4, ScaleBias::Last, 1, ["205486fb443400bc", "ffffffff1b00662e"], INT4),
        (RowFormat::Int8, first, 1, ["042400bc002040506080bfff", "0200662ecdcdcdcdcdcdcdcd"], INT8),
        (
            RowFormat::Int8,
            first,
            16,
            ["042400bc002040506080bfff00000000", "0200662ecdcdcdcdcdcdcdcd00000000"],
            INT8,
        ),
        (RowFormat::Int8, last, 1, ["002040506080bfff042400bc", "cdcdcdcdcdcdcdcd0200662e"], INT8),
    ] {
        let files = Files::new();
        let bytes: Vec<u8> = rows.iter().flat_map(|row| unhex(row)).collect();
        let shape = format!("(2, {})", bytes.len() / 2);
        let path = files.write("rows.npy", npy::npy(1, "|u1", "False", &shape, &bytes));
        let layout = StoredLayout { format, scale_bias, align_bytes, dim: Some(8) };
        let source = open_as(&path, None, layout).unwrap();
        let mut builder = TableBuilder::new(spec(format, 8)).unwrap();
        import_stored(source, &mut builder, &mut |_| {}).unwrap();
        builder.publish(&files.version_dir(), &mut |_, _| {}).unwrap();
        let table = LayoutReader::open(&files.version_dir()).unwrap();
        let kernel = tidepool_kernels::RowKernel::new(format, 8);
        let mut values = [0.0; 8];
        kernel.dequantize(table.find(0).unwrap(), &mut values);
        assert_eq!(values, expected, "{layout:?}");
        kernel.dequantize(table.find(1).unwrap(), &mut values);
        assert!(values.iter().all(|value| (value - 0.1).abs() < 1e-6), "{layout:?}: {values:?}");

        // With a dimension that has other rows, and padded rows without one.
        let error = open_as(&path, None, StoredLayout { dim: Some(64), ..layout }).err().unwrap();
        assert!(matches!(error, ImportError::StoredBytes { dim: Some(64), .. }), "{error}");
        let without = open_as(&path, None, StoredLayout { dim: None, ..layout });
        match align_bytes {
            1 => assert_eq!(without.unwrap().dim(), 8),
            _ => assert!(matches!(without.err().unwrap(), ImportError::StoredDim { align_bytes: 16, .. })),
        }
        let error = open_as(&path, None, StoredLayout { format: RowFormat::F16, ..layout }).err().unwrap();
        assert!(matches!(error, ImportError::NoScale { .. } | ImportError::StoredBytes { .. }), "{error}");
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

proptest! {
    #[test]
    fn tables_go_to_parquet_and_back(
        rows in proptest::collection::btree_map(
            any::<u64>(), proptest::collection::vec(-1e30f32..1e30, 6), 1..60),
    ) {
        let files = Files::new();
        let mut builder = TableBuilder::new(spec(RowFormat::F32, 6)).unwrap();
        rows.iter().for_each(|(&id, values)| builder.push(id, values).unwrap());
        builder.publish(&files.version_dir(), &mut |_, _| {}).unwrap();
        let layout = LayoutReader::open(&files.version_dir()).unwrap();
        let parquet = files.dir.path().join("rows.parquet");
        export_parquet(&layout, &parquet, &mut |_| {}).unwrap();
        let mut back = all_rows(&mut ParquetSource::open(&parquet, &ParquetColumns::default()).unwrap());
        back.sort_by_key(|&(id, _)| id);
        prop_assert_eq!(back, rows.into_iter().collect::<Vec<_>>());
    }
}
