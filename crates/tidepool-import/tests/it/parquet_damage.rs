//! Parquet files that were cut, or hold other bytes than were written.

use std::path::Path;

use ::parquet::data_type::{FloatType, Int64Type};
use proptest::prelude::*;
use tidepool_import::{ImportError, ParquetColumns, ParquetSource, RowSource, StringIds};

use crate::{
    Files, error_of,
    parquet::{Column, plain, write},
};

fn columns() -> ParquetColumns {
    ParquetColumns { string_ids: Some(StringIds::Xxh3), ..ParquetColumns::default() }
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let files = Files::new();
    let path = files.dir.path().join("x.parquet");
    plain(&path, &[&[(1, [1.0, 2.0])], &[(2, [3.0, 4.0])]]);
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        let path = files.write("x.parquet", &whole[..length]);
        let error = error_of(ParquetSource::open(&path, &columns()));
        assert!(matches!(error, ImportError::Parquet { .. }), "{length}: {error}");
        assert!(error.to_string().contains("x.parquet"), "{error}");
    }
}

/// The Parquet library asserts here: the header of the dictionary page says that it is a page of another kind.
#[test]
fn a_dictionary_that_is_not_there_is_an_error_and_no_panic() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/strings.parquet");
    let mut bytes = std::fs::read(golden).unwrap();
    bytes[695] = 179;
    let files = Files::new();
    let error = error_of(ParquetSource::open(&files.write("x.parquet", bytes), &columns()));
    assert!(matches!(&error, ImportError::ParquetColumn { .. }), "{error}");
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("the decoder gave up"), "{why}");
}

/// Of two row groups of four rows, one bit is another: in the pages, not in the footer. The definition level 2 of
/// all values becomes 3, among much else, for which the Parquet library gives no values and no error.
#[test]
fn a_bit_flipped_anywhere_in_the_pages_is_an_error_or_other_values() {
    let schema = "message m { required int64 id; \
        optional group embedding (LIST) { repeated group list { required float element; } } }";
    let files = Files::new();
    let group = || {
        (
            Column::<Int64Type>(&[8, 2, 3, 4], &[], &[]),
            Column::<FloatType>(
                &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
                &[2; 8],
                &[0, 1, 0, 1, 0, 1, 0, 1],
            ),
        )
    };
    write(&files.dir.path().join("x.parquet"), schema, &[group(), group()]);
    let whole = std::fs::read(files.dir.path().join("x.parquet")).unwrap();
    let (rest, _) = whole.split_last_chunk::<4>().unwrap();
    let (rest, footer) = rest.split_last_chunk::<4>().unwrap();
    let pages = rest.len() - u32::from_le_bytes(*footer) as usize;
    let mut levels_above = vec![];
    for bit in 4 * 8..pages * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let outcome =
            ParquetSource::open(&files.write("x.parquet", bytes), &columns()).and_then(|mut source| {
                let mut values = vec![0.0; source.dim() as usize];
                while source.next_row(&mut values)?.is_some() {}
                Ok(())
            });
        if let Err(ImportError::ParquetColumn { path, column, row, source }) = outcome
            && source.to_string().contains("no value has the definition level 3")
        {
            assert!(path.ends_with("x.parquet") && column == "embedding");
            levels_above.push(row);
        }
    }
    assert_eq!(levels_above, [0, 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn files_with_damaged_bytes_never_panic(
        which in 0usize..5,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let name = ["list-snappy", "fixed-zstd", "strings", "half-int32", "nulls"][which];
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.parquet"));
        let mut bytes = std::fs::read(golden).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let files = Files::new();
        if let Ok(mut source) = ParquetSource::open(&files.write("x.parquet", bytes), &columns()) {
            let mut values = vec![0.0; source.dim() as usize];
            while let Ok(Some(_)) = source.next_row(&mut values) {}
        }
    }
}
