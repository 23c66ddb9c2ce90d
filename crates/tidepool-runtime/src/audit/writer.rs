//! The thread that writes the audit log: what waits is written together and brought to the disk once.

use std::{
    mem,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{AuditError, file::AuditFile, refusals::Refusals};
use crate::error::chain;

/// How often refusals are summed up, and lines that are owed are tried again.
const BEAT: Duration = Duration::from_secs(1);
/// Lines that are brought to the disk together.
const MAX_GROUP: usize = 512;

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Writes a line. One with a place is kept, and the place with it, until it is written.
    Line {
        bytes: Vec<u8>,
        place: Option<OwnedSemaphorePermit>,
        done: oneshot::Sender<Result<(), AuditError>>,
    },
    /// Writes all there is.
    Flush(oneshot::Sender<()>),
}

pub(super) struct Writer {
    queue: Receiver<Job>,
    file: Option<AuditFile>,
    refusals: Arc<Refusals>,
    /// Lines that could not be written yet. As many as there are places, and no more.
    owed: Vec<(Vec<u8>, OwnedSemaphorePermit)>,
    summed_up: Instant,
}

/// Lines that are written together, and who waits for them.
#[derive(Default)]
struct Group {
    lines: Vec<(Vec<u8>, Option<OwnedSemaphorePermit>)>,
    waiting: Vec<oneshot::Sender<Result<(), AuditError>>>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Group {
    fn add(&mut self, job: Job) {
        match job {
            Job::Line { bytes, place, done } => {
                self.lines.push((bytes, place));
                self.waiting.push(done);
            }
            Job::Flush(done) => self.flushes.push(done),
        }
    }
}

impl Writer {
    pub(super) fn new(queue: Receiver<Job>, file: Option<AuditFile>, refusals: Arc<Refusals>) -> Self {
        Self { queue, file, refusals, owed: Vec::new(), summed_up: Instant::now() }
    }

    /// Runs until nobody can ask for anything any more.
    pub(super) fn run(mut self) {
        loop {
            let mut group = Group::default();
            let ended = match self.queue.recv_timeout(BEAT) {
                Ok(job) => {
                    group.add(job);
                    self.queue.try_iter().take(MAX_GROUP - 1).for_each(|job| group.add(job));
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            self.write(group);
            if ended || self.summed_up.elapsed() >= BEAT {
                self.sum_up();
            }
            if ended {
                return;
            }
        }
    }

    /// Writes what is owed and the group, and tells who waits.
    fn write(&mut self, Group { mut lines, waiting, flushes }: Group) {
        let owed = mem::take(&mut self.owed).into_iter().map(|(bytes, place)| (bytes, Some(place)));
        let all: Vec<_> = owed.chain(lines.drain(..)).collect();
        let written = self.append(&all.iter().map(|(bytes, _)| &bytes[..]).collect::<Vec<_>>());
        match &written {
            // Before anybody is told: whoever ends a change and begins another finds the place free.
            Ok(()) => drop(all),
            Err(error) => {
                self.owed.extend(all.into_iter().filter_map(|(bytes, place)| Some((bytes, place?))));
                tracing::error!(
                    error = chain(error),
                    owed = self.owed.len(),
                    "the audit log cannot be written; no change is made"
                );
            }
        }
        for waits in waiting {
            // Whoever asked may have left.
            let _ = waits.send(written.clone());
        }
        // After the lines: whoever flushes wants the refusals too, which come with the end of this round.
        if !flushes.is_empty() {
            self.sum_up();
        }
        for done in flushes {
            let _ = done.send(());
        }
    }

    /// Writes a line for each caller who was refused. They change nothing, so they are not owed.
    fn sum_up(&mut self) {
        self.summed_up = Instant::now();
        let lines = self.refusals.lines();
        let lines: Vec<_> = lines.iter().map(Vec::as_slice).collect();
        if let Err(error) = self.append(&lines) {
            tracing::error!(error = chain(&error), "refused calls are missing in the audit log");
        }
    }

    fn append(&mut self, lines: &[&[u8]]) -> Result<(), AuditError> {
        match &mut self.file {
            Some(file) if !lines.is_empty() => file.append(lines),
            _ => Ok(()),
        }
    }
}
