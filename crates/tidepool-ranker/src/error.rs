//! What can go wrong: with one ranking, with loading a release, and with starting a ranker.

use std::{path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;
use tidepool_client::ClientError;
use tidepool_dense::{CudaError, DenseError, rows::RowsError};
use tidepool_runtime::{
    audit::AuditError,
    net::NetError,
    pool::{PoolError, SpawnError},
    security::SecurityError,
};
use tidepool_store::StoreError;
use tidepool_types::{Epoch, ErrorCode, Name, TableVersion};

/// Why a ranking was not answered.
#[derive(Debug, Error)]
pub enum RankError {
    /// The request is malformed, or not what the model takes.
    #[error("{0}")]
    Invalid(String),
    /// The caller may ask in the names of other tenants only.
    #[error("{caller} may not ask in the name of tenant {tenant:?}")]
    OtherTenant {
        /// Who asks.
        caller: String,
        /// In whose name; at most 64 characters of it.
        tenant: String,
    },
    /// No cluster map has been seen, so nothing is known to be served.
    #[error("the ranker has no cluster map yet")]
    NoMap,
    /// The request names no release, and the model is unknown or none of its releases is current.
    #[error("model {model:?} has no current release (cluster map epoch {epoch})")]
    NoCurrent {
        /// As asked for.
        model: String,
        /// The map it was looked for in.
        epoch: Epoch,
    },
    /// The cluster has no such release.
    #[error("there is no release {release:?} of model {model:?} (cluster map epoch {epoch})")]
    UnknownRelease {
        /// As asked for.
        model: String,
        /// As asked for.
        release: String,
        /// The map it was looked for in.
        epoch: Epoch,
    },
    /// The cluster has the release, this ranker has not loaded it.
    #[error("release {release} of model {model} is not loaded here (epoch {epoch}): {problem}")]
    NotLoaded {
        /// The model.
        model: Name,
        /// The release.
        release: Name,
        /// The map that lists it.
        epoch: Epoch,
        /// "still loading", or what went wrong.
        problem: String,
    },
    /// A rollback that has nowhere to go.
    #[error("model {model} cannot be rolled back here: {problem}")]
    NothingBefore {
        /// The model.
        model: Name,
        /// Why not.
        problem: String,
    },
    /// What cannot be written down is not done.
    #[error("nothing was changed, for it could not be written down")]
    NotWrittenDown(#[source] AuditError),
    /// The cluster map lists nothing of the model.
    #[error("the cluster has no release of model {0:?}: `tidepool release publish` brings one")]
    UnknownModel(String),
    /// A release is not let go by one ranker.
    #[error(
        "releases of model {0} come and go in the whole cluster: `tidepool release retire {0} RELEASE` lets one go \
         everywhere, a ranker alone unloads none"
    )]
    NotUnloaded(Name),
    /// The ranker ends, and what was asked of it has no end any more.
    #[error("the ranker is ending")]
    Ending,
    /// An undo where nothing was rolled back.
    #[error("model {0} is not rolled back here: nothing is to be undone")]
    NotRolledBack(Name),
    /// No model is asked for by that name of a scenario.
    #[error("there is no scenario {scenario:?}, there {}", scenarios(.known))]
    UnknownScenario {
        /// As asked for; at most 64 characters of it.
        scenario: String,
        /// Those that the ranker's configuration has.
        known: Vec<String>,
    },
    /// More of the model waits than may.
    #[error(
        "model {model} is busy: {waiting_requests} requests with {waiting_rows} rows and {waiting_bytes} bytes are \
         waiting, {own_requests} with {own_rows} rows of this tenant; one alone may have {max_waiting_requests} with \
         {max_waiting_rows} and {max_waiting_bytes}, and less the more others wait"
    )]
    Busy {
        /// The model.
        model: Name,
        /// Rows that wait.
        waiting_rows: u64,
        /// Bytes of what waits.
        waiting_bytes: u64,
        /// Requests that wait.
        waiting_requests: usize,
        /// Rows of those that are the tenant's.
        own_rows: u64,
        /// Requests of those that are the tenant's.
        own_requests: usize,
        /// Rows that may wait.
        max_waiting_rows: u64,
        /// Bytes that may wait.
        max_waiting_bytes: u64,
        /// Requests that may wait.
        max_waiting_requests: usize,
    },
    /// The vectors could not be had. Requests that shared the lookup share the reason.
    #[error("looking up the features")]
    Lookup(#[source] Arc<ClientError>),
    /// The model failed.
    #[error("running the model")]
    Dense(#[from] DenseError),
    /// The score, or an output that was asked for, is NaN or infinite.
    #[error("output {output:?} of release {release} of model {model} is {value} for candidate {candidate}")]
    NotFinite {
        /// The model.
        model: Name,
        /// The release.
        release: Name,
        /// The output, or "utility".
        output: String,
        /// Position in the request.
        candidate: usize,
        /// What came out.
        value: f32,
    },
    /// The lookup's answer does not have the shape that was asked for: a defect.
    #[error("input {input:?}: the lookup gave {found} numbers, {expected} were expected")]
    Vectors {
        /// Of the model.
        input: String,
        /// Numbers that came.
        found: usize,
        /// Numbers there should be.
        expected: usize,
    },
    /// The model's answer does not have the shape that it is to have: a defect.
    #[error("output {output} of the model has {found} numbers, {expected} were expected")]
    Outputs {
        /// Which output of the contract, from 0.
        output: usize,
        /// Numbers that came.
        found: usize,
        /// Rows that were run.
        expected: usize,
    },
    /// What was selected on the device does not have the shape that it is to have: a defect.
    #[error("the selection has {found} {what}, {expected} were expected")]
    Selection {
        /// Of what.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// The request, by itself, has more ids than there is room for where the model makes vectors of them.
    #[error(
        "the request has more ids than the device has room for: {rows}; send fewer ids or candidates, or raise \
         cuda.ids_per_bag or the largest of cuda.buckets of the ranker"
    )]
    TooManyIds {
        /// Of what there is too much, and how much there may be.
        rows: RowsError,
    },
    /// The answer does not have an output as it was asked for: a defect.
    #[error("output {output:?} of the answer has {found} bytes, {expected} were expected")]
    Answer {
        /// By name.
        output: String,
        /// Bytes that came.
        found: usize,
        /// Bytes of the rows that are answered.
        expected: usize,
    },
    /// The CPU pool is full, closed, or its work panicked.
    #[error("the dense model was not run")]
    Pool(#[from] PoolError),
    /// The budget is spent.
    #[error("no answer within {} ms", .0.as_millis())]
    DeadlineExceeded(Duration),
}

impl RankError {
    /// The code for the wire.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) | Self::TooManyIds { .. } => ErrorCode::InvalidRequest,
            Self::OtherTenant { .. } => ErrorCode::Forbidden,
            Self::NotWrittenDown(AuditError::Busy) => ErrorCode::Overloaded,
            Self::NoMap | Self::NotWrittenDown(_) | Self::Pool(PoolError::Gone) | Self::Ending => {
                ErrorCode::Unavailable
            }
            Self::NoCurrent { .. }
            | Self::UnknownRelease { .. }
            | Self::UnknownModel(_)
            | Self::UnknownScenario { .. } => ErrorCode::NotFound,
            Self::NotLoaded { .. } => ErrorCode::NotServed,
            Self::NothingBefore { .. } | Self::NotRolledBack(_) | Self::NotUnloaded(_) => ErrorCode::Conflict,
            // What this ranker asked of its own accord: the caller's request is not to blame.
            Self::Lookup(error) => match error.code() {
                ErrorCode::InvalidRequest => ErrorCode::Internal,
                ErrorCode::NotFound => ErrorCode::NotServed,
                code => code,
            },
            Self::Pool(PoolError::Full { .. }) | Self::Busy { .. } => ErrorCode::Overloaded,
            Self::DeadlineExceeded(_) => ErrorCode::DeadlineExceeded,
            // Another ranker may have a device that does; this one is not ready any more.
            Self::Dense(DenseError::Device(error)) if error.is_lost() => ErrorCode::Unavailable,
            Self::Dense(DenseError::Device(CudaError::Busy { .. } | CudaError::Late { .. })) => {
                ErrorCode::Overloaded
            }
            Self::Dense(_)
            | Self::NotFinite { .. }
            | Self::Vectors { .. }
            | Self::Outputs { .. }
            | Self::Selection { .. }
            | Self::Answer { .. } => ErrorCode::Internal,
            Self::Pool(PoolError::Panicked(_)) => ErrorCode::Internal,
        }
    }

    /// The epoch of the map by which something is not served.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::NotLoaded { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}

impl From<ClientError> for RankError {
    fn from(error: ClientError) -> Self {
        Self::Lookup(Arc::new(error))
    }
}

fn scenarios(known: &[String]) -> String {
    if known.is_empty() { "are none".into() } else { format!("are {}", known.join(", ")) }
}

/// Why a release could not be loaded. The ranker reports the text and goes on with what it has.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The store does not have it whole.
    #[error("reading the release")]
    Store(#[from] StoreError),
    /// The cluster map and the release do not pin the same table versions.
    #[error("release.json pins {}, the cluster map says {}", list(.stored), list(.mapped))]
    Tables {
        /// In the store.
        stored: Vec<TableVersion>,
        /// In the map.
        mapped: Vec<TableVersion>,
    },
    /// The model pools from a table that the release does not pin.
    #[error("input {input:?} pools from table {table}, which the release does not pin")]
    Unpinned {
        /// Of the model.
        input: String,
        /// Its table.
        table: Name,
    },
    /// This build makes other ids or scores than training did.
    #[error("the golden vectors are not kept: {}", .0.join("; "))]
    Golden(Vec<String>),
    /// The model does not load, or its first run failed.
    #[error("loading the model")]
    Dense(#[from] DenseError),
    /// The device cannot make the model's inputs of stored rows, or cannot rank its candidates.
    #[error(
        "the model cannot take stored rows on the device: {0}; with cuda.rows = \"host\" vectors are made here"
    )]
    Rows(String),
    /// The model may not have so much memory.
    #[error(
        "model {model} may have {limit} bytes of memory (models.{model}.max_memory_bytes): this release takes \
         {release}, those that are loaded take {loaded}, and its batches up to {batches}"
    )]
    Memory {
        /// The model.
        model: Name,
        /// Bytes of the release, and of what its dense runs work in.
        release: u64,
        /// Bytes of the other releases of the model.
        loaded: u64,
        /// Bytes of the inputs of all batches that may be under way.
        batches: u64,
        /// What the configuration grants.
        limit: u64,
    },
    /// The model's file cannot be looked at.
    #[error("how large is {path}?", path = path.display())]
    Size {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// One row of the model is more than a batch may have.
    #[error("a candidate and its user have {elements} numbers, a batch may have {limit}")]
    TooWide {
        /// Numbers of one row.
        elements: u64,
        /// Numbers of a batch.
        limit: u64,
    },
    /// The thread that loaded it ended without a result: a defect.
    #[error("loading broke down: {0}")]
    Broken(String),
}

fn list(tables: &[TableVersion]) -> String {
    let words: Vec<_> = tables.iter().map(ToString::to_string).collect();
    if words.is_empty() { "no table".into() } else { words.join(", ") }
}

/// Why a ranker did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address cannot be listened at.
    #[error("starting ranker {ranker}")]
    Net {
        /// Its name.
        ranker: Name,
        /// Names the address.
        source: NetError,
    },
    /// The GPU that was asked for cannot be had; nothing else is taken in its place.
    #[error("opening the device")]
    Device(#[from] CudaError),
    /// There are no lists of hot ids where they are said to be.
    #[error("the folder of lists of hot ids (cuda.resident.hot_ids) cannot be read: {path}", path = .path.display())]
    HotIds {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The artifact store cannot be opened.
    #[error("opening the artifact store")]
    Store(#[from] StoreError),
    /// The data directory cannot be had.
    #[error("could not make the data directory {path}", path = path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Certificates or rules do not do; the source names the file.
    #[error("locking the doors")]
    Security(#[from] SecurityError),
    /// The file of the audit log cannot be written.
    #[error("changes could not be written down")]
    Audit(#[from] AuditError),
    /// The file of the audit sample cannot be written.
    #[error("requests could not be sampled (audit_sample.path)")]
    AuditSample(#[from] crate::audit_sample::OpenError),
    /// The system gives no more threads.
    #[error("starting the CPU pool")]
    Pool(#[from] SpawnError),
    /// The cluster cannot be asked as the configuration wants it.
    #[error("starting the lookup client")]
    Client(#[from] ClientError),
    /// A metric could not be registered.
    #[error("registering metrics")]
    Metrics(#[from] prometheus::Error),
}

#[cfg(test)]
mod tests {
    use tidepool_runtime::error::chain;

    use super::*;

    #[test]
    fn causes_are_told_in_one_line() {
        let error = RankError::Pool(PoolError::Full { queue_len: 4 });
        assert_eq!(chain(&error), "the dense model was not run: the CPU pool is full: 4 jobs are waiting");
        assert_eq!(error.code(), ErrorCode::Overloaded);
    }

    #[test]
    fn a_device_that_is_lost_sends_callers_elsewhere() {
        let lost = CudaError::Lost { problem: "a kernel trapped".into() };
        assert_eq!(RankError::Dense(lost.into()).code(), ErrorCode::Unavailable);
        assert_eq!(RankError::Dense(CudaError::Busy { waiting: 3 }.into()).code(), ErrorCode::Overloaded);
        assert_eq!(RankError::Dense(CudaError::InFlight.into()).code(), ErrorCode::Internal);
    }

    #[test]
    fn a_lookup_that_this_ranker_got_wrong_is_not_the_callers_fault() {
        let error = RankError::from(ClientError::NoMap);
        assert_eq!(error.code(), ErrorCode::Unavailable);
        let error = RankError::from(ClientError::Config(vec![]));
        assert_eq!(error.code(), ErrorCode::Internal);
    }
}
