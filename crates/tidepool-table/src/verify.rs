//! Verification of a whole file: every byte is either covered by a checksum or known to be zero, and
//! every row is found under the id that it says it has.

use tidepool_types::Keying;

use crate::{
    error::VerifyError,
    header::{BLOCK_BYTES, HEADER_BYTES, Section, SectionKind, TAIL_PAD_BYTES},
    partition::{PartitionFile, key_of},
};

impl PartitionFile {
    /// Reads the whole file once and compares it with its checksums, and the index with the keys. Opening
    /// has checked header page and footer already.
    ///
    /// # Errors
    /// [`VerifyError`] for the first thing that is wrong: it names the file, the section and the block.
    pub fn verify(&self) -> Result<(), VerifyError> {
        self.verify_own_checksums()?;
        self.verify_blocks()?;
        self.verify_padding()?;
        self.verify_keys()
    }

    /// Block checksums and footer have a checksum of their own, in the section table.
    fn verify_own_checksums(&self) -> Result<(), VerifyError> {
        for section in self.header().sections.iter().filter(|section| !section.kind.in_blocks()) {
            let computed = crc32c::crc32c(self.section(section.kind));
            if computed != section.crc32c {
                return Err(VerifyError::Section {
                    path: self.path().to_owned(),
                    section: section.kind,
                    stored: section.crc32c,
                    computed,
                });
            }
        }
        Ok(())
    }

    fn verify_blocks(&self) -> Result<(), VerifyError> {
        let mut stored = self.section(SectionKind::Checksums).chunks_exact(4);
        for section in self.header().sections.iter().filter(|section| section.kind.in_blocks()) {
            for (bytes, block) in self.section(section.kind).chunks(BLOCK_BYTES).zip(0u64..) {
                let word = stored.next().and_then(|word| word.first_chunk()).copied();
                // The header check made sure that there are as many as there are blocks.
                let stored = word.map_or(0, u32::from_le_bytes);
                let computed = crc32c::crc32c(bytes);
                if word.is_none() || computed != stored {
                    return Err(VerifyError::Block {
                        path: self.path().to_owned(),
                        section: section.kind,
                        block,
                        stored,
                        computed,
                    });
                }
            }
        }
        Ok(())
    }

    /// No checksum covers what only fills space, so it must be zero. The tail pad is covered, and must be
    /// zero as well.
    fn verify_padding(&self) -> Result<(), VerifyError> {
        let mut end = HEADER_BYTES as u64;
        for &Section { kind, offset, length, .. } in &self.header().sections {
            if let Some(offset) = self.first_set(end, offset) {
                return Err(VerifyError::Padding { path: self.path().to_owned(), before: kind, offset });
            }
            end = offset + length;
            if kind == SectionKind::Rows
                && let Some(offset) = self.first_set(end - TAIL_PAD_BYTES, end)
            {
                return Err(VerifyError::TailPad { path: self.path().to_owned(), offset });
            }
        }
        Ok(())
    }

    /// The first byte of `from..to` that is not zero, counted from the start of the file.
    fn first_set(&self, from: u64, to: u64) -> Option<u64> {
        let bytes = &self.bytes()[from as usize..to as usize];
        bytes.iter().zip(from..).find(|&(&byte, _)| byte != 0).map(|(_, at)| at)
    }

    fn verify_keys(&self) -> Result<(), VerifyError> {
        if self.meta().keying == Keying::Dense {
            return Ok(());
        }
        for ((id, _), row) in self.entries().zip(0u64..) {
            let problem =
                if self.meta().keying.locate(id, self.meta().partitions).partition != self.meta().partition {
                    "it belongs to another partition"
                } else if self.index_row(key_of(id)) != Some(row) {
                    "the index finds another row for it"
                } else {
                    continue;
                };
            return Err(VerifyError::Key { path: self.path().to_owned(), row, id, problem });
        }
        Ok(())
    }
}
