//! Samples are read line by line: what a killed process left behind is told from what somebody wrote wrong.

use std::{collections::BTreeMap, io::BufRead};

use serde::Deserialize;

use super::{AUDIT_KEY, AUDIT_START, CHECKSUM_KEY, MAX_LINE_BYTES, Online, Sample, SampleError};
use crate::json::JsonRequest;

/// A line.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A request.
    Sample(Box<Sample>),
    /// A line of a ranker whose checksum is not that of its bytes: its process was killed while it wrote, its disk was
    /// full, or its machine lost power and the file system left NULs. Or one that is too long to be read.
    Damaged {
        /// Counted from 1.
        line: u64,
    },
}

/// Reads samples, one at a time. What it holds does not grow with their number.
#[derive(Debug)]
pub struct SampleReader<R> {
    input: R,
    line: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSample {
    #[serde(default)]
    audit: Option<u32>,
    request: JsonRequest,
    #[serde(default)]
    labels: BTreeMap<String, Vec<Option<RawLabel>>>,
    #[serde(default)]
    online: Option<Online>,
    #[serde(default)]
    crc32c: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum RawLabel {
    Truth(bool),
    Number(f64),
}

impl<R: BufRead> SampleReader<R> {
    /// Reads from the first line on.
    pub const fn new(input: R) -> Self {
        Self { input, line: 0, bytes: 0, buffer: Vec::new() }
    }

    /// Bytes that were read.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next sample; None: there are no more. Empty lines are passed over.
    ///
    /// # Errors
    /// [`SampleError`] names the line.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, SampleError> {
        loop {
            let read = self.next_line()?;
            let line = self.line;
            match read {
                NextLine::None => return Ok(None),
                NextLine::TooLong => return Ok(Some(Entry::Damaged { line })),
                NextLine::Whole => {}
            }
            let text = self.buffer.trim_ascii_end();
            if text.is_empty() {
                continue;
            }
            if of_ranker(text) && !is_whole(text) {
                return Ok(Some(Entry::Damaged { line }));
            }
            return sample(line, text).map(|sample| Some(Entry::Sample(Box::new(sample))));
        }
    }

    /// Reads a line, without its end, into the buffer. A longer one of a ranker is passed over, so that what comes after it
    /// can be read; one of somebody else is refused, for it may have no end.
    fn next_line(&mut self) -> Result<NextLine, SampleError> {
        self.line += 1;
        self.buffer.clear();
        let line = self.line;
        let mut read = NextLine::None;
        loop {
            let piece = self.input.fill_buf().map_err(|source| SampleError::Io { line, source })?;
            if piece.is_empty() {
                return Ok(read);
            }
            if read == NextLine::None {
                read = NextLine::Whole;
            }
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(piece.len());
            let fits = taken.min(MAX_LINE_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(&piece[..fits]);
            if fits < taken {
                if !of_ranker(&self.buffer) {
                    return Err(SampleError::TooLong { line });
                }
                read = NextLine::TooLong;
            }
            let used = end.map_or(taken, |end| end + 1);
            self.input.consume(used);
            self.bytes += used as u64;
            if end.is_some() {
                return Ok(read);
            }
        }
    }
}

/// What became of the reading of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextLine {
    /// There was none.
    None,
    /// It is in the buffer.
    Whole,
    /// It was passed over.
    TooLong,
}

/// Whether a ranker began to write this line: nobody else writes such a key, and NULs are what a file system may leave of a
/// block that was not on the disk yet when the power failed.
fn of_ranker(text: &[u8]) -> bool {
    text.starts_with(AUDIT_KEY) || AUDIT_START.starts_with(text) || text.starts_with(b"\0")
}

/// Whether a line of a ranker ends in the checksum of what stands before it.
fn is_whole(text: &[u8]) -> bool {
    const DIGITS: usize = 8;
    let end = CHECKSUM_KEY.len() + DIGITS + 2;
    let Some((content, end)) = text.len().checked_sub(end).and_then(|at| text.split_at_checked(at)) else {
        return false;
    };
    let digits = end.strip_prefix(CHECKSUM_KEY).and_then(|end| end.strip_suffix(br#""}"#));
    let told = digits.and_then(|digits| str::from_utf8(digits).ok());
    told.and_then(|told| u32::from_str_radix(told, 16).ok()) == Some(crc32c::crc32c(content))
}

fn sample(line: u64, text: &[u8]) -> Result<Sample, SampleError> {
    let raw: RawSample =
        serde_json::from_slice(text).map_err(|source| SampleError::Syntax { line, source })?;
    let fail = |problem: String| Err(SampleError::Content { line, problem });
    match raw.audit {
        None if raw.crc32c.is_some() => return fail("crc32c is for lines that a ranker wrote".into()),
        None | Some(1) => {}
        Some(version) => return fail(format!("audit format {version}, this build knows 1")),
    }
    let mut labels = BTreeMap::new();
    for (output, raw) in raw.labels {
        let mut of_output = Vec::with_capacity(raw.len());
        for (candidate, label) in raw.into_iter().enumerate() {
            of_output.push(match label {
                None => None,
                Some(RawLabel::Truth(label)) => Some(label),
                Some(RawLabel::Number(0.0)) => Some(false),
                Some(RawLabel::Number(1.0)) => Some(true),
                Some(RawLabel::Number(other)) => {
                    return fail(format!("label {output:?} of candidate {candidate} is {other}, not 0 or 1"));
                }
            });
        }
        labels.insert(output, of_output);
    }
    Ok(Sample { line, request: raw.request, labels, online: raw.online })
}
