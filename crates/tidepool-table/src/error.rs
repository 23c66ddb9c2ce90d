//! What can go wrong with partition files. Each error names the file, and what of it.

use std::{io, path::PathBuf};

use thiserror::Error;
use tidepool_types::{ManifestError, Name, TableVersion};

use crate::header::SectionKind;

/// Why a partition file, or a layout, could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The operating system said no.
    #[error("opening {path}")]
    Io {
        /// What was opened.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Shorter than a header page.
    #[error("{path} has {bytes} bytes, fewer than a header page")]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// It does not begin as a partition file does.
    #[error("{path} is not a Tidepool partition file")]
    Magic {
        /// The file.
        path: PathBuf,
    },
    /// Written in a format that this build does not read.
    #[error("{path} has format version {found}, this build reads {known}")]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// In this build.
        known: u32,
    },
    /// A checksum that is compared at opening is wrong: header page or footer.
    #[error("{path}: {part} is damaged: crc32c {computed:08x}, written as {stored:08x}")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// "header page" or "footer".
        part: &'static str,
        /// In the file.
        stored: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// Header or footer contradict the format, or each other.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What contradicts what.
        problem: String,
    },
    /// `manifest.json` is not JSON, or not a manifest.
    #[error("{path} is not a table manifest")]
    ManifestSyntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// `manifest.json` contradicts itself.
    #[error("{path} contradicts itself")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: ManifestError,
    },
    /// A partition file is not the one that the manifest lists.
    #[error("{path} is not the file that its manifest lists: {problem}")]
    NotListed {
        /// The partition file.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
}

/// Where the bytes of an open file are not what was written.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// A block's checksum is wrong.
    #[error(
        "{path}: block {block} of section {section} is damaged: crc32c {computed:08x}, written as {stored:08x}"
    )]
    Block {
        /// The file.
        path: PathBuf,
        /// Of it.
        section: SectionKind,
        /// Which 64 KiB of the section, from 0.
        block: u64,
        /// In the file.
        stored: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// A section's own checksum is wrong (block checksums or footer); such a section is one block.
    #[error("{path}: section {section} is damaged: crc32c {computed:08x}, written as {stored:08x}")]
    Section {
        /// The file.
        path: PathBuf,
        /// Of it.
        section: SectionKind,
        /// In the file.
        stored: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// A byte that only fills space is not zero.
    #[error("{path}: padding before section {before} is damaged at byte {offset}")]
    Padding {
        /// The file.
        path: PathBuf,
        /// The section after the padding; the tail pad stands inside the rows.
        before: SectionKind,
        /// Where in the file.
        offset: u64,
    },
    /// The tail pad of the rows is not zero.
    #[error("{path}: the tail pad of the rows is damaged at byte {offset}")]
    TailPad {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
    },
    /// A row whose key belongs elsewhere: checksums agree, so it was written wrong.
    #[error("{path}: row {row} holds id {id}: {problem}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Which row.
        row: u64,
        /// Whose it says it is.
        id: u64,
        /// Why it cannot be.
        problem: &'static str,
    },
}

/// Why a version was not built. Nothing of it is left behind.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A schema that no table can have: its dimension or its default row.
    #[error("the table cannot be built as specified")]
    Schema {
        /// What does not fit, and whose it is.
        source: ManifestError,
    },
    /// `full_keys` with dense keying, which stores no keys.
    #[error("table {table}: full keys go with hashed keying; a dense table stores no keys")]
    FullKeysOfDense {
        /// Whose.
        table: TableVersion,
    },
    /// A row of another dimension.
    #[error("row of id {id} has {found} elements, the table has dimension {dim}")]
    RowLength {
        /// Whose.
        id: u64,
        /// Elements given.
        found: usize,
        /// Elements wanted.
        dim: u32,
    },
    /// A stored row of another length.
    #[error("stored row of id {id} has {found} bytes, this format and dimension have {expected}")]
    StoredLength {
        /// Whose.
        id: u64,
        /// Bytes given.
        found: usize,
        /// Bytes wanted.
        expected: usize,
    },
    /// A value that cannot be stored; the source names its column.
    #[error("row of id {id} cannot be stored")]
    Value {
        /// Whose.
        id: u64,
        /// Column and value.
        source: tidepool_kernels::QuantizeError,
    },
    /// The same id twice.
    #[error("id {id} stands twice")]
    DuplicateId {
        /// Which.
        id: u64,
    },
    /// A dense table with a hole.
    #[error("a dense table of {rows} rows has the ids 0 to {rows} - 1, and id {id} is missing")]
    MissingId {
        /// The smallest one that is not there.
        id: u64,
        /// Rows pushed.
        rows: u64,
    },
    /// A dense id that no layout of so many partitions can hold.
    #[error("dense id {id} is too large: {partitions} partitions hold ids below {limit}")]
    IdTooLarge {
        /// Which.
        id: u64,
        /// Of the layout.
        partitions: u32,
        /// The first id that does not fit.
        limit: u64,
    },
    /// More rows than one partition can have.
    #[error("partition {partition} would have {rows} rows, more than 4,294,967,295: choose more partitions")]
    TooManyRows {
        /// Which.
        partition: u32,
        /// How many.
        rows: u64,
    },
    /// No perfect hash was found over the ids of a partition. With distinct ids this does not happen by
    /// chance; another seed would do.
    #[error("no index found for the {rows} ids of partition {partition}; try another seed")]
    Index {
        /// Which.
        partition: u32,
        /// How many.
        rows: u64,
    },
    /// The version is there already; versions never change.
    #[error("version {version} already exists: {path}")]
    AlreadyExists {
        /// Its name.
        version: Name,
        /// Its directory.
        path: PathBuf,
    },
    /// A staged build is published where it was begun.
    #[error("the build was staged for {staged}, it cannot be published as {path}")]
    StagedElsewhere {
        /// Where it was begun.
        staged: PathBuf,
        /// What was asked for.
        path: PathBuf,
    },
    /// The operating system said no.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A defect of ours, caught before publication.
    #[error("internal: {0}")]
    Internal(String),
}
