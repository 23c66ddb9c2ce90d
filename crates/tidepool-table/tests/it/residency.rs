//! Answers are the same wherever rows and index lie. Huge pages are the kernel's to give: nothing here
//! depends on them.

use std::ops::ControlFlow::Continue;

use tidepool_kernels::RowKernel;
use tidepool_table::{
    Gathered, LayoutReader, LayoutView, LookupScratch, PartitionFile, Residency, ResidencyError, Smaps,
};
use tidepool_types::RowFormat;

use crate::common::{KEYINGS, build, ids, spec};

const ROWS: u64 = 30_000;

/// The rows of ids that are there and of some that are not.
fn answers(view: &LayoutView, ids: &[u64]) -> Gathered {
    let packed: Vec<[u8; 8]> =
        ids.iter().chain(&[ROWS + 7, 12_345_678_901]).map(|id| id.to_le_bytes()).collect();
    let mut gathered = Gathered::default();
    view.gather(&packed, &mut LookupScratch::default(), &mut gathered).unwrap();
    assert_eq!(gathered.missing.count, 2);
    gathered
}

fn put(file: PartitionFile, residency: Residency) -> Result<PartitionFile, ResidencyError> {
    match residency {
        Residency::Mapped | Residency::Auto => file.warm_up(None, &mut |_, _| Continue(())).map(|()| file),
        Residency::Locked => file.lock().map(|()| file),
        Residency::Copied => file.to_copied(),
    }
}

#[test]
fn the_same_answers_from_everywhere() {
    for keying in KEYINGS {
        // Two partitions of 2 MB each and more, so that rows begin on a huge page.
        let spec = spec(RowFormat::F16, 64, keying, 2);
        let ids = ids(keying.0, ROWS);
        let published = build(&spec, &ids);
        let kernel = RowKernel::new(spec.format, spec.dim);
        let expected = answers(&LayoutReader::open(&published.dir).unwrap().into_view(kernel), &ids);
        for residency in [Residency::Mapped, Residency::Locked, Residency::Copied] {
            let schema = published.manifest.schema.clone();
            let mut view = LayoutView::new(schema.clone(), kernel);
            for partition in schema.partitions.indexes() {
                let path =
                    tidepool_types::paths::partition_path(&published.dir, schema.partitions, partition);
                match put(PartitionFile::open(&path).unwrap(), residency) {
                    Ok(file) => view.insert(partition, std::sync::Arc::new(file)),
                    // Who may lock how much is up to whoever runs the tests.
                    Err(error @ ResidencyError::Lock { .. }) => {
                        assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
                        view.insert(partition, std::sync::Arc::new(PartitionFile::open(&path).unwrap()));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(answers(&view, &ids), expected, "{keying:?} {residency}");
            for file in view.partitions() {
                file.verify().unwrap();
                assert_eq!(file.is_copied(), residency == Residency::Copied);
                assert_eq!(file.entries().count() as u64, file.meta().rows);
            }
        }
    }
}

#[test]
fn a_copy_outlives_what_it_was_copied_from() {
    let published = build(&spec(RowFormat::Int4, 32, KEYINGS[1], 1), &ids(KEYINGS[1].0, 1000));
    let mut layout = LayoutReader::open(&published.dir).unwrap();
    let copied = layout.partitions()[0].to_copied().unwrap();
    let again = copied.to_copied().unwrap();
    let found = layout.find(0).unwrap().to_vec();
    drop(copied);
    layout = LayoutReader::open(&published.dir).unwrap();
    assert_eq!(again.find(0), Some(&found[..]));
    assert_eq!(layout.find(0), Some(&found[..]));
}

#[test]
fn warm_memory_is_resident_and_counted() {
    let published = build(&spec(RowFormat::F32, 64, KEYINGS[1], 1), &ids(KEYINGS[1].0, ROWS));
    let layout = LayoutReader::open(&published.dir).unwrap();
    let file = &layout.partitions()[0];
    let mut steps = Vec::new();
    // 8 MB at 1 GB/s: as good as at once, and the throttle has been there.
    file.warm_up(Some(1 << 30), &mut |done, total| {
        steps.push((done, total));
        Continue(())
    })
    .unwrap();
    let bytes = file.section_bytes();
    let looked_up = bytes.rows - 64 + bytes.index;
    assert_eq!(file.lookup_bytes(), looked_up);
    assert_eq!(steps.last(), Some(&(looked_up, looked_up)));
    assert!(steps.is_sorted());

    let smaps = Smaps::read().unwrap();
    for file in [file, &file.to_copied().unwrap()] {
        let smaps = if file.is_copied() { Smaps::read().unwrap() } else { smaps.clone() };
        let memory = file.memory_use(&smaps);
        assert_eq!(memory.lookup_bytes, looked_up);
        assert!(memory.resident_bytes * 10 > looked_up * 8, "{memory:?}");
        assert!(memory.huge_page_bytes <= memory.resident_bytes, "{memory:?}");
        assert!(memory.huge_page_limit_bytes <= memory.lookup_bytes);
        assert!(!memory.lacks_huge_pages(looked_up), "too small to matter");
    }
}
