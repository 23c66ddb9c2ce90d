//! [`PartitionWriter`] writes one partition file: rows and cold keys side by side, each at its own place,
//! then the other sections in order; block checksums on the way, the header page last.

use std::{fs::File, io, os::unix::fs::FileExt};

use tidepool_types::{Keying, PartitionCount, PartitionIndex, RowFormat, TableVersion};

use crate::{
    cache::{BEHIND_BYTES, drop_behind},
    footer::PartitionFooter,
    header::{
        BLOCK_BYTES, HEADER_BYTES, Header, KeyCheck, PREAMBLE_BYTES, Section, SectionKind, TAIL_PAD_BYTES,
        rows_section_bytes,
    },
    index::BuiltIndex,
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

/// A section in the making.
#[derive(Debug)]
struct SectionWriter {
    kind: SectionKind,
    began: u64,
    at: u64,
    /// Checksums of finished blocks, as they will be written.
    checksums: Vec<u8>,
    /// Checksum so far of the block in hand, and its bytes so far.
    block: (u32, usize),
}

impl SectionWriter {
    const fn new(kind: SectionKind, began: u64) -> Self {
        Self { kind, began, at: began, checksums: Vec::new(), block: (0, 0) }
    }

    fn write(&mut self, file: &File, mut bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, self.at)?;
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

    /// The section's entry, and its block checksums.
    fn end(mut self) -> (Section, Vec<u8>) {
        self.end_block();
        let length = self.at - self.began;
        (Section { kind: self.kind, crc32c: 0, offset: self.began, length }, self.checksums)
    }
}

/// A partition file in the making.
#[derive(Debug)]
pub(crate) struct PartitionWriter {
    file: File,
    plan: PartitionPlan,
    header: Header,
    rows: SectionWriter,
    /// With [`KeyCheck::Fingerprint32`] only.
    cold_keys: Option<SectionWriter>,
    /// Block checksums of the sections that are written.
    checksums: Vec<u8>,
    /// So much was written since the page cache was told to let go.
    kept_bytes: u64,
}

impl PartitionWriter {
    /// Begins a partition of `rows` rows in the empty `file`.
    pub(crate) fn new(file: File, plan: PartitionPlan, rows: u64) -> Self {
        let header = Header {
            file_bytes: 0,
            rows,
            dim: plan.dim,
            format: plan.format,
            keying: plan.keying,
            key_check: plan.key_check,
            partition: plan.partition,
            partitions: plan.partitions,
            sections: Vec::new(),
        };
        let began = header.section_offset(SectionKind::Rows, HEADER_BYTES as u64);
        let rows_end = began + rows_section_bytes(rows, header.stride());
        let cold_keys = (plan.key_check == KeyCheck::Fingerprint32).then(|| {
            let began = header.section_offset(SectionKind::ColdKeys, rows_end);
            SectionWriter::new(SectionKind::ColdKeys, began)
        });
        let rows = SectionWriter::new(SectionKind::Rows, began);
        Self { file, plan, header, rows, cold_keys, checksums: Vec::new(), kept_bytes: 0 }
    }

    /// Writes the next rows, each with its key check, and their cold keys (none where the file has none).
    pub(crate) fn append(&mut self, rows: &[u8], cold_keys: &[u8]) -> io::Result<()> {
        self.rows.write(&self.file, rows)?;
        if let Some(section) = &mut self.cold_keys {
            section.write(&self.file, cold_keys)?;
        }
        self.kept_bytes += rows.len() as u64;
        if self.kept_bytes >= BEHIND_BYTES {
            self.kept_bytes = 0;
            drop_behind(&self.file, 0, None);
        }
        Ok(())
    }

    /// Writes what is left, once all rows are appended, and waits until the disk has the file.
    pub(crate) fn finish(mut self, index: &BuiltIndex) -> io::Result<Written> {
        self.rows.write(&self.file, &[0; TAIL_PAD_BYTES as usize])?;
        let (rows, checksums) = self.rows.end();
        debug_assert_eq!(rows.length, rows_section_bytes(self.header.rows, self.header.stride()));
        // Written and not left out: a file without holes has its bytes on the disk before it is published.
        write_zeros(&self.file, 0, rows.offset)?;
        let mut end = rows.end();
        self.header.sections.push(rows);
        self.checksums = checksums;
        if let Some(section) = self.cold_keys.take() {
            let (cold_keys, checksums) = section.end();
            write_zeros(&self.file, end, cold_keys.offset)?;
            end = cold_keys.end();
            self.header.sections.push(cold_keys);
            self.checksums.extend(checksums);
        }
        let mut rest = Rest { file: self.file, header: self.header, end, checksums: self.checksums };
        if self.plan.keying == Keying::Hashed {
            rest.section(SectionKind::Pilots, &index.pilots)?;
            rest.section(SectionKind::Remap, &index.remap_bytes())?;
        }
        let checksums = std::mem::take(&mut rest.checksums);
        let checksums_crc32c = rest.section(SectionKind::Checksums, &checksums)?;
        rest.finish(&self.plan, index, checksums_crc32c)
    }
}

fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    let mut at = from;
    while at < to {
        let now = (to - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..now as usize], at)?;
        at += now;
    }
    Ok(())
}

/// What comes after rows and cold keys: sections that are at hand whole.
struct Rest {
    file: File,
    header: Header,
    /// Where the section before ends.
    end: u64,
    checksums: Vec<u8>,
}

impl Rest {
    /// A whole section; gives the checksum of one that is not covered by block checksums, or else 0.
    fn section(&mut self, kind: SectionKind, bytes: &[u8]) -> io::Result<u32> {
        let began = self.header.section_offset(kind, self.end);
        write_zeros(&self.file, self.end, began)?;
        let mut writer = SectionWriter::new(kind, began);
        writer.write(&self.file, bytes)?;
        let (mut section, checksums) = writer.end();
        if kind.in_blocks() {
            self.checksums.extend(checksums);
        } else {
            section.crc32c = crc32c::crc32c(bytes);
        }
        self.end = section.end();
        let crc32c = section.crc32c;
        self.header.sections.push(section);
        Ok(crc32c)
    }

    /// Footer and header page. The footer holds the checksum of the preamble, which holds the file's
    /// length, which depends on the footer's length but not on the checksum: so it is archived twice.
    fn finish(
        mut self,
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
        let mut preamble = self.header.clone();
        preamble.file_bytes = preamble.section_offset(SectionKind::Footer, self.end) + length;
        // The footer's own entry is not there yet, but the preamble counts it.
        preamble.sections.push(Section { kind: SectionKind::Footer, crc32c: 0, offset: 0, length });
        footer.preamble_crc32c = crc32c::crc32c(&preamble.encode()[..PREAMBLE_BYTES]);

        let footer = footer.encode().map_err(io::Error::other)?;
        let footer_crc32c = self.section(SectionKind::Footer, &footer)?;
        self.header.file_bytes = self.end;
        self.file.write_all_at(&self.header.encode(), 0)?;
        self.file.sync_all()?;
        // Who maps it reads it in large pages: what a writer leaves in the cache are small ones.
        drop_behind(&self.file, 0, None);
        Ok(Written { file_bytes: self.header.file_bytes, footer_crc32c })
    }
}

/// A whole partition at once. `keys` are those of [`Keying::locate`] in row order, `index` is theirs, and
/// `row` gives the stored row of each row number.
#[cfg(test)]
pub(crate) fn write_partition<'a>(
    file: File,
    plan: &PartitionPlan,
    keys: &[u64],
    index: &BuiltIndex,
    row: impl Fn(usize) -> &'a [u8],
) -> io::Result<Written> {
    let mut writer = PartitionWriter::new(file, plan.clone(), keys.len() as u64);
    for (at, &key) in keys.iter().enumerate() {
        let mut bytes = row(at).to_vec();
        bytes.extend(&plan.key_check.of(key)[..plan.key_check.bytes()]);
        writer.append(&bytes, &key.to_le_bytes()[..4])?;
    }
    writer.finish(index)
}
