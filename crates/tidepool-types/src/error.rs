//! The one error code of the wire. The code, never the text, says whether to try again.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong with a request, as every role says it to every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed; sending it again cannot help.
    InvalidRequest,
    /// Nobody is named who asks, or by a token that is not known.
    Unauthenticated,
    /// It is known who asks, and who asks may not.
    Forbidden,
    /// The named thing (table, release, model, node) does not exist.
    NotFound,
    /// This process does not serve that partition or release now; the caller's cluster map may be old.
    NotServed,
    /// This process has more work than it may take on; another one may have room.
    Overloaded,
    /// The tenant has used up what it may ask for. Another replica counts separately, but is not there to be
    /// asked in its place: the caller waits, or asks for less.
    QuotaExceeded,
    /// The deadline passed before the work was done.
    DeadlineExceeded,
    /// The peer could not be reached, or is shutting down.
    Unavailable,
    /// This controller does not lead; another does, or will soon. Nothing was done.
    NotLeader,
    /// It conflicts with what is there (a name is taken, a release is not ready).
    Conflict,
    /// Stored bytes are not what was written.
    Corrupt,
    /// A defect of ours.
    Internal,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 13] = [
        Self::InvalidRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::NotServed,
        Self::Overloaded,
        Self::QuotaExceeded,
        Self::DeadlineExceeded,
        Self::Unavailable,
        Self::NotLeader,
        Self::Conflict,
        Self::Corrupt,
        Self::Internal,
    ];

    /// Whether another replica may answer the same request.
    #[must_use]
    pub const fn retry_elsewhere(self) -> bool {
        matches!(
            self,
            Self::NotServed
                | Self::NotLeader
                | Self::Overloaded
                | Self::Unavailable
                | Self::Corrupt
                | Self::Internal
        )
    }

    /// The word for metrics labels, JSON and the `tidepool-code` header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::NotServed => "not_served",
            Self::Overloaded => "overloaded",
            Self::QuotaExceeded => "quota_exceeded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unavailable => "unavailable",
            Self::NotLeader => "not_leader",
            Self::Conflict => "conflict",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        }
    }

    /// The code whose word this is.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == word)
    }

    /// The HTTP status that goes with it.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::NotServed | Self::NotLeader => 421,
            Self::Overloaded | Self::QuotaExceeded => 429,
            Self::Corrupt | Self::Internal => 500,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
