//! What goes in comes out: every format, keying and layout; ids exact; absent ids absent; same bytes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tempfile::TempDir;
use tidepool_kernels::RowKernel;
use tidepool_table::{
    Gathered, LayoutReader, LookupScratch, Missing, PartitionFile, TableBuilder, TableSpec,
};
use tidepool_types::{Keying, PartitionCount, Quantizer, RowFormat, mix64};

use crate::common::{KEYINGS, all_files, build, build_in, ids, spec, stored, vector};

fn check(spec: &TableSpec, ids: &[u64]) {
    let published = build(spec, ids);
    let layout = LayoutReader::open(&published.dir).unwrap();
    assert_eq!(layout.manifest(), &published.manifest);
    assert_eq!(layout.manifest().schema.rows, ids.len() as u64);
    layout.verify().unwrap();

    let kernel = RowKernel::new(spec.format, spec.dim);
    let mut expected = BTreeMap::new();
    for &id in ids {
        let mut row = vec![0; kernel.row_bytes()];
        kernel.quantize(&vector(id, spec.dim), &mut row).unwrap();
        assert_eq!(layout.find(id), Some(row.as_slice()), "id {id} of {spec:?}");
        expected.insert(id, row);
    }
    let entries: BTreeMap<u64, Vec<u8>> = layout.entries().map(|(id, row)| (id, row.to_vec())).collect();
    assert_eq!(entries, expected, "{spec:?}");
    assert_eq!(layout.entries().count(), ids.len());

    for file in layout.partitions() {
        let bytes = file.section_bytes();
        let sum = bytes.rows + bytes.cold_keys + bytes.index + bytes.checksums + bytes.footer;
        assert_eq!(sum + bytes.header_and_padding, file.file_bytes());
        assert_eq!(file.file_bytes(), std::fs::metadata(file.path()).unwrap().len());
    }
    let packed: Vec<[u8; 8]> = ids.iter().map(|id| id.to_le_bytes()).collect();
    let mut gathered = Gathered::default();
    layout.into_view(kernel).gather(&packed, &mut LookupScratch::default(), &mut gathered).unwrap();
    assert_eq!(gathered.missing, Missing::default());
    assert!(gathered.rows.chunks_exact(kernel.row_bytes()).eq(ids.iter().map(|id| &expected[id][..])));
}

#[test]
fn every_format_and_keying() {
    for format in RowFormat::ALL {
        for keying in KEYINGS {
            for rows in [0, 1, 2, 3, 100] {
                check(&spec(format, 8, keying, 1), &ids(keying.0, rows));
            }
            check(&spec(format, 6, keying, 4), &ids(keying.0, 5000));
        }
    }
}

#[test]
fn partitions_that_are_empty_or_nearly() {
    for keying in KEYINGS {
        for rows in [0, 1, 3, 100] {
            check(&spec(RowFormat::Int4, 32, keying, 4), &ids(keying.0, rows));
        }
        for rows in [2, 5000] {
            check(&spec(RowFormat::Int4, 32, keying, 16), &ids(keying.0, rows));
        }
    }
}

#[test]
fn rows_longer_than_a_huge_page_begin_on_one() {
    for keying in KEYINGS {
        let spec = spec(RowFormat::F32, 128, keying, 1);
        let published = build(&spec, &ids(keying.0, 4200));
        let layout = LayoutReader::open(&published.dir).unwrap();
        layout.verify().unwrap();
        let file = &layout.partitions()[0];
        let header = std::fs::read(file.path()).unwrap();
        let rows_offset = u64::from_le_bytes(header[72..80].try_into().unwrap());
        assert_eq!(rows_offset, 2 << 20);
        assert!(file.section_bytes().header_and_padding >= 2 << 20);
    }
}

#[test]
fn absent_ids_are_absent() {
    for keying in KEYINGS {
        let spec = spec(RowFormat::Int4, 8, keying, 4);
        let present = ids(keying.0, 5000);
        let published = build(&spec, &present);
        let layout = LayoutReader::open(&published.dir).unwrap();
        let present: BTreeSet<u64> = present.into_iter().collect();
        let absent: Vec<u64> =
            (0..200_000u64).map(|n| mix64(n ^ 0xab5e)).filter(|id| !present.contains(id)).collect();
        for &id in &absent {
            assert_eq!(layout.find(id), None, "id {id} of {keying:?}");
        }
        if keying.0 == Keying::Dense {
            for id in [5000, 5001, 5002, 5003, u64::MAX] {
                assert_eq!(layout.find(id), None);
            }
        }
        let packed: Vec<[u8; 8]> = absent.iter().map(|id| id.to_le_bytes()).collect();
        let mut gathered = Gathered::default();
        let view = layout.into_view(RowKernel::new(spec.format, spec.dim));
        view.gather(&packed, &mut LookupScratch::default(), &mut gathered).unwrap();
        assert_eq!(gathered.missing.count as usize, absent.len());
        assert!(gathered.rows.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_partition_does_not_answer_for_another() {
    for keying in KEYINGS {
        let spec = spec(RowFormat::Int8, 4, keying, 4);
        let present = ids(keying.0, 1000);
        let published = build(&spec, &present);
        let layout = LayoutReader::open(&published.dir).unwrap();
        for id in present {
            let hits = layout.partitions().iter().filter(|file| file.find(id).is_some()).count();
            assert_eq!(hits, 1, "id {id}");
        }
    }
}

#[test]
fn shuffled_rows_give_the_same_bytes() {
    for keying in KEYINGS {
        for partitions in [1, 4] {
            let spec = spec(RowFormat::Int4, 8, keying, partitions);
            let mut ids = ids(keying.0, 3000);
            let first = all_files(&build(&spec, &ids).dir);
            ids.sort_by_key(|&id| mix64(id ^ 99));
            let second = all_files(&build(&spec, &ids).dir);
            assert!(first == second, "{keying:?}, {partitions} partitions");
            if keying.0 == Keying::Hashed {
                let other = TableSpec { seed: 8, ..spec };
                assert!(all_files(&build(&other, &ids).dir) != first, "the seed reaches the index");
            }
        }
    }
}

#[test]
fn stored_rows_come_back_as_they_are() {
    let spec = spec(RowFormat::Int8, 10, KEYINGS[1], 4);
    let root = TempDir::new().unwrap();
    let dir = root.path().join("v1");
    let mut builder = TableBuilder::new(spec.clone()).unwrap();
    for id in 0..500 {
        builder.push_stored(id, &stored(id, 18)).unwrap();
    }
    assert_eq!(builder.rows(), 500);
    let manifest = builder.publish(&dir, &mut |_, _| ()).unwrap();
    assert_eq!(manifest.quantization, None, "nothing is known of what the rows were");
    assert_eq!(manifest.bytes.unwrap().row.bytes_per_row, 18.0, "their size is");
    let layout = LayoutReader::open(&dir).unwrap();
    layout.verify().unwrap();
    for id in 0..500 {
        assert_eq!(layout.find(id), Some(stored(id, 18).as_slice()));
    }
}

#[test]
fn the_report_and_the_progress_are_told() {
    let mut reports = Vec::new();
    for format in RowFormat::ALL {
        let published = build(&spec(format, 32, KEYINGS[0], 1), &ids(Keying::Dense, 500));
        reports.push(published.manifest.quantization.unwrap());
    }
    let errors: Vec<f64> = reports.iter().map(|report| report.relative_l2).collect();
    assert!(errors.is_sorted_by(|a, b| a > b), "more bits, less error: {errors:?}");
    // 32 uniform values span 2 * 31/33; a step is 1/15 of that, its error 1/sqrt(12) of it, a value 1/sqrt(3).
    assert!((errors[0] - 0.0626).abs() < 0.003, "{errors:?}");
    assert_eq!(errors[3], 0.0);
    let quantizers: Vec<_> = reports.iter().map(|report| report.quantizer).collect();
    assert_eq!(quantizers, [Some(Quantizer::MinMax), Some(Quantizer::MinMax), None, None]);
    assert_eq!((reports[0].worst_rows.len(), reports[3].worst_rows.len()), (10, 0));
    assert!(reports[0].worst_rows[9].relative_l2 > reports[0].relative_l2);

    let mut builder = TableBuilder::new(spec(RowFormat::F16, 2, KEYINGS[1], 4)).unwrap();
    for id in 0..300_000 {
        builder.push(id, &[0.5, 1.0]).unwrap();
    }
    let root = TempDir::new().unwrap();
    let mut told = Vec::new();
    builder.publish(&root.path().join("v1"), &mut |done, total| told.push((done, total))).unwrap();
    assert_eq!(told.first(), Some(&(0, 300_000)));
    assert_eq!(told.last(), Some(&(300_000, 300_000)));
    assert!(told.is_sorted() && told.len() > 5, "{told:?}");
}

#[test]
fn the_worst_rows_are_those_that_differ_most_from_what_they_were() {
    let spec = spec(RowFormat::Int4, 16, KEYINGS[1], 4);
    let present = ids(Keying::Hashed, 3000);
    let published = build(&spec, &present);
    let layout = LayoutReader::open(&published.dir).unwrap();
    let kernel = RowKernel::new(spec.format, spec.dim);
    let mut stored = [0.0; 16];
    let mut all: Vec<(f64, f64, u64)> = Vec::new();
    for id in present {
        kernel.dequantize(layout.find(id).unwrap(), &mut stored);
        let row = vector(id, 16);
        let distances = row.iter().zip(&stored).map(|(a, b)| f64::from(*a) - f64::from(*b));
        let error: f64 = distances.clone().map(|distance| distance * distance).sum();
        let norm: f64 = row.iter().map(|&a| f64::from(a) * f64::from(a)).sum();
        all.push(((error / norm).sqrt(), distances.map(f64::abs).fold(0.0, f64::max), id));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let report = published.manifest.quantization.unwrap();
    assert_eq!(report.worst_rows.len(), 10);
    let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-5 * expected;
    for (row, (relative, largest, id)) in report.worst_rows.iter().zip(all) {
        assert_eq!(row.id, id);
        assert!(
            close(row.relative_l2, relative) && close(row.largest_absolute_error.unwrap(), largest),
            "{row:?}"
        );
    }
}

#[test]
fn the_sizes_are_those_of_the_files() {
    for keying in KEYINGS {
        let published = build(&spec(RowFormat::Int4, 32, keying, 4), &ids(keying.0, 3000));
        let bytes = published.manifest.bytes.unwrap();
        let layout = LayoutReader::open(&published.dir).unwrap();
        let index: u64 = layout.partitions().iter().map(|file| file.section_bytes().index).sum();
        let files = published.manifest.file_bytes();
        let per_row = |bytes: u64| bytes as f64 / 3000.0;
        assert_eq!((bytes.row.bytes_per_row, bytes.row.ratio_to_f16), (20.0, 0.3125));
        assert!((bytes.file_with_index.bytes_per_row - per_row(files)).abs() < 1e-3, "{bytes:?}");
        assert!((bytes.file.bytes_per_row - per_row(files - index)).abs() < 1e-3, "{bytes:?}");
        assert_eq!(index > 0, bytes.file_with_index.bytes_per_row > bytes.file.bytes_per_row);
    }
    assert_eq!(build(&spec(RowFormat::Int4, 32, KEYINGS[0], 1), &[]).manifest.bytes, None);
}

#[test]
fn many_threads_read_one_file() {
    fn shareable<T: Send + Sync>(value: T) -> T {
        value
    }
    let spec = spec(RowFormat::Int4, 8, KEYINGS[1], 1);
    let present = ids(Keying::Hashed, 2000);
    let published = build(&spec, &present);
    let path = published.dir.join("layout-1/part-00000.tide");
    let file = shareable(PartitionFile::open(&path).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(present.iter().all(|&id| file.find(id).is_some())));
            scope.spawn(|| PartitionFile::open(&path).unwrap().verify().unwrap());
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_set_of_ids_round_trips(
        ids in proptest::collection::btree_set(any::<u64>(), 0..300),
        log in 0u32..3,
        half_dim in 1u32..20,
        format in proptest::sample::select(RowFormat::ALL.to_vec()),
        full_keys: bool,
        seed: u64,
    ) {
        let spec = TableSpec { seed, ..spec(format, half_dim * 2, (Keying::Hashed, full_keys), 1 << log) };
        check(&spec, &ids.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_version_is_the_same_in_any_directory_and_file_names_are_fixed() {
    let root = TempDir::new().unwrap();
    let spec = spec(RowFormat::Int4, 8, KEYINGS[1], 16);
    let dir = root.path().join("a/b/c/v1");
    build_in(&dir, &spec, &ids(Keying::Hashed, 50));
    let names: Vec<String> =
        all_files(&dir).into_iter().map(|(path, _)| path.to_string_lossy().into_owned()).collect();
    assert_eq!(names.len(), 17);
    assert_eq!(names[3], "layout-16/part-00003.tide");
    assert_eq!(names[16], "manifest.json");
    let count = PartitionCount::new(16).unwrap();
    let third = count.indexes().nth(3).unwrap();
    assert_eq!(tidepool_types::paths::partition_path(&dir, count, third), dir.join(&names[3]));
}
