//! NPY: one array, a header and its elements.

use std::{
    fs::File,
    io::{BufReader, ErrorKind, Read},
    path::Path,
};

use super::{
    Array, BUFFER_BYTES,
    header::{Header, HeaderError},
    io_error,
};
use crate::ImportError;

pub(super) fn open(path: &Path) -> Result<Array, ImportError> {
    let file = File::open(path).map_err(io_error("opening", path))?;
    let metadata = file.metadata().map_err(io_error("reading the size of", path))?;
    if metadata.is_dir() {
        return Err(ImportError::NotNpy { path: path.into() });
    }
    let bytes = metadata.is_file().then_some(metadata.len());
    read(path, Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), bytes)
}

/// Reads the header off the front of a stream that has so many bytes in all.
pub(super) fn read(
    path: &Path,
    mut reader: Box<dyn Read + Send>,
    bytes: Option<u64>,
) -> Result<Array, ImportError> {
    let header = Header::read(&mut reader).map_err(|error| match error {
        HeaderError::Io(e) if e.kind() == ErrorKind::UnexpectedEof => {
            ImportError::NpyHeader { path: path.into(), problem: "the file ends within it".into() }
        }
        HeaderError::Io(e) => io_error("reading", path)(e),
        HeaderError::Magic => ImportError::NotNpy { path: path.into() },
        HeaderError::Version(major) => ImportError::NpyVersion { path: path.into(), major },
        HeaderError::Dict(problem) => ImportError::NpyHeader { path: path.into(), problem },
    })?;
    if header.fortran_order {
        return Err(ImportError::FortranOrder { path: path.into() });
    }
    Ok(Array {
        path: path.into(),
        dtype: header.descr,
        shape: header.shape,
        reader,
        head_bytes: header.data_at,
        data_bytes: bytes.map(|bytes| bytes.saturating_sub(header.data_at)),
        expected_bytes: 0,
        read_bytes: 0,
    })
}
