//! A layout opens only with the files that its manifest lists.

use std::fs;

use tidepool_table::{LayoutReader, OpenError, PartitionFile};
use tidepool_types::{Keying, RowFormat};

use crate::common::{KEYINGS, build, ids, spec};

#[test]
fn a_missing_or_foreign_manifest_is_named() {
    let published = build(&spec(RowFormat::Int4, 8, KEYINGS[1], 4), &ids(Keying::Hashed, 100));
    let manifest = published.dir.join("manifest.json");
    let good = fs::read_to_string(&manifest).unwrap();
    assert!(good.ends_with("}\n"));

    fs::write(&manifest, "{}").unwrap();
    assert!(matches!(
        LayoutReader::open(&published.dir),
        Err(OpenError::ManifestSyntax { path, .. }) if path == manifest
    ));
    fs::write(&manifest, good.replace("\"rows\": 100", "\"rows\": 101")).unwrap();
    assert!(matches!(LayoutReader::open(&published.dir), Err(OpenError::Manifest { .. })));
    fs::remove_file(&manifest).unwrap();
    assert!(
        matches!(LayoutReader::open(&published.dir), Err(OpenError::Io { path, .. }) if path == manifest)
    );
}

#[test]
fn a_missing_file_is_not_served_as_holes() {
    let published = build(&spec(RowFormat::Int4, 8, KEYINGS[1], 4), &ids(Keying::Hashed, 100));
    let path = published.dir.join("layout-4/part-00002.tide");
    fs::remove_file(&path).unwrap();
    let error = LayoutReader::open(&published.dir).unwrap_err();
    assert!(matches!(&error, OpenError::Io { path: named, .. } if *named == path), "{error}");
}

#[test]
fn a_file_of_another_build_is_refused() {
    let one = build(&spec(RowFormat::Int4, 8, KEYINGS[1], 4), &ids(Keying::Hashed, 100));
    let other = build(&spec(RowFormat::Int4, 8, KEYINGS[1], 4), &ids(Keying::Hashed, 200));
    let (a, b) = (one.dir.join("layout-4/part-00001.tide"), one.dir.join("layout-4/part-00003.tide"));

    fs::copy(other.dir.join("layout-4/part-00001.tide"), &a).unwrap();
    let error = LayoutReader::open(&one.dir).unwrap_err();
    assert!(matches!(&error, OpenError::NotListed { path, .. } if *path == a), "{error}");

    fs::copy(&b, &a).unwrap();
    let error = LayoutReader::open(&one.dir).unwrap_err();
    assert!(error.to_string().contains("its partition is 3, listed as 1"), "{error}");
}

#[test]
fn what_is_not_a_partition_file_is_refused() {
    let root = tempfile::TempDir::new().unwrap();
    let path = root.path().join("x.tide");
    assert!(matches!(PartitionFile::open(&path), Err(OpenError::Io { .. })));
    assert!(matches!(
        PartitionFile::open(root.path()),
        Err(OpenError::Malformed { .. } | OpenError::Io { .. })
    ));
    fs::write(&path, b"").unwrap();
    assert!(matches!(PartitionFile::open(&path), Err(OpenError::TooShort { bytes: 0, .. })));
    fs::write(&path, vec![b'x'; 10_000]).unwrap();
    assert!(matches!(PartitionFile::open(&path), Err(OpenError::Magic { .. })));
}
