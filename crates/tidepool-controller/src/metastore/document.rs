//! A document as it is written down: in the file of the embedded metastore, in etcd, and in backups.
//!
//! ```text
//! tidepool-metastore 1 revision=7 bytes=1234 crc32c=0a1b2c3d\n
//! <the document, 1234 bytes>
//! ```
//! The checksum covers the revision (8 bytes, little-endian) and the document.

use crate::metastore::MetastoreError;

const MAGIC: &str = "tidepool-metastore 1";

/// A document, and which writing of it this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// From 1, growing with each writing.
    pub revision: u64,
    /// What was written.
    pub document: Vec<u8>,
}

/// The document with its header.
#[must_use]
pub fn encode(revision: u64, document: &[u8]) -> Vec<u8> {
    [header(revision, document).as_bytes(), document].concat()
}

/// The document in `bytes`, which were read from `place`.
///
/// # Errors
/// [`MetastoreError::Corrupt`] when they are not what [`encode`] made.
pub fn decode(place: &str, bytes: &[u8]) -> Result<Versioned, MetastoreError> {
    let corrupt =
        |problem: &str| MetastoreError::Corrupt { place: place.to_owned(), problem: problem.to_owned() };
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| corrupt("it has no header"))?;
    let (line, document) = (&bytes[..end], &bytes[end + 1..]);
    let line = std::str::from_utf8(line).map_err(|_| corrupt("its header is not text"))?;
    let fields = line.strip_prefix(MAGIC).ok_or_else(|| corrupt("its header is not ours"))?;
    let revision = fields
        .split(' ')
        .find_map(|field| field.strip_prefix("revision="))
        .and_then(|text| text.parse::<u64>().ok())
        .ok_or_else(|| corrupt("its header has no revision"))?;
    // The header is made again and must be the same: so length, checksum and their spelling are checked at once.
    if header(revision, document).as_bytes() != &bytes[..=end] {
        return Err(corrupt("its length or checksum is not what its header says"));
    }
    Ok(Versioned { revision, document: document.to_vec() })
}

fn header(revision: u64, document: &[u8]) -> String {
    let (bytes, checksum) = (document.len(), checksum(revision, document));
    format!("{MAGIC} revision={revision} bytes={bytes} crc32c={checksum:08x}\n")
}

fn checksum(revision: u64, document: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&revision.to_le_bytes()), document)
}
