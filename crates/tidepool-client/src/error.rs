//! What can go wrong with a lookup, and which node, table and partition it happened to.

use std::{path::PathBuf, time::Duration};

use thiserror::Error;
use tidepool_types::{Epoch, ErrorCode, NodeId, PartitionIndex, TableVersion};

use crate::answer::BadAnswer;

/// Why a client gives no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The configuration cannot work; every problem at once.
    #[error("client configuration: {}", .0.join("; "))]
    Config(Vec<String>),
    /// No controller has been reached yet, and no saved map was there.
    #[error("no cluster map has been received yet")]
    NoMap,
    /// The map that was waited for did not come.
    #[error("the cluster map is still at epoch {epoch} after {} ms", waited.as_millis())]
    MapTimeout {
        /// The epoch there is.
        epoch: Epoch,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The saved map cannot be used.
    #[error("saved cluster map {}", path.display())]
    MapFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The request is malformed.
    #[error("feature {feature} ({table}): {problem}")]
    Invalid {
        /// Which feature of the request, from 0.
        feature: usize,
        /// Its table.
        table: TableVersion,
        /// What is wrong with it.
        problem: String,
    },
    /// The cluster serves no such table version.
    #[error("table {table} is not served (cluster map epoch {epoch})")]
    UnknownTable {
        /// What was asked for.
        table: TableVersion,
        /// The map it was looked for in.
        epoch: Epoch,
    },
    /// Every node that holds a partition was asked, and none answered.
    #[error("partition {partition} of {table}: no node is left to ask, {tried} tried")]
    Unavailable {
        /// The table.
        table: TableVersion,
        /// The partition.
        partition: PartitionIndex,
        /// How many nodes were tried for it.
        tried: usize,
        /// What the last of them said; None when the map places the partition nowhere.
        #[source]
        last: Option<Box<NodeError>>,
    },
    /// A node refused the request for a reason that another node would have too.
    #[error("the lookup was refused")]
    Refused(#[source] Box<NodeError>),
    /// A node failed to answer, and so many calls have failed lately that no more are asked again.
    #[error("the retry budget is spent")]
    RetriesSpent(#[source] Box<NodeError>),
    /// The time is up.
    #[error("no answer within {} ms{}", timeout.as_millis(), waiting(node.as_ref()))]
    DeadlineExceeded {
        /// The time there was.
        timeout: Duration,
        /// The node that was waited for last.
        node: Option<NodeId>,
    },
}

fn waiting(node: Option<&NodeId>) -> String {
    node.map_or_else(String::new, |node| format!(", last waiting for node {node}"))
}

impl ClientError {
    /// The code for callers further up.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Config(_) | Self::Invalid { .. } => ErrorCode::InvalidRequest,
            Self::NoMap | Self::MapTimeout { .. } | Self::Unavailable { last: None, .. } => {
                ErrorCode::Unavailable
            }
            Self::MapFile { .. } => ErrorCode::Corrupt,
            Self::UnknownTable { .. } => ErrorCode::NotFound,
            Self::Unavailable { last: Some(error), .. }
            | Self::Refused(error)
            | Self::RetriesSpent(error) => error.code(),
            Self::DeadlineExceeded { .. } => ErrorCode::DeadlineExceeded,
        }
    }

    /// The epoch that the last node asked knew, when it said that it does not serve what was asked.
    pub(crate) fn not_served_epoch(&self) -> Option<Epoch> {
        match self {
            Self::Unavailable { last: Some(error), .. } => match error.failure {
                NodeFailure::Status { code: ErrorCode::NotServed, epoch, .. } => epoch,
                _ => None,
            },
            _ => None,
        }
    }
}

/// One node failed to answer.
#[derive(Debug, Error)]
#[error("node {node} at {address}")]
pub struct NodeError {
    /// The node.
    pub node: NodeId,
    /// Where it was asked.
    pub address: String,
    /// What happened.
    #[source]
    pub failure: NodeFailure,
}

/// How a node failed to answer.
#[derive(Debug, Error)]
pub enum NodeFailure {
    /// It, or the transport to it, answered with an error.
    #[error("{code}: {message}")]
    Status {
        /// The error's code.
        code: ErrorCode,
        /// The text that came with it.
        message: String,
        /// The epoch that the node knows, with `not_served`.
        epoch: Option<Epoch>,
    },
    /// It took longer than its share of the budget.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// Its answer contradicts itself or the question.
    #[error("bad answer")]
    BadAnswer(#[from] BadAnswer),
    /// The map's address for it is none.
    #[error("address: {0}")]
    Address(String),
    /// It was not asked: the question is longer than this client may send.
    #[error(
        "a message of {bytes} bytes is longer than max_message_bytes of the client, {limit}: ask for fewer ids"
    )]
    TooLong {
        /// The message.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
}

impl NodeError {
    /// The code that says whether to ask elsewhere.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.failure.code()
    }
}

impl NodeFailure {
    /// The code that says whether to ask elsewhere.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Status { code, .. } => *code,
            Self::TimedOut(_) | Self::Address(_) => ErrorCode::Unavailable,
            Self::BadAnswer(_) => ErrorCode::Internal,
            Self::TooLong { .. } => ErrorCode::InvalidRequest,
        }
    }
}
