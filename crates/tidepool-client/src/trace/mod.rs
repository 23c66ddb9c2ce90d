//! Traces: what a client was asked, and when, to be asked again ([`Client::tap`](crate::Client::tap)).
//!
//! A trace is written as lookups come ([`TraceWriter`]) and read as far as it goes ([`TraceReader`]): what was
//! cut off, by a full disk or a process that ended, costs the last record and no more. Damaged bytes are an
//! error. The format is in docs/trace-format.md.

mod convert;
mod error;
mod format;
mod reader;
mod tap;

#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

pub use error::{TapError, TraceError};
pub use format::{MAX_RECORD_BYTES, TraceDecoder, TraceEntry, TraceWriter};
pub use reader::{Ending, TraceReader};
pub(crate) use tap::TapSlot;
pub use tap::{Tap, TapOptions};

use crate::request::FeatureLookup;

/// How a trace begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceStart {
    /// When recording began.
    pub began: SystemTime,
    /// Every how many-th lookup was to be recorded; 1: all.
    pub every: u64,
    /// Who recorded.
    pub source: String,
}

/// A lookup as the client was asked for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TracedLookup {
    /// When it arrived, since recording began; in whole microseconds once it has been written.
    pub arrival: Duration,
    /// Its number among the lookups that were to be recorded, from 0; one that is nowhere was dropped.
    pub number: u64,
    /// Who asked; None: the client's own tenant.
    pub tenant: Option<String>,
    /// What was asked. No lengths, or no weights, may stand for empty ones: that is the same question.
    pub features: Vec<FeatureLookup>,
}

/// How a trace that was not cut off ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceEnd {
    /// How long was recorded.
    pub lasted: Duration,
    /// Lookups in that time, recorded or not.
    pub lookups: u64,
    /// Lookups that were to be recorded and were not, because whoever reads the recording is too slow.
    pub dropped: u64,
}
