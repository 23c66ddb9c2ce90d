//! Reading a trace to its end, or to where it was cut off.

use std::io::{ErrorKind, Read};

use super::{TraceDecoder, TraceEnd, TraceEntry, TraceError, TraceStart, TracedLookup};

/// How many bytes are read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Reads the lookups of a trace, in the order in which they were written.
#[derive(Debug)]
pub struct TraceReader<R> {
    input: R,
    decoder: TraceDecoder,
    chunk: Vec<u8>,
    start: TraceStart,
    ending: Option<Ending>,
}

/// How a trace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As it should.
    Whole(TraceEnd),
    /// In the middle: recording did not come to its end.
    Cut {
        /// Bytes that were read: the whole records.
        read_bytes: u64,
        /// Bytes after those, of a record that is not whole.
        lost_bytes: u64,
    },
}

impl<R: Read> TraceReader<R> {
    /// Reads how the trace begins.
    ///
    /// # Errors
    /// [`TraceError`], [`TraceError::CutAtStart`] when that is not there.
    pub fn new(input: R) -> Result<Self, TraceError> {
        let nobody = TraceStart { began: std::time::UNIX_EPOCH, every: 1, source: String::new() };
        let (decoder, chunk) = (TraceDecoder::new(), vec![0; CHUNK_BYTES]);
        let mut reader = Self { input, decoder, chunk, start: nobody, ending: None };
        match reader.next_entry()? {
            Some(TraceEntry::Start(start)) => reader.start = start,
            _ => {
                let bytes = reader.decoder.read_bytes() + reader.decoder.pending_bytes() as u64;
                return Err(TraceError::CutAtStart { bytes });
            }
        }
        Ok(reader)
    }

    /// How the trace begins.
    #[must_use]
    pub const fn start(&self) -> &TraceStart {
        &self.start
    }

    /// The next lookup; None: there are no more, and [`ending`](Self::ending) says why.
    ///
    /// # Errors
    /// [`TraceError`] says where bytes are not what was written.
    pub fn next_lookup(&mut self) -> Result<Option<TracedLookup>, TraceError> {
        if matches!(self.ending, Some(Ending::Cut { .. })) {
            return Ok(None);
        }
        loop {
            match self.next_entry()? {
                Some(TraceEntry::Lookup(lookup)) => return Ok(Some(lookup)),
                // Read on: whether anything comes after the end is part of whether it is whole.
                Some(TraceEntry::End(end)) => self.ending = Some(Ending::Whole(end)),
                Some(TraceEntry::Start(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// How the trace ended; None before its last lookup has been read.
    #[must_use]
    pub const fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// The next record; None at the end of the input.
    fn next_entry(&mut self) -> Result<Option<TraceEntry>, TraceError> {
        loop {
            if let Some(entry) = self.decoder.next_entry()? {
                return Ok(Some(entry));
            }
            let count = match self.input.read(&mut self.chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                count => count?,
            };
            if count == 0 {
                let lost_bytes = self.decoder.pending_bytes() as u64;
                if self.ending.is_none() {
                    self.ending = Some(Ending::Cut { read_bytes: self.decoder.read_bytes(), lost_bytes });
                }
                return Ok(None);
            }
            self.decoder.push(&self.chunk[..count]);
        }
    }
}
