//! The thread that writes the audit sample.

use std::{sync::mpsc::Receiver, time::Duration};

use tidepool_runtime::{error::chain, rotating::RotatingFile};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Room, SampleMetrics};
use crate::samples::{MAX_LINE_BYTES, Record, line};

/// Lines that are written together.
const MAX_GROUP: usize = 64;
/// How long lines are gathered after a failure, before the file is tried again: a full disk is not asked all the time.
const PAUSE: Duration = Duration::from_millis(100);

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Writes a record.
    Record(Box<Record>, Room),
    /// Says when all before it is written.
    Flush(oneshot::Sender<()>),
}

pub(super) struct Writer {
    queue: Receiver<Job>,
    file: RotatingFile,
    max_bytes: u64,
    metrics: SampleMetrics,
    /// Whether the last lines could not be written.
    fails: bool,
}

impl Writer {
    pub(super) fn new(
        queue: Receiver<Job>,
        file: RotatingFile,
        max_bytes: u64,
        metrics: SampleMetrics,
    ) -> Self {
        Self { queue, file, max_bytes, metrics, fails: false }
    }

    /// Runs until nobody can ask for anything any more, and all that was asked for is done.
    pub(super) fn run(mut self) {
        while let Ok(first) = self.queue.recv() {
            let (mut lines, mut flushes, mut rooms) = (Vec::new(), Vec::new(), Vec::new());
            let rest: Vec<Job> = self.queue.try_iter().take(MAX_GROUP - 1).collect();
            for job in std::iter::once(first).chain(rest) {
                match job {
                    Job::Record(record, room) => {
                        lines.extend(self.line(&record));
                        rooms.push(room);
                    }
                    Job::Flush(done) => flushes.push(done),
                }
            }
            self.write(&lines);
            drop(rooms);
            for done in flushes {
                // Whoever asked may have left.
                let _ = done.send(());
            }
        }
    }

    /// The line of a record, unless no file can hold it or nobody would read it: as text it may be longer than in memory.
    fn line(&self, record: &Record) -> Option<Vec<u8>> {
        let longest = self.max_bytes.min(MAX_LINE_BYTES as u64);
        let line = Some(line(record)).filter(|line| line.len() as u64 <= longest);
        if line.is_none() {
            self.metrics.count("too_large", 1);
        }
        line
    }

    fn write(&mut self, lines: &[Vec<u8>]) {
        if lines.is_empty() {
            return;
        }
        let slices: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        let path = self.file.path().to_owned();
        match self.file.append(&slices) {
            Ok(()) => {
                self.metrics.count("written", lines.len() as u64);
                if std::mem::take(&mut self.fails) {
                    info!(path = %path.display(), "the audit sample is written again");
                }
            }
            Err(error) => {
                self.metrics.count("failed", lines.len() as u64);
                if !std::mem::replace(&mut self.fails, true) {
                    warn!(path = %path.display(), error = chain(&error), "the audit sample cannot be written");
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}
