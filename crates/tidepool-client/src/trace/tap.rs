//! The tap: lookups that are being answered, copied aside for whoever records them.
//!
//! A client that is not tapped pays one relaxed load a lookup. A tapped one pays the copy of what it was asked
//! and never waits: when the queue is full the lookup is left out, and counted.

use std::{
    num::NonZeroU64,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use tokio::{sync::mpsc, time};

use super::{TapError, TraceEnd, TracedLookup};
use crate::request::{FeatureLookup, LookupRequest};

/// The longest recording: no clock must overflow.
const MAX_TIME: Duration = Duration::from_secs(365 * 86_400);

/// What is recorded.
#[derive(Clone, Copy, Debug)]
pub struct TapOptions {
    /// Every how many-th lookup.
    pub every: NonZeroU64,
    /// For how long. The tap ends by itself.
    pub time: Duration,
    /// Lookups that may wait for whoever records them, at least 1; beyond it they are dropped.
    pub queue_len: usize,
    /// Bytes of ids, lengths and weights that may wait; beyond it they are dropped.
    pub queue_bytes: usize,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self { every: NonZeroU64::MIN, time: Duration::from_secs(30), queue_len: 1024, queue_bytes: 64 << 20 }
    }
}

/// The lookups of a client as they come; dropping it ends it. See [`Client::tap`](crate::Client::tap).
#[derive(Debug)]
pub struct Tap {
    slot: Arc<TapSlot>,
    recording: Arc<Recording>,
    queue: mpsc::Receiver<TracedLookup>,
    stopped: bool,
}

/// What lookups and the tap share.
#[derive(Debug)]
pub(crate) struct Recording {
    began: Instant,
    options: TapOptions,
    queue: mpsc::Sender<TracedLookup>,
    queued_bytes: AtomicUsize,
    lookups: AtomicU64,
    dropped: AtomicU64,
}

/// The place in a client for the one tap that it may have.
#[derive(Debug, Default)]
pub(crate) struct TapSlot {
    /// Whether `recording` is worth a look.
    on: AtomicBool,
    recording: ArcSwapOption<Recording>,
    /// Held by who opens or ends a tap; lookups never take it.
    change: Mutex<()>,
}

impl TapSlot {
    /// Opens the tap.
    ///
    /// # Errors
    /// [`TapError::Busy`] while another is open.
    pub(crate) fn open(self: &Arc<Self>, options: TapOptions) -> Result<Tap, TapError> {
        let options = TapOptions { time: options.time.min(MAX_TIME), ..options };
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        if let Some(other) = &*self.recording.load()
            && let Some(left) = other.left(began)
        {
            return Err(TapError::Busy { left });
        }
        let (sender, queue) = mpsc::channel(options.queue_len.max(1));
        let recording = Arc::new(Recording {
            began,
            options,
            queue: sender,
            queued_bytes: AtomicUsize::new(0),
            lookups: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        self.recording.store(Some(recording.clone()));
        self.on.store(true, Ordering::Relaxed);
        Ok(Tap { slot: self.clone(), recording, queue, stopped: false })
    }

    /// Takes note of a lookup that arrived at `arrived`.
    pub(crate) fn note(&self, arrived: Instant, request: &LookupRequest, tenant: Option<&String>) {
        // Seeing a tap some lookups late, or a closed one, does no harm.
        if self.on.load(Ordering::Relaxed)
            && let Some(recording) = &*self.recording.load()
        {
            recording.note(arrived, request, tenant);
        }
    }

    fn close(&self, recording: &Arc<Recording>) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.recording.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, recording)) {
            self.on.store(false, Ordering::Relaxed);
            self.recording.store(None);
        }
    }
}

impl Recording {
    /// The time that it still has, if any.
    fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.options.time.saturating_sub(now.saturating_duration_since(self.began));
        Some(left).filter(|left| !left.is_zero())
    }

    fn note(&self, arrived: Instant, request: &LookupRequest, tenant: Option<&String>) {
        let Some(arrival) = arrived.checked_duration_since(self.began) else { return };
        if arrival >= self.options.time {
            return;
        }
        let every = self.options.every.get();
        let lookup = self.lookups.fetch_add(1, Ordering::Relaxed);
        if !lookup.is_multiple_of(every) {
            return;
        }
        let bytes = queued_bytes(&request.features);
        let Some(place) = self.place(bytes) else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (number, tenant, features) = (lookup / every, tenant.cloned(), request.features.clone());
        place.send(TracedLookup { arrival, number, tenant, features });
    }

    /// A place in the queue for a lookup of so many bytes.
    fn place(&self, bytes: usize) -> Option<mpsc::Permit<'_, TracedLookup>> {
        let place = self.queue.try_reserve().ok()?;
        let fits = |queued: usize| Some(queued + bytes).filter(|sum| *sum <= self.options.queue_bytes);
        self.queued_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(place)
    }
}

impl Tap {
    /// The next lookup; None: the time is over, or the tap was stopped, and there are no more.
    pub async fn next(&mut self) -> Option<TracedLookup> {
        let until = self.recording.began + self.recording.options.time;
        let lookup = if self.stopped {
            self.queue.try_recv().ok()?
        } else if let Ok(lookup) = time::timeout_at(until.into(), self.queue.recv()).await {
            lookup?
        } else {
            self.stop();
            self.queue.try_recv().ok()?
        };
        self.recording.queued_bytes.fetch_sub(queued_bytes(&lookup.features), Ordering::Relaxed);
        Some(lookup)
    }

    /// Takes note of no more lookups.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.slot.close(&self.recording);
    }

    /// What there was up to now.
    #[must_use]
    pub fn end(&self) -> TraceEnd {
        let Recording { began, options, lookups, dropped, .. } = &*self.recording;
        TraceEnd {
            lasted: began.elapsed().min(options.time),
            lookups: lookups.load(Ordering::Relaxed),
            dropped: dropped.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.slot.close(&self.recording);
    }
}

fn queued_bytes(features: &[FeatureLookup]) -> usize {
    let bytes = |feature: &FeatureLookup| {
        let words = |list: usize| 4 * list;
        size_of::<FeatureLookup>()
            + 8 * feature.ids.len()
            + words(feature.lengths.as_ref().map_or(0, Vec::len))
            + words(feature.weights.as_ref().map_or(0, Vec::len))
    };
    features.iter().map(bytes).sum()
}
