//! [`PartitionFile`]: one partition, mapped; from key to stored row.

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidepool_kernels::prefetch_read;
use tidepool_types::{Keying, PartitionCount, PartitionIndex, RowFormat, TableVersion, unmix64};

use crate::{
    error::OpenError,
    footer::{FooterValues, PartitionFooter},
    header::{
        FORMAT_VERSION, HEADER_BYTES, Header, HeaderProblem, KeyCheck, PREAMBLE_BYTES, SectionKind,
        TAIL_PAD_BYTES,
    },
    index::{Index, IndexShape, Probe},
    lookup::PartitionRows,
    mmap::{HugeMemory, MappedFile, Section},
};

/// What a partition file is part of, and how its rows are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMeta {
    /// Table and version.
    pub table_version: TableVersion,
    /// Elements of a row.
    pub dim: u32,
    /// How rows are stored.
    pub format: RowFormat,
    /// Which ids there may be.
    pub keying: Keying,
    /// How a row proves whose it is.
    pub key_check: KeyCheck,
    /// Which partition of the layout.
    pub partition: PartitionIndex,
    /// The layout.
    pub partitions: PartitionCount,
    /// Rows in this partition.
    pub rows: u64,
    /// Rows of the version, in all partitions.
    pub table_rows: u64,
    /// The seed that the version was built with.
    pub build_seed: u64,
    /// crc32c of the footer. It speaks for the whole file: two files with equal footers are equal.
    pub footer_crc32c: u32,
}

impl PartitionMeta {
    /// Bytes of one stored row, without key check.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.dim)
    }

    /// Bytes from one row to the next in the file.
    #[must_use]
    pub const fn stride(&self) -> usize {
        self.row_bytes() + self.key_check.bytes()
    }
}

/// Where the bytes of a partition file go. The sum is the file's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SectionBytes {
    /// Rows with their key checks, and the tail pad.
    pub rows: u64,
    /// Cold keys.
    pub cold_keys: u64,
    /// Pilots and remap.
    pub index: u64,
    /// Block checksums.
    pub checksums: u64,
    /// Footer.
    pub footer: u64,
    /// The header page, and what fills the space between sections.
    pub header_and_padding: u64,
}

/// One partition of a layout, mapped read-only. It never changes, and any number of threads may read it.
#[derive(Debug)]
pub struct PartitionFile {
    lookup: Lookup,
    path: PathBuf,
    map: Arc<MappedFile>,
    copied: bool,
    header: Header,
    meta: PartitionMeta,
}

/// All that finding a row reads of a partition, side by side: a lookup meets another partition with every
/// id.
#[derive(Debug)]
#[repr(align(64))]
struct Lookup {
    /// Without the tail pad: `row_count` rows of `stride` bytes.
    rows: Section,
    row_count: u64,
    stride: usize,
    pilots: Section,
    remap: Section,
    index: IndexShape,
}

impl PartitionFile {
    /// Maps the file at `path` and checks header page and footer, which costs the same at any size. Rows,
    /// keys and index are trusted from here on: [`verify`](Self::verify) is run once, when a file arrives.
    ///
    /// # Errors
    /// [`OpenError`] names the file and says what of it is missing, damaged or contradictory.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let malformed = |problem| OpenError::Malformed { path: path.to_owned(), problem };
        // A pipe in its place is refused and not waited for.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(malformed("not a regular file".into()));
        }
        let bytes = metadata.len();
        if bytes < HEADER_BYTES as u64 {
            return Err(OpenError::TooShort { path: path.to_owned(), bytes });
        }
        let map = MappedFile::map(&file, bytes as usize).map_err(io)?;
        let Some(page) = map.first_chunk::<HEADER_BYTES>() else {
            return Err(OpenError::TooShort { path: path.to_owned(), bytes: map.len() as u64 });
        };
        let header = Header::decode(page, map.len() as u64).map_err(|problem| header_error(path, problem))?;

        let range = |kind| section_range(&header, kind);
        let footer = &map[range(SectionKind::Footer)];
        let footer_crc32c = crc32c::crc32c(footer);
        let stored = header.section(SectionKind::Footer).map_or(0, |section| section.crc32c);
        if stored != footer_crc32c {
            return Err(OpenError::Checksum {
                path: path.to_owned(),
                part: "footer",
                stored,
                computed: footer_crc32c,
            });
        }
        let footer = PartitionFooter::read(footer, header.rows)
            .map_err(|problem| malformed(format!("footer: {problem}")))?;
        check_footer(&header, &footer, crc32c::crc32c(&page[..PREAMBLE_BYTES]))
            .map_err(|problem| malformed(format!("footer: {problem}")))?;

        let meta = PartitionMeta {
            table_version: footer.table_version,
            dim: header.dim,
            format: header.format,
            keying: header.keying,
            key_check: header.key_check,
            partition: header.partition,
            partitions: header.partitions,
            rows: header.rows,
            table_rows: footer.table_rows,
            build_seed: footer.build_seed,
            footer_crc32c,
        };
        let mut rows = range(SectionKind::Rows);
        map.read_ahead(rows.start);
        map.want_huge_pages(rows.clone());
        rows.end -= TAIL_PAD_BYTES as usize;
        let (pilots, remap) = (range(SectionKind::Pilots), range(SectionKind::Remap));
        map.want_huge_pages(pilots.start..remap.end);
        let lookup = Lookup {
            rows: map.section(rows),
            row_count: header.rows,
            stride: meta.stride(),
            pilots: map.section(pilots),
            remap: map.section(remap),
            index: footer.index,
        };
        Ok(Self { lookup, path: path.to_owned(), map: Arc::new(map), copied: false, header, meta })
    }

    /// What the file is part of.
    #[must_use]
    pub fn meta(&self) -> &PartitionMeta {
        &self.meta
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stored row of `id`, [`PartitionMeta::row_bytes`] long, or `None` when this partition does not
    /// have it. With [`KeyCheck::Fingerprint32`] an absent id gets another's row with probability 2^-32.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<&[u8]> {
        let location = self.meta.keying.locate(id, self.meta.partitions);
        if location.partition != self.meta.partition {
            return None;
        }
        match self.meta.keying {
            Keying::Dense => self.lookup.row(location.key),
            Keying::Hashed => {
                let row_bytes = self.meta.row_bytes();
                let row = self.lookup.row(self.index_row(location.key)?)?;
                Self::is_of(row, row_bytes, location.key).then(|| &row[..row_bytes])
            }
        }
    }

    /// Every id with its stored row, in row order. Ids are exact for both key checks.
    pub fn entries(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let (stride, row_bytes) = (self.meta.stride(), self.meta.row_bytes());
        self.rows()
            .chunks_exact(stride)
            .zip(0u64..)
            .map(move |(bytes, row)| (self.id_of(row, &bytes[row_bytes..]), &bytes[..row_bytes]))
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.header.file_bytes
    }

    /// Where its bytes go.
    #[must_use]
    pub fn section_bytes(&self) -> SectionBytes {
        let of = |kind| self.header.section(kind).map_or(0, |section| section.length);
        let mut bytes = SectionBytes {
            rows: of(SectionKind::Rows),
            cold_keys: of(SectionKind::ColdKeys),
            index: of(SectionKind::Pilots) + of(SectionKind::Remap),
            checksums: of(SectionKind::Checksums),
            footer: of(SectionKind::Footer),
            header_and_padding: 0,
        };
        let sections = bytes.rows + bytes.cold_keys + bytes.index + bytes.checksums + bytes.footer;
        bytes.header_and_padding = self.header.file_bytes - sections;
        bytes
    }

    pub(crate) fn map(&self) -> &MappedFile {
        &self.map
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn section(&self, kind: SectionKind) -> &[u8] {
        &self.map[section_range(&self.header, kind)]
    }

    /// Which row the index gives for a key, whether or not it is that key's.
    pub(crate) fn index_row(&self, key: u64) -> Option<u64> {
        let index = self.lookup.index();
        index.row(index.probe(key))
    }

    /// The rows without the tail pad.
    pub(crate) fn rows(&self) -> &[u8] {
        &self.lookup.rows
    }

    pub(crate) fn pilots(&self) -> &[u8] {
        &self.lookup.pilots
    }

    pub(crate) fn remap(&self) -> &[u8] {
        &self.lookup.remap
    }

    /// The map and the ranges of it that lookups read; `None` when they read a copy.
    pub(crate) fn mapped_ranges(&self) -> Option<(&MappedFile, [Range<usize>; 3])> {
        let mut rows = section_range(&self.header, SectionKind::Rows);
        rows.end -= TAIL_PAD_BYTES as usize;
        let [pilots, remap] =
            [SectionKind::Pilots, SectionKind::Remap].map(|kind| section_range(&self.header, kind));
        (!self.copied).then_some((&*self.map, [rows, pilots, remap]))
    }

    /// Where the bytes lie that lookups read.
    pub(crate) fn lookup_addresses(&self) -> [Range<usize>; 3] {
        let Lookup { rows, pilots, remap, .. } = &self.lookup;
        [rows, pilots, remap].map(Section::addresses)
    }

    /// The same file, of which lookups read this copy.
    pub(crate) fn with_copy(&self, rows: HugeMemory, pilots: HugeMemory, remap: HugeMemory) -> Self {
        let [rows, pilots, remap] = [rows, pilots, remap].map(HugeMemory::into_section);
        Self {
            lookup: Lookup { rows, pilots, remap, ..self.lookup },
            path: self.path.clone(),
            map: self.map.clone(),
            copied: true,
            header: self.header.clone(),
            meta: self.meta.clone(),
        }
    }

    /// Whether lookups read a copy of the file and not its map.
    #[must_use]
    pub fn is_copied(&self) -> bool {
        self.copied
    }

    /// The id of a row, given its key check.
    fn id_of(&self, row: u64, check: &[u8]) -> u64 {
        match self.meta.key_check {
            KeyCheck::None => row * u64::from(self.meta.partitions.get()) + u64::from(self.meta.partition.0),
            KeyCheck::Fingerprint32 => {
                let cold = self.section(SectionKind::ColdKeys);
                let low = cold.get(row as usize * 4..).map_or(0, le_u32);
                unmix64(u64::from(le_u32(check)) << 32 | u64::from(low))
            }
            KeyCheck::FullKeys => unmix64(le_u64(check)),
        }
    }
}

impl Lookup {
    #[inline]
    fn index(&self) -> Index<'_> {
        Index::new(self.index, &self.pilots, &self.remap)
    }

    /// The bytes of a row, key check included; `None` past the last row.
    #[inline]
    fn row(&self, row: u64) -> Option<&[u8]> {
        if row >= self.row_count {
            return None;
        }
        // It cannot wrap: that many strides are the rows.
        let at = (row as usize).wrapping_mul(self.stride);
        self.rows.get(at..)?.get(..self.stride)
    }
}

impl PartitionRows for PartitionFile {
    type Probe = Probe;

    fn bytes(&self) -> u64 {
        self.lookup_bytes()
    }

    #[inline]
    fn row(&self, key: u64) -> &[u8] {
        self.lookup.row(key).unwrap_or_default()
    }

    #[inline]
    fn probe(&self, key: u64) -> Probe {
        let probe = self.lookup.index().probe(key);
        let pilot = self.lookup.pilots.get(probe.pilot_at);
        prefetch_read(pilot.map_or(&[], std::slice::from_ref));
        probe
    }

    #[inline]
    fn seek(&self, probe: Probe) -> &[u8] {
        let row = self.lookup.index().row(probe);
        row.and_then(|row| self.lookup.row(row)).unwrap_or_default()
    }

    #[inline]
    fn is_of(row: &[u8], row_bytes: usize, key: u64) -> bool {
        match row.get(row_bytes..) {
            Some(check) if check.len() == KeyCheck::Fingerprint32.bytes() => {
                le_u32(check) == fingerprint(key)
            }
            Some(check) if check.len() == KeyCheck::FullKeys.bytes() => le_u64(check) == key,
            _ => false,
        }
    }
}

/// The high half of `mix64(id)`.
#[inline]
pub(crate) const fn fingerprint(key: u64) -> u32 {
    (key >> 32) as u32
}

#[inline]
fn le_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

#[inline]
fn le_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// Where a section lies in the map; empty for one that the file does not have. Within the map: the
/// header was checked against the length of the file.
fn section_range(header: &Header, kind: SectionKind) -> Range<usize> {
    header.section(kind).map_or(0..0, |section| section.offset as usize..section.end() as usize)
}

fn header_error(path: &Path, problem: HeaderProblem) -> OpenError {
    let path = path.to_owned();
    match problem {
        HeaderProblem::Magic => OpenError::Magic { path },
        HeaderProblem::Version(found) => OpenError::FormatVersion { path, found, known: FORMAT_VERSION },
        HeaderProblem::Checksum { stored, computed } => {
            OpenError::Checksum { path, part: "header page", stored, computed }
        }
        HeaderProblem::Field(problem) => {
            OpenError::Malformed { path, problem: format!("header page: {problem}") }
        }
    }
}

/// What footer and header must agree on.
fn check_footer(header: &Header, footer: &FooterValues, preamble_crc32c: u32) -> Result<(), String> {
    if footer.preamble_crc32c != preamble_crc32c {
        return Err("written for another header page".into());
    }
    let checksums = header.section(SectionKind::Checksums).map_or(0, |section| section.crc32c);
    if footer.checksums_crc32c != checksums {
        return Err("written for other block checksums".into());
    }
    let length = |kind| header.section(kind).map_or(0, |section| section.length);
    let index = footer.index;
    match header.keying {
        Keying::Dense => {
            if index != (IndexShape { rows: index.rows, ..IndexShape::EMPTY }) {
                return Err("a dense table with an index".into());
            }
            let expected = Keying::dense_rows(footer.table_rows, header.partition, header.partitions);
            if header.rows != expected {
                return Err(format!(
                    "partition {} of a dense table of {} rows has {} rows, expected {expected}",
                    header.partition, footer.table_rows, header.rows
                ));
            }
        }
        Keying::Hashed => {
            if !index.is_sound()
                || length(SectionKind::Pilots) != index.pilots()
                || length(SectionKind::Remap) / 4 != index.remapped()
            {
                return Err("its index does not fit the pilots and the remap".into());
            }
            if header.rows > footer.table_rows {
                return Err(format!("{} rows of {}", header.rows, footer.table_rows));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
