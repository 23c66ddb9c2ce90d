//! Partition files and layouts: build, verify, map, and from id to stored row. The bytes are described in
//! `docs/table-format.md`.
//!
//! **Invariant:** nothing here waits on a network or knows of async; rows are bytes of a known length, and
//! what they mean is for `tidepool-kernels` to say. Bytes from a disk never panic: a file is refused when
//! it is opened, or [`PartitionFile::verify`] names the block that is damaged. `unsafe` stands in `mmap.rs`
//! alone.
//!
//! Read first: [`PartitionFile`], [`LayoutView`], [`TableBuilder`].

mod assemble;
mod builder;
mod cache;
mod error;
mod footer;
mod header;
mod huge_pages;
mod index;
mod inspect;
mod layout;
mod lookup;
mod memory;
mod mmap;
mod pace;
mod parallel;
mod partition;
mod publish;
mod report;
mod residency;
mod spill;
mod verify;
mod write;

pub use builder::{BuildOptions, Duplicates, TableBuilder, TableSpec};
pub use error::{BuildError, OpenError, VerifyError};
pub use header::{KeyCheck, SectionKind};
pub use inspect::{BadFile, IndexInfo, SectionInfo, Verified, verify_version};
pub use layout::LayoutReader;
pub use lookup::{
    Bags, Gathered, LayoutView, LookupScratch, Missing, NotHeld, PartitionRows, Pooled, SumsRoom,
};
pub use memory::{MemoryLimit, charged_bytes, lockable_bytes, memory_limit};
pub use partition::{PartitionFile, PartitionMeta, SectionBytes};
pub use residency::{HUGE_WORTH_BYTES, MemoryUse, Residency, ResidencyError, Smaps};
pub use verify::{Damage, MAX_LISTED_PROBLEMS};
