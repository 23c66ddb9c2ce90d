//! Writes one partition file: sections in order, block checksums on the way, the header page last.

use std::{
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
};

use tidepool_types::{Keying, PartitionCount, PartitionIndex, RowFormat, TableVersion};

use crate::{
    footer::PartitionFooter,
    header::{
        BLOCK_BYTES, HEADER_BYTES, Header, KeyCheck, PREAMBLE_BYTES, Section, SectionKind, TAIL_PAD_BYTES,
    },
    index::BuiltIndex,
    partition::fingerprint,
};

/// Everything about a partition but its rows.
#[derive(Clone, Debug)]
pub(crate) struct PartitionPlan {
    pub(crate) table_version: TableVersion,
    pub(crate) table_rows: u64,
    pub(crate) build_seed: u64,
    pub(crate) dim: u32,
    pub(crate) format: RowFormat,
    pub(crate) keying: Keying,
    pub(crate) key_check: KeyCheck,
    pub(crate) partition: PartitionIndex,
    pub(crate) partitions: PartitionCount,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) file_bytes: u64,
    pub(crate) footer_crc32c: u32,
}

/// Writes sections one after the other.
struct Sections {
    out: BufWriter<File>,
    header: Header,
    at: u64,
    /// Where the section in hand began.
    began: u64,
    /// Checksums of finished blocks, as they will be written.
    checksums: Vec<u8>,
    /// Checksum so far of the block in hand, and its bytes so far.
    block: (u32, usize),
}

impl Sections {
    fn begin(&mut self, kind: SectionKind) -> io::Result<()> {
        self.began = self.header.section_offset(kind, self.at);
        let gap = self.began - self.at;
        io::copy(&mut io::Read::take(io::repeat(0), gap), &mut self.out)?;
        self.at = self.began;
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.1));
            self.block = (crc32c::crc32c_append(self.block.0, now), self.block.1 + now.len());
            if self.block.1 == BLOCK_BYTES {
                self.end_block();
            }
            bytes = later;
        }
        Ok(())
    }

    fn end_block(&mut self) {
        let (checksum, bytes) = std::mem::take(&mut self.block);
        if bytes > 0 {
            self.checksums.extend(checksum.to_le_bytes());
        }
    }

    fn end(&mut self, kind: SectionKind, crc32c: u32) {
        self.end_block();
        let length = self.at - self.began;
        self.header.sections.push(Section { kind, crc32c, offset: self.began, length });
    }

    /// A whole section. One with a checksum of its own is not part of the block checksums.
    fn section(&mut self, kind: SectionKind, bytes: &[u8]) -> io::Result<u32> {
        self.begin(kind)?;
        if kind.in_blocks() {
            self.write(bytes)?;
            self.end(kind, 0);
            return Ok(0);
        }
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        let checksum = crc32c::crc32c(bytes);
        self.end(kind, checksum);
        Ok(checksum)
    }
}

/// Writes the partition into the empty `file` and waits until the disk has it. `keys` are those of
/// [`Keying::locate`] in row order, `index` is theirs, and `row` gives the stored row of each row number.
pub(crate) fn write_partition<'a>(
    file: File,
    plan: &PartitionPlan,
    keys: &[u64],
    index: &BuiltIndex,
    mut row: impl FnMut(usize) -> &'a [u8],
) -> io::Result<Written> {
    let header = Header {
        file_bytes: 0,
        rows: keys.len() as u64,
        dim: plan.dim,
        format: plan.format,
        keying: plan.keying,
        key_check: plan.key_check,
        partition: plan.partition,
        partitions: plan.partitions,
        sections: Vec::new(),
    };
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&[0; HEADER_BYTES])?;
    let at = HEADER_BYTES as u64;
    let mut sections = Sections { out, header, at, began: at, checksums: Vec::new(), block: (0, 0) };

    sections.begin(SectionKind::Rows)?;
    for (at, &key) in keys.iter().enumerate() {
        sections.write(row(at))?;
        match plan.key_check {
            KeyCheck::None => {}
            KeyCheck::Fingerprint32 => sections.write(&fingerprint(key).to_le_bytes())?,
            KeyCheck::FullKeys => sections.write(&key.to_le_bytes())?,
        }
    }
    sections.write(&[0; TAIL_PAD_BYTES as usize])?;
    sections.end(SectionKind::Rows, 0);

    if plan.key_check == KeyCheck::Fingerprint32 {
        sections.begin(SectionKind::ColdKeys)?;
        for key in keys {
            sections.write(&key.to_le_bytes()[..4])?;
        }
        sections.end(SectionKind::ColdKeys, 0);
    }
    if plan.keying == Keying::Hashed {
        sections.section(SectionKind::Pilots, &index.pilots)?;
        sections.section(SectionKind::Remap, &index.remap_bytes())?;
    }
    let checksums = std::mem::take(&mut sections.checksums);
    let checksums_crc32c = sections.section(SectionKind::Checksums, &checksums)?;
    finish(sections, plan, index, checksums_crc32c)
}

/// Footer and header page. The footer holds the checksum of the preamble, which holds the file's length,
/// which depends on the footer's length but not on the checksum: so it is archived twice.
fn finish(
    mut sections: Sections,
    plan: &PartitionPlan,
    index: &BuiltIndex,
    checksums_crc32c: u32,
) -> io::Result<Written> {
    let mut footer = PartitionFooter {
        table: plan.table_version.table.to_string(),
        version: plan.table_version.version.to_string(),
        table_rows: plan.table_rows,
        build_seed: plan.build_seed,
        index_seed: index.shape.seed,
        index_parts: index.shape.parts,
        index_buckets_per_part: index.shape.buckets_per_part,
        index_slots_per_part: index.shape.slots_per_part,
        preamble_crc32c: 0,
        checksums_crc32c,
    };
    let length = footer.encode().map_err(io::Error::other)?.len() as u64;
    let mut preamble = sections.header.clone();
    preamble.file_bytes = preamble.section_offset(SectionKind::Footer, sections.at) + length;
    // The footer's own entry is not there yet, but the preamble counts it.
    preamble.sections.push(Section { kind: SectionKind::Footer, crc32c: 0, offset: 0, length });
    footer.preamble_crc32c = crc32c::crc32c(&preamble.encode()[..PREAMBLE_BYTES]);

    let footer = footer.encode().map_err(io::Error::other)?;
    let footer_crc32c = sections.section(SectionKind::Footer, &footer)?;
    sections.header.file_bytes = sections.at;
    let mut out = sections.out;
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&sections.header.encode())?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(Written { file_bytes: sections.header.file_bytes, footer_crc32c })
}
