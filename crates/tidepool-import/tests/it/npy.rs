//! NPY files.

use std::path::Path;

use half::f16;
use proptest::prelude::*;
use tidepool_import::{ArrayPath, ArraySource, ImportError, Position, RowSource};
use tidepool_table::BuildError;

use crate::{Files, all_rows, error_of, through_a_table};

/// An NPY file as numpy writes it: the header padded to a multiple of 64 bytes.
pub(crate) fn npy(major: u8, descr: &str, fortran_order: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    let quoted = if descr.starts_with('[') { descr.to_owned() } else { format!("'{descr}'") };
    let mut dict = format!("{{'descr': {quoted}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}");
    let before = if major == 1 { 10 } else { 12 };
    while (before + dict.len() + 1) % 64 != 0 {
        dict.push(' ');
    }
    dict.push('\n');
    let mut file = b"\x93NUMPY".to_vec();
    file.extend([major, 0]);
    if major == 1 {
        file.extend((dict.len() as u16).to_le_bytes());
    } else {
        file.extend((dict.len() as u32).to_le_bytes());
    }
    file.extend(dict.as_bytes());
    file.extend(elements);
    file
}

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn f64s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(crate) fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Two NPY files, or one.
pub(crate) fn open(vectors: &Path, ids: Option<&Path>) -> Result<ArraySource, ImportError> {
    let npy = |path: &Path| ArrayPath::Npy(path.into());
    ArraySource::open(&npy(vectors), ids.map(npy).as_ref())
}

/// The error of vectors and, maybe, ids.
fn error(vectors: &[u8], ids: Option<&[u8]>) -> ImportError {
    let files = Files::new();
    let vectors = files.write("vectors.npy", vectors);
    let ids = ids.map(|ids| files.write("ids.npy", ids));
    error_of(open(&vectors, ids.as_deref()))
}

const SIX: [f32; 6] = [0.5, -0.25, 1.0, 2.0, -0.0, 65_504.0];

#[test]
fn every_version_and_type_comes_through() {
    let expected = vec![(0, SIX[..2].to_vec()), (1, SIX[2..4].to_vec()), (2, SIX[4..].to_vec())];
    let f2: Vec<u8> = SIX.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let f8 = f64s(&SIX.map(f64::from));
    for major in [1, 2, 3] {
        for (descr, elements) in [("<f4", f32s(&SIX)), ("<f2", f2.clone()), ("<f8", f8.clone())] {
            let files = Files::new();
            let path = files.write("vectors.npy", npy(major, descr, "False", "(3, 2)", &elements));
            let back = through_a_table(&files, &mut open(&path, None).unwrap());
            assert_eq!(back, expected, "version {major}, {descr}");
        }
    }
}

#[test]
fn a_file_that_numpy_wrote_is_read() {
    // numpy.save of numpy.array([[1, 2], [3, -4]], dtype=numpy.float32), byte for byte.
    let header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }";
    let mut file = header.to_vec();
    file.resize(127, b' ');
    file.push(b'\n');
    file.extend(f32s(&[1.0, 2.0, 3.0, -4.0]));
    let files = Files::new();
    let path = files.write("vectors.npy", file);
    let back = through_a_table(&files, &mut open(&path, None).unwrap());
    assert_eq!(back, [(0, vec![1.0, 2.0]), (1, vec![3.0, -4.0])]);
}

#[test]
fn ids_come_from_a_second_file_whatever_its_name() {
    let files = Files::new();
    let vectors = files.write("vecteurs-é.npy", npy(1, "<f4", "False", "(3, 2)", &f32s(&SIX)));
    for (descr, ids) in [("<u8", [u64::MAX, 7, 0]), ("<i8", [i64::MAX as u64, 7, 0])] {
        let files = Files::new();
        let path = files.write("идентификаторы.npy", npy(1, descr, "False", "(3,)", &u64s(&ids)));
        let back = through_a_table(&files, &mut open(&vectors, Some(&path)).unwrap());
        let expected = [(0, SIX[4..].to_vec()), (7, SIX[2..4].to_vec()), (ids[0], SIX[..2].to_vec())];
        assert_eq!(back, expected, "{descr}");
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let whole = npy(1, "<f4", "False", "(3, 2)", &f32s(&SIX));
    for length in 0..whole.len() {
        let error = error(&whole[..length], None);
        let expected = match length {
            0..6 => matches!(error, ImportError::NotNpy { .. }),
            6..128 => matches!(error, ImportError::NpyHeader { .. }),
            _ => matches!(error, ImportError::Length { found, expected: 152, .. } if found == length as u64),
        };
        assert!(expected, "{length} bytes: {error}");
        assert!(error.to_string().contains("vectors.npy"), "{error}");
    }
}

#[test]
fn bytes_after_the_elements_are_refused() {
    let mut file = npy(1, "<f4", "False", "(3, 2)", &f32s(&SIX));
    file.push(0);
    assert!(matches!(error(&file, None), ImportError::Length { found: 153, expected: 152, .. }));
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_refused() {
    let files = Files::new();
    // More than is read ahead.
    let values = vec![0.5f32; 1 << 18];
    let path = files.write("vectors.npy", npy(1, "<f4", "False", "(32768, 8)", &f32s(&values)));
    let source = open(&path, None).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 19).unwrap();
    let error = error_of(Ok(source));
    assert!(matches!(error, ImportError::Length { expected: 1_048_704, .. }), "{error}");
}

#[test]
fn other_types_are_refused_by_name() {
    for descr in [">f4", "<i4", "|O", "<c8", "|S8", "<f16", "[('a', '<f4'), ('b', '<f4')]"] {
        match error(&npy(1, descr, "False", "(3, 2)", &f32s(&SIX)), None) {
            ImportError::Dtype { found, .. } => assert_eq!(found, descr),
            other => panic!("{descr}: {other}"),
        }
    }
    let vectors = npy(1, "<f4", "False", "(3, 2)", &f32s(&SIX));
    for descr in ["<f8", ">u8", "<u4", "|O"] {
        match error(&vectors, Some(&npy(1, descr, "False", "(3,)", &u64s(&[1, 2, 3])))) {
            ImportError::Dtype { found, path, .. } => {
                assert_eq!(found, descr);
                assert!(path.ends_with("ids.npy"));
            }
            other => panic!("{descr}: {other}"),
        }
    }
}

#[test]
fn other_orders_shapes_and_dimensions_are_refused() {
    let six = f32s(&SIX);
    assert!(matches!(error(&npy(1, "<f4", "True", "(3, 2)", &six), None), ImportError::FortranOrder { .. }));
    for shape in ["(6,)", "(3, 2, 1)", "()"] {
        match error(&npy(1, "<f4", "False", shape, &six), None) {
            ImportError::Shape { found, .. } => assert_eq!(found, shape),
            other => panic!("{shape}: {other}"),
        }
    }
    for shape in ["(2, 3)", "(1, 6000)", "(0, 0)", "(1, 18446744073709551615)"] {
        let error = error(&npy(1, "<f4", "False", shape, &six), None);
        assert!(matches!(error, ImportError::Dim { .. }), "{shape}: {error}");
    }
    let huge = error(&npy(1, "<f4", "False", "(18446744073709551615, 2)", &six), None);
    assert!(matches!(huge, ImportError::Shape { .. }), "{huge}");
    let none = error(&npy(1, "<f4", "False", "(0, 2)", &[]), None);
    assert!(matches!(none, ImportError::NoRows { .. }), "{none}");
    let version = error(&npy(4, "<f4", "False", "(3, 2)", &six), None);
    assert!(matches!(version, ImportError::NpyVersion { major: 4, .. }), "{version}");
}

#[test]
fn ids_that_do_not_fit_the_rows_are_refused() {
    let vectors = npy(1, "<f4", "False", "(3, 2)", &f32s(&SIX));
    let two = error(&vectors, Some(&npy(1, "<u8", "False", "(2,)", &u64s(&[1, 2]))));
    assert!(matches!(two, ImportError::IdCount { found: 2, rows: 3, .. }), "{two}");
    let flat = error(&vectors, Some(&npy(1, "<u8", "False", "(3, 1)", &u64s(&[1, 2, 3]))));
    assert!(matches!(flat, ImportError::Shape { .. }), "{flat}");
    let short = error(&vectors, Some(&npy(1, "<u8", "False", "(3,)", &u64s(&[1, 2]))));
    assert!(matches!(short, ImportError::Length { .. }), "{short}");
    let negative = error(&vectors, Some(&npy(1, "<i8", "False", "(3,)", &u64s(&[1, -2i64 as u64, 3]))));
    assert!(matches!(negative, ImportError::NegativeId { row: 1, id: -2, .. }), "{negative}");
}

#[test]
fn what_cannot_be_stored_names_row_and_column() {
    let nan = error(&npy(1, "<f4", "False", "(2, 2)", &f32s(&[1.0, 2.0, 3.0, f32::NAN])), None);
    match nan {
        ImportError::Row { position: Position::Row(1), source, .. } => {
            assert!(matches!(*source, BuildError::Value { id: 1, .. }));
        }
        other => panic!("{other}"),
    }
    let large = error(&npy(1, "<f8", "False", "(2, 2)", &f64s(&[1.0, 2.0, 1e39, 0.0])), None);
    assert!(matches!(large, ImportError::TooLarge { row: 1, column: 0, .. }), "{large}");
    let infinite = error(&npy(1, "<f8", "False", "(1, 2)", &f64s(&[1.0, f64::NEG_INFINITY])), None);
    assert!(matches!(infinite, ImportError::Row { position: Position::Row(0), .. }), "{infinite}");
}

#[test]
fn a_missing_file_of_ids_is_named() {
    let files = Files::new();
    let vectors = files.write("vectors.npy", npy(1, "<f4", "False", "(3, 2)", &f32s(&SIX)));
    let error = error_of(open(&vectors, Some(Path::new("/nowhere/ids.npy"))));
    assert_eq!(error.to_string(), "opening /nowhere/ids.npy");
}

proptest! {
    #[test]
    fn rows_come_back_as_they_were_written(
        rows in proptest::collection::vec(proptest::collection::vec(-1e30f32..1e30, 6), 1..40),
    ) {
        let files = Files::new();
        let shape = format!("({}, 6)", rows.len());
        let path = files.write("vectors.npy", npy(1, "<f4", "False", &shape, &f32s(&rows.concat())));
        let back = all_rows(&mut open(&path, None).unwrap());
        prop_assert_eq!(back, (0..).zip(rows).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_with_damaged_bytes_never_panics(
        changes in proptest::collection::vec((0usize..152, any::<u8>()), 1..8),
    ) {
        let mut file = npy(1, "<f4", "False", "(3, 2)", &f32s(&SIX));
        for (at, byte) in changes {
            file[at] = byte;
        }
        let files = Files::new();
        if let Ok(mut source) = open(&files.write("vectors.npy", file), None) {
            let mut values = vec![0.0; source.dim() as usize];
            while let Ok(Some(_)) = source.next_row(&mut values) {}
        }
    }
}
