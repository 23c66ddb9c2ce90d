//! The audit log: what was changed, by whom, from where, and what became of it. One JSON object a line.
//!
//! A change has two lines, tied by a number: what is about to be done, on the disk before it is begun, and what became
//! of it, on the disk before the answer goes out. A process that is killed in between leaves the first. Calls that are
//! refused change nothing: they are counted, and summed up once a second.
//!
//! **Invariant:** nothing is changed before its line is on the disk, and no line of a change is given up; whoever is
//! refused costs no write of his own.

mod file;
mod refusals;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use self::{
    file::AuditFile,
    refusals::Refusals,
    writer::{Job, Writer},
};
use crate::{
    auth::{Caller, KnownBy, Refused},
    utc,
};

/// Changes that may be under way, or whose outcome is still to be written.
const MAX_UNDER_WAY: usize = 256;
/// Each change has one line in the queue at most; the rest is for those who close the log.
const QUEUE_LEN: usize = 2 * MAX_UNDER_WAY;

/// Where the audit log is, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditOptions {
    /// The file that is written now.
    pub path: PathBuf,
    /// A file that would grow beyond this is put aside.
    pub max_bytes: u64,
    /// How many files are kept beside the one that is written.
    pub keep: u32,
}

/// A line is not in the audit log.
#[derive(Clone, Debug, Error)]
pub enum AuditError {
    /// The file could not be opened, written or put aside.
    #[error("could not {did} the audit log {path}", path = path.display())]
    File {
        /// "open", "write" or "rotate".
        did: &'static str,
        /// The file.
        path: PathBuf,
        /// Why. Many lines may share it.
        source: Arc<io::Error>,
    },
    /// More changes at once than are written down.
    #[error("{MAX_UNDER_WAY} changes wait for the audit log already")]
    Busy,
    /// Nobody writes any more.
    #[error("the audit log is closed")]
    Closed,
}

/// A change that somebody asks for.
#[derive(Clone, Debug)]
pub struct Change {
    /// Who asks for it.
    pub caller: Caller,
    /// What it is called: `promote_release`.
    pub action: String,
    /// What it is about; nothing secret.
    pub what: Value,
    /// The epoch of the cluster map before it.
    pub epoch: u64,
}

/// What became of a change.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// `ok`, or the code of the error.
    pub word: &'a str,
    /// What the error said, or why it was done.
    pub problem: Option<&'a str>,
    /// The epoch of the cluster map after it.
    pub epoch: u64,
}

/// A line.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<&'a str>,
    who: &'a str,
    known_by: KnownBy,
    from: Option<String>,
    action: &'a str,
    what: &'a Value,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
}

/// What stands for an outcome while there is none.
const BEGUN: &str = "begun";

/// Where changes are written down: a file, if one is wanted, and the log of the process under the target `audit`.
/// Clones share it.
#[derive(Clone, Debug)]
pub struct AuditLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    jobs: SyncSender<Job>,
    /// Whether there is a file.
    to_file: bool,
    refusals: Arc<Refusals>,
    under_way: Arc<Semaphore>,
    /// What the numbers of this process begin with.
    begun: i64,
    last: AtomicU64,
}

/// A change whose first line is on the disk.
#[derive(Debug)]
#[must_use = "what became of it is written down with `end`"]
pub struct Begun {
    log: AuditLog,
    change: Change,
    number: String,
    place: OwnedSemaphorePermit,
}

impl AuditLog {
    /// Opens the file, to write on at its end, and starts the thread that writes; without `options` there is no file.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(options: Option<AuditOptions>) -> Result<Self, AuditError> {
        let file = options.map(AuditFile::open).transpose()?;
        let (to_file, refusals) = (file.is_some(), Arc::new(Refusals::default()));
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let path = file.as_ref().map_or_else(PathBuf::new, |file| file.path().to_owned());
        let writer = Writer::new(queue, file, refusals.clone());
        let started = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run());
        started.map_err(|source| AuditError::File { did: "open", path, source: Arc::new(source) })?;
        let under_way = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        let (begun, last) = (utc::now(), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { jobs, to_file, refusals, under_way, begun, last })))
    }

    /// Writes down that a change is about to be made. When this fails it must not be made.
    ///
    /// # Errors
    /// [`AuditError`]: nothing is on the disk.
    pub async fn begin(&self, change: Change) -> Result<Begun, AuditError> {
        let place = self.0.under_way.clone().try_acquire_owned().map_err(|error| match error {
            TryAcquireError::NoPermits => AuditError::Busy,
            TryAcquireError::Closed => AuditError::Closed,
        })?;
        let number = self.number();
        let begun = Outcome { word: BEGUN, problem: None, epoch: change.epoch };
        self.write(&change, &number, begun, None).await?;
        Ok(Begun { log: self.clone(), change, number, place })
    }

    /// Writes down what this process has done by itself.
    ///
    /// # Errors
    /// [`AuditError`]: the line is still to be written, as soon as that is possible.
    pub async fn note(&self, change: Change, outcome: Outcome<'_>) -> Result<(), AuditError> {
        let place = self.0.under_way.clone().acquire_owned().await.map_err(|_| AuditError::Closed)?;
        let number = self.number();
        self.write(&change, &number, outcome, Some(place)).await
    }

    /// Counts a call that was refused. It never waits.
    pub fn refused(&self, refused: &Refused) {
        self.0.refusals.count(refused);
    }

    /// Waits until all that was given to the log is written down.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.0.jobs.try_send(Job::Flush(done)).is_ok() {
            // Without an answer the thread has ended, and so has its work.
            let _ = closed.await;
        }
    }

    fn number(&self) -> String {
        format!("{:x}-{}", self.0.begun, self.0.last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Writes one line, which is kept until it is written when it has a `place` of its own.
    async fn write(
        &self,
        change: &Change,
        number: &str,
        outcome: Outcome<'_>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<(), AuditError> {
        let Change { caller, action, what, .. } = change;
        let Outcome { word, problem, epoch } = outcome;
        tracing::info!(
            target: "audit", change = number, who = %caller.name, from = ?caller.from, action, %what, outcome = word,
            problem, epoch, "change"
        );
        if !self.0.to_file {
            return Ok(());
        }
        let line = Line {
            time: utc::format(utc::now()),
            change: Some(number),
            who: &caller.name,
            known_by: caller.by,
            from: caller.from.map(|from| from.to_string()),
            action,
            what,
            outcome: word,
            problem,
            epoch: Some(epoch),
        };
        let (done, written) = oneshot::channel();
        let job = Job::Line { bytes: bytes(&line), place, done };
        self.0.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => AuditError::Busy,
            TrySendError::Disconnected(_) => AuditError::Closed,
        })?;
        written.await.unwrap_or(Err(AuditError::Closed))
    }
}

impl Begun {
    /// Writes down what became of the change.
    ///
    /// # Errors
    /// [`AuditError`]: the line is not on the disk yet; it is written as soon as that is possible, and until then no
    /// other change is begun.
    pub async fn end(self, outcome: Outcome<'_>) -> Result<(), AuditError> {
        self.log.write(&self.change, &self.number, outcome, Some(self.place)).await
    }
}

fn bytes(line: &Line<'_>) -> Vec<u8> {
    // Strings, numbers and what was JSON already: nothing of it can fail.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
