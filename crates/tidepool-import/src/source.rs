//! [`RowSource`]: what every kind of file looks like to the importer.

use std::{fmt, path::Path};

use crate::ImportError;

/// Rows between two calls of a progress callback.
pub(crate) const PROGRESS_ROWS: u64 = 1 << 14;

/// A file of ids and vectors, or several, read from front to back.
pub trait RowSource: Send {
    /// The file of the row that [`next_row`](Self::next_row) gave last.
    fn path(&self) -> &Path;

    /// Which of several files that is, from 0.
    fn part(&self) -> usize {
        0
    }

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
