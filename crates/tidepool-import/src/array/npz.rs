//! NPZ: a zip archive of NPY files. Each array is read through a file handle of its own, so vectors and ids
//! come out side by side.

use std::{
    fs::File,
    io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom},
    path::Path,
};

use crc32fast::Hasher;
use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::{Array, BUFFER_BYTES, below, io_error, npy};
use crate::ImportError;

/// What NPY files are called in an archive.
const SUFFIX: &str = ".npy";

/// The arrays of the archive, without `.npy`.
pub(super) fn names(file: &Path) -> Result<Vec<String>, ImportError> {
    Ok(names_of(&archive(file)?))
}

fn archive(file: &Path) -> Result<ZipArchive<BufReader<File>>, ImportError> {
    let opened = File::open(file).map_err(io_error("opening", file))?;
    ZipArchive::new(BufReader::new(opened))
        .map_err(|source| ImportError::Npz { path: file.into(), source: Box::new(source) })
}

fn names_of(archive: &ZipArchive<BufReader<File>>) -> Vec<String> {
    let names = archive.file_names().flatten();
    names.filter_map(|name| name.strip_suffix(SUFFIX).map(str::to_owned)).collect()
}

pub(super) fn open(file: &Path, member: &str) -> Result<Array, ImportError> {
    let damaged = |source| ImportError::Npz { path: file.into(), source: Box::new(source) };
    let mut archive = archive(file)?;
    let Some(index) = archive.index_for_name(&format!("{member}{SUFFIX}")) else {
        let found = names_of(&archive).join(", ");
        return Err(ImportError::NoArray { path: file.into(), name: member.into(), found });
    };
    let path = below(file, member);
    // Compressed bytes are asked for: decompression is ours, since the archive's reader borrows the archive.
    let entry = archive.by_index_raw(index).map_err(damaged)?;
    let (method, size, crc32) = (entry.compression(), entry.size(), entry.crc32());
    let (encrypted, compressed_bytes) = (entry.encrypted(), entry.compressed_size());
    let data_at = entry.data_start();
    drop(entry);
    let Some(data_at) = data_at else {
        return Err(ImportError::NpzMember { path, problem: "nowhere in the file" });
    };
    if encrypted {
        return Err(ImportError::NpzMember { path, problem: "encrypted" });
    }
    let mut opened = File::open(file).map_err(io_error("opening", file))?;
    opened.seek(SeekFrom::Start(data_at)).map_err(io_error("reading", &path))?;
    let raw = BufReader::with_capacity(BUFFER_BYTES, opened).take(compressed_bytes);
    let reader: Box<dyn Read + Send> = match method {
        CompressionMethod::Stored => Box::new(Checked::new(raw, crc32)),
        CompressionMethod::Deflated => Box::new(Checked::new(DeflateDecoder::new(raw), crc32)),
        _ => return Err(ImportError::NpzMember { path, problem: "compressed, and not with deflate" }),
    };
    npy::read(&path, Box::new(BufReader::with_capacity(BUFFER_BYTES, reader)), Some(size))
}

/// A stream whose end is an error when its bytes are not those of the checksum.
struct Checked<R> {
    inner: R,
    hasher: Hasher,
    crc32: u32,
}

impl<R: Read> Checked<R> {
    fn new(inner: R, crc32: u32) -> Self {
        Self { inner, hasher: Hasher::new(), crc32 }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        if read == 0 && !bytes.is_empty() && self.hasher.clone().finalize() != self.crc32 {
            return Err(io::Error::new(ErrorKind::InvalidData, "the CRC-32 of the zip archive is another"));
        }
        Ok(read)
    }
}
