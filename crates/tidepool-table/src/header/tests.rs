//! Header pages of anybody: refused, or sections that lie where they must.

use proptest::prelude::*;

use super::*;

/// A header of a file of `rows` rows, with as much of everything as it needs.
fn header(rows: u64, dim: u32, format: RowFormat, key_check: KeyCheck, pilots: u64, remap: u64) -> Header {
    let keying = if key_check == KeyCheck::None { Keying::Dense } else { Keying::Hashed };
    let (partition, partitions) = (PartitionIndex(1), PartitionCount::new(4).unwrap());
    let sections = Vec::new();
    let mut header =
        Header { file_bytes: 0, rows, dim, format, keying, key_check, partition, partitions, sections };
    let (mut end, mut blocks) = (HEADER_BYTES as u64, 0);
    for &kind in key_check.sections() {
        let length = match kind {
            SectionKind::Rows => rows_section_bytes(rows, header.stride()),
            SectionKind::ColdKeys => rows * 4,
            SectionKind::Pilots => pilots,
            SectionKind::Remap => remap * 4,
            SectionKind::Checksums => blocks * 4,
            SectionKind::Footer => 200,
        };
        blocks += if kind.in_blocks() { length.div_ceil(BLOCK_BYTES as u64) } else { 0 };
        let offset = header.section_offset(kind, end);
        let crc32c = if kind.in_blocks() { 0 } else { 77 };
        header.sections.push(Section { kind, crc32c, offset, length });
        end = offset + length;
    }
    header.file_bytes = end;
    header
}

fn page(bytes: &[u8]) -> [u8; HEADER_BYTES] {
    *bytes.first_chunk().unwrap()
}

fn with_checksum(mut page: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
    let checksum = crc32c::crc32c(&page[..CHECKSUM_AT]);
    page[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    page
}

/// What whoever reads a section relies on.
fn lies_within(header: &Header) {
    let mut end = HEADER_BYTES as u64;
    for section in &header.sections {
        assert!(section.offset >= end && section.end() <= header.file_bytes, "{header:?}");
        assert_eq!(section.end() - section.offset, section.length);
        end = section.end();
    }
    assert_eq!(end, header.file_bytes);
    let rows = header.section(SectionKind::Rows).unwrap();
    assert!(rows.length >= header.rows * header.stride() as u64 + TAIL_PAD_BYTES);
    assert!(
        header.section(SectionKind::Checksums).is_some() && header.section(SectionKind::Footer).is_some()
    );
    assert!(header.partition.0 < header.partitions.get());
}

fn any_header() -> impl Strategy<Value = Header> {
    let check = prop_oneof![Just(KeyCheck::None), Just(KeyCheck::Fingerprint32), Just(KeyCheck::FullKeys)];
    let format = proptest::sample::select(RowFormat::ALL.to_vec());
    let rows = prop_oneof![0u64..100_000, 0..=MAX_PARTITION_ROWS];
    (rows, 1u32..=512, format, check, 0u64..5000, 0u64..500).prop_map(
        |(rows, half_dim, format, check, pilots, remap)| {
            header(rows, half_dim * 2, format, check, pilots, remap)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_header_comes_back(header in any_header()) {
        let decoded = Header::decode(&page(&header.encode()), header.file_bytes);
        lies_within(&header);
        prop_assert_eq!(decoded, Ok(header));
    }

    #[test]
    fn words_that_lie_are_refused_or_change_nothing_that_is_relied_on(
        header in any_header(),
        changes in proptest::collection::vec(
            (2usize..64, prop_oneof![any::<u32>(), 0u32..70_000, Just(u32::MAX), (0u32..32).prop_map(|n| 1 << n)]),
            1..4,
        ),
        file_bytes in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
    ) {
        let mut bytes = page(&header.encode());
        for (word, value) in changes {
            bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        let bytes = with_checksum(bytes);
        let in_page = u64::from(u32_at(&bytes, 16)) | u64::from(u32_at(&bytes, 20)) << 32;
        for file_bytes in [file_bytes.unwrap_or(header.file_bytes), in_page] {
            if let Ok(decoded) = Header::decode(&bytes, file_bytes) {
                lies_within(&decoded);
                prop_assert_eq!(decoded.file_bytes, file_bytes);
                // Nothing that was read is left out of what is compared.
                prop_assert_eq!(page(&decoded.encode()), bytes);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused(seed in proptest::collection::vec(any::<u8>(), 256), magic: bool, file_bytes: u64) {
        let mut bytes = [0; HEADER_BYTES];
        bytes.iter_mut().zip(seed.iter().cycle()).for_each(|(byte, any)| *byte = *any);
        prop_assert!(Header::decode(&bytes, file_bytes).is_err());
        if magic {
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            // The table of sections is never of the right kinds by chance.
            prop_assert!(Header::decode(&with_checksum(bytes), file_bytes).is_err());
        }
    }
}
