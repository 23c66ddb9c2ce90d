//! Why a file could not be imported. Each error names the file, and where in it.

use std::{io, path::PathBuf};

use parquet::errors::ParquetError;
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

    /// Rows could not be added, and not because of what they are.
    #[error("adding rows of {path}")]
    Build {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<BuildError>,
    },
    /// An id below zero.
    #[error("{path}, row {row}: id {id} is negative")]
    NegativeId {
        /// The file of ids.
        path: PathBuf,
        /// Which row, from 0.
        row: u64,
        /// What stands there.
        id: i64,
    },
    /// A finite element of double precision that f32 cannot hold.
    #[error("{path}, row {row}, column {column}: {value} is too large for single precision")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Which row, from 0.
        row: u64,
        /// Which column of the vector, from 0.
        column: usize,
        /// What stands there.
        value: f64,
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
    /// Stored rows of a length that no dimension has, or not the one given.
    #[error("{path} has rows of {found} bytes; {format} rows of {} are not so long", dimension(*.dim))]
    StoredBytes {
        /// The array.
        path: PathBuf,
        /// Bytes of a row in it.
        found: u64,
        /// What the rows are said to be.
        format: RowFormat,
        /// The dimension they are said to have.
        dim: Option<u32>,
    },
    /// Stored rows are padded, so their length does not tell the dimension.
    #[error("the rows of {path} are padded to {align_bytes} bytes: say which dimension they have (--dim)")]
    StoredDim {
        /// The array.
        path: PathBuf,
        /// To what they are padded.
        align_bytes: u32,
    },
    /// Stored rows of this format have no scale.
    #[error("{format} rows have no scale and no bias")]
    NoScale {
        /// The format.
        format: RowFormat,
    },

    /// NPZ: the archive cannot be read.
    #[error("{path} is not an .npz file that can be read")]
    Npz {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<zip::result::ZipError>,
    },
    /// NPZ: an array is in the archive in a way that numpy does not write.
    #[error("{path} is {problem}")]
    NpzMember {
        /// The array.
        path: PathBuf,
        /// How it is there.
        problem: &'static str,
    },
    /// Safetensors: the header does not say what it must.
    #[error("the safetensors header of {path}: {problem}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// NPZ, safetensors: no array of that name.
    #[error("{path} has no array {name:?}; it has {found}")]
    NoArray {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        name: String,
        /// The arrays that it has.
        found: String,
    },

    /// Parquet: the file cannot be read, or written.
    #[error("the Parquet file {path}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ParquetError,
    },
    /// Parquet: rows of a column cannot be decoded.
    #[error("{path}, rows from {row} on, column {column:?}")]
    ParquetColumn {
        /// The file.
        path: PathBuf,
        /// The first of the rows that were to be decoded, from 0.
        row: u64,
        /// The column.
        column: String,
        /// Why.
        source: ParquetError,
    },
    /// Parquet: what stands in the folder is no part of a table.
    #[error(
        "{path} is not a .parquet file; a folder of parts has nothing else, but for names that begin with _ or ."
    )]
    NoPart {
        /// The file or folder.
        path: PathBuf,
    },
    /// Parquet: no column of that name.
    #[error("{path} has no column {column:?}; it has {found}")]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        column: String,
        /// The columns that it has.
        found: String,
    },
    /// Parquet: a column of another type.
    #[error("{path}: column {column:?} is {found}, not {expected}")]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// Parquet: ids are strings, and nobody said what makes numbers of them.
    #[error(
        "{path}: the ids in column {column:?} are strings, and ids are numbers; \
         say which hash makes one of the other (--string-ids xxh3)"
    )]
    StringIds {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// Parquet: an id or a vector is null.
    #[error("{path}, row {row}, column {column:?} is null")]
    Null {
        /// The file.
        path: PathBuf,
        /// Which row, from 0.
        row: u64,
        /// The column.
        column: String,
    },
    /// Parquet: an element of a vector is null.
    #[error("{path}, row {row}, column {column:?}: element {element} is null")]
    NullElement {
        /// The file.
        path: PathBuf,
        /// Which row, from 0.
        row: u64,
        /// The column.
        column: String,
        /// Which element, from 0.
        element: usize,
    },
    /// Parquet: a vector of another length.
    #[error("{path}, row {row}, column {column:?} has {found} elements, the rows before it have {expected}")]
    VectorLength {
        /// The file.
        path: PathBuf,
        /// Which row, from 0.
        row: u64,
        /// The column.
        column: String,
        /// Elements of it.
        found: usize,
        /// Elements of the first row of all.
        expected: u32,
    },
    /// Parquet: a column ends before its row group does.
    #[error("{path}: column {column:?} ends before row {row}, and its row group does not")]
    RowCount {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The first row that is missing, from 0.
        row: u64,
    },

    /// Export: nothing is written over.
    #[error("{path} exists already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

fn dimension(dim: Option<u32>) -> String {
    dim.map_or_else(|| "any dimension".into(), |dim| format!("dimension {dim}"))
}
