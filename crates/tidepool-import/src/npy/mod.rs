//! NPY: numpy's array files, read as a stream. Vectors are a 2-D array of f2, f4 or f8; ids are the row
//! numbers, or a second file with a 1-D array of u8 or i8. All little-endian, in C order.

mod header;

use std::{
    fs::File,
    io::{BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
};

use half::f16;
use tidepool_types::RowFormat;

pub(crate) use self::header::header_bytes;
use self::header::{Header, HeaderError};
use crate::{
    ImportError,
    source::{Position, RowSource},
};

/// What is read from a file at once.
const BUFFER_BYTES: usize = 1 << 18;

/// A file of vectors, with or without a file of ids beside it.
#[derive(Debug)]
pub struct NpySource {
    vectors: ArrayFile,
    element: Element,
    dim: u32,
    ids: Option<(ArrayFile, IdElement)>,
    rows: u64,
    next: u64,
    row: Vec<u8>,
}

/// Types that vectors may have.
#[derive(Clone, Copy, Debug)]
enum Element {
    F16,
    F32,
    F64,
}

/// Types that ids may have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum IdElement {
    U64,
    I64,
}

impl IdElement {
    /// Reads the next id of `file`, that of `row`.
    pub(crate) fn read(self, file: &mut ArrayFile, row: u64) -> Result<u64, ImportError> {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes)?;
        match self {
            Self::U64 => Ok(u64::from_le_bytes(bytes)),
            Self::I64 => {
                let id = i64::from_le_bytes(bytes);
                u64::try_from(id).map_err(|_| ImportError::NegativeId { path: file.path.clone(), row, id })
            }
        }
    }
}

impl NpySource {
    /// Opens a file of vectors and, where there is one, the file of their ids; without it the ids are
    /// 0, 1, 2 and so on.
    ///
    /// # Errors
    /// [`ImportError`]: a file cannot be read, is not NPY, has another type, shape or order than it
    /// should, is shorter or longer than its header says, or the two differ in length.
    pub fn open(vectors: &Path, ids: Option<&Path>) -> Result<Self, ImportError> {
        let mut vectors = ArrayFile::open(vectors)?;
        let element = match vectors.header.descr.as_str() {
            "<f2" => Element::F16,
            "<f4" => Element::F32,
            "<f8" => Element::F64,
            _ => return Err(vectors.wrong_dtype("<f2, <f4 or <f8 (little-endian floating point)")),
        };
        let &[rows, dim] = vectors.header.shape.as_slice() else {
            return Err(vectors.wrong_shape("(rows, dimension)"));
        };
        let dim = RowFormat::check_dim(dim)
            .map_err(|source| ImportError::Dim { path: vectors.path.clone(), source })?;
        let row_bytes = dim as usize * element.bytes();
        vectors.check_length(rows, row_bytes as u64)?;
        let ids = ids.map(|path| open_ids(path, rows)).transpose()?;
        Ok(Self { vectors, element, dim, ids, rows, next: 0, row: vec![0; row_bytes] })
    }
}

pub(crate) fn open_ids(path: &Path, rows: u64) -> Result<(ArrayFile, IdElement), ImportError> {
    let mut ids = ArrayFile::open(path)?;
    let element = match ids.header.descr.as_str() {
        "<u8" => IdElement::U64,
        "<i8" => IdElement::I64,
        _ => return Err(ids.wrong_dtype("<u8 or <i8 (uint64 or int64)")),
    };
    let &[found] = ids.header.shape.as_slice() else {
        return Err(ids.wrong_shape("(rows,)"));
    };
    if found != rows {
        return Err(ImportError::IdCount { path: path.into(), found, rows });
    }
    ids.check_length(rows, 8)?;
    Ok((ids, element))
}

impl RowSource for NpySource {
    fn path(&self) -> &Path {
        &self.vectors.path
    }

    fn dim(&self) -> u32 {
        self.dim
    }

    fn rows_hint(&self) -> Option<u64> {
        Some(self.rows)
    }

    fn next_row(&mut self, values: &mut [f32]) -> Result<Option<u64>, ImportError> {
        if self.next == self.rows {
            return Ok(None);
        }
        let row = self.next;
        self.vectors.read_exact(&mut self.row)?;
        self.element.decode(&self.row, values).map_err(|column| ImportError::TooLarge {
            path: self.vectors.path.clone(),
            row,
            column,
            value: f64_at(&self.row, column),
        })?;
        let id = match &mut self.ids {
            None => row,
            Some((file, element)) => element.read(file, row)?,
        };
        self.next += 1;
        Ok(Some(id))
    }

    fn position(&self) -> Position {
        Position::Row(self.next.saturating_sub(1))
    }
}

impl Element {
    const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Decodes a row. The error is the column of a finite number that f32 cannot hold; what is not finite
    /// in the file is passed on, and refused by the table builder.
    fn decode(self, row: &[u8], values: &mut [f32]) -> Result<(), usize> {
        match self {
            Self::F16 => {
                for (value, bytes) in values.iter_mut().zip(row.as_chunks().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::F32 => {
                for (value, bytes) in values.iter_mut().zip(row.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::F64 => {
                for (column, value) in values.iter_mut().enumerate() {
                    let exact = f64_at(row, column);
                    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is wanted")]
                    let single = exact as f32;
                    if single.is_infinite() && exact.is_finite() {
                        return Err(column);
                    }
                    *value = single;
                }
            }
        }
        Ok(())
    }
}

/// The f8 element at `column`.
fn f64_at(row: &[u8], column: usize) -> f64 {
    row.as_chunks().0.get(column).map_or(f64::NAN, |bytes| f64::from_le_bytes(*bytes))
}

/// An NPY file whose header has been read.
#[derive(Debug)]
pub(crate) struct ArrayFile {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    reader: BufReader<File>,
    /// Bytes of the file; unknown of what is not a regular file.
    file_bytes: Option<u64>,
    /// Bytes that header and elements should have, once that is known.
    expected_bytes: u64,
    read_bytes: u64,
}

impl ArrayFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ImportError> {
        let io = |action| move |source| ImportError::Io { action, path: path.into(), source };
        let file = File::open(path).map_err(io("opening"))?;
        let metadata = file.metadata().map_err(io("reading the size of"))?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let header = Header::read(&mut reader).map_err(|error| match error {
            HeaderError::Io(e) if e.kind() == ErrorKind::UnexpectedEof => {
                ImportError::NpyHeader { path: path.into(), problem: "the file ends within it".into() }
            }
            HeaderError::Io(e) => io("reading")(e),
            HeaderError::Magic => ImportError::NotNpy { path: path.into() },
            HeaderError::Version(major) => ImportError::NpyVersion { path: path.into(), major },
            HeaderError::Dict(problem) => ImportError::NpyHeader { path: path.into(), problem },
        })?;
        if header.fortran_order {
            return Err(ImportError::FortranOrder { path: path.into() });
        }
        let read_bytes = header.data_at;
        let file_bytes = metadata.is_file().then_some(metadata.len());
        Ok(Self { path: path.into(), header, reader, file_bytes, expected_bytes: 0, read_bytes })
    }

    pub(crate) fn wrong_dtype(&self, expected: &'static str) -> ImportError {
        ImportError::Dtype { path: self.path.clone(), found: self.header.descr.clone(), expected }
    }

    pub(crate) fn wrong_shape(&self, expected: &'static str) -> ImportError {
        ImportError::Shape { path: self.path.clone(), found: self.header.shape_text(), expected }
    }

    /// Notes how long the file must be, and refuses one that is not.
    pub(crate) fn check_length(&mut self, rows: u64, row_bytes: u64) -> Result<(), ImportError> {
        let elements = rows.checked_mul(row_bytes);
        self.expected_bytes = elements
            .and_then(|bytes| bytes.checked_add(self.header.data_at))
            .ok_or_else(|| self.wrong_shape("one that fits a file"))?;
        match self.file_bytes {
            Some(found) if found != self.expected_bytes => Err(self.wrong_length(found)),
            _ => Ok(()),
        }
    }

    fn wrong_length(&self, found: u64) -> ImportError {
        ImportError::Length { path: self.path.clone(), found, expected: self.expected_bytes }
    }

    /// Reads the next bytes. The file may have been cut since it was opened, or be a pipe.
    pub(crate) fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ImportError> {
        match self.reader.read_exact(bytes) {
            Ok(()) => {
                self.read_bytes += bytes.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(self.wrong_length(self.read_bytes)),
            Err(source) => Err(ImportError::Io { action: "reading", path: self.path.clone(), source }),
        }
    }
}
