//! For people who look into files: what a partition file consists of, and which files of a version are bad.

use std::path::{Path, PathBuf};

use tidepool_types::{PartitionEntry, TableManifest, paths::partition_path};

use crate::{
    error::{OpenError, VerifyError},
    footer::PartitionFooter,
    header::SectionKind,
    layout::{open_listed, read_manifest},
    parallel,
    partition::PartitionFile,
};

/// A section of a partition file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionInfo {
    /// What it holds.
    pub kind: SectionKind,
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// The numbers of an index; `docs/table-format.md` says what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexInfo {
    /// The seed with which every part could be placed.
    pub seed: u64,
    /// Parts.
    pub parts: u32,
    /// Buckets of a part: one pilot byte each.
    pub buckets_per_part: u32,
    /// Slots of a part.
    pub slots_per_part: u32,
}

impl PartitionFile {
    /// The sections, in file order.
    pub fn sections(&self) -> impl Iterator<Item = SectionInfo> {
        let of = |section: &crate::header::Section| SectionInfo {
            kind: section.kind,
            offset: section.offset,
            length: section.length,
        };
        self.header().sections.iter().map(of)
    }

    /// The index; `None` for dense keying and for a partition without rows.
    #[must_use]
    pub fn index_info(&self) -> Option<IndexInfo> {
        // It was read when the file was opened.
        let footer = PartitionFooter::read(self.section(SectionKind::Footer), self.meta().rows).ok()?;
        let shape = footer.index;
        (shape.parts > 0).then_some(IndexInfo {
            seed: shape.seed,
            parts: shape.parts,
            buckets_per_part: shape.buckets_per_part,
            slots_per_part: shape.slots_per_part,
        })
    }
}

/// What is wrong with a file of a version.
#[derive(Debug, thiserror::Error)]
pub enum BadFile {
    /// It cannot be opened, or is another file than the manifest lists.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its bytes are not those that were written.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// A version whose every byte was read.
#[derive(Debug)]
pub struct Verified {
    /// What the version says of itself.
    pub manifest: TableManifest,
    /// Every file that is bad, with the first thing that is wrong with it, in partition order.
    pub bad: Vec<(PathBuf, BadFile)>,
}

/// Verifies every partition file of a version, with `threads` threads, and goes on after a bad one.
/// `progress` is told the bytes done and the bytes in all.
///
/// # Errors
/// [`OpenError`] when there is no manifest to go by.
pub fn verify_version(
    version_dir: &Path,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, OpenError> {
    let manifest = read_manifest(version_dir)?;
    let total = manifest.file_bytes();
    let mut done = 0;
    progress(done, total);
    let one = |_, entry: &PartitionEntry, tell: &dyn Fn(u64)| {
        let path = partition_path(version_dir, manifest.schema.partitions, entry.partition);
        let result = open_listed(&path, &manifest.schema, entry)
            .map_err(BadFile::from)
            .and_then(|file| file.verify().map_err(BadFile::from));
        tell(entry.file_bytes);
        result.err().map(|bad| (path, bad))
    };
    let bad = parallel::for_each(manifest.files.iter().collect(), threads, one, &mut |bytes| {
        done += bytes;
        progress(done, total);
    });
    let bad = bad.into_iter().flatten().collect();
    Ok(Verified { manifest, bad })
}
