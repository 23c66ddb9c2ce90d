//! The bytes of a trace: a header, then records that are each checked for themselves.

use std::io::Write;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tidepool_proto::{WireError, decode_bounded, v1};

use super::{TraceEnd, TraceError, TraceStart, TracedLookup};

const MAGIC: [u8; 8] = *b"TIDETRAC";
/// The one version of the format that there is.
pub(super) const VERSION: u32 = 1;
/// Magic, version, and the checksum of both.
pub(super) const HEADER_BYTES: usize = 16;
/// Length, kind, checksum of the message, and the checksum of those three.
const RECORD_HEADER_BYTES: usize = 16;

/// The largest message of a record: 8 million ids.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

const START: u32 = 1;
const LOOKUP: u32 = 2;
const END: u32 = 3;

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum TraceEntry {
    /// The first.
    Start(TraceStart),
    /// Each lookup.
    Lookup(TracedLookup),
    /// The last, unless the trace was cut off.
    End(TraceEnd),
}

/// Writes a trace, one record at a time and each in one piece; a buffer is for the caller to have.
#[derive(Debug)]
pub struct TraceWriter<W> {
    out: W,
    record: Vec<u8>,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn new(out: W, start: &TraceStart) -> Result<Self, TraceError> {
        let mut writer = Self { out, record: Vec::new() };
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let checksum = crc32c::crc32c(&header[..12]);
        header[12..].copy_from_slice(&checksum.to_le_bytes());
        writer.out.write_all(&header)?;
        writer.put(START, &v1::TraceStart::from(start))?;
        Ok(writer)
    }

    /// Adds a lookup.
    ///
    /// # Errors
    /// [`TraceError::TooLarge`], and nothing is written; [`TraceError::Io`].
    pub fn lookup(&mut self, lookup: &TracedLookup) -> Result<(), TraceError> {
        self.put(LOOKUP, &v1::TracedLookup::from(lookup))
    }

    /// Ends the trace, and gives back where it was written to.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn finish(mut self, end: &TraceEnd) -> Result<W, TraceError> {
        self.put(END, &v1::TraceEnd::from(end))?;
        Ok(self.out)
    }

    /// Where it is written to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    fn put(&mut self, kind: u32, message: &impl Message) -> Result<(), TraceError> {
        let bytes = message.encoded_len();
        let length = u32::try_from(bytes).ok().filter(|_| bytes <= MAX_RECORD_BYTES);
        let length = length.ok_or(TraceError::TooLarge { bytes })?;
        self.record.clear();
        self.record.resize(RECORD_HEADER_BYTES, 0);
        self.record.reserve(bytes);
        // A vector takes any number of bytes.
        let _ = message.encode(&mut self.record);
        let (header, message) = self.record.split_at_mut(RECORD_HEADER_BYTES);
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[8..12].copy_from_slice(&crc32c::crc32c(message).to_le_bytes());
        let checksum = crc32c::crc32c(&header[..12]);
        header[12..].copy_from_slice(&checksum.to_le_bytes());
        Ok(self.out.write_all(&self.record)?)
    }
}

/// Reads a trace from bytes as they come, wherever they are cut.
#[derive(Debug, Default)]
pub struct TraceDecoder {
    buffer: BytesMut,
    /// Bytes of the trace before the buffer.
    offset: u64,
    /// Records before the buffer.
    record: u64,
    header_was_read: bool,
    ended: bool,
}

impl TraceDecoder {
    /// A decoder at the begin of a trace.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what comes next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that have been added and make no whole record yet.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// How many bytes of the trace are read: those of the header and of whole records.
    #[must_use]
    pub const fn read_bytes(&self) -> u64 {
        self.offset
    }

    /// The next record; None: it is not whole yet.
    ///
    /// # Errors
    /// What [`TraceError`] says of bytes that are no trace; there is nothing to be read after that.
    pub fn next_entry(&mut self) -> Result<Option<TraceEntry>, TraceError> {
        if !self.header_was_read && !self.read_header()? {
            return Ok(None);
        }
        let damaged = |problem| TraceError::Damaged { offset: self.offset, record: self.record, problem };
        if self.ended && !self.buffer.is_empty() {
            return Err(damaged("something comes after the end"));
        }
        let Some(header) = self.buffer.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
        let [length, kind, checksum, of_header] = words(header);
        if crc32c::crc32c(&header[..12]) != of_header {
            return Err(damaged("the checksum of its header is wrong"));
        }
        let length = length as usize;
        if length > MAX_RECORD_BYTES {
            return Err(damaged("it is longer than any record"));
        }
        if self.buffer.len() < RECORD_HEADER_BYTES + length {
            return Ok(None);
        }
        let message = &self.buffer[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + length];
        if crc32c::crc32c(message) != checksum {
            return Err(damaged("its checksum is wrong"));
        }
        if (kind == START) != (self.record == 0) {
            return Err(damaged("a trace begins with one start"));
        }
        let (offset, record) = (self.offset, self.record);
        let message = self.buffer.split_to(RECORD_HEADER_BYTES + length).freeze();
        let entry = entry(kind, message.slice(RECORD_HEADER_BYTES..));
        let entry = entry.map_err(|source| TraceError::Record { offset, record, source })?;
        self.offset += (RECORD_HEADER_BYTES + length) as u64;
        self.record += 1;
        self.ended = kind == END;
        Ok(Some(entry))
    }

    fn read_header(&mut self) -> Result<bool, TraceError> {
        let known = self.buffer.len().min(MAGIC.len());
        if self.buffer[..known] != MAGIC[..known] {
            return Err(TraceError::NotATrace);
        }
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(false) };
        let [_, _, version, checksum] = words(header);
        if crc32c::crc32c(&header[..12]) != checksum {
            let problem = "the checksum of the file's header is wrong";
            return Err(TraceError::Damaged { offset: 0, record: 0, problem });
        }
        if version != VERSION {
            return Err(TraceError::Version(version));
        }
        self.buffer.advance(HEADER_BYTES);
        self.offset = HEADER_BYTES as u64;
        self.header_was_read = true;
        Ok(true)
    }
}

fn entry(kind: u32, message: Bytes) -> Result<TraceEntry, WireError> {
    Ok(match kind {
        START => TraceEntry::Start(decode_bounded::<v1::TraceStart>(message)?.try_into()?),
        LOOKUP => TraceEntry::Lookup(decode_bounded::<v1::TracedLookup>(message)?.try_into()?),
        END => TraceEntry::End(decode_bounded::<v1::TraceEnd>(message)?.into()),
        other => return Err(WireError::Value { field: "kind", value: other.into() }),
    })
}

fn words(header: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d] = [0, 4, 8, 12].map(|at| [header[at], header[at + 1], header[at + 2], header[at + 3]]);
    [a, b, c, d].map(u32::from_le_bytes)
}
