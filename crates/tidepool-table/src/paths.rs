//! The names of files and folders inside a version directory.

use std::path::{Path, PathBuf};

use tidepool_types::{PartitionCount, PartitionIndex};

/// The manifest of a version.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// The folder of a layout: `layout-16`.
pub(crate) fn layout_dir_name(partitions: PartitionCount) -> String {
    format!("layout-{partitions}")
}

/// A partition file within its layout: `part-00003.tide`.
pub(crate) fn partition_file_name(partition: PartitionIndex) -> String {
    format!("part-{:05}.tide", partition.0)
}

/// The path of a partition file: `<version_dir>/layout-16/part-00003.tide`.
#[must_use]
pub fn partition_path(version_dir: &Path, partitions: PartitionCount, partition: PartitionIndex) -> PathBuf {
    version_dir.join(layout_dir_name(partitions)).join(partition_file_name(partition))
}
