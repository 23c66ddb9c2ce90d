//! Verification of a whole file: every byte is either covered by a checksum or known to be zero, and
//! every row is found under the id that it says it has. All that is wrong is found, not only the first.
//!
//! The file is read once, in units of [`UNIT_BLOCKS`]: first everything but the rows, then the rows, whose
//! keys are compared with the index while their bytes are at hand.

use std::{fmt, fs::File, ops::Range};

use tidepool_types::{Keying, unmix64};

use crate::{
    error::VerifyError,
    header::{BLOCK_BYTES, HEADER_BYTES, KeyCheck, Section, SectionKind, TAIL_PAD_BYTES},
    pace::give_way,
    parallel,
    partition::PartitionFile,
};

/// Of one file so many problems are listed; the rest is counted.
pub const MAX_LISTED_PROBLEMS: usize = 100;

/// Blocks that are checked in one go: 8 MiB, in which huge pages are whole.
const UNIT_BLOCKS: u64 = 128;

/// Keys that are compared before others may have the core.
const KEYS_AT_ONCE: u64 = 1024;

/// Everything that is wrong with the bytes of a file.
#[derive(Debug, Default)]
pub struct Damage {
    /// The first [`MAX_LISTED_PROBLEMS`], by section.
    pub problems: Vec<VerifyError>,
    /// How many more there are.
    pub unlisted: u64,
}

impl Damage {
    /// How many problems there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.problems.len() as u64 + self.unlisted
    }

    fn add(&mut self, problem: VerifyError) {
        if self.problems.len() < MAX_LISTED_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.unlisted += 1;
        }
    }

    fn append(&mut self, other: Self) {
        other.problems.into_iter().for_each(|problem| self.add(problem));
        self.unlisted += other.unlisted;
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.problems.first(), self.count()) {
            (Some(first), 1) => write!(f, "{first}"),
            (Some(first), count) => write!(f, "{first}, and {} more problems", count - 1),
            (None, count) => write!(f, "{count} problems"),
        }
    }
}

impl std::error::Error for Damage {}

/// A part of a section that is checked in one go.
#[derive(Clone, Debug)]
struct Unit<'a> {
    section: &'a Section,
    /// Blocks of the section.
    blocks: Range<u64>,
    /// Where the checksum of its first block stands in the checksums section.
    checksum_at: usize,
}

impl Unit<'_> {
    /// Its bytes, within the section.
    fn range(&self) -> Range<u64> {
        let at = |block: u64| (block * BLOCK_BYTES as u64).min(self.section.length);
        at(self.blocks.start)..at(self.blocks.end)
    }
}

impl PartitionFile {
    /// Reads the whole file once and compares it with its checksums, and the index with the keys. Opening
    /// has checked header page and footer already. What was read and no lookup reads does not stay in
    /// memory.
    ///
    /// # Errors
    /// [`Damage`] lists everything that is wrong, each with the file, the section and the block.
    pub fn verify(&self) -> Result<(), Damage> {
        let result = self.verify_with(1, None, &mut |_| ());
        self.release_unread();
        result
    }

    /// The same with several threads. With `behind`, the same file once more, the page cache keeps nothing
    /// of it that no other process has mapped. `progress` is told of bytes: in all those of the file.
    pub(crate) fn verify_with(
        &self,
        threads: usize,
        behind: Option<&File>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Damage> {
        // First, so that nothing is still being read when the page cache lets go.
        let padding = self.verify_padding();
        let mut damage = self.verify_own_checksums();
        let (rows, others): (Vec<_>, Vec<_>) =
            self.units().into_iter().partition(|unit| unit.section.kind == SectionKind::Rows);
        let mut left = self.file_bytes();
        let mut told = |bytes| {
            left -= bytes;
            progress(bytes);
        };
        damage.append(in_all(others, threads, &mut told, |unit| self.verify_blocks(unit).0));
        // Keys that were read from damaged bytes, or looked for in a damaged index, say nothing.
        let keys = damage.count() == 0 && self.meta().keying == Keying::Hashed;
        damage.append(in_all(rows, threads, &mut told, |unit| {
            let (mut damage, bad) = self.verify_blocks(unit);
            if keys {
                self.verify_keys(unit, &bad, &mut damage);
            }
            if let Some(file) = behind {
                let Range { start, end } = unit.range();
                self.release(file, unit.section.offset + start..unit.section.offset + end);
            }
            damage
        }));
        damage.append(padding);
        if let Some(file) = behind {
            self.release(file, 0..self.file_bytes());
        }
        progress(left);
        if damage.count() == 0 { Ok(()) } else { Err(damage) }
    }

    /// Every section that has block checksums, in pieces.
    fn units(&self) -> Vec<Unit<'_>> {
        let mut units = Vec::new();
        let mut checksum_at = 0;
        for section in self.header().sections.iter().filter(|section| section.kind.in_blocks()) {
            let blocks = section.length.div_ceil(BLOCK_BYTES as u64);
            for start in (0..blocks).step_by(UNIT_BLOCKS as usize) {
                let end = (start + UNIT_BLOCKS).min(blocks);
                units.push(Unit { section, blocks: start..end, checksum_at });
                checksum_at += (end - start) as usize * 4;
            }
        }
        units
    }

    /// Block checksums and footer have a checksum of their own, in the section table.
    fn verify_own_checksums(&self) -> Damage {
        let mut damage = Damage::default();
        for section in self.header().sections.iter().filter(|section| !section.kind.in_blocks()) {
            let computed = crc32c::crc32c(self.section(section.kind));
            if computed != section.crc32c {
                damage.add(VerifyError::Section {
                    path: self.path().to_owned(),
                    section: section.kind,
                    stored: section.crc32c,
                    computed,
                });
            }
        }
        damage
    }

    /// What is wrong, and which blocks of the unit are.
    fn verify_blocks(&self, unit: &Unit<'_>) -> (Damage, Vec<u64>) {
        let (mut damage, mut bad) = (Damage::default(), Vec::new());
        for block in unit.blocks.clone() {
            let at = unit.checksum_at + (block - unit.blocks.start) as usize * 4;
            let (stored, computed) = self.block_checksums(unit.section.kind, block, at);
            give_way();
            if stored != Some(computed) {
                bad.push(block);
                damage.add(VerifyError::Block {
                    path: self.path().to_owned(),
                    section: unit.section.kind,
                    block,
                    stored: stored.unwrap_or(0),
                    computed,
                });
            }
        }
        (damage, bad)
    }

    /// The checksum that a block was written with, `None` when there is none, and that of its bytes.
    fn block_checksums(&self, kind: SectionKind, block: u64, checksum_at: usize) -> (Option<u32>, u32) {
        let stored = self.section(SectionKind::Checksums).get(checksum_at..);
        let stored = stored.and_then(|words| words.first_chunk()).map(|word| u32::from_le_bytes(*word));
        let bytes = self.section(kind);
        let start = (block as usize * BLOCK_BYTES).min(bytes.len());
        let end = (start + BLOCK_BYTES).min(bytes.len());
        (stored, crc32c::crc32c(&bytes[start..end]))
    }

    /// No checksum covers what only fills space, so it must be zero. The tail pad is covered, and must be
    /// zero as well.
    fn verify_padding(&self) -> Damage {
        let mut damage = Damage::default();
        let mut end = HEADER_BYTES as u64;
        for &Section { kind, offset, length, .. } in &self.header().sections {
            if let Some(offset) = self.first_set(end, offset) {
                damage.add(VerifyError::Padding { path: self.path().to_owned(), before: kind, offset });
            }
            end = offset + length;
            if kind == SectionKind::Rows
                && let Some(offset) = self.first_set(end - TAIL_PAD_BYTES, end)
            {
                damage.add(VerifyError::TailPad { path: self.path().to_owned(), offset });
            }
        }
        damage
    }

    /// The first byte of `from..to` that is not zero, counted from the start of the file.
    fn first_set(&self, from: u64, to: u64) -> Option<u64> {
        let range = from as usize..to as usize;
        self.map().will_need(range.clone());
        let bytes = &self.map()[range];
        bytes.iter().zip(from..).find(|&(&byte, _)| byte != 0).map(|(_, at)| at)
    }

    /// The keys of the rows that begin in a unit of which the blocks `bad` are damaged.
    fn verify_keys(&self, unit: &Unit<'_>, bad: &[u64], damage: &mut Damage) {
        let (rows, cold_keys) = (self.section(SectionKind::Rows), self.section(SectionKind::ColdKeys));
        let (meta, stride) = (self.meta(), self.meta().stride() as u64);
        let Range { start, end } = unit.range();
        for row in start.div_ceil(stride)..end.div_ceil(stride).min(meta.rows) {
            if row % KEYS_AT_ONCE == 0 {
                give_way();
            }
            let at = (row * stride) as usize;
            let check = &rows[at + meta.row_bytes()..at + stride as usize];
            let key = match meta.key_check {
                KeyCheck::None => return,
                KeyCheck::FullKeys => le_u64(check),
                KeyCheck::Fingerprint32 => {
                    let cold = cold_keys.get(row as usize * 4..).unwrap_or_default();
                    u64::from(le_u32(check)) << 32 | u64::from(le_u32(cold))
                }
            };
            let id = unmix64(key);
            let problem = if meta.keying.locate(id, meta.partitions).partition != meta.partition {
                "it belongs to another partition"
            } else if self.index_row(key) != Some(row) {
                "the index finds another row for it"
            } else {
                continue;
            };
            let first = row * stride / BLOCK_BYTES as u64;
            let last = (row * stride + stride - 1) / BLOCK_BYTES as u64;
            let is_bad = |block: u64| {
                if block < unit.blocks.end {
                    return bad.contains(&block);
                }
                // The row reaches into the next unit.
                let at = unit.checksum_at + (block - unit.blocks.start) as usize * 4;
                let (stored, computed) = self.block_checksums(unit.section.kind, block, at);
                stored != Some(computed)
            };
            if !(first..=last).any(is_bad) {
                damage.add(VerifyError::Key { path: self.path().to_owned(), row, id, problem });
            }
        }
    }
}

/// Checks units with several threads, and tells of their bytes.
fn in_all(
    units: Vec<Unit<'_>>,
    threads: usize,
    told: &mut dyn FnMut(u64),
    check: impl Fn(&Unit<'_>) -> Damage + Sync,
) -> Damage {
    let mut damage = Damage::default();
    if threads < 2 || units.len() < 2 {
        for unit in &units {
            damage.append(check(unit));
            told(unit.range().end - unit.range().start);
        }
        return damage;
    }
    let one = |_, unit: Unit<'_>, tell: &dyn Fn(u64)| {
        let found = check(&unit);
        tell(unit.range().end - unit.range().start);
        found
    };
    parallel::for_each(units, threads, one, told).into_iter().for_each(|found| damage.append(found));
    damage
}

fn le_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests;
