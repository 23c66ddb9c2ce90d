//! The header page: the first 4,096 bytes of a partition file, and the one place its sections may lie.
//!
//! A file of given numbers has exactly one layout, so the section table is checked against the layout
//! that the numbers imply: overlaps, gaps, disorder and wrong lengths are all the same refusal.

use std::fmt;

use tidepool_types::{Keying, PartitionCount, PartitionIndex, RowFormat};

/// The first eight bytes of every partition file.
pub(crate) const MAGIC: [u8; 8] = *b"TIDEPART";
/// The only format version there is.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Bytes of the header page.
pub(crate) const HEADER_BYTES: usize = 4096;
/// Where the page's own checksum stands.
const CHECKSUM_AT: usize = HEADER_BYTES - 4;
/// Where the section table begins: what stands before it is the preamble.
pub(crate) const PREAMBLE_BYTES: usize = 64;
/// Bytes of one entry of the section table.
const ENTRY_BYTES: usize = 32;
/// Every section but the rows begins on the next multiple of this.
pub(crate) const SECTION_ALIGN: u64 = 64;
/// Rows longer than this begin on a multiple of it, so that they can be mapped with huge pages.
pub(crate) const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Zero bytes after the last row, inside the rows section: a kernel may read a vector past a row.
pub(crate) const TAIL_PAD_BYTES: u64 = 64;
/// Sections 1 to 4 are checksummed in blocks of this many bytes.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;
/// A longer footer is not ours.
const MAX_FOOTER_BYTES: u64 = 1 << 16;
/// The most rows that one partition may have: rows are numbered in 32 bits, the last number is kept back.
pub(crate) const MAX_PARTITION_ROWS: u64 = u32::MAX as u64;

/// What a section holds. The numbers stand in the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum SectionKind {
    /// Rows at their stride, then the tail pad.
    Rows = 1,
    /// The low half of `mix64(id)` of each row.
    ColdKeys = 2,
    /// The pilot bytes of the index.
    Pilots = 3,
    /// The rows of the index's slots past the last row.
    Remap = 4,
    /// crc32c of each block of the sections before.
    Checksums = 5,
    /// rkyv-archived metadata.
    Footer = 6,
}

impl SectionKind {
    /// Every kind, in file order.
    pub(crate) const ALL: [Self; 6] =
        [Self::Rows, Self::ColdKeys, Self::Pilots, Self::Remap, Self::Checksums, Self::Footer];

    fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u32 == code)
    }

    /// Whether its bytes are covered by block checksums (rather than by one of its own).
    pub(crate) const fn in_blocks(self) -> bool {
        matches!(self, Self::Rows | Self::ColdKeys | Self::Pilots | Self::Remap)
    }

    /// Whether lookups read it.
    pub(crate) const fn is_looked_up(self) -> bool {
        matches!(self, Self::Rows | Self::Pilots | Self::Remap)
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Rows => "rows",
            Self::ColdKeys => "cold keys",
            Self::Pilots => "index pilots",
            Self::Remap => "index remap",
            Self::Checksums => "block checksums",
            Self::Footer => "footer",
        })
    }
}

/// How a row proves that it belongs to the id that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyCheck {
    /// Dense keying: the id is the row number.
    None,
    /// The high half of `mix64(id)` follows the row: an absent id is taken for a present one with
    /// probability 2^-32.
    Fingerprint32,
    /// All of `mix64(id)` follows the row.
    FullKeys,
}

impl KeyCheck {
    const ALL: [Self; 3] = [Self::None, Self::Fingerprint32, Self::FullKeys];

    /// The number that stands for it in the file.
    const fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Fingerprint32 => 1,
            Self::FullKeys => 2,
        }
    }

    /// Bytes that it adds to each row.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Fingerprint32 => 4,
            Self::FullKeys => 8,
        }
    }

    /// What it writes after the row of `key`: its first [`bytes`](Self::bytes) of these.
    #[inline]
    pub(crate) const fn of(self, key: u64) -> [u8; 8] {
        match self {
            // The fingerprint is the high half.
            Self::Fingerprint32 => (key >> 32).to_le_bytes(),
            Self::None | Self::FullKeys => key.to_le_bytes(),
        }
    }

    /// Whether it goes with `keying`.
    const fn fits(self, keying: Keying) -> bool {
        matches!(
            (self, keying),
            (Self::None, Keying::Dense) | (Self::Fingerprint32 | Self::FullKeys, Keying::Hashed)
        )
    }

    /// The sections of such a file, in order.
    pub(crate) const fn sections(self) -> &'static [SectionKind] {
        use SectionKind::{Checksums, ColdKeys, Footer, Pilots, Remap, Rows};
        match self {
            Self::None => &[Rows, Checksums, Footer],
            Self::Fingerprint32 => &[Rows, ColdKeys, Pilots, Remap, Checksums, Footer],
            Self::FullKeys => &[Rows, Pilots, Remap, Checksums, Footer],
        }
    }
}

/// One entry of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) kind: SectionKind,
    /// Of the whole section for checksums and footer; 0 where block checksums cover it.
    pub(crate) crc32c: u32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Section {
    pub(crate) const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// The header page, as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) file_bytes: u64,
    pub(crate) rows: u64,
    pub(crate) dim: u32,
    pub(crate) format: RowFormat,
    pub(crate) keying: Keying,
    pub(crate) key_check: KeyCheck,
    pub(crate) partition: PartitionIndex,
    pub(crate) partitions: PartitionCount,
    pub(crate) sections: Vec<Section>,
}

/// Why a header page was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderProblem {
    /// It does not begin with [`MAGIC`].
    Magic,
    /// Another format version.
    Version(u32),
    /// Its checksum is not that of its bytes.
    Checksum {
        /// In the page.
        stored: u32,
        /// Of the page.
        computed: u32,
    },
    /// A field that contradicts the format or another field.
    Field(String),
}

fn field(problem: impl Into<String>) -> HeaderProblem {
    HeaderProblem::Field(problem.into())
}

impl Header {
    /// Bytes from one row to the next.
    pub(crate) const fn stride(&self) -> usize {
        self.format.row_bytes(self.dim) + self.key_check.bytes()
    }

    /// The section of `kind`, when this file has one.
    pub(crate) fn section(&self, kind: SectionKind) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }

    /// The page.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(HEADER_BYTES);
        page.extend(MAGIC);
        page.extend(FORMAT_VERSION.to_le_bytes());
        page.extend((HEADER_BYTES as u32).to_le_bytes());
        page.extend(self.file_bytes.to_le_bytes());
        page.extend(self.rows.to_le_bytes());
        for word in [
            self.dim,
            self.format.code(),
            self.keying.code(),
            self.key_check.code(),
            self.stride() as u32,
            self.partition.0,
            self.partitions.get(),
            self.sections.len() as u32,
        ] {
            page.extend(word.to_le_bytes());
        }
        for section in &self.sections {
            page.extend((section.kind as u32).to_le_bytes());
            page.extend(section.crc32c.to_le_bytes());
            page.extend(section.offset.to_le_bytes());
            page.extend(section.length.to_le_bytes());
            page.extend(0u64.to_le_bytes());
        }
        page.resize(CHECKSUM_AT, 0);
        let checksum = crc32c::crc32c(&page);
        page.extend(checksum.to_le_bytes());
        page
    }

    /// Reads a page; `file_bytes` is how long the file really is.
    pub(crate) fn decode(page: &[u8; HEADER_BYTES], file_bytes: u64) -> Result<Self, HeaderProblem> {
        let u32_at = |at: usize| u32_at(page, at);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if page[..8] != MAGIC {
            return Err(HeaderProblem::Magic);
        }
        // The version comes before the checksum: another version may keep its checksum elsewhere.
        if u32_at(8) != FORMAT_VERSION {
            return Err(HeaderProblem::Version(u32_at(8)));
        }
        let (stored, computed) = (u32_at(CHECKSUM_AT), crc32c::crc32c(&page[..CHECKSUM_AT]));
        if stored != computed {
            return Err(HeaderProblem::Checksum { stored, computed });
        }
        if u32_at(12) as usize != HEADER_BYTES {
            return Err(field(format!("header of {} bytes", u32_at(12))));
        }
        if u64_at(16) != file_bytes {
            return Err(field(format!("written with {} bytes, the file has {file_bytes}", u64_at(16))));
        }
        let format = RowFormat::from_code(u32_at(36))
            .ok_or_else(|| field(format!("unknown row format code {}", u32_at(36))))?;
        let keying = Keying::from_code(u32_at(40))
            .ok_or_else(|| field(format!("unknown keying code {}", u32_at(40))))?;
        let key_check = KeyCheck::ALL
            .into_iter()
            .find(|check| check.code() == u32_at(44) && check.fits(keying))
            .ok_or_else(|| field(format!("key check code {} with {keying} keying", u32_at(44))))?;
        let partitions = PartitionCount::new(u32_at(56))
            .ok_or_else(|| field(format!("{} partitions: not a power of two up to 65,536", u32_at(56))))?;
        let header = Self {
            file_bytes,
            rows: u64_at(24),
            dim: RowFormat::check_dim(u64::from(u32_at(32))).map_err(|problem| field(problem.to_string()))?,
            format,
            keying,
            key_check,
            partition: PartitionIndex(u32_at(52)),
            partitions,
            sections: decode_sections(page, u32_at(60))?,
        };
        if u32_at(48) as usize != header.stride() {
            return Err(field(format!("row stride {}, expected {}", u32_at(48), header.stride())));
        }
        if header.partition.0 >= partitions.get() {
            return Err(field(format!("partition {} of {partitions}", header.partition)));
        }
        if header.rows > MAX_PARTITION_ROWS {
            return Err(field(format!("{} rows", header.rows)));
        }
        header.check_layout()?;
        Ok(header)
    }

    /// Compares the section table with the only one that such a file can have. The lengths of pilots and
    /// remap are taken as they are: the footer knows them.
    fn check_layout(&self) -> Result<(), HeaderProblem> {
        let kinds = self.key_check.sections();
        if !self.sections.iter().map(|section| section.kind).eq(kinds.iter().copied()) {
            return Err(field("the sections are not those of its keying, each once, in order"));
        }
        let mut end = HEADER_BYTES as u64;
        let mut blocks = 0;
        for section in &self.sections {
            let Section { kind, offset, length, .. } = *section;
            let expected = self.section_offset(kind, end);
            if offset != expected {
                return Err(field(format!("{kind} begin at {offset}, expected {expected}")));
            }
            let fits = match kind {
                SectionKind::Rows => length == rows_section_bytes(self.rows, self.stride()),
                SectionKind::ColdKeys => length == self.rows * 4,
                SectionKind::Pilots => true,
                SectionKind::Remap => length % 4 == 0,
                SectionKind::Checksums => length == blocks * 4,
                SectionKind::Footer => length <= MAX_FOOTER_BYTES,
            };
            if !fits {
                return Err(field(format!("{kind} of {length} bytes")));
            }
            if kind.in_blocks() {
                blocks += length.div_ceil(BLOCK_BYTES as u64);
                if section.crc32c != 0 {
                    return Err(field(format!("{kind} have a checksum in the section table")));
                }
            }
            end = offset
                .checked_add(length)
                .filter(|&end| end <= self.file_bytes)
                .ok_or_else(|| field(format!("{kind} reach past the end of the file")))?;
        }
        if end == self.file_bytes {
            Ok(())
        } else {
            Err(field(format!("{} bytes after the footer", self.file_bytes - end)))
        }
    }

    /// Where a section begins when the one before it ends at `end`.
    pub(crate) const fn section_offset(&self, kind: SectionKind, end: u64) -> u64 {
        let huge = matches!(kind, SectionKind::Rows)
            && rows_section_bytes(self.rows, self.stride()) > HUGE_PAGE_BYTES;
        // No overflow: lengths so far were checked against the size of a real file.
        end.next_multiple_of(if huge { HUGE_PAGE_BYTES } else { SECTION_ALIGN })
    }
}

/// Bytes of the rows section: below 2^32 rows of at most 4,104 bytes, so there is no overflow.
pub(crate) const fn rows_section_bytes(rows: u64, stride: usize) -> u64 {
    rows * stride as u64 + TAIL_PAD_BYTES
}

fn decode_sections(page: &[u8; HEADER_BYTES], count: u32) -> Result<Vec<Section>, HeaderProblem> {
    if count as usize > SectionKind::ALL.len() {
        return Err(field(format!("{count} sections")));
    }
    let table_end = PREAMBLE_BYTES + count as usize * ENTRY_BYTES;
    let mut sections = Vec::with_capacity(count as usize);
    for entry in page[PREAMBLE_BYTES..table_end].chunks_exact(ENTRY_BYTES) {
        let u64_at = |at: usize| u64::from(u32_at(entry, at)) | u64::from(u32_at(entry, at + 4)) << 32;
        let code = u32_at(entry, 0);
        let kind =
            SectionKind::from_code(code).ok_or_else(|| field(format!("unknown section kind {code}")))?;
        if u64_at(24) != 0 {
            return Err(field(format!("reserved bytes of the {kind} entry are set")));
        }
        sections.push(Section { kind, crc32c: u32_at(entry, 4), offset: u64_at(8), length: u64_at(16) });
    }
    if page[table_end..CHECKSUM_AT].iter().any(|&byte| byte != 0) {
        return Err(field("bytes after the section table are set"));
    }
    Ok(sections)
}

/// The u32 at `at`; 0 where `bytes` ends before.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests;
