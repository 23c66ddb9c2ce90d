//! What this process has written or read and will not need again does not stay in the page cache, where it
//! would take the place of pages that lookups read.
//!
//! All of it is advice. The kernel keeps pages that any process has mapped (as a node has what it serves),
//! and pages that are not on the disk yet, which it begins to write.

use std::{fs::File, num::NonZeroU64};

use rustix::fs::{Advice, fadvise};

use crate::partition::PartitionFile;

/// A file that is written in passing is let go of after this many bytes.
pub(crate) const BEHIND_BYTES: u64 = 64 << 20;

/// Lets the page cache go of `bytes` from `from` on; of everything after `from` with `None`.
pub(crate) fn drop_behind(file: &File, from: u64, bytes: Option<NonZeroU64>) {
    // Not every file system has a page cache to speak of.
    let _ = fadvise(file, from, bytes, Advice::DontNeed);
}

impl PartitionFile {
    /// Takes a range of the file out of this process and out of the page cache. Whoever reads it has it back
    /// from the disk. `file` is the one that is mapped.
    pub(crate) fn release(&self, file: &File, range: std::ops::Range<u64>) {
        self.map().unmap_pages(range.start as usize..range.end as usize);
        if let Some(bytes) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
            drop_behind(file, range.start, Some(bytes));
        }
    }

    /// Lets go of the sections that no lookup reads, or of all when lookups read a copy: without this, rows
    /// that were copied would stand in memory twice, and the kernel would make room for the copy of one
    /// partition with pages that are in use. A restart reads them from the disk again. Blocks for about a
    /// tenth of a second per gigabyte.
    pub fn release_unread(&self) {
        // By its path: a descriptor for each of thousands of partitions would be too many. If another file
        // has been put in its place, that one is read again when it is needed.
        let Ok(file) = File::open(self.path()) else { return };
        for section in &self.header().sections {
            if self.is_copied() || !section.kind.is_looked_up() {
                self.release(&file, section.offset..section.end());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, ops::ControlFlow::Continue, path::Path};

    use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion};

    use super::*;
    use crate::{LayoutReader, TableBuilder, TableSpec, mmap::cached_bytes, verify_version};

    /// Whether the file system lets go of pages when it is told: one in memory has nowhere else to keep them.
    fn lets_go(dir: &Path) -> bool {
        let path = dir.join("probe");
        let mut file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.write_all(&[1; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        assert_eq!(cached_bytes(&file), 1 << 20);
        drop_behind(&file, 0, None);
        cached_bytes(&file) == 0
    }

    #[test]
    fn what_is_written_or_read_once_is_not_kept_and_what_is_served_is() {
        let root = tempfile::TempDir::new().unwrap();
        let spec = TableSpec {
            table_version: TableVersion {
                table: Name::new("user").unwrap(),
                version: Name::new("v1").unwrap(),
            },
            dim: 64,
            format: RowFormat::F32,
            keying: Keying::Hashed,
            partitions: PartitionCount::new(2).unwrap(),
            default_row: Vec::new(),
            composite: None,
            full_keys: false,
            seed: 7,
        };
        let mut builder = TableBuilder::new(spec).unwrap();
        for id in 0..30_000 {
            builder.push(id, &[id as f32; 64]).unwrap();
        }
        let dir = root.path().join("v1");
        builder.publish(&dir, &mut |_, _| ()).unwrap();
        let files: Vec<File> =
            (0..2).map(|n| File::open(dir.join(format!("layout-2/part-0000{n}.tide"))).unwrap()).collect();
        if !lets_go(root.path()) {
            return;
        }
        let cached = || files.iter().map(cached_bytes).sum::<usize>();
        assert_eq!(cached(), 0, "published");
        verify_version(&dir, 2, &mut |_, _| ()).unwrap();
        assert_eq!(cached(), 0, "verified");

        let layout = LayoutReader::open(&dir).unwrap();
        assert!(cached() <= 64 << 10, "{} bytes to open two files", cached());
        for file in layout.partitions() {
            file.warm_up(None, &mut |_, _| Continue(())).unwrap();
        }
        let served: u64 = layout.partitions().iter().map(PartitionFile::lookup_bytes).sum();
        assert!(cached() as u64 >= served);
        assert!(verify_version(&dir, 2, &mut |_, _| ()).unwrap().bad.is_empty());
        assert!(cached() as u64 >= served, "what is mapped stays");

        let copies: Vec<_> = layout.partitions().iter().map(|file| file.to_copied().unwrap()).collect();
        assert!(cached() as u64 >= served);
        copies.iter().for_each(PartitionFile::release_unread);
        let left = cached();
        assert!(left < 1 << 20, "{left} bytes stand in memory twice");
        for (file, copy) in layout.partitions().iter().zip(&copies) {
            assert!(file.entries().eq(copy.entries()), "who still reads the map has it back");
        }
    }
}
