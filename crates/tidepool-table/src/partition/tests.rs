//! Opening does not depend on size: a file of ten gigabytes, nearly all of it a hole.

use std::{
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    header::{BLOCK_BYTES, Section},
    lookup::PartitionRows,
};

#[test]
fn ten_gigabytes_are_open_and_looked_up_at_once() {
    const ROWS: u64 = 280_000_000;
    const DIM: u32 = 64;
    let stride = RowFormat::Int4.row_bytes(DIM) as u64;
    let mut header = Header {
        file_bytes: 0,
        rows: ROWS,
        dim: DIM,
        format: RowFormat::Int4,
        keying: Keying::Dense,
        key_check: KeyCheck::None,
        partition: PartitionIndex(0),
        partitions: PartitionCount::new(1).unwrap(),
        sections: Vec::new(),
    };
    let rows_bytes = ROWS * stride + TAIL_PAD_BYTES;
    let mut at = HEADER_BYTES as u64;
    for (kind, length) in [
        (SectionKind::Rows, rows_bytes),
        (SectionKind::Checksums, rows_bytes.div_ceil(BLOCK_BYTES as u64) * 4),
    ] {
        // A section longer than 2 MiB of rows begins at 2 MiB.
        let offset = if kind == SectionKind::Rows { 2 << 20 } else { at.next_multiple_of(64) };
        header.sections.push(Section { kind, crc32c: 0, offset, length });
        at = offset + length;
    }
    let mut footer = PartitionFooter {
        table: "huge".into(),
        version: "v1".into(),
        table_rows: ROWS,
        build_seed: 0,
        index_seed: 0,
        index_parts: 0,
        index_buckets_per_part: 0,
        index_slots_per_part: 0,
        preamble_crc32c: 0,
        checksums_crc32c: 0,
    };
    let length = footer.encode().unwrap().len() as u64;
    let offset = at.next_multiple_of(64);
    header.file_bytes = offset + length;
    header.sections.push(Section { kind: SectionKind::Footer, crc32c: 0, offset, length });
    footer.preamble_crc32c = crc32c::crc32c(&header.encode()[..PREAMBLE_BYTES]);
    let footer = footer.encode().unwrap();
    header.sections[2].crc32c = crc32c::crc32c(&footer);

    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("part-00000.tide");
    let file = File::create_new(&path).unwrap();
    file.set_len(header.file_bytes).unwrap();
    file.write_all_at(&header.encode(), 0).unwrap();
    file.write_all_at(&footer, offset).unwrap();

    let begun = Instant::now();
    let file = PartitionFile::open(&path).unwrap();
    let last = file.row(ROWS - 1);
    let took = begun.elapsed();
    assert!(file.file_bytes() > 10_000_000_000);
    assert_eq!(last, &[0u8; 36][..]);
    assert_eq!(file.find(ROWS), None);
    // Milliseconds on a disk; the rest is for machines that are busy.
    assert!(took < Duration::from_secs(1), "{took:?}");
}
