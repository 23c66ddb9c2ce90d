//! A share of the requests that are answered, written down with their scores, so that they can be scored again offline
//! (`tidepool release skew`): what the model was really asked, and what it really said.
//!
//! Which requests is decided by a hash of their ids: the same ones at every ranker, and after every restart. A request
//! never waits for this and never fails for it: it is copied aside if there is room, and a thread of its own writes.
//! What there is no room for, what is too large and what cannot be written is left out, and counted.

mod options;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc::{SyncSender, sync_channel},
};

use prometheus::{IntCounterVec, Opts, Registry};
use tidepool_runtime::rotating::{RotatingError, RotatingFile, RotatingOptions};
use tidepool_types::mix64;
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

pub use self::options::{AuditSampleOptions, RawAuditSample};
use self::writer::{Job, Writer};
use crate::{
    rank::RankAnswer,
    request::{RankFeature, RankRequest},
    samples::Record,
};

/// Records that may wait to be written.
const QUEUE_LEN: usize = 256;
/// Bytes of the requests among them.
const QUEUE_BYTES: usize = 64 << 20;

/// What became of requests that were drawn.
#[derive(Clone, Debug)]
pub(crate) struct SampleMetrics(IntCounterVec);

impl SampleMetrics {
    const OUTCOMES: [&'static str; 4] = ["written", "dropped", "too_large", "failed"];

    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let options = Opts::new(
            "tidepool_ranker_audit_sample_requests_total",
            "Answered requests that were drawn for the audit sample",
        );
        let counts = IntCounterVec::new(options, &["outcome"])?;
        registry.register(Box::new(counts.clone()))?;
        for outcome in Self::OUTCOMES {
            counts.with_label_values(&[outcome]);
        }
        Ok(Self(counts))
    }

    fn count(&self, outcome: &'static str, requests: u64) {
        self.0.with_label_values(&[outcome]).inc_by(requests);
    }
}

/// Where requests are sampled; nowhere, if nobody wants that. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct AuditSample(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    /// Requests whose hash is not above it are drawn.
    threshold: u64,
    max_record_bytes: usize,
    jobs: SyncSender<Job>,
    /// Bytes of the requests that were copied.
    copied: Arc<AtomicUsize>,
    metrics: SampleMetrics,
}

/// A request that was drawn, and room for it; or why it is left out, which counts once it is answered.
#[derive(Debug)]
pub(crate) struct Drawn(Result<(RankRequest, Room), &'static str>);

/// Bytes of the queue, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Room(Arc<AtomicUsize>, usize);

impl Room {
    fn take(copied: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let fits = |now: usize| Some(now.saturating_add(bytes)).filter(|sum| *sum <= QUEUE_BYTES);
        copied.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Self(copied.clone(), bytes))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl AuditSample {
    /// Samples nothing.
    #[cfg(test)]
    pub(crate) const fn off() -> Self {
        Self(None)
    }

    /// Opens the file, to write on at its end, and starts the thread that writes; without `options` nothing is sampled.
    ///
    /// # Errors
    /// [`OpenError`]: the file cannot be had, or a metric stands already.
    pub(crate) fn open(options: Option<AuditSampleOptions>, registry: &Registry) -> Result<Self, OpenError> {
        let metrics = SampleMetrics::new(registry)?;
        let Some(options) = options else { return Ok(Self(None)) };
        let AuditSampleOptions { percent, path, max_bytes, keep, max_record_bytes } = options;
        let file = RotatingFile::open(RotatingOptions { path, max_bytes, keep, sync: false })?;
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let writer = Writer::new(queue, file, max_bytes, metrics.clone());
        let started = std::thread::Builder::new().name("audit-sample".into()).spawn(move || writer.run());
        started.map_err(|source| RotatingError { did: "open", source })?;
        let threshold = threshold(percent);
        Ok(Self(Some(Arc::new(Inner { threshold, max_record_bytes, jobs, copied: Arc::default(), metrics }))))
    }

    /// A copy of the request, if it is among those that are sampled, as far as there is room for it.
    pub(crate) fn draw(&self, request: &RankRequest) -> Option<Drawn> {
        let inner = self.0.as_ref()?;
        if request.candidates == 0 || mix64(xxh3_64(request.request_id.as_bytes())) > inner.threshold {
            return None;
        }
        let bytes = bytes_of(request);
        if bytes > inner.max_record_bytes {
            return Some(Drawn(Err("too_large")));
        }
        let room = Room::take(&inner.copied, bytes);
        Some(Drawn(room.map(|room| (request.clone(), room)).ok_or("dropped")))
    }

    /// Hands a request over that has got `answer`. It does not wait.
    pub(crate) fn answered(&self, drawn: Drawn, answer: &RankAnswer) {
        let Some(inner) = &self.0 else { return };
        let (request, room) = match drawn.0 {
            Ok(copied) => copied,
            Err(outcome) => return inner.metrics.count(outcome, 1),
        };
        let job = Job::Record(Box::new(Record::new(request, answer)), room);
        if inner.jobs.try_send(job).is_err() {
            inner.metrics.count("dropped", 1);
        }
    }

    /// Waits until all that was handed over is written.
    pub(crate) async fn close(&self) {
        let Some(inner) = self.0.clone() else { return };
        let (done, closed) = oneshot::channel();
        // The queue may be full: whoever waits for a place must not be a thread that moves bytes.
        let sent = tokio::task::spawn_blocking(move || inner.jobs.send(Job::Flush(done)).is_ok());
        if sent.await.unwrap_or(false) {
            // Without an answer the thread has ended, and so has its work.
            let _ = closed.await;
        }
    }
}

/// The sample cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its file cannot be had.
    #[error(transparent)]
    File(#[from] RotatingError),
    /// Its metric cannot be registered.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// Hashes up to which make so many percent of all.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 0 to 2^64, where the cast saturates"
)]
fn threshold(percent: f64) -> u64 {
    (percent / 100.0 * 2f64.powi(64)) as u64
}

/// What a copy takes in memory, and about what its line takes on the disk.
fn bytes_of(request: &RankRequest) -> usize {
    let of = |feature: &RankFeature| {
        let texts: usize = feature.texts.iter().map(|text| text.len() + size_of::<String>()).sum();
        let words = feature.values.len()
            + feature.lengths.as_ref().map_or(0, Vec::len)
            + feature.weights.as_ref().map_or(0, Vec::len);
        size_of::<RankFeature>() + feature.name.len() + 8 * feature.ids.len() + 4 * words + texts
    };
    let features = request.user.iter().chain(&request.candidate).map(of).sum::<usize>();
    let answer = request.candidates as usize * (1 + request.outputs.len()) * 8;
    size_of::<Record>() + request.request_id.len() + features + answer
}
