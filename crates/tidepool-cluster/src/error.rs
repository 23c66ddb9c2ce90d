//! Why an event was refused. A refused event changes nothing.

use thiserror::Error;
use tidepool_types::{ErrorCode, ManifestError, Name, NodeId, TableVersion};

use crate::{
    quota::Quotas,
    traffic::{BUCKETS, Traffic},
};

/// Why an event was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StepError {
    /// Two processes call themselves by one name.
    #[error("the name {name} is taken: {holder} has a session under it, {asked} asked for one")]
    NameTaken {
        /// The node or ranker.
        name: Name,
        /// gRPC address of the one with the session.
        holder: String,
        /// gRPC address of the one that was refused.
        asked: String,
    },
    /// A newer session of the same process has taken over.
    #[error("{name} has opened another session since")]
    Superseded {
        /// The node or ranker.
        name: Name,
    },
    /// A node that holds partitions for one group reports another.
    #[error("node {node} holds partitions for group {group}; it cannot report group {asked}")]
    GroupChanged {
        /// The node.
        node: NodeId,
        /// Where its partitions are.
        group: Name,
        /// What it reports.
        asked: Name,
    },
    /// A release manifest that contradicts itself.
    #[error("release {model}@{release}")]
    Manifest {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// How.
        source: Box<ManifestError>,
    },
    /// A schema that contradicts itself.
    #[error("table {table}")]
    Schema {
        /// Which table.
        table: TableVersion,
        /// How.
        source: Box<ManifestError>,
    },
    /// A pinned table that was not handed in, or is not the one the release was made with.
    #[error("release {model}@{release} pins table {table}, and that is not the table in the store")]
    OtherTable {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// The table it pins.
        table: TableVersion,
    },
    /// A name that stands for another content already. Contents never change under a name.
    #[error("{what} is known with another content; give the new content a name of its own")]
    AnotherContent {
        /// "release m@r1", "table user@v1".
        what: String,
    },
    /// A name that nothing has.
    #[error("there is no {what} in the cluster")]
    NotFound {
        /// "release m@r1", "table user@v1".
        what: String,
    },
    /// A release that cannot be promoted yet.
    #[error("release {model}@{release} cannot be promoted: {}", waiting_for.join("; "))]
    NotReady {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// What is missing, in words.
        waiting_for: Vec<String>,
    },
    /// Traffic for a model that has no current release beside which to give it.
    #[error("model {model} has no current release: promote one first")]
    NoCurrent {
        /// The model.
        model: Name,
    },
    /// A change that the current release is not for.
    #[error("release {model}@{release} is the current one: {instead}")]
    IsCurrent {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// What to do.
        instead: &'static str,
    },
    /// Shares of more than there is.
    #[error(
        "model {model}: {asked} buckets of {BUCKETS} are asked for, and other releases have {others}: ramp those \
         down first"
    )]
    Shares {
        /// The model.
        model: Name,
        /// Buckets of the releases that were asked for, together.
        asked: u64,
        /// Buckets of the other arms.
        others: u32,
    },
    /// A list of shares that cannot be meant.
    #[error("model {model}: {problem}")]
    ShareList {
        /// The model.
        model: Name,
        /// What is wrong with it.
        problem: String,
    },
    /// Guards that nothing could keep to, or break.
    #[error("these guards cannot be: {}", problems.join("; "))]
    Guards {
        /// Each bound that is none.
        problems: Vec<String>,
    },
    /// More arms or shadows than a model may have.
    #[error(
        "model {model} would have more than {arms} arms or {shadows} shadows: end one of them first",
        arms = Traffic::MAX_ARMS, shadows = Traffic::MAX_SHADOWS
    )]
    TooManyArms {
        /// The model.
        model: Name,
    },
    /// A release that its guards took off the traffic, and that was to become the current one.
    #[error(
        "release {model}@{release} was halted: {why}. Publish one that is repaired, or ramp this one again if the \
         guards were wrong"
    )]
    Halted {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// What its guards said.
        why: String,
    },
    /// Nothing to go back to.
    #[error("model {model} cannot be rolled back: {problem}")]
    NothingBefore {
        /// The model.
        model: Name,
        /// What is missing, and what to do instead.
        problem: String,
    },
    /// A release that requests are sent to.
    #[error(
        "release {model}@{release} has {share} of {BUCKETS} buckets, and is the shadow of {sample} requests in \
             {BUCKETS}: ramp it to 0, and its shadow too, before it is let go"
    )]
    HasTraffic {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// Its buckets.
        share: u32,
        /// Its sample as a shadow.
        sample: u32,
    },
    /// A release that somebody wants to keep.
    #[error(
        "release {model}@{release} is pinned: unpin it (`tidepool release pin --undo`) before it is let go"
    )]
    ReleasePinned {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
    },
    /// A release that answers somewhere against the map's word.
    #[error(
        "release {model}@{release} answers at {}, where the model was rolled back to it: roll back by the controller, \
         or undo it there (`tidepool release rollback --ranker HOST:PORT --undo`), before it is let go",
        rankers.join(", ")
    )]
    RolledBackTo {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// The rankers.
        rankers: Vec<String>,
    },
    /// Nodes that cannot be done without.
    #[error(
        "traffic cannot leave {}: nobody else that is up and not draining has {}. Wait until another group has it, or \
         use --force",
        nodes.join(", "), only.join("; ")
    )]
    OnlyThere {
        /// The nodes.
        nodes: Vec<String>,
        /// What only they have, in words.
        only: Vec<String>,
    },
    /// A release that is being let go, and cannot come back before it has left.
    #[error(
        "release {model}@{release} is being let go: requests that began with it end first. When `tidepool release \
         list` has it no more, it can be published again"
    )]
    Retiring {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
    },
    /// A quota that limits nothing, or everything.
    #[error("a quota limits rows per second, bytes per second or both, to at least 1")]
    NoQuota,
    /// A rule too many.
    #[error("there are quotas for {max} tenants already; a default quota goes for all others", max = Quotas::MAX_TENANTS)]
    TooManyQuotas,
    /// A table that releases need.
    #[error("table {table} is served because of {}", releases.join(", "))]
    Pinned {
        /// Which table.
        table: TableVersion,
        /// The releases that pin it.
        releases: Vec<String>,
    },
}

impl StepError {
    /// The wire code that says the same.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NameTaken { .. }
            | Self::Superseded { .. }
            | Self::GroupChanged { .. }
            | Self::AnotherContent { .. }
            | Self::NotReady { .. }
            | Self::NoCurrent { .. }
            | Self::IsCurrent { .. }
            | Self::Shares { .. }
            | Self::TooManyArms { .. }
            | Self::Halted { .. }
            | Self::NothingBefore { .. }
            | Self::HasTraffic { .. }
            | Self::Retiring { .. }
            | Self::ReleasePinned { .. }
            | Self::RolledBackTo { .. }
            | Self::OnlyThere { .. }
            | Self::TooManyQuotas
            | Self::Pinned { .. } => ErrorCode::Conflict,
            Self::Manifest { .. }
            | Self::Schema { .. }
            | Self::ShareList { .. }
            | Self::Guards { .. }
            | Self::NoQuota => ErrorCode::InvalidRequest,
            Self::OtherTable { .. } => ErrorCode::Corrupt,
            Self::NotFound { .. } => ErrorCode::NotFound,
        }
    }
}
