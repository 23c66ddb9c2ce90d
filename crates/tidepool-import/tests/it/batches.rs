//! Rows go from the reader to the builder in batches of 32 MiB: here two and a bit.

use std::path::Path;

use tidepool_import::{ImportError, Position, RowSource, import};
use tidepool_table::{BuildError, TableBuilder};
use tidepool_types::RowFormat;

use crate::builder;

const DIM: u32 = 1024;
/// A batch has 8,144, each with 24 bytes of id and position.
const ROWS: u64 = 17_000;

/// Rows of their own number, in files of 5,000; one of them may be no number, and one may not be there.
struct Numbers {
    next: u64,
    nan_at: u64,
    fails_at: u64,
}

impl RowSource for Numbers {
    fn path(&self) -> &Path {
        Path::new(["zero", "one", "two", "three"][self.part()])
    }

    fn part(&self) -> usize {
        (self.next.saturating_sub(1) / 5000) as usize
    }

    fn dim(&self) -> u32 {
        DIM
    }

    fn rows_hint(&self) -> Option<u64> {
        None
    }

    fn next_row(&mut self, values: &mut [f32]) -> Result<Option<u64>, ImportError> {
        if self.next == self.fails_at {
            return Err(ImportError::NoRows { path: "gone".into() });
        }
        if self.next == ROWS {
            return Ok(None);
        }
        values.fill(if self.next == self.nan_at { f32::NAN } else { self.next as f32 });
        self.next += 1;
        Ok(Some(self.next - 1))
    }

    fn position(&self) -> Position {
        Position::Row((self.next - 1) % 5000)
    }
}

fn imported(nan_at: u64, fails_at: u64) -> (Result<u64, ImportError>, TableBuilder, Vec<u64>) {
    let spec = tidepool_table::TableSpec { format: RowFormat::Int4, ..builder(DIM).spec().clone() };
    let mut builder = TableBuilder::new(spec).unwrap();
    let mut told = vec![];
    let done = import(&mut Numbers { next: 0, nan_at, fails_at }, &mut builder, &mut |rows| told.push(rows));
    (done, builder, told)
}

#[test]
fn all_batches_arrive_in_order() {
    let (done, builder, told) = imported(u64::MAX, u64::MAX);
    assert_eq!((done.unwrap(), builder.rows()), (ROWS, ROWS));
    assert_eq!(told, [8144, 16_288, ROWS]);
    let dir = tempfile::tempdir().unwrap();
    builder.publish(&dir.path().join("v1"), &mut |_, _| ()).unwrap();
    let layout = tidepool_table::LayoutReader::open(&dir.path().join("v1")).unwrap();
    let kernel = tidepool_kernels::RowKernel::new(RowFormat::Int4, DIM);
    let mut values = [0.0; DIM as usize];
    for id in (0..ROWS).step_by(123) {
        kernel.dequantize(layout.find(id).unwrap(), &mut values);
        // Half precision is what the row is stored with.
        assert!((values[5] - id as f32).abs() <= id as f32 / 1024.0, "{id}: {}", values[5]);
    }
}

#[test]
fn the_first_thing_that_is_wrong_is_told_whichever_side_finds_it() {
    // A refused row in the second batch, and in the third file.
    let (done, ..) = imported(12_345, u64::MAX);
    match done.unwrap_err() {
        ImportError::Row { path, position, source } => {
            assert_eq!((path.to_str(), position), (Some("two"), Position::Row(2345)));
            assert!(matches!(*source, BuildError::Value { id: 12_345, .. }), "{source}");
        }
        other => panic!("{other}"),
    }
    // The reader fails, before the refused row and after it, in the same batch.
    assert!(matches!(imported(12_345, 12_344).0, Err(ImportError::NoRows { .. })));
    assert!(matches!(imported(12_345, 12_346).0, Err(ImportError::Row { .. })));
}
