//! What cannot be built is refused by name, and leaves nothing behind.

use std::{fs, path::Path};

use tempfile::TempDir;
use tidepool_kernels::QuantizeError;
use tidepool_table::{BuildError, LayoutReader, TableBuilder, TableSpec};
use tidepool_types::{Combine, Composite, Keying, RowFormat};

use crate::common::{KEYINGS, all_files, build_in, ids, spec, vector};

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[test]
fn specs_that_contradict_themselves() {
    let good = spec(RowFormat::Int4, 8, KEYINGS[0], 4);
    for bad in [
        TableSpec { dim: 7, ..good.clone() },
        TableSpec { dim: 0, ..good.clone() },
        TableSpec { dim: 1026, ..good.clone() },
        TableSpec { default_row: vec![0.0; 7], ..good.clone() },
        TableSpec { default_row: vec![f32::NAN; 8], ..good.clone() },
    ] {
        assert!(matches!(TableBuilder::new(bad), Err(BuildError::Schema { .. })));
    }
    let full = TableSpec { full_keys: true, ..good };
    assert!(matches!(TableBuilder::new(full), Err(BuildError::FullKeysOfDense { .. })));
}

#[test]
fn every_problem_of_a_composite_spec_is_named() {
    let good = spec(RowFormat::Int4, 8, KEYINGS[0], 4);
    let composite = |seeds| Some(Composite { seeds, combine: Combine::Concat });
    let said = |bad: TableSpec| match TableBuilder::new(bad) {
        Err(BuildError::Schema { source }) => source.to_string(),
        other => panic!("{other:?}"),
    };
    let bad = TableSpec {
        keying: Keying::Hashed,
        composite: composite(vec![3, 3]),
        default_row: vec![0.0; 8],
        ..good.clone()
    };
    let all = said(bad);
    for problem in ["must be dense, it is hashed", "the seed 3 stands twice", "8 elements, vectors have 16"] {
        assert!(all.contains(problem), "{all}");
    }
    for hashes in [0, 65] {
        let said = said(TableSpec { composite: composite((0..hashes).collect()), ..good.clone() });
        assert!(said.contains(&format!("{hashes} hashes; there must be 1 to 64")), "{said}");
    }
}

#[test]
fn a_composite_table_is_built_of_the_same_bytes_and_its_manifest_says_so() {
    let root = TempDir::new().unwrap();
    let plain = spec(RowFormat::Int4, 8, (Keying::Dense, false), 4);
    let composite = Composite::from_build_seed(plain.seed, 3, Combine::Concat);
    let composed =
        TableSpec { composite: Some(composite.clone()), default_row: vec![0.5; 24], ..plain.clone() };
    let [plain, composed] = [("plain", &plain), ("composed", &composed)].map(|(name, spec)| {
        let mut builder = TableBuilder::new(spec.clone()).unwrap();
        (0..100).for_each(|id| builder.push(id, &vector(id, 8)).unwrap());
        builder.publish(&root.path().join(name), &mut |_, _| ()).unwrap()
    });
    assert_eq!(composed.files, plain.files);
    let read = LayoutReader::open(&root.path().join("composed")).unwrap();
    let schema = &read.manifest().schema;
    assert_eq!((schema.composite.as_ref(), schema.vector_dim(), schema.dim), (Some(&composite), 24, 8));
    assert!(composite.rows(u64::MAX, schema.rows).all(|row| read.find(row).is_some()));
}

#[test]
fn rows_that_cannot_be_stored_name_id_and_column() {
    let mut builder = TableBuilder::new(spec(RowFormat::F16, 4, KEYINGS[1], 4)).unwrap();
    assert!(matches!(builder.push(5, &[0.0; 3]), Err(BuildError::RowLength { id: 5, found: 3, dim: 4 })));
    assert!(matches!(
        builder.push(5, &[0.0, 0.0, f32::NAN, 0.0]),
        Err(BuildError::Value { id: 5, source: QuantizeError::NotFinite { column: 2, .. } })
    ));
    assert!(matches!(
        builder.push(5, &[0.0, f32::INFINITY, 0.0, 0.0]),
        Err(BuildError::Value { id: 5, source: QuantizeError::NotFinite { column: 1, .. } })
    ));
    assert!(matches!(
        builder.push(5, &[1e6, 0.0, 0.0, 0.0]),
        Err(BuildError::Value { id: 5, source: QuantizeError::OutOfRange { column: 0, .. } })
    ));
    assert!(matches!(
        builder.push_stored(5, &[0; 9]),
        Err(BuildError::StoredLength { id: 5, found: 9, expected: 8 })
    ));
    assert_eq!(builder.rows(), 0);
    // None of the refusals left anything: the id is still free.
    builder.push(5, &vector(5, 4)).unwrap();
    let root = TempDir::new().unwrap();
    builder.publish(&root.path().join("v1"), &mut |_, _| ()).unwrap();
}

#[test]
fn ids_that_cannot_stand_together() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("v1");
    let publish = |keying: Keying, ids: &[u64]| {
        let mut builder = TableBuilder::new(spec(RowFormat::F32, 2, (keying, false), 4)).unwrap();
        ids.iter().for_each(|&id| builder.push(id, &[1.0, 2.0]).unwrap());
        builder.publish(&dir, &mut |_, _| ())
    };
    for keying in [Keying::Dense, Keying::Hashed] {
        let error = publish(keying, &[0, 1, 2, 3, 1]).unwrap_err();
        assert!(matches!(error, BuildError::DuplicateId { id: 1 }), "{error}");
        assert_eq!(error.to_string(), "id 1 stands twice");
    }
    assert!(matches!(publish(Keying::Dense, &[0, 1, 3]), Err(BuildError::MissingId { id: 2, rows: 3 })));
    assert!(entries(root.path()).is_empty(), "nothing is left behind");

    let mut builder = TableBuilder::new(spec(RowFormat::F32, 2, KEYINGS[0], 4)).unwrap();
    assert!(matches!(
        builder.push(u64::MAX, &[1.0, 2.0]),
        Err(BuildError::IdTooLarge { id: u64::MAX, partitions: 4, .. })
    ));
}

#[test]
fn a_version_is_written_once() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("tables/user/v1");
    let spec = spec(RowFormat::Int4, 8, KEYINGS[1], 4);
    build_in(&dir, &spec, &ids(Keying::Hashed, 100));
    let before = all_files(&dir);

    let mut again = TableBuilder::new(spec.clone()).unwrap();
    again.push(1, &vector(1, 8)).unwrap();
    let error = again.publish(&dir, &mut |_, _| ()).unwrap_err();
    assert!(
        matches!(&error, BuildError::AlreadyExists { version, .. } if version.as_str() == "v1"),
        "{error}"
    );
    assert!(all_files(&dir) == before, "the published version is untouched");
    assert_eq!(entries(dir.parent().unwrap()), ["v1"], "no temporary directory is left");

    // An empty directory of that name is something as well.
    let empty = root.path().join("tables/user/v2");
    fs::create_dir(&empty).unwrap();
    let error = TableBuilder::new(spec).unwrap().publish(&empty, &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, BuildError::AlreadyExists { .. }));
}

#[test]
fn two_that_publish_at_once_publish_one_whole_version() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("v1");
    let spec = spec(RowFormat::Int4, 8, KEYINGS[1], 4);
    let won: Vec<bool> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut builder = TableBuilder::new(spec.clone()).unwrap();
                    (0..200).for_each(|id| builder.push(id, &vector(id, 8)).unwrap());
                    match builder.publish(&dir, &mut |_, _| ()) {
                        Ok(_) => true,
                        Err(BuildError::AlreadyExists { .. }) => false,
                        Err(error) => panic!("{error}"),
                    }
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(won.iter().filter(|&&won| won).count(), 1);
    tidepool_table::LayoutReader::open(&dir).unwrap().verify().unwrap();
    assert_eq!(entries(root.path()), ["v1"]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let root = TempDir::new().unwrap();
    let file = root.path().join("file");
    fs::write(&file, b"in the way").unwrap();
    let builder = TableBuilder::new(spec(RowFormat::Int4, 8, KEYINGS[1], 1)).unwrap();
    let error = builder.publish(&file.join("v1"), &mut |_, _| ()).unwrap_err();
    assert!(matches!(&error, BuildError::Io { .. }) && error.to_string().contains("file"), "{error}");
}
