//! What can go wrong: with one request, and with the controller itself.

use std::time::Duration;

use thiserror::Error;
use tidepool_cluster::StepError;
use tidepool_proto::{WireError, not_leader, status_of};
use tidepool_runtime::{audit::AuditError, error::chain, net::NetError, security::SecurityError};
use tidepool_store::StoreError;
use tidepool_types::ErrorCode;
use tonic::Status;

use crate::metastore::MetastoreError;

/// Why a request or a report was not accepted.
#[derive(Debug, Error)]
pub(crate) enum RequestError {
    #[error("the message is malformed")]
    Wire(#[from] WireError),
    #[error("a session is one process: it began as {first:?} and now reports {now:?}")]
    OtherName { first: String, now: String },
    #[error("there is no {what} in the cluster")]
    NotFound { what: String },
    #[error("a node or a group is named, one of the two")]
    NodeOrGroup,
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the new state could not be written down; look at what there is before it is asked for again")]
    Metastore(#[from] MetastoreError),
    #[error("this controller does not lead{}", who(leader.as_deref(), problem))]
    NotLeader {
        /// `host:port` of the one that does, if it is known.
        leader: Option<String>,
        /// Why it is not known; empty when nobody leads for a moment.
        problem: String,
    },
    #[error(
        "nodes still have {left:?} to come back ({nodes} have come): the state would be made anew without those that \
         have not; wait, or say --force"
    )]
    TooEarly { left: Duration, nodes: usize },
    #[error("{nodes} nodes have come, and {expected} are expected")]
    TooFew { nodes: usize, expected: u32 },
    #[error("{waiting} events are waiting already")]
    Overloaded { waiting: usize },
    #[error("the controller is shutting down")]
    ShuttingDown,
    #[error("{0}")]
    Lost(String),
    #[error("the request failed inside the controller: {0}")]
    Internal(String),
}

/// The end of a sentence that says who leads.
fn who(leader: Option<&str>, problem: &str) -> String {
    match leader {
        Some(leader) => format!(": {leader} does"),
        None if problem.is_empty() => ", and no other does yet: ask again in a moment".to_owned(),
        None => format!(", and it is not known who does: {problem}"),
    }
}

impl RequestError {
    /// This controller has led until now.
    pub(crate) const fn deposed() -> Self {
        Self::NotLeader { leader: None, problem: String::new() }
    }

    /// The code that the caller acts on.
    pub(crate) const fn code(&self) -> ErrorCode {
        match self {
            Self::Wire(_) | Self::OtherName { .. } | Self::NodeOrGroup => ErrorCode::InvalidRequest,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::TooEarly { .. } | Self::TooFew { .. } => ErrorCode::Conflict,
            Self::Step(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Metastore(_) | Self::ShuttingDown => ErrorCode::Unavailable,
            Self::NotLeader { .. } => ErrorCode::NotLeader,
            Self::Overloaded { .. } => ErrorCode::Overloaded,
            Self::Lost(_) => ErrorCode::Forbidden,
            Self::Internal(_) => ErrorCode::Internal,
        }
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        match &error {
            RequestError::NotLeader { leader, .. } => not_leader(chain(&error), leader.as_deref()),
            _ => status_of(error.code(), chain(&error), None),
        }
    }
}

/// Why a controller could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address that cannot be listened at; the source says which, and whether it is taken.
    #[error("could not listen for {what}")]
    Listen {
        /// "control (grpc_address)" or "status and metrics (http_address)".
        what: &'static str,
        /// Why.
        source: NetError,
    },
    /// The artifact store cannot be opened.
    #[error("could not open the artifact store")]
    Store(#[from] StoreError),
    /// The durable state cannot be read, or is in use.
    #[error("could not recover the state of the cluster")]
    Metastore(#[from] MetastoreError),
    /// The file of the audit log cannot be written.
    #[error("changes could not be written down")]
    Audit(#[from] AuditError),
    /// Certificates or rules do not do; the source names the file.
    #[error("could not lock the doors")]
    Security(#[from] SecurityError),
    /// A metric could not be registered: a defect.
    #[error("could not register the metrics")]
    Metrics(#[from] prometheus::Error),
}
