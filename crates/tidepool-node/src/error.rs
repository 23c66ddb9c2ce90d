//! What can go wrong: with one lookup, and with starting a node.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;
use tidepool_kernels::Isa;
use tidepool_proto::{failure_of, status_of, v1};
use tidepool_runtime::{net::NetError, pool::SpawnError, security::SecurityError};
use tidepool_store::StoreError;
use tidepool_table::{Damage, OpenError, Residency, ResidencyError};
use tidepool_types::{Epoch, ErrorCode, NameError, PartitionCount, PartitionIndex, TableVersion};
use tonic::Status;

use crate::budget::{HeldMemory, MemoryBudget};

/// Why a lookup was not answered.
#[derive(Debug, PartialEq, Error)]
pub(crate) enum LookupError {
    #[error("feature {feature} ({table}): {problem}")]
    Invalid { feature: usize, table: String, problem: Problem },
    #[error("the request has {ids} ids, a request may have {limit}")]
    TooManyIds { ids: u64, limit: u64 },
    #[error("the answer would have {bytes} bytes, an answer may have {limit}")]
    AnswerTooLarge { bytes: u64, limit: u64 },
    #[error("feature {feature} ({table}): {reason}, at epoch {epoch}")]
    NotServed { feature: usize, table: TableVersion, reason: NotServed, epoch: Epoch },
    #[error("the deadline passed before the work was begun")]
    DeadlineExceeded,
    #[error(
        "the request is work for {rows} rows (ids or members, bags and features), and this node takes on {limit} at a \
         time (admission_max_rows): ask for less in one request"
    )]
    TooMuchWork { rows: u64, limit: u64 },
    #[error("the node has {in_flight} rows to look up; {rows} more would be over its {limit}")]
    RowsInFlight { in_flight: u64, rows: u64, limit: u64 },
    #[error("the node is at its {limit} rows per second; {rows} more are too many now")]
    RowsPerSecond { rows: u64, limit: u64 },
    #[error("{0}")]
    Tenant(Problem),
    #[error("{caller} may not ask in the name of tenant {tenant:?}: its rule names others (auth.rules)")]
    OtherTenant { caller: String, tenant: String },
    #[error(
        "tenant {tenant:?} has used up its quota of {limit} {unit} per second on this node; ask again in {wait_ms} ms"
    )]
    Quota { tenant: String, limit: u64, unit: &'static str, wait_ms: u64 },
    #[error("the lookup queue is full ({queued} waiting)")]
    QueueFull { queued: usize },
    #[error(
        "{held} bytes of messages and answers are held for callers, {more} more are beyond max_held_bytes = {limit}"
    )]
    TooMuchHeld { held: i64, more: i64, limit: i64 },
    #[error("the request did not come whole within {timeout:?} (receive_timeout_ms)")]
    SentTooSlowly { timeout: Duration },
    #[error("the node is shutting down")]
    ShuttingDown,
    #[error("the lookup failed inside the node: {0}")]
    Internal(String),
}

/// What is wrong with a feature of a request. Each names the field.
#[derive(Debug, PartialEq, Error)]
pub(crate) enum Problem {
    #[error("table_version is missing")]
    NoTableVersion,
    #[error("{field}: {problem}")]
    Name { field: &'static str, problem: String },
    #[error("partitions: {0} is not a power of two from 1 to {max}", max = PartitionCount::MAX)]
    Partitions(u32),
    #[error("wire_form: {0} is neither gather (1) nor pool (2)")]
    WireForm(i32),
    #[error("{field}: {bytes} bytes are no whole count of {width}-byte numbers")]
    Packed { field: &'static str, bytes: usize, width: usize },
    #[error("{field}: goes with wire_form pool only")]
    PoolOnly { field: &'static str },
    #[error("members: number {at} is {member}, but there are {ids} ids")]
    Member { at: usize, member: u32, ids: usize },
    #[error("bag_lengths: they add up to {sum}, but there are {members} members")]
    BagLengths { sum: u64, members: usize },
    #[error("weights: there are {weights}, but {members} members")]
    WeightCount { weights: usize, members: usize },
    #[error("weights: number {at} is {value}, only finite weights can be used")]
    Weight { at: usize, value: f32 },
}

/// Why a table is not served here, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotServed {
    #[error("this node does not serve this table")]
    Table,
    #[error("this node does not serve this version of the table")]
    Version,
    #[error("this node serves it in {held} partitions, not in {asked}")]
    Layout { held: PartitionCount, asked: PartitionCount },
    #[error("this node does not hold partition {0}")]
    Partition(PartitionIndex),
}

impl Problem {
    /// The problem of a name, in few words however long the name is.
    pub(crate) fn name(field: &'static str, error: NameError) -> Self {
        let problem = match error {
            NameError::TooLong(name) => {
                format!(
                    "a name of {} bytes, {:?}..., is too long",
                    name.len(),
                    name.chars().take(40).collect::<String>()
                )
            }
            other => other.to_string(),
        };
        Self::Name { field, problem }
    }
}

impl LookupError {
    /// The code that the caller acts on.
    pub(crate) const fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid { .. }
            | Self::TooManyIds { .. }
            | Self::AnswerTooLarge { .. }
            | Self::Tenant(_)
            | Self::TooMuchWork { .. } => ErrorCode::InvalidRequest,
            Self::OtherTenant { .. } => ErrorCode::Forbidden,
            Self::NotServed { .. } => ErrorCode::NotServed,
            Self::Quota { .. } => ErrorCode::QuotaExceeded,
            Self::DeadlineExceeded | Self::SentTooSlowly { .. } => ErrorCode::DeadlineExceeded,
            Self::RowsInFlight { .. }
            | Self::RowsPerSecond { .. }
            | Self::QueueFull { .. }
            | Self::TooMuchHeld { .. } => ErrorCode::Overloaded,
            Self::ShuttingDown => ErrorCode::Unavailable,
            Self::Internal(_) => ErrorCode::Internal,
        }
    }

    /// Of a lookup that was turned away without any work: what there is too much of, as a metric's label.
    pub(crate) const fn shed_for(&self) -> Option<&'static str> {
        match self {
            Self::RowsInFlight { .. } => Some("rows"),
            Self::RowsPerSecond { .. } => Some("rate"),
            Self::QueueFull { .. } => Some("queue"),
            Self::Quota { .. } => Some("quota"),
            Self::DeadlineExceeded => Some("deadline"),
            _ => None,
        }
    }

    /// The status that travels.
    pub(crate) fn status(&self) -> Status {
        status_of(self.code(), self.to_string(), self.epoch())
    }

    /// The same for a stream, which goes on.
    pub(crate) fn failure(&self) -> v1::Failure {
        failure_of(self.code(), self.to_string(), self.epoch())
    }

    const fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::NotServed { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}

/// Why a partition is not served.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Verify(#[from] Damage),
    #[error("could not look at {path}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Manifest(#[from] StoreError),
    #[error(
        "{path} (footer crc32c {footer_crc32c:#010x}) is not the file that the manifest of {table} lists",
        path = path.display()
    )]
    NotListed { path: PathBuf, table: TableVersion, footer_crc32c: u32 },
    #[error("{path} is not what the assignment asks for: {differences}", path = path.display())]
    Other { path: PathBuf, differences: String },
    #[error(
        "{path} does not fit: it has {needed} bytes, and {taken} of {capacity} bytes are taken (capacity_bytes)",
        path = path.display()
    )]
    Capacity { path: PathBuf, needed: u64, taken: u64, capacity: u64 },
    #[error(
        "{path} does not fit on the node's disk: its copy needs {needed} bytes, and {taken} of {capacity} bytes are taken, \
         with what is being fetched (disk_capacity_bytes)",
        path = path.display()
    )]
    DiskCapacity { path: PathBuf, needed: u64, taken: u64, capacity: u64 },
    #[error(
        "{path} does not fit in memory: it needs {needed} bytes (residency {residency}), and of {bytes} bytes ({source}) \
         are taken: {held}, {coming} for others of the assignment, {beside} for a copy beside its map. What is served \
         and what comes are held at the same time: give the node more memory, its group more nodes, or retire a release",
        path = path.display(),
        bytes = budget.bytes,
        source = budget.source
    )]
    Memory {
        path: PathBuf,
        needed: u64,
        residency: Residency,
        held: HeldMemory,
        coming: u64,
        beside: u64,
        budget: MemoryBudget,
    },
    #[error(
        "{path} cannot be locked into memory: it needs {needed} bytes, {locked} are locked or will be, and this process \
         may lock {lockable} (RLIMIT_MEMLOCK): raise it (LimitMEMLOCK= in a systemd unit, ulimit -l in a shell, the \
         capability IPC_LOCK in a container), or choose another residency",
        path = path.display()
    )]
    Locks { path: PathBuf, needed: u64, locked: u64, lockable: u64 },
    #[error(
        "{object} is not what was published: {problem}; push the version again under another name, or put a good object \
         in its place",
        object = object.display()
    )]
    BadObject { object: PathBuf, problem: String },
    #[error("the partition does not lie where the key residency asks for")]
    Residency(#[from] ResidencyError),
    #[error("loading failed inside the node: {0}")]
    Internal(String),
}

/// Why a node could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address that cannot be listened at; the source says which, and whether it is taken.
    #[error("could not listen for {what}")]
    Listen {
        /// "lookups (grpc_address)" or "status and metrics (http_address)".
        what: &'static str,
        /// Why.
        source: NetError,
    },
    /// The artifact store cannot be opened.
    #[error("could not open the artifact store")]
    Store(#[from] StoreError),
    /// The node's own directory cannot be used.
    #[error("could not create the data directory {path}", path = path.display())]
    DataDir {
        /// The configured directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another node has the directory.
    #[error(
        "another node uses the data directory {path}: give each node one of its own (data_dir), or stop the other",
        path = path.display()
    )]
    DataDirTaken {
        /// The configured directory.
        path: PathBuf,
    },
    /// The instruction set that the configuration insists on is not there.
    #[error("this CPU does not have the instruction set {isa} that the key isa asks for")]
    Isa {
        /// Which.
        isa: Isa,
    },
    /// The threads for large lookups could not be started.
    #[error("could not start the threads for large lookups")]
    Pool(#[from] SpawnError),
    /// Certificates or rules do not do; the source names the file.
    #[error("could not lock the doors")]
    Security(#[from] SecurityError),
    /// A metric could not be registered: a defect.
    #[error("could not register the metrics")]
    Metrics(#[from] prometheus::Error),
}
