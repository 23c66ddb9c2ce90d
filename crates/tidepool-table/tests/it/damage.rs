//! Truncation anywhere and any flipped bit are noticed by opening or verifying, and never panic.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::PathBuf,
};

use tempfile::TempDir;
use tidepool_table::{OpenError, PartitionFile, SectionKind, VerifyError};
use tidepool_types::{Keying, RowFormat, mix64};

use crate::common::{KEYINGS, build, ids, spec};

/// A partition file's bytes, and a place to put altered ones.
struct Subject {
    root: TempDir,
    bytes: Vec<u8>,
}

impl Subject {
    fn new(keying: (Keying, bool), rows: u64) -> Self {
        let published = build(&spec(RowFormat::Int4, 8, keying, 1), &ids(keying.0, rows));
        let bytes = fs::read(published.dir.join("layout-1/part-00000.tide")).unwrap();
        Self { root: TempDir::new().unwrap(), bytes }
    }

    fn put(&self, bytes: &[u8]) -> PathBuf {
        let path = self.root.path().join("part-00000.tide");
        // A new file each time: some file systems flush one that is written over.
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The section table: kind, offset, length.
    fn sections(&self) -> Vec<(u32, usize, usize)> {
        let word = |at: usize| u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap());
        let count = word(60) as usize;
        (0..count)
            .map(|n| 64 + n * 32)
            .map(|at| (word(at), word(at + 8) as usize, word(at + 16) as usize))
            .collect()
    }

    /// The same file with the header's words changed and its checksum made right again.
    fn with_header(&self, change: impl Fn(&mut [u8])) -> PathBuf {
        let mut bytes = self.bytes.clone();
        change(&mut bytes[..4092]);
        let checksum = crc32c(&bytes[..4092]);
        bytes[4092..4096].copy_from_slice(&checksum.to_le_bytes());
        self.put(&bytes)
    }
}

/// crc32c bit by bit: an oracle of our own.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[test]
fn every_truncation_is_refused() {
    for keying in KEYINGS {
        let subject = Subject::new(keying, 300);
        let full = subject.bytes.len();
        let borders = subject.sections().into_iter().flat_map(|(_, offset, length)| {
            [offset.saturating_sub(1), offset, offset + 1, offset + length - length.min(1), offset + length]
        });
        // The footer is the last section: every byte of it.
        let footer = subject.sections().last().map_or(0, |&(_, offset, _)| offset);
        let random = (0..1000u64).map(|n| mix64(n + 1) as usize % full);
        let path = subject.put(&subject.bytes);
        PartitionFile::open(&path).unwrap().verify().unwrap();
        let cuts: BTreeSet<usize> =
            (0..=4096).chain(borders).chain(footer..full).chain(random).filter(|&cut| cut < full).collect();
        let file = File::options().write(true).open(&path).unwrap();
        for cut in cuts.into_iter().rev() {
            file.set_len(cut as u64).unwrap();
            let error = PartitionFile::open(&path).unwrap_err();
            if cut < 4096 {
                assert!(matches!(&error, OpenError::TooShort { .. }), "cut at {cut}: {error}");
            } else {
                assert!(matches!(&error, OpenError::Malformed { .. }), "cut at {cut}: {error}");
            }
        }
        let longer = [subject.bytes.as_slice(), &[0]].concat();
        assert!(PartitionFile::open(&subject.put(&longer)).is_err());
    }
}

/// Whether altered bytes are refused or found. What is open although it was not verified must do no harm.
fn is_noticed(subject: &Subject, bytes: &[u8]) -> bool {
    PartitionFile::open(&subject.put(bytes)).map_or(true, |file| {
        for id in 0..20 {
            let _ = file.find(id);
        }
        let _ = file.entries().count();
        file.verify().is_err()
    })
}

#[test]
fn every_flipped_bit_is_noticed() {
    for keying in KEYINGS {
        let subject = Subject::new(keying, 300);
        let bits = subject.bytes.len() as u64 * 8;
        for n in 0..1000u64 {
            let bit = mix64(n ^ 0xf11b) % bits;
            let mut bytes = subject.bytes.clone();
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            assert!(is_noticed(&subject, &bytes), "bit {bit} of {keying:?} (flip {n})");
        }
    }
}

#[test]
fn every_bit_of_header_and_footer_is_noticed() {
    for keying in KEYINGS {
        let subject = Subject::new(keying, 300);
        let sections = subject.sections();
        let &(_, footer, _) = sections.last().unwrap();
        let table_end = 64 + sections.len() * 32;
        for at in (0..table_end).chain(4088..4096).chain(footer..subject.bytes.len()) {
            for bit in 0..8 {
                let mut bytes = subject.bytes.clone();
                bytes[at] ^= 1 << bit;
                let error = PartitionFile::open(&subject.put(&bytes)).map(drop);
                assert!(error.is_err(), "bit {bit} of byte {at} of {keying:?}");
            }
        }
    }
}

#[test]
fn runs_of_damage_and_swapped_pieces_and_what_is_appended_are_noticed() {
    let subject = Subject::new(KEYINGS[1], 9_000);
    let full = subject.bytes.len();
    for n in 0..300u64 {
        let any = |salt: u64, below: usize| mix64(n << 8 ^ salt) as usize % below;
        let mut bytes = subject.bytes.clone();
        match n % 3 {
            // Any bytes, up to two blocks of them.
            0 => {
                let (at, length) = (any(1, full), 1 + any(2, 2 << any(3, 17)));
                for (byte, m) in bytes.iter_mut().skip(at).take(length).zip(0u64..) {
                    *byte = mix64(m ^ n << 20) as u8;
                }
            }
            // Zeros, as a disk has them where it never wrote.
            1 => {
                let at = any(1, full) / 4096 * 4096;
                bytes.iter_mut().skip(at).take(4096).for_each(|byte| *byte = 0);
            }
            // Two pieces in each other's place: every byte is there, and every checksum of the piece.
            _ => {
                let size = [8, 36, 4096, 1 << 16][any(3, 4)];
                let (a, b) = (any(1, full / size) * size, any(2, full / size) * size);
                for at in 0..size {
                    bytes.swap(a + at, b + at);
                }
            }
        }
        let altered = bytes != subject.bytes;
        assert_eq!(is_noticed(&subject, &bytes), altered, "damage {n}");
    }
    for length in [1, 4, 63, 64, 4096, 1 << 16, 2 << 20] {
        for byte in [0, 0xff] {
            let longer = [subject.bytes.as_slice(), &vec![byte; length]].concat();
            assert!(PartitionFile::open(&subject.put(&longer)).is_err(), "{length} bytes {byte:#x}");
        }
    }
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let root = TempDir::new().unwrap();
    let refused = |path: &std::path::Path| PartitionFile::open(path).unwrap_err().to_string();
    assert!(refused(root.path()).contains("not a regular file"));
    let pipe = root.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success() && refused(&pipe).contains("not a regular file"));
    assert!(refused(std::path::Path::new("/dev/null")).contains("not a regular file"));
    assert!(refused(&root.path().join("nowhere")).contains("nowhere"));
}

#[test]
fn verification_names_section_and_block() {
    let subject = Subject::new(KEYINGS[1], 40_009);
    let damaged = |offset: usize| {
        let mut bytes = subject.bytes.clone();
        bytes[offset] ^= 0x10;
        let path = subject.put(&bytes);
        let damage = PartitionFile::open(&path).unwrap().verify().unwrap_err();
        let text = damage.to_string();
        let mut problems = damage.problems.into_iter();
        let first = problems.next().unwrap();
        assert!(text.starts_with(&first.to_string()), "{text}");
        (first, problems.next())
    };
    let sections = subject.sections();
    let kinds = [SectionKind::Rows, SectionKind::ColdKeys, SectionKind::Pilots, SectionKind::Remap];
    for ((_, offset, length), kind) in sections.iter().zip(kinds) {
        for at in [0, length / 2, length - 1] {
            let (error, second) = damaged(offset + at);
            let expected = at as u64 / (64 << 10);
            assert!(
                matches!(&error, VerifyError::Block { section, block, .. } if *section == kind && *block == expected),
                "{error}"
            );
            assert!(error.to_string().contains(&format!("block {expected} of section {kind}")), "{error}");
            // The tail pad, which is the end of the rows, must be zero as well.
            let pad = kind == SectionKind::Rows && at == length - 1;
            assert_eq!(second.is_some(), pad, "{second:?}");
        }
    }
    let (error, second) = damaged(sections[4].1);
    assert!(matches!(&error, VerifyError::Section { section: SectionKind::Checksums, .. }), "{error}");
    let second = second.unwrap();
    assert!(matches!(&second, VerifyError::Block { section: SectionKind::Rows, block: 0, .. }), "{second}");
    let gap = sections[1].1 + sections[1].2;
    assert!(gap < sections[2].1, "there is padding to damage");
    assert!(matches!(damaged(gap).0, VerifyError::Padding { before: SectionKind::Pilots, .. }));
}

#[test]
fn a_header_that_lies_is_refused_though_its_checksum_is_right() {
    for keying in KEYINGS {
        let subject = Subject::new(keying, 300);
        PartitionFile::open(&subject.with_header(|_| ())).unwrap();
        let version = subject.with_header(|page| page[8] = 2);
        assert!(matches!(
            PartitionFile::open(&version),
            Err(OpenError::FormatVersion { found: 2, known: 1, .. })
        ));
        // Every byte of the preamble and of the section table, set to something else.
        let table_end = 64 + subject.sections().len() * 32;
        for at in (12..table_end + 8).chain([4091]) {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                if subject.bytes[at] == value {
                    continue;
                }
                let path = subject.with_header(|page| page[at] = value);
                let error = PartitionFile::open(&path).expect_err(&format!("byte {at} set to {value:#x}"));
                assert!(
                    matches!(&error, OpenError::Malformed { .. } | OpenError::Checksum { .. }),
                    "byte {at} set to {value:#x}: {error}"
                );
            }
        }
        // Whole words at their extremes: offsets and lengths that overflow when added.
        for at in (16..table_end).step_by(8) {
            for value in [u64::MAX, u64::MAX - 63, 1 << 63, u64::MAX << 6, u64::from(u32::MAX)] {
                let path = subject.with_header(|page| page[at..at + 8].copy_from_slice(&value.to_le_bytes()));
                assert!(PartitionFile::open(&path).is_err(), "word at {at} set to {value:#x}");
            }
        }
    }
}

#[test]
fn a_footer_of_another_file_is_refused() {
    // Same lengths everywhere, another seed: the footer's checksum is right and belongs elsewhere.
    let subject = Subject::new(KEYINGS[1], 300);
    let other = Subject::new(KEYINGS[1], 301);
    let (_, offset, length) = *subject.sections().last().unwrap();
    let (_, from, other_length) = *other.sections().last().unwrap();
    assert_eq!(length, other_length, "the footers differ in numbers only");
    let mut bytes = subject.bytes.clone();
    bytes[offset..offset + length].copy_from_slice(&other.bytes[from..from + length]);
    let checksum = crc32c(&bytes[offset..offset + length]);
    let entry = 64 + 5 * 32;
    bytes[entry + 4..entry + 8].copy_from_slice(&checksum.to_le_bytes());
    let header = crc32c(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&header.to_le_bytes());
    let error = PartitionFile::open(&subject.put(&bytes)).unwrap_err();
    assert!(matches!(&error, OpenError::Malformed { .. }), "{error}");
}

#[test]
fn an_index_that_is_wrong_is_noticed_though_checksums_are_right() {
    let subject = Subject::new(KEYINGS[1], 300);
    let sections = subject.sections();
    let (pilots, checksums) = (sections[2], sections[4]);
    let mut bytes = subject.bytes.clone();
    bytes[pilots.1] ^= 1;
    // Blocks: rows, cold keys, pilots, remap, one each.
    let block = crc32c(&bytes[pilots.1..pilots.1 + pilots.2]);
    bytes[checksums.1 + 8..checksums.1 + 12].copy_from_slice(&block.to_le_bytes());
    let whole = crc32c(&bytes[checksums.1..checksums.1 + checksums.2]);
    let entry = 64 + 4 * 32;
    bytes[entry + 4..entry + 8].copy_from_slice(&whole.to_le_bytes());
    let header = crc32c(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&header.to_le_bytes());
    // The footer holds the checksum of the block checksums, so even this does not open.
    let error = PartitionFile::open(&subject.put(&bytes)).unwrap_err();
    assert!(error.to_string().contains("other block checksums"), "{error}");
}
