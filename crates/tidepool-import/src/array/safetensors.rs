//! Safetensors: a JSON header, then the bytes of all tensors. The header is parsed and checked by the
//! format's own library; the bytes are read as a stream, for a file may be larger than memory.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use safetensors::tensor::Metadata;

use super::{Array, BUFFER_BYTES, below, io_error};
use crate::ImportError;

/// The longest header read, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The length of the header stands before it.
const LENGTH_BYTES: u64 = 8;

/// The tensors of the file.
pub(super) fn names(path: &Path) -> Result<Vec<String>, ImportError> {
    header(path).map(|(_, metadata, _)| metadata.offset_keys())
}

/// The file, behind its header; the header; where the tensors begin.
fn header(path: &Path) -> Result<(File, Metadata, u64), ImportError> {
    let problem = |problem: String| ImportError::Safetensors { path: path.into(), problem };
    let mut file = File::open(path).map_err(io_error("opening", path))?;
    let bytes = file.metadata().map_err(io_error("reading the size of", path))?.len();
    let mut length = [0; LENGTH_BYTES as usize];
    if bytes < LENGTH_BYTES {
        return Err(problem(format!("{bytes} bytes are too few for a header")));
    }
    file.read_exact(&mut length).map_err(io_error("reading", path))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES.min(bytes - LENGTH_BYTES) {
        return Err(problem(format!("the header is said to have {length} bytes, the file has {bytes}")));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(io_error("reading", path))?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|e| problem(e.to_string()))?;
    let data_at = LENGTH_BYTES + length;
    let expected = data_at.saturating_add(metadata.data_len() as u64);
    if bytes != expected {
        return Err(ImportError::Length { path: path.into(), found: bytes, expected });
    }
    Ok((file, metadata, data_at))
}

pub(super) fn open(path: &Path, tensor: &str) -> Result<Array, ImportError> {
    let (mut file, metadata, data_at) = header(path)?;
    let Some(info) = metadata.info(tensor) else {
        let found = metadata.offset_keys().join(", ");
        return Err(ImportError::NoArray { path: path.into(), name: tensor.into(), found });
    };
    let (begin, end) = info.data_offsets;
    let bytes = (end - begin) as u64;
    file.seek(SeekFrom::Start(data_at + begin as u64)).map_err(io_error("reading", path))?;
    Ok(Array {
        path: below(path, tensor),
        dtype: info.dtype.to_string(),
        shape: info.shape.iter().map(|&length| length as u64).collect(),
        reader: Box::new(BufReader::with_capacity(BUFFER_BYTES, file).take(bytes)),
        head_bytes: 0,
        data_bytes: Some(bytes),
        expected_bytes: 0,
        read_bytes: 0,
    })
}
