//! Footers of anybody, their checksums taken for right: refused, or values that are what they seem.

use proptest::prelude::*;

use super::*;

fn footer(table: &str, version: &str) -> PartitionFooter {
    PartitionFooter {
        table: table.into(),
        version: version.into(),
        table_rows: 1 << 40,
        build_seed: 7,
        index_seed: 9,
        index_parts: 3,
        index_buckets_per_part: 11,
        index_slots_per_part: 1000,
        preamble_crc32c: 1,
        checksums_crc32c: 2,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        skip in 0usize..16,
        rows: u64,
    ) {
        let bytes = bytes.get(skip..).unwrap_or_default();
        if let Ok(values) = PartitionFooter::read(bytes, rows) {
            prop_assert_eq!(u64::from(values.index.rows), rows);
        }
    }

    #[test]
    fn a_changed_footer_is_read_without_a_panic(
        table in "[a-z][a-z0-9_-]{0,60}",
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in prop_oneof![Just(0usize), 0usize..80],
        skip in prop_oneof![Just(0usize), 0usize..16],
    ) {
        let mut bytes = footer(&table, "v1").encode().unwrap();
        let changed = !changes.is_empty() || cut > 0 || skip > 0;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let end = bytes.len().saturating_sub(cut);
        let values = PartitionFooter::read(bytes.get(skip..end).unwrap_or_default(), 5);
        if !changed {
            let values = values.unwrap();
            prop_assert_eq!(values.table_version.table.as_str(), table);
            prop_assert_eq!((values.index.rows, values.index.slots_per_part), (5, 1000));
        } else if let Ok(values) = values {
            // Whatever was changed, a name is a name: it becomes part of paths.
            prop_assert!(Name::new(values.table_version.table.as_str()).is_ok());
            prop_assert!(Name::new(values.table_version.version.as_str()).is_ok());
        }
    }
}

#[test]
fn names_that_are_none_are_refused() {
    for (table, version) in [("../etc", "v1"), ("", "v1"), ("user", ".."), ("user", "a/b"), ("us\0er", "v1")]
    {
        let bytes = footer(table, version).encode().unwrap();
        assert!(PartitionFooter::read(&bytes, 5).is_err(), "{table:?} {version:?}");
    }
    let bytes = footer("user", "v1").encode().unwrap();
    assert!(PartitionFooter::read(&bytes, 1 << 32).is_err());
}
