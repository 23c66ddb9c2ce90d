//! CSV files.

use proptest::prelude::*;
use tidepool_import::{CsvSource, ImportError, Position, RowSource};
use tidepool_table::BuildError;

use crate::{Files, all_rows, builder, error_of, through_a_table};

fn error(text: &str) -> ImportError {
    let files = Files::new();
    error_of(CsvSource::open(&files.write("rows.csv", text)))
}

fn rows(text: &str) -> Vec<(u64, Vec<f32>)> {
    let files = Files::new();
    through_a_table(&files, &mut CsvSource::open(&files.write("rows.csv", text)).unwrap())
}

#[test]
fn rows_come_through_with_and_without_a_header() {
    let expected = vec![(0, vec![-1.5, 1e-3]), (7, vec![0.25, 3.0]), (u64::MAX, vec![2.0, -0.0])];
    let lines = "7,0.25,3\n0,-1.5,1e-3\n18446744073709551615,2.0,-0\n";
    assert_eq!(rows(lines), expected);
    assert_eq!(rows(&format!("id,v0,v1\n{lines}")), expected);
    assert_eq!(rows(&format!("user,first,second\n{lines}")), expected, "nothing in it is a number");
    assert_eq!(rows(&format!(",0,1\n{lines}")), expected, "as pandas writes it");
    assert_eq!(rows(&format!("\u{feff}ID,0,1\r\n{}", lines.replace('\n', "\r\n"))), expected);
    assert_eq!(rows(lines.trim_end()), expected, "no newline at the end");
    assert_eq!(rows(&lines.replace(',', " ,\t").replace('\n', "\n\n")), expected, "blanks, empty lines");
    assert_eq!(rows(&lines.replace("7,0.25", "\"7\", \"0.25\" ")), expected, "quotes");
    assert_eq!(rows(&format!("\"id\",\"v0\",\"v1\"\n{lines}")), expected, "a quoted header");
}

#[test]
fn names_of_files_may_be_in_any_script() {
    let files = Files::new();
    let path = files.write("Sätze – 行 🦀.csv", "1,2,3\n");
    assert_eq!(through_a_table(&files, &mut CsvSource::open(&path).unwrap()), [(1, vec![2.0, 3.0])]);
    let path = files.write("Sätze – 行 🦀.csv", "1,2,3\n4,5\n");
    assert!(error_of(CsvSource::open(&path)).to_string().contains("Sätze – 行 🦀.csv, line 2"));
}

#[cfg(unix)]
#[test]
fn names_of_files_need_not_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let files = Files::new();
    let path = files.write(std::ffi::OsStr::from_bytes(b"rows-\xff.csv"), "1,2,3\n");
    assert_eq!(through_a_table(&files, &mut CsvSource::open(&path).unwrap()), [(1, vec![2.0, 3.0])]);
}

#[test]
fn a_file_without_rows_is_refused() {
    for text in ["", "\n\n", "id,v0,v1\n", "\u{feff}"] {
        assert!(matches!(error(text), ImportError::NoRows { .. }), "{text:?}: {}", error(text));
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = error_of(CsvSource::open(std::path::Path::new("/nowhere/rows.csv")));
    assert!(matches!(error, ImportError::Io { .. }));
    assert_eq!(error.to_string(), "opening /nowhere/rows.csv");
}

#[test]
fn a_missing_or_surplus_column_names_its_line() {
    for end in ["\n", "\r\n"] {
        for (text, bad_line, columns) in [
            ("id,a,b/1,2,3/4,5/6,7,8/", 3, 2),
            ("id,a,b/1,2,3//4,5/", 4, 2),
            ("///id,a,b/1,2,3///4,5", 8, 2),
            ("1,2,3/4,5,6,7/", 2, 4),
            ("1,2,3/x/4,5,6/", 2, 1),
        ] {
            match error(&text.replace('/', end)) {
                ImportError::Columns { line, found, expected: 3, .. } => {
                    assert_eq!((line, found), (bad_line, columns), "{text}, {end:?}");
                }
                other => panic!("{text}, {end:?}: {other}"),
            }
        }
    }
}

#[test]
fn a_dimension_that_no_table_has_is_refused() {
    for text in ["1\n", "1,2\n", "1,2,3,4\n", "id\n"] {
        assert!(matches!(error(text), ImportError::Dim { .. }), "{text:?}: {}", error(text));
    }
}

#[test]
fn what_is_no_id_is_refused_and_is_no_header() {
    for (text, line, named) in [
        ("1,2,3\n-1,2,3\n", 2, "-1"),
        ("x7,2,3\n", 1, "x7"),
        ("1.5,2,3\n", 1, "1.5"),
        ("id,a,b\n18446744073709551616,2,3\n", 2, "18446744073709551616"),
        ("1,2,3\n,2,3\n", 2, ""),
    ] {
        match error(text) {
            ImportError::Id { line: at, text: shown, .. } => assert_eq!((at, shown.as_str()), (line, named)),
            other => panic!("{text:?}: {other}"),
        }
    }
}

#[test]
fn what_is_no_finite_number_names_line_and_column() {
    for bad in ["NaN", "nan", "inf", "-Infinity", "1e39", "", "1;2", "0x10", "1,5\"", "é"] {
        let text = format!("id,a,b\n1,2,3\n2,0.5,{}\n", bad.replace(',', ";"));
        match error(&text) {
            ImportError::Value { line: 3, column: 3, text, .. } => assert_eq!(text, bad.replace(',', ";")),
            other => panic!("{bad:?}: {other}"),
        }
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let files = Files::new();
    let path = files.write("rows.csv", b"1,2,3\n2,\xff\xfe,3\n");
    let error = error_of(CsvSource::open(&path));
    assert!(matches!(error, ImportError::Value { line: 2, column: 2, .. }), "{error}");
}

#[test]
fn a_long_field_is_not_repeated_in_full() {
    let error = error(&format!("1,2,{}\n2,3,4\n", "9x".repeat(10_000)));
    assert!(error.to_string().len() < 300, "{error}");
}

#[test]
fn a_line_that_never_ends_is_refused_before_it_fills_the_memory() {
    let second = error(&format!("1,2,3\n4,{}", "5,".repeat(600_000)));
    assert!(matches!(second, ImportError::LineTooLong { line: 2, .. }), "{second}");
    let first = error(&"1,".repeat(600_000));
    assert!(matches!(first, ImportError::LineTooLong { line: 1, .. }), "{first}");
}

#[test]
fn quotes_that_hold_more_than_a_number_are_refused() {
    for (text, named) in
        [("1,\"2\n3\",4\n", None), ("1,\"2,5\",4\n", None), ("1,2,\"\"3\"\"\n", Some("\"3\""))]
    {
        match (error(&format!("7,8,9\n{text}")), named) {
            (ImportError::Columns { line: 2, .. }, None) => {}
            (ImportError::Value { line: 2, column: 3, text, .. }, Some(named)) => assert_eq!(text, named),
            (other, _) => panic!("{text:?}: {other}"),
        }
    }
}

#[test]
fn a_file_may_be_longer_than_a_line() {
    let text: String = (0..100_000u64).map(|id| format!("{id},0.123456,{}\n", id % 7)).collect();
    assert!(text.len() > 1_600_000);
    let back = rows(&text);
    assert_eq!(back.len(), 100_000);
    assert_eq!(back[99_999], (99_999, vec![0.123_456, 4.0]));
}

#[test]
fn the_builders_refusal_says_where_the_row_stands() {
    let files = Files::new();
    let path = files.write("rows.csv", "1,2,3\n2,70000,3\n");
    let mut source = CsvSource::open(&path).unwrap();
    let mut builder = tidepool_table::TableBuilder::new(tidepool_table::TableSpec {
        format: tidepool_types::RowFormat::F16,
        ..builder(2).spec().clone()
    })
    .unwrap();
    match tidepool_import::import(&mut source, &mut builder, &mut |_| {}) {
        Err(ImportError::Row { position: Position::Line(2), source, .. }) => {
            assert!(matches!(*source, BuildError::Value { id: 2, .. }));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_id_that_stands_twice_surfaces_when_the_table_is_published() {
    let files = Files::new();
    let path = files.write("rows.csv", "1,2,3\n5,4,4\n5,4,4\n");
    let mut builder = builder(2);
    let mut source = CsvSource::open(&path).unwrap();
    tidepool_import::import(&mut source, &mut builder, &mut |_| {}).unwrap();
    let error = builder.publish(&files.version_dir(), &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, BuildError::DuplicateId { id: 5 }), "{error}");
    assert!(!files.version_dir().exists());
}

proptest! {
    #[test]
    fn rows_come_back_as_they_were_written(
        table in proptest::collection::btree_map(
            any::<u64>(), proptest::collection::vec(-1e30f32..1e30, 4), 1..30),
    ) {
        let text: String =
            table.iter().map(|(id, v)| format!("{id},{},{},{},{:e}\n", v[0], v[1], v[2], v[3])).collect();
        let files = Files::new();
        let mut source = CsvSource::open(&files.write("rows.csv", text)).unwrap();
        prop_assert_eq!(all_rows(&mut source), table.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let files = Files::new();
        if let Ok(mut source) = CsvSource::open(&files.write("rows.csv", bytes)) {
            let mut values = vec![0.0; source.dim() as usize];
            while let Ok(Some(_)) = source.next_row(&mut values) {
                prop_assert!(values.iter().all(|v| v.is_finite()));
            }
        }
    }
}
