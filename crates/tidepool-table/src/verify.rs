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

#[cfg(test)]
mod tests {
    use std::{fs::File, num::NonZeroUsize, path::PathBuf};

    use tempfile::TempDir;
    use tidepool_types::{Name, PartitionCount, PartitionIndex, RowFormat, TableVersion, mix64};

    use super::*;
    use crate::{
        header::{Header, KeyCheck},
        index::build,
        write::{PartitionPlan, write_partition},
    };

    /// Writes partition 0 of 2 with `keys` in the given row order, over an index of the same keys: every
    /// checksum is right whatever the keys are.
    fn write(dir: &TempDir, keys: &[u64]) -> PathBuf {
        let plan = PartitionPlan {
            table_version: TableVersion {
                table: Name::new("user").unwrap(),
                version: Name::new("v1").unwrap(),
            },
            table_rows: keys.len() as u64,
            build_seed: 0,
            dim: 2,
            format: RowFormat::F32,
            keying: Keying::Hashed,
            key_check: KeyCheck::Fingerprint32,
            partition: PartitionIndex(0),
            partitions: PartitionCount::new(2).unwrap(),
        };
        let index = build(keys, 0, NonZeroUsize::MIN).unwrap();
        let path = dir.path().join("part-00000.tide");
        write_partition(File::create(&path).unwrap(), &plan, keys, &index, |_| &[0; 8]).unwrap();
        path
    }

    /// Keys of partition 0, in the row order of their index.
    fn keys_in_order() -> Vec<u64> {
        let keys: Vec<u64> = (1..).map(mix64).filter(|key| key % 2 == 0).take(50).collect();
        let built = build(&keys, 0, NonZeroUsize::MIN).unwrap();
        let remap = built.remap_bytes();
        let view = built.view(&remap);
        let mut in_order = keys.clone();
        in_order.sort_by_key(|&key| view.row(view.probe(key)));
        in_order
    }

    #[test]
    fn keys_in_the_order_of_their_index_pass() {
        let dir = TempDir::new().unwrap();
        PartitionFile::open(&write(&dir, &keys_in_order())).unwrap().verify().unwrap();
    }

    #[test]
    fn rows_that_the_index_does_not_find_are_noticed() {
        let dir = TempDir::new().unwrap();
        let mut keys = keys_in_order();
        keys.swap(3, 17);
        let error = PartitionFile::open(&write(&dir, &keys)).unwrap().verify().unwrap_err();
        assert!(
            matches!(&error, VerifyError::Key { row: 3, problem: "the index finds another row for it", .. }),
            "{error}"
        );
    }

    #[test]
    fn rows_of_another_partition_are_noticed() {
        let dir = TempDir::new().unwrap();
        let odd = mix64(1);
        let error = PartitionFile::open(&write(&dir, &[odd])).unwrap().verify().unwrap_err();
        assert!(
            matches!(
                &error,
                VerifyError::Key { row: 0, id: 1, problem: "it belongs to another partition", .. }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_tail_pad_that_is_not_zero_is_noticed_though_checksums_are_right() {
        let dir = TempDir::new().unwrap();
        let path = write(&dir, &keys_in_order());
        let mut bytes = std::fs::read(&path).unwrap();
        let file_bytes = bytes.len() as u64;
        let mut header = Header::decode(bytes.first_chunk().unwrap(), file_bytes).unwrap();
        let range = |kind| {
            let section = header.section(kind).unwrap();
            section.offset as usize..section.end() as usize
        };
        let (rows, checksums, footer) =
            (range(SectionKind::Rows), range(SectionKind::Checksums), range(SectionKind::Footer));
        let pad = rows.end - 1;
        bytes[pad] = 1;
        // The rows are one block. Its checksum, that of the checksums (in footer and section table), that
        // of the footer: all made right.
        let block = crc32c::crc32c(&bytes[rows]);
        bytes[checksums.start..checksums.start + 4].copy_from_slice(&block.to_le_bytes());
        let whole = crc32c::crc32c(&bytes[checksums]);
        let in_footer = footer.end - 8;
        bytes[in_footer..in_footer + 4].copy_from_slice(&whole.to_le_bytes());
        let footer = crc32c::crc32c(&bytes[footer]);
        for section in &mut header.sections {
            match section.kind {
                SectionKind::Checksums => section.crc32c = whole,
                SectionKind::Footer => section.crc32c = footer,
                _ => {}
            }
        }
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        std::fs::write(&path, bytes).unwrap();
        let error = PartitionFile::open(&path).unwrap().verify().unwrap_err();
        assert!(matches!(&error, VerifyError::TailPad { offset, .. } if *offset == pad as u64), "{error}");
    }
}
