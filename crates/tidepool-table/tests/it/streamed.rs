//! Builds through the disk: the same bytes as in memory, whatever the memory allowed, and nothing left over.

use std::{fs, num::NonZeroUsize, path::Path};

use tempfile::TempDir;
use tidepool_table::{BuildError, BuildOptions, Duplicates, LayoutReader, TableBuilder, TableSpec};
use tidepool_types::{Keying, Quantizer, RowFormat, TableManifest, mix64};

use crate::common::{KEYINGS, all_files, build, ids, spec, stored, vector};

fn options(memory_bytes: u64, threads: usize) -> BuildOptions {
    let threads = NonZeroUsize::new(threads).unwrap();
    BuildOptions { memory_bytes, threads, ..BuildOptions::default() }
}

fn staged(dir: &Path, spec: &TableSpec, options: BuildOptions) -> TableBuilder {
    TableBuilder::staged(spec.clone(), options, dir).unwrap()
}

fn publish(builder: TableBuilder, dir: &Path) -> Result<TableManifest, BuildError> {
    builder.publish(dir, &mut |_, _| ())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_bytes_are_those_of_a_build_in_memory() {
    for keying in KEYINGS {
        for partitions in [1, 8] {
            let spec = spec(RowFormat::Int4, 8, keying, partitions);
            let ids = ids(keying.0, 5000);
            let expected = all_files(&build(&spec, &ids).dir);
            for options in [options(0, 1), options(100_000, 3), options(1 << 30, 2)] {
                let root = TempDir::new().unwrap();
                let dir = root.path().join("v1");
                let mut builder = staged(&dir, &spec, options);
                let (one_by_one, many) = ids.split_at(1000);
                one_by_one.iter().for_each(|&id| builder.push(id, &vector(id, 8)).unwrap());
                let fill = |id, values: &mut [f32]| values.copy_from_slice(&vector(id, 8));
                builder.push_many(many, fill).unwrap();
                assert_eq!(builder.rows(), 5000);
                publish(builder, &dir).unwrap();
                assert!(all_files(&dir) == expected, "{keying:?}, {partitions} partitions, {options:?}");
                assert_eq!(names(root.path()), ["v1"]);
            }
        }
    }
}

/// 400,000 rows of 136 bytes are placed in 13 chunks of 4 MiB.
#[test]
fn rows_are_placed_in_chunks() {
    let spec = spec(RowFormat::F32, 32, KEYINGS[1], 1);
    let fill = |id, values: &mut [f32]| values.fill((id % 1000) as f32);
    let ids: Vec<u64> = (0..400_000).map(mix64).collect();
    let root = TempDir::new().unwrap();
    let mut built = Vec::new();
    for (name, options) in [("small", options(0, 2)), ("large", options(1 << 30, 2))] {
        let dir = root.path().join(name).join("v1");
        let mut builder = staged(&dir, &spec, options);
        builder.push_many(&ids, fill).unwrap();
        let mut told = Vec::new();
        builder.publish(&dir, &mut |done, total| told.push((done, total))).unwrap();
        assert!(told.is_sorted());
        assert_eq!((told.first(), told.last()), (Some(&(0, 400_000)), Some(&(400_000, 400_000))));
        LayoutReader::open(&dir).unwrap().verify().unwrap();
        built.push(fs::read(dir.join("layout-1/part-00000.tide")).unwrap());
    }
    assert!(built[0] == built[1]);
}

#[test]
fn the_last_of_several_rows_stays() {
    for keying in KEYINGS {
        for (memory_bytes, threads) in [(0, 3), (1 << 30, 1)] {
            let options = BuildOptions { duplicates: Duplicates::Last, ..options(memory_bytes, threads) };
            let spec = spec(RowFormat::Int8, 8, keying, 4);
            let ids = ids(keying.0, 2000);
            let expected = build(&spec, &ids);
            let root = TempDir::new().unwrap();
            let dir = root.path().join("v1");
            let mut builder = staged(&dir, &spec, options);
            // Earlier rows are others, and much worse to quantize: they must not reach the report.
            for &id in ids.iter().chain(ids.iter().step_by(3)) {
                builder.push(id, &[0.0, 1e-3, 1e3, 1.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
            }
            builder.push_many(&ids, |id, values| values.copy_from_slice(&vector(id, 8))).unwrap();
            let manifest = publish(builder, &dir).unwrap();
            assert_eq!(manifest, expected.manifest, "{keying:?}");
            assert!(all_files(&dir) == all_files(&expected.dir), "{keying:?}");
        }
    }
}

#[test]
fn rows_with_their_values_are_pushed_in_order() {
    let spec = spec(RowFormat::F32, 2, KEYINGS[1], 2);
    let root = TempDir::new().unwrap();
    let dir = root.path().join("v1");
    let mut builder = staged(&dir, &spec, BuildOptions { duplicates: Duplicates::Last, ..options(0, 3) });
    // Every id stands five times in one batch, each time with other values.
    let ids: Vec<u64> = (0..5000).map(|n| n % 1000).collect();
    let values: Vec<f32> = (0u16..5000).flat_map(|n| [f32::from(n), -f32::from(n)]).collect();
    assert!(matches!(builder.push_rows(&ids, &values[1..]), Err(BuildError::RowLength { dim: 2, .. })));
    assert_eq!(builder.rows(), 0);
    builder.push_rows(&ids, &values).unwrap();
    builder.push_rows(&[], &[]).unwrap();
    assert_eq!(publish(builder, &dir).unwrap().schema.rows, 1000);
    let layout = LayoutReader::open(&dir).unwrap();
    for id in 0..1000u16 {
        let last = f32::from(id + 4000);
        let row: Vec<u8> = [last, -last].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(layout.find(id.into()), Some(row.as_slice()));
    }
}

#[test]
fn the_last_of_several_stored_rows_stays() {
    let spec = spec(RowFormat::Int4, 8, KEYINGS[1], 2);
    let root = TempDir::new().unwrap();
    let dir = root.path().join("v1");
    let mut builder = staged(&dir, &spec, BuildOptions { duplicates: Duplicates::Last, ..options(0, 1) });
    for n in 0..900 {
        builder.push_stored(n % 300, &stored(n, 8)).unwrap();
    }
    let manifest = publish(builder, &dir).unwrap();
    assert_eq!((manifest.schema.rows, manifest.quantization), (300, None));
    let layout = LayoutReader::open(&dir).unwrap();
    layout.verify().unwrap();
    for id in 0..300 {
        assert_eq!(layout.find(id), Some(stored(id + 600, 8).as_slice()));
    }
}

#[test]
fn the_smallest_id_that_is_wrong_is_named_whoever_is_faster() {
    for keying in [Keying::Dense, Keying::Hashed] {
        for threads in [1, 4] {
            let root = TempDir::new().unwrap();
            let dir = root.path().join("v1");
            let spec = spec(RowFormat::F16, 2, (keying, false), 8);
            let refused = |ids: &[u64]| {
                let mut builder = staged(&dir, &spec, options(1000, threads));
                ids.iter().for_each(|&id| builder.push(id, &[0.5, 1.0]).unwrap());
                let error = publish(builder, &dir).unwrap_err();
                assert!(names(root.path()).is_empty(), "nothing is left behind");
                error
            };
            let mut twice: Vec<u64> = (0..3000).collect();
            twice.extend([2999, 1203, 1202, 1201, 1207]);
            let error = refused(&twice);
            assert!(matches!(error, BuildError::DuplicateId { id: 1201 }), "{error}");
            if keying == Keying::Dense {
                let holes: Vec<u64> = (0..3000).filter(|id| ![500, 77, 1400].contains(id)).collect();
                assert!(matches!(refused(&holes), BuildError::MissingId { id: 77, rows: 2997 }));
                assert!(matches!(refused(&[0, 1, 9]), BuildError::MissingId { id: 2, rows: 3 }));
                assert!(matches!(refused(&[0, 9, 9]), BuildError::DuplicateId { id: 9 }));
            }
        }
    }
}

#[test]
fn a_row_that_cannot_be_stored_refuses_all_of_its_batch() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("v1");
    let mut builder = staged(&dir, &spec(RowFormat::F16, 2, KEYINGS[1], 2), options(0, 2));
    let ids: Vec<u64> = (0..5000).collect();
    let error = builder.push_many(&ids, |id, values| values.fill(if id == 4321 { 1e6 } else { 1.0 }));
    assert!(matches!(error, Err(BuildError::Value { id: 4321, .. })));
    assert_eq!(builder.rows(), 0);
    builder.push_many(&ids, |_, values| values.fill(1.0)).unwrap();
    assert_eq!(publish(builder, &dir).unwrap().schema.rows, 5000);
}

#[test]
fn a_staged_build_is_published_where_it_was_begun_or_nowhere() {
    let root = TempDir::new().unwrap();
    let (here, there) = (root.path().join("v1"), root.path().join("v2"));
    let spec = spec(RowFormat::F16, 2, KEYINGS[1], 2);
    let error = publish(staged(&here, &spec, options(0, 1)), &there).unwrap_err();
    assert!(matches!(error, BuildError::StagedElsewhere { .. }), "{error}");
    drop(staged(&here, &spec, options(0, 1)));
    assert!(names(root.path()).is_empty());

    publish(staged(&here, &spec, options(0, 1)), &here).unwrap();
    let error = TableBuilder::staged(spec, options(0, 1), &here).unwrap_err();
    assert!(matches!(error, BuildError::AlreadyExists { .. }), "refused before any row is read");
}

#[test]
fn the_optimized_quantizer_is_used_and_reported() {
    let spec = spec(RowFormat::Int4, 32, KEYINGS[1], 2);
    let report_of = |quantizer| {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("v1");
        let options = BuildOptions { quantizer, ..options(0, 2) };
        let mut builder = staged(&dir, &spec, options);
        let ids: Vec<u64> = (0..500).collect();
        builder.push_many(&ids, |id, values| values.copy_from_slice(&vector(id, 32))).unwrap();
        let report = publish(builder, &dir).unwrap().quantization.unwrap();
        assert_eq!(report.quantizer, Some(quantizer));
        report.relative_l2
    };
    let [min_max, optimized] = Quantizer::ALL.map(report_of);
    assert!(optimized < min_max, "{optimized} against {min_max}");
}
