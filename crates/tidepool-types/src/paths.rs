//! The names of files and folders inside a table version's folder: `docs/table-format.md`, in one place for
//! who writes them, who reads them and who keeps them.

use std::path::{Path, PathBuf};

use crate::ids::{PartitionCount, PartitionIndex};

/// The manifest of a version.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The folder of a layout: `layout-16`.
#[must_use]
pub fn layout_dir_name(partitions: PartitionCount) -> String {
    format!("layout-{partitions}")
}

/// A partition file within its layout: `part-00003.tide`.
#[must_use]
pub fn partition_file_name(partition: PartitionIndex) -> String {
    format!("part-{:05}.tide", partition.0)
}

/// The path of a partition file: `<version_dir>/layout-16/part-00003.tide`.
#[must_use]
pub fn partition_path(version_dir: &Path, partitions: PartitionCount, partition: PartitionIndex) -> PathBuf {
    version_dir.join(layout_dir_name(partitions)).join(partition_file_name(partition))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_format() {
        let path = |partitions, partition| {
            let partitions = PartitionCount::new(partitions).unwrap();
            partition_path(Path::new("v1"), partitions, PartitionIndex(partition))
        };
        assert_eq!(path(4, 3), Path::new("v1/layout-4/part-00003.tide"));
        assert_eq!(path(65_536, 65_535), Path::new("v1/layout-65536/part-65535.tide"));
    }
}
