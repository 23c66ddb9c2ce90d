//! Parquet files: written by pyarrow, and by hand with every shape that lists have had.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ::parquet::{
    data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use tidepool_import::{ImportError, ParquetColumns, ParquetSource, Position, RowSource, StringIds};
use tidepool_table::BuildError;

use crate::{Files, all_rows, error_of, through_a_table};

/// A column: its values, definition and repetition levels.
pub(crate) struct Column<'a, T: DataType>(pub(crate) &'a [T::T], pub(crate) &'a [i16], pub(crate) &'a [i16]);

/// A file of two columns in row groups, by schema.
pub(crate) fn write<I: DataType, V: DataType>(
    path: &Path,
    schema: &str,
    groups: &[(Column<'_, I>, Column<'_, V>)],
) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    for (ids, vectors) in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<I>().write_batch(ids.0, (!ids.1.is_empty()).then_some(ids.1), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<V>().write_batch(vectors.0, Some(vectors.1), Some(vectors.2)).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

pub(crate) const PLAIN: &str = "message m { required int64 id; \
    required group embedding (LIST) { repeated group list { required float element; } } }";

/// Rows of two elements in a row group each.
pub(crate) fn plain(path: &Path, groups: &[&[(i64, [f32; 2])]]) {
    let groups: Vec<(Vec<i64>, Vec<f32>)> = groups
        .iter()
        .map(|rows| (rows.iter().map(|row| row.0).collect(), rows.iter().flat_map(|row| row.1).collect()))
        .collect();
    let levels: Vec<(Vec<i16>, Vec<i16>)> = groups
        .iter()
        .map(|(_, values)| (vec![1; values.len()], (0..values.len()).map(|at| (at % 2) as i16).collect()))
        .collect();
    let columns: Vec<_> = groups
        .iter()
        .zip(&levels)
        .map(|((ids, values), (def, rep))| {
            (Column(ids.as_slice(), &[], &[]), Column(values.as_slice(), def, rep))
        })
        .collect();
    write::<Int64Type, FloatType>(path, PLAIN, &columns);
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn default_columns() -> ParquetColumns {
    ParquetColumns::default()
}

fn error(path: &Path) -> ImportError {
    error_of(ParquetSource::open(path, &default_columns()))
}

/// What `tests/golden/*.parquet` hold.
fn vectors() -> Vec<Vec<f32>> {
    (0u8..5).map(|n| vec![f32::from(n) + 0.25, -f32::from(n) / 2.0]).collect()
}

/// The files were written once, by pyarrow 26.0.1:
/// ```python
/// vectors = [[n + 0.25, -n / 2] for n in range(5)]
/// ids = [7, 0, 2**63 + 5, 42, 9]
/// def write(name, id_array, vector_array, **options):
///     table = pa.table({"id": id_array, "embedding": vector_array})
///     pq.write_table(table, f"{name}.parquet", row_group_size=2, **options)
/// write("list-snappy", pa.array(ids, pa.uint64()), pa.array(vectors, pa.list_(pa.float32())), compression="snappy")
/// write("fixed-zstd", pa.array(ids, pa.uint64()), pa.array(vectors, pa.list_(pa.float32(), 2)), compression="zstd")
/// write("strings", pa.array([f"user:{n}" for n in (42, 1, 2, 3, 4)]), pa.array(vectors, pa.list_(pa.float64())),
///       compression="lz4", data_page_version="2.0")
/// write("half-int32", pa.array([7, 0, 5, 42, 9], pa.int32()), pa.array(vectors, pa.list_(pa.float16())),
///       compression="gzip", use_dictionary=False)
/// write("nulls", pa.array(ids, pa.uint64()), pa.array(vectors[:3] + [[1.0, None], None], pa.list_(pa.float32())))
/// ```
#[test]
fn files_that_pyarrow_wrote_are_read() {
    let wide = [7, 0, (1 << 63) + 5, 42, 9];
    for (name, ids) in [("list-snappy", wide), ("fixed-zstd", wide), ("half-int32", [7, 0, 5, 42, 9])] {
        let path = golden(&format!("{name}.parquet"));
        let mut source = ParquetSource::open(&path, &default_columns()).unwrap();
        assert_eq!((source.dim(), source.rows_hint()), (2, Some(5)), "{name}");
        let expected: Vec<_> = ids.into_iter().zip(vectors()).collect();
        assert_eq!(all_rows(&mut source), expected, "{name}");
        let files = Files::new();
        let mut source = ParquetSource::open(&path, &default_columns()).unwrap();
        let mut sorted = expected;
        sorted.sort_by_key(|&(id, _)| id);
        assert_eq!(through_a_table(&files, &mut source), sorted, "{name}");
    }
}

#[test]
fn strings_become_ids_by_a_stated_hash_and_not_otherwise() {
    let path = golden("strings.parquet");
    let error = error(&path);
    assert!(matches!(&error, ImportError::StringIds { column, .. } if column == "id"), "{error}");
    assert!(error.to_string().contains("--string-ids xxh3"), "{error}");
    let columns = ParquetColumns { string_ids: Some(StringIds::Xxh3), ..default_columns() };
    let rows = all_rows(&mut ParquetSource::open(&path, &columns).unwrap());
    assert_eq!(rows[0], (11_511_735_035_886_662_826, vec![0.25, 0.0]), "user:42");
    assert_eq!(rows.into_iter().map(|row| row.1).collect::<Vec<_>>(), vectors());
}

#[test]
fn nulls_are_named_with_row_and_column() {
    let error = error(&golden("nulls.parquet"));
    match &error {
        ImportError::NullElement { row: 3, column, element: 1, .. } => assert_eq!(column, "embedding"),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("nulls.parquet, row 3"), "{error}");
}

#[test]
fn a_folder_is_read_in_the_order_of_names() {
    let files = Files::new();
    let dir = files.dir.path().join("частини 🦀");
    std::fs::create_dir(&dir).unwrap();
    plain(&dir.join("b.parquet"), &[&[(3, [3.0, 3.5])], &[(4, [4.0, 4.5]), (5, [5.0, 5.5])]]);
    plain(&dir.join("a.parquet"), &[&[(9, [9.0, 9.5])]]);
    plain(&dir.join("empty.parquet"), &[]);
    plain(&dir.join("z.parquet"), &[&[(1, [1.0, 1.5])]]);
    std::fs::write(dir.join("_SUCCESS"), "").unwrap();
    std::fs::write(dir.join(".z.crc"), "x").unwrap();
    let mut source = ParquetSource::open(&dir, &default_columns()).unwrap();
    assert_eq!(source.rows_hint(), Some(5));
    let mut seen = vec![];
    let mut values = [0.0; 2];
    while let Some(id) = source.next_row(&mut values).unwrap() {
        let file = source.path().file_name().unwrap().to_str().unwrap().to_owned();
        seen.push((id, file, source.position()));
    }
    let expected = [(9, "a", 0), (3, "b", 0), (4, "b", 1), (5, "b", 2), (1, "z", 0)];
    assert_eq!(seen, expected.map(|(id, file, row)| (id, format!("{file}.parquet"), Position::Row(row))));

    // A row that is refused is named with its own file, whatever batch it came in.
    plain(&dir.join("y.parquet"), &[&[(6, [0.0, 0.0]), (7, [0.0, f32::NAN])]]);
    match error(&dir) {
        ImportError::Row { path, position, source } => {
            assert!(path.ends_with("y.parquet"), "{}", path.display());
            assert_eq!(position, Position::Row(1));
            assert!(matches!(*source, BuildError::Value { id: 7, .. }));
        }
        other => panic!("{other}"),
    }

    std::fs::write(dir.join("notes.txt"), "").unwrap();
    assert!(matches!(error(&dir), ImportError::NoPart { path } if path.ends_with("notes.txt")));
    std::fs::remove_file(dir.join("notes.txt")).unwrap();
    std::fs::create_dir(dir.join("day=1.parquet")).unwrap();
    assert!(matches!(error(&dir), ImportError::NoPart { .. }));
}

#[test]
fn folders_and_files_without_rows_are_refused() {
    let files = Files::new();
    assert!(matches!(error(files.dir.path()), ImportError::NoRows { .. }));
    plain(&files.dir.path().join("a.parquet"), &[]);
    assert!(matches!(error(files.dir.path()), ImportError::NoRows { .. }));
    assert!(matches!(error(Path::new("/nowhere/x.parquet")), ImportError::Io { .. }));
}

#[test]
fn lists_of_two_levels_and_of_one_are_read() {
    let two = "message m { required int64 id; \
        optional group embedding (LIST) { repeated float array; } }";
    let one = "message m { required int64 id; repeated float embedding; }";
    let nested = "message m { required int64 id; optional group embedding (LIST) \
        { repeated group bag { optional float array_element; } } }";
    for (schema, level) in [(two, 2), (one, 1), (nested, 3)] {
        let files = Files::new();
        let path = files.dir.path().join("x.parquet");
        write::<Int64Type, FloatType>(
            &path,
            schema,
            &[(Column(&[8, 2], &[], &[]), Column(&[1.0, 2.0, 3.0, 4.0], &[level; 4], &[0, 1, 0, 1]))],
        );
        let rows = all_rows(&mut ParquetSource::open(&path, &default_columns()).unwrap());
        assert_eq!(rows, [(8, vec![1.0, 2.0]), (2, vec![3.0, 4.0])], "{schema}");

        // The second list is empty.
        let empty = level - if level == 3 { 2 } else { 1 };
        write::<Int64Type, FloatType>(
            &path,
            schema,
            &[(Column(&[8, 2], &[], &[]), Column(&[1.0, 2.0], &[level, level, empty], &[0, 1, 0]))],
        );
        match error(&path) {
            ImportError::VectorLength { row: 1, found: 0, expected: 2, .. } => {}
            other => panic!("{schema}: {other}"),
        }
        // Or null, where it can be.
        if level > 1 {
            write::<Int64Type, FloatType>(
                &path,
                schema,
                &[(Column(&[8, 2], &[], &[]), Column(&[1.0, 2.0], &[level, level, 0], &[0, 1, 0]))],
            );
            assert!(matches!(error(&path), ImportError::Null { row: 1, .. }), "{schema}");
        }
    }
}

#[test]
fn vectors_of_several_lengths_are_refused_wherever_they_are() {
    let files = Files::new();
    let path = files.dir.path().join("x.parquet");
    let group = |rep: &'static [i16]| {
        const VALUES: [f32; 6] = [1.0; 6];
        (
            Column(&[1i64, 2, 3][..rep.iter().filter(|&&r| r == 0).count()], &[], &[]),
            Column(&VALUES[..rep.len()], &[1; 6][..rep.len()], rep),
        )
    };
    for (groups, row, found) in [
        (vec![group(&[0, 1, 0, 1, 1])], 1, 3),
        (vec![group(&[0, 1, 0, 0, 1])], 1, 1),
        (vec![group(&[0, 1, 0, 1]), group(&[0, 1, 1, 1])], 2, 4),
    ] {
        write::<Int64Type, FloatType>(&path, PLAIN, &groups);
        match error(&path) {
            ImportError::VectorLength { row: at, found: of, expected: 2, column, .. } => {
                assert_eq!((at, of, column.as_str()), (row, found, "embedding"));
            }
            other => panic!("{other}"),
        }
    }
    // A first vector of a dimension that no table has.
    write::<Int64Type, FloatType>(&path, PLAIN, &[group(&[0, 1, 1, 0, 1, 1])]);
    assert!(matches!(error(&path), ImportError::Dim { .. }));
}

#[test]
fn columns_are_found_by_name_and_checked_by_type() {
    let files = Files::new();
    let path = files.dir.path().join("x.parquet");
    let columns =
        |id: &str, vector: &str| ParquetColumns { id: id.into(), vector: vector.into(), string_ids: None };
    let open = |columns: &ParquetColumns| error_of(ParquetSource::open(&path, columns));
    plain(&path, &[&[(1, [1.0, 2.0])]]);
    match open(&columns("id", "vec")) {
        ImportError::NoColumn { column, found, .. } => {
            assert_eq!((column.as_str(), found.as_str()), ("vec", "id, embedding"));
        }
        other => panic!("{other}"),
    }
    for (id, vector, wrong) in [("embedding", "embedding", "embedding"), ("id", "id", "id")] {
        match open(&columns(id, vector)) {
            ImportError::ColumnType { column, .. } => assert_eq!(column, wrong),
            other => panic!("{other}"),
        }
    }
    // Names in any script, times as ids, doubles that are too large, ids below zero, ids that are not there.
    let named = "message m { required int64 идентификатор; repeated double 向量; }";
    write::<Int64Type, DoubleType>(
        &path,
        named,
        &[(Column(&[5, 6], &[], &[]), Column(&[1.0, 2.0, 3.0, 1e39], &[1; 4], &[0, 1, 0, 1]))],
    );
    let named = columns("идентификатор", "向量");
    assert!(matches!(open(&named), ImportError::TooLarge { row: 1, column: 1, .. }));
    let time = "message m { required int64 id (TIMESTAMP(MILLIS,true)); repeated float embedding; }";
    write::<Int64Type, FloatType>(
        &path,
        time,
        &[(Column(&[5], &[], &[]), Column(&[1.0, 2.0], &[1; 2], &[0, 1]))],
    );
    assert!(matches!(error(&path), ImportError::ColumnType { .. }));
    plain(&path, &[&[(1, [1.0, 2.0]), (-7, [1.0, 2.0])]]);
    assert!(matches!(error(&path), ImportError::NegativeId { row: 1, id: -7, .. }));
    let optional = "message m { optional int32 id; repeated float embedding; }";
    let vectors = || Column::<FloatType>(&[1.0, 2.0, 3.0, 4.0], &[1; 4], &[0, 1, 0, 1]);
    write::<Int32Type, FloatType>(&path, optional, &[(Column(&[-1], &[0, 1], &[]), vectors())]);
    assert!(matches!(error(&path), ImportError::Null { row: 0, .. }));
    write::<Int32Type, FloatType>(&path, optional, &[(Column(&[3, -1], &[1, 1], &[]), vectors())]);
    assert!(matches!(error(&path), ImportError::NegativeId { row: 1, id: -1, .. }));
    let unsigned = "message m { optional int32 id (INTEGER(32,false)); repeated float embedding; }";
    write::<Int32Type, FloatType>(&path, unsigned, &[(Column(&[3, -1], &[1, 1], &[]), vectors())]);
    let rows = all_rows(&mut ParquetSource::open(&path, &default_columns()).unwrap());
    assert_eq!(rows, [(3, vec![1.0, 2.0]), (u64::from(u32::MAX), vec![3.0, 4.0])]);
    let binary = "message m { required binary id; repeated float embedding; }";
    let ids = [ByteArray::from("a"), ByteArray::from("b")];
    write::<ByteArrayType, FloatType>(&path, binary, &[(Column(&ids, &[], &[]), vectors())]);
    let hashed = ParquetColumns { string_ids: Some(StringIds::Xxh3), ..default_columns() };
    let rows = all_rows(&mut ParquetSource::open(&path, &hashed).unwrap());
    assert_eq!(rows[1].0, StringIds::Xxh3.id(b"b"));
}

#[test]
fn many_row_groups_pages_and_batches_come_through_in_order() {
    let files = Files::new();
    let path = files.dir.path().join("x.parquet");
    let rows: Vec<(i64, [f32; 2])> = (0..300_000).map(|n: i64| (n * 3, [n as f32, 0.5])).collect();
    let groups: Vec<&[(i64, [f32; 2])]> = rows.chunks(140_001).collect();
    plain(&path, &groups);
    let mut source = ParquetSource::open(&path, &default_columns()).unwrap();
    let mut values = [0.0; 2];
    for (at, &(id, vector)) in rows.iter().enumerate() {
        assert_eq!(source.next_row(&mut values).unwrap(), Some(id as u64));
        assert_eq!((values, source.position()), (vector, Position::Row(at as u64)));
    }
    assert_eq!(source.next_row(&mut values).unwrap(), None);
}
