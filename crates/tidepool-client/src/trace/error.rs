//! What can be wrong with a trace, and why none is recorded.

use std::{io, time::Duration};

use thiserror::Error;
use tidepool_proto::WireError;

use super::format::{MAX_RECORD_BYTES, VERSION};

/// Why a trace cannot be read or written.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file does not begin as traces do.
    #[error("this is no trace: it does not begin with TIDETRAC")]
    NotATrace,
    /// A later version of the format.
    #[error("the trace is of format version {0}, and version {VERSION} is known here")]
    Version(u32),
    /// It ends before its first lookup could begin.
    #[error("the trace has {bytes} bytes: it was cut off before it began")]
    CutAtStart {
        /// Its length.
        bytes: u64,
    },
    /// Bytes are not what was written.
    #[error("the trace is damaged at byte {offset}, in its {record}. record: {problem}")]
    Damaged {
        /// Where the record begins.
        offset: u64,
        /// Which record, from 0, its start.
        record: u64,
        /// What was noticed.
        problem: &'static str,
    },
    /// A record is whole, and says what no trace says.
    #[error("the {record}. record of the trace, at byte {offset}")]
    Record {
        /// Where the record begins.
        offset: u64,
        /// Which record, from 0, its start.
        record: u64,
        /// What is wrong with it.
        source: WireError,
    },
    /// A lookup that is too large to be recorded.
    #[error("a lookup of {bytes} bytes is not recorded: {MAX_RECORD_BYTES} at most")]
    TooLarge {
        /// Its bytes as a record.
        bytes: usize,
    },
    /// The file or stream itself.
    #[error("reading or writing the trace")]
    Io(#[from] io::Error),
}

/// Why a client is not tapped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TapError {
    /// One recording at a time.
    #[error("this client is being recorded already, for another {} s at most", left.as_secs_f64().ceil())]
    Busy {
        /// When that recording ends at the latest, from now.
        left: Duration,
    },
}
