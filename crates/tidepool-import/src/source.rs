//! [`RowSource`]: what every kind of file looks like to the importer.

use std::{fmt, path::Path};

use tidepool_table::TableBuilder;

use crate::ImportError;

/// Rows between two calls of a progress callback.
pub(crate) const PROGRESS_ROWS: u64 = 1 << 14;

/// A file of ids and vectors, read from front to back.
pub trait RowSource {
    /// The file with the vectors.
    fn path(&self) -> &Path;

    /// Elements of a row: known from the start, and a dimension that tables may have.
    fn dim(&self) -> u32;

    /// How many rows there are in all, where the file says so.
    fn rows_hint(&self) -> Option<u64>;

    /// Reads the next row into `values`, which is `dim` long, and gives its id; `None` at the end. After
    /// an error the source is of no more use.
    ///
    /// # Errors
    /// [`ImportError`] names the file and the line or row. `values` is then unspecified.
    ///
    /// # Panics
    /// It may when `values` is not `dim` long.
    fn next_row(&mut self, values: &mut [f32]) -> Result<Option<u64>, ImportError>;

    /// Where the row stands that [`next_row`](Self::next_row) gave last.
    fn position(&self) -> Position;
}

/// A place in a file, as its readers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// A line of text, from 1.
    Line(u64),
    /// A row of an array, from 0.
    Row(u64),
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// Pushes every row of `source` into `builder` and gives their number. `progress` is told how many are
/// done, now and then and at the end.
///
/// # Errors
/// [`ImportError`]: the file is not what it should be, the builder refuses a row, the dimensions of the
/// two differ, or there is no row at all. That an id stands twice is noticed by the builder's `publish`.
pub fn import(
    source: &mut dyn RowSource,
    builder: &mut TableBuilder,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, ImportError> {
    let dim = builder.spec().dim;
    if source.dim() != dim {
        return Err(ImportError::DimMismatch { path: source.path().into(), found: source.dim(), dim });
    }
    let mut values = vec![0.0; dim as usize];
    let mut rows = 0;
    while let Some(id) = source.next_row(&mut values)? {
        builder.push(id, &values).map_err(|error| ImportError::Row {
            path: source.path().into(),
            position: source.position(),
            source: Box::new(error),
        })?;
        rows += 1;
        if rows % PROGRESS_ROWS == 0 {
            progress(rows);
        }
    }
    if rows == 0 {
        return Err(ImportError::NoRows { path: source.path().into() });
    }
    progress(rows);
    Ok(rows)
}
