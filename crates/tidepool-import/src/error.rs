//! Why a file could not be imported. Each error names the file, and where in it.

use std::{io, path::PathBuf};

use thiserror::Error;
use tidepool_table::BuildError;
use tidepool_types::{DimError, RowFormat};

use crate::source::Position;

/// Why a file could not be imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The operating system said no.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A file without a single row.
    #[error("{path} has no rows")]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// Its vectors have a dimension that no table may have.
    #[error("the vectors of {path}")]
    Dim {
        /// The file.
        path: PathBuf,
        /// Which dimension, and what it must be.
        source: DimError,
    },
    /// Its vectors have another dimension than the table.
    #[error("the vectors of {path} have dimension {found}, the table has {dim}")]
    DimMismatch {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// Of the table.
        dim: u32,
    },
    /// The table builder refuses a row.
    #[error("{path}, {position}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Where in it.
        position: Position,
        /// Why.
        source: Box<BuildError>,
    },

    /// CSV: a line with more or fewer columns than the first one.
    #[error("{path}, line {line}: {found} columns, the first line has {expected}")]
    Columns {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// Columns of it.
        found: usize,
        /// Columns of the first line.
        expected: usize,
    },
    /// CSV: the first column is not an id.
    #[error("{path}, line {line}, column 1: {text:?} is not an id (a whole number from 0 to 2^64 - 1)")]
    Id {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What stands there.
        text: String,
    },
    /// CSV: another column is not a number that f32 can hold.
    #[error(
        "{path}, line {line}, column {column}: {text:?} of id {id} is not a finite number of single precision"
    )]
    Value {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// Whose row it is.
        id: u64,
        /// Which column, from 1, the id being the first.
        column: usize,
        /// What stands there.
        text: String,
    },
    /// CSV: a line too long to be a row.
    #[error("{path}, line {line} is longer than {limit_bytes} bytes")]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is allowed.
        limit_bytes: usize,
    },

    /// NPY: the file does not begin as one.
    #[error("{path} is not an NPY file")]
    NotNpy {
        /// The file.
        path: PathBuf,
    },
    /// NPY: a format version that this build does not read.
    #[error("{path} has NPY format version {major}, this build reads 1, 2 and 3")]
    NpyVersion {
        /// The file.
        path: PathBuf,
        /// In the file.
        major: u8,
    },
    /// NPY: the header does not say what it must.
    #[error("the NPY header of {path}: {problem}")]
    NpyHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// NPY: elements of another type.
    #[error("{path} has elements of type {found}, not {expected}")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// As the header says it.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// NPY: the array lies column by column.
    #[error("{path} is in Fortran order; save it with numpy.ascontiguousarray")]
    FortranOrder {
        /// The file.
        path: PathBuf,
    },
    /// NPY: an array of another number of dimensions, or larger than any file.
    #[error("{path} has shape {found}, not {expected}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// As the header says it.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// NPY: fewer or more bytes than the header says.
    #[error("{path} has {found} bytes; its header says {expected}")]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes of the file, or as many as could be read.
        found: u64,
        /// Header and elements together.
        expected: u64,
    },
    /// NPY: not one id per row.
    #[error("{path} has {found} ids for {rows} rows")]
    IdCount {
        /// The file of ids.
        path: PathBuf,
        /// Ids in it.
        found: u64,
        /// Rows of vectors.
        rows: u64,
    },
    /// NPY: stored rows of a length that no dimension has.
    #[error("{path} has rows of {found} bytes; no table of {format} rows has such rows")]
    StoredBytes {
        /// The file.
        path: PathBuf,
        /// Bytes of a row in it.
        found: u64,
        /// What the rows are said to be.
        format: RowFormat,
    },
    /// Export: nothing is written over.
    #[error("{path} exists already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// NPY: an id below zero.
    #[error("{path}, row {row}: id {id} is negative")]
    NegativeId {
        /// The file of ids.
        path: PathBuf,
        /// Which row, from 0.
        row: u64,
        /// What stands there.
        id: i64,
    },
    /// NPY: a finite f8 element that f32 cannot hold.
    #[error("{path}, row {row}, column {column}: {value} is too large for single precision")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Which row, from 0.
        row: u64,
        /// Which column, from 0.
        column: usize,
        /// What stands there.
        value: f64,
    },
}
