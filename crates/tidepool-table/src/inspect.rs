//! For people who look into files: what a partition file consists of, and which files of a version are bad.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use tidepool_types::{PartitionEntry, TableManifest, TableSchema, paths::partition_path};

use crate::{
    error::OpenError,
    footer::PartitionFooter,
    header::SectionKind,
    layout::{open_listed, read_manifest},
    parallel,
    partition::PartitionFile,
    verify::Damage,
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
    /// It is not there.
    #[error("{path} is missing, the manifest lists it with {listed} bytes")]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// Its bytes by the manifest.
        listed: u64,
    },
    /// It is shorter or longer than it was.
    #[error("{path} has {found} bytes, the manifest lists {listed}")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// Its bytes by the manifest.
        listed: u64,
    },
    /// It cannot be opened, or is another file than the manifest lists.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its bytes are not those that were written.
    #[error(transparent)]
    Damaged(#[from] Damage),
}

/// A version whose every byte was read.
#[derive(Debug)]
pub struct Verified {
    /// What the version says of itself.
    pub manifest: TableManifest,
    /// Every file that is bad, with all that is wrong with it, in partition order.
    pub bad: Vec<(PathBuf, BadFile)>,
}

/// Files from this size on are verified by all threads together, smaller ones side by side.
const LARGE_FILE_BYTES: u64 = 64 << 20;

/// Verifies every partition file of a version, with `threads` threads, and goes on after a bad one. The
/// page cache keeps nothing of what no other process has mapped. `progress` is told the bytes done and the
/// bytes in all.
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
    let mut told = |bytes| {
        done += bytes;
        progress(done, total);
    };
    let one = |entry: &PartitionEntry, threads, tell: &mut dyn FnMut(u64)| {
        let path = partition_path(version_dir, manifest.schema.partitions, entry.partition);
        let mut left = entry.file_bytes;
        let result = verify_file(&path, &manifest.schema, entry, threads, &mut |bytes| {
            left = left.saturating_sub(bytes);
            tell(bytes);
        });
        // Of a file that could not be read to its end.
        tell(left);
        result.err().map(|bad| (entry.partition, (path, bad)))
    };
    let (large, small): (Vec<_>, Vec<_>) =
        manifest.files.iter().partition(|entry| entry.file_bytes >= LARGE_FILE_BYTES);
    let side_by_side = |_, entry, tell: &dyn Fn(u64)| one(entry, 1, &mut |bytes| tell(bytes));
    let mut bad: Vec<_> =
        parallel::for_each(small, threads, side_by_side, &mut told).into_iter().flatten().collect();
    bad.extend(large.into_iter().filter_map(|entry| one(entry, threads, &mut told)));
    bad.sort_by_key(|&(partition, _)| partition);
    let bad = bad.into_iter().map(|(_, bad)| bad).collect();
    Ok(Verified { manifest, bad })
}

fn verify_file(
    path: &Path,
    schema: &TableSchema,
    entry: &PartitionEntry,
    threads: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<(), BadFile> {
    let listed = entry.file_bytes;
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(BadFile::Missing { path: path.to_owned(), listed });
        }
        Ok(metadata) if metadata.is_file() && metadata.len() != listed => {
            return Err(BadFile::Size { path: path.to_owned(), found: metadata.len(), listed });
        }
        // Whatever else it is, opening says.
        _ => {}
    }
    let file = open_listed(path, schema, entry)?;
    let behind = File::open(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    Ok(file.verify_with(threads, Some(&behind), progress)?)
}
