//! Arrays in files: an NPY file, a member of an NPZ file, a tensor of a safetensors file. All are read as
//! streams, little-endian, in C order; what they mean is the business of [`ArraySource`] and of
//! [`StoredSource`](crate::StoredSource).

mod element;
mod header;
mod npy;
mod npz;
mod safetensors;
mod source;

use std::{
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

pub use self::source::ArraySource;
pub(crate) use self::{
    element::{Element, IdElement, single},
    header::header_bytes,
};
use crate::ImportError;

/// What is read from a file at once.
const BUFFER_BYTES: usize = 1 << 18;

/// Where an array lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArrayPath {
    /// It is an NPY file.
    Npy(PathBuf),
    /// It is a member of an NPZ file, stored or deflated, as `numpy.savez` and `savez_compressed` write them.
    Npz {
        /// The NPZ file.
        file: PathBuf,
        /// The member, without `.npy`.
        member: String,
    },
    /// It is a tensor of a safetensors file.
    Safetensors {
        /// The safetensors file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

impl ArrayPath {
    /// Whether there is an array of this name in its file. An NPY file is taken to be there.
    ///
    /// # Errors
    /// [`ImportError`] when the file cannot be read or is not what it should be.
    pub fn exists(&self) -> Result<bool, ImportError> {
        match self {
            Self::Npy(_) => Ok(true),
            Self::Npz { file, member } => npz::names(file).map(|names| names.contains(member)),
            Self::Safetensors { file, tensor } => {
                safetensors::names(file).map(|names| names.contains(tensor))
            }
        }
    }

    pub(crate) fn open(&self) -> Result<Array, ImportError> {
        match self {
            Self::Npy(path) => npy::open(path),
            Self::Npz { file, member } => npz::open(file, member),
            Self::Safetensors { file, tensor } => safetensors::open(file, tensor),
        }
    }
}

/// An array whose type and shape are known, and whose elements are read from front to back.
pub(crate) struct Array {
    /// The file, and below it, as if it were a folder, the name of the array.
    pub(crate) path: PathBuf,
    /// The type of its elements as the file says it.
    pub(crate) dtype: String,
    /// Length along each dimension.
    pub(crate) shape: Vec<u64>,
    reader: Box<dyn Read + Send>,
    /// Bytes before the elements.
    head_bytes: u64,
    /// Bytes of the elements; unknown of what is not a regular file.
    data_bytes: Option<u64>,
    /// Bytes of the elements by type and shape, once a reader has made sense of them.
    expected_bytes: u64,
    read_bytes: u64,
}

impl Array {
    pub(crate) fn wrong_dtype(&self, expected: &'static str) -> ImportError {
        ImportError::Dtype { path: self.path.clone(), found: self.dtype.clone(), expected }
    }

    pub(crate) fn wrong_shape(&self, expected: &'static str) -> ImportError {
        let found = header::shape_text(&self.shape);
        ImportError::Shape { path: self.path.clone(), found, expected }
    }

    /// Notes how many bytes there must be, and refuses another number.
    pub(crate) fn check_length(&mut self, rows: u64, row_bytes: u64) -> Result<(), ImportError> {
        self.expected_bytes = rows
            .checked_mul(row_bytes)
            .filter(|bytes| bytes.checked_add(self.head_bytes).is_some())
            .ok_or_else(|| self.wrong_shape("one that fits a file"))?;
        match self.data_bytes {
            Some(found) if found != self.expected_bytes => Err(self.wrong_length(found)),
            _ => Ok(()),
        }
    }

    fn wrong_length(&self, found: u64) -> ImportError {
        ImportError::Length {
            path: self.path.clone(),
            found: found.saturating_add(self.head_bytes),
            expected: self.expected_bytes + self.head_bytes,
        }
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

    /// After the last element: nothing may follow, and a checksum must be right where there is one.
    pub(crate) fn finish(&mut self) -> Result<(), ImportError> {
        let more = self.reader.by_ref().take(1).read_to_end(&mut Vec::new());
        match more {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.wrong_length(self.read_bytes + 1)),
            Err(source) => Err(ImportError::Io { action: "reading", path: self.path.clone(), source }),
        }
    }
}

/// An array of one id per row.
pub(crate) fn open_ids(ids: &ArrayPath, rows: u64) -> Result<(Array, IdElement), ImportError> {
    let mut ids = ids.open()?;
    let element = IdElement::of(&ids.dtype).ok_or_else(|| ids.wrong_dtype(IdElement::EXPECTED))?;
    let &[found] = ids.shape.as_slice() else {
        return Err(ids.wrong_shape("(rows,)"));
    };
    if found != rows {
        return Err(ImportError::IdCount { path: ids.path, found, rows });
    }
    ids.check_length(rows, 8)?;
    Ok((ids, element))
}

/// The name of an array in a file, as if the file were a folder.
fn below(file: &Path, name: &str) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push("/");
    path.push(name);
    path.into()
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ImportError {
    move |source| ImportError::Io { action, path: path.into(), source }
}
