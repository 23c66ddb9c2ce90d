//! What became of the last requests, for whoever asks afterwards (`tidepool why`): a ring with a place per request,
//! each with a lock of its own, written to once, when the request has ended, however it has.
//!
//! Everything in a record is bounded (`record.rs`), so the ring is too.

mod http;
mod record;
#[cfg(test)]
mod tests;

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tidepool_proto::v1;
use tidepool_runtime::error::chain;
use tidepool_types::mix64;

use self::record::End;
pub(crate) use self::{
    http::{decoded, routes},
    record::{Record, Told, cut_id},
};
use crate::{RankError, batch::Progress, request::RankRequest};

/// The last requests of a ranker. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    /// None: nothing is kept.
    ring: Option<Arc<Ring>>,
    /// Makes ids for requests that have none: another beginning in each process.
    ids: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Ring {
    places: Box<[Mutex<Option<Box<Record>>>]>,
    /// Records that were ever written.
    written: AtomicU64,
}

/// Keeps a record while its request runs. When it is dropped, the record goes into the ring.
#[derive(Debug)]
pub(crate) struct Noting(Option<Box<Noted>>);

#[derive(Debug)]
struct Noted {
    ring: Arc<Ring>,
    arrived: Instant,
    record: Box<Record>,
    /// How far its batches are; None: it has come to none.
    progress: Option<Arc<Progress>>,
}

impl Recent {
    /// Keeps the last `entries` requests; 0: none.
    pub(crate) fn new(entries: usize) -> Self {
        let ring =
            Ring { places: (0..entries).map(|_| Mutex::default()).collect(), written: AtomicU64::new(0) };
        Self {
            ring: (entries > 0).then(|| Arc::new(ring)),
            ids: Arc::new(AtomicU64::new(RandomState::new().hash_one(0u64))),
        }
    }

    /// Gives a request that has no id one; says whether it had one.
    pub(crate) fn identify(&self, request_id: &mut String) -> bool {
        if !request_id.is_empty() {
            return true;
        }
        *request_id = format!("auto-{:016x}", mix64(self.ids.fetch_add(1, Ordering::Relaxed)));
        false
    }

    /// Begins the record of a request, which arrived at `arrived`.
    pub(crate) fn begin(&self, request: &v1::RankRequest, id_given: bool, arrived: Instant) -> Noting {
        self.begin_with(arrived, || {
            let record = Record::of(&request.request_id, request.candidates);
            record.asked(&request.tenant, &request.model, &request.release).known_as(id_given, false)
        })
    }

    /// Begins the record of a request that is asked of a shadow.
    pub(crate) fn begin_shadow(&self, request: &RankRequest, arrived: Instant) -> Noting {
        self.begin_with(arrived, || {
            let record = Record::of(&request.request_id, request.candidates);
            let release = request.release.as_deref().unwrap_or_default();
            record.asked(&request.tenant, &request.model, release).known_as(true, true)
        })
    }

    fn begin_with(&self, arrived: Instant, record: impl FnOnce() -> Record) -> Noting {
        let Some(ring) = &self.ring else { return Noting(None) };
        let mut record = record();
        let now = SystemTime::now().checked_sub(arrived.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
        record.arrived = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (ring, record) = (ring.clone(), Box::new(record));
        Noting(Some(Box::new(Noted { ring, arrived, record, progress: None })))
    }

    /// How many requests can be kept.
    fn capacity(&self) -> usize {
        self.ring.as_ref().map_or(0, |ring| ring.places.len())
    }

    /// Looks at every record that is kept, in no order.
    fn each(&self, mut look: impl FnMut(&Record)) {
        for place in self.ring.iter().flat_map(|ring| &ring.places) {
            if let Some(record) = lock(place).as_deref() {
                look(record);
            }
        }
    }

    /// Shows the first `limit` of the records that are `wanted`, by `order`: the smallest first.
    fn pick<K: Ord, T>(
        &self,
        wanted: impl Fn(&Record) -> bool,
        order: impl Fn(&Record) -> K,
        limit: usize,
        show: impl Fn(&Record) -> T,
    ) -> Vec<T> {
        let Some(ring) = &self.ring else { return Vec::new() };
        let mut found = Vec::new();
        for (at, place) in ring.places.iter().enumerate() {
            if let Some(record) = lock(place).as_deref().filter(|record| wanted(record)) {
                found.push((order(record), at, record.number));
            }
        }
        found.sort_unstable();
        found.truncate(limit);
        // One that has been overwritten meanwhile is not there any more.
        let show = |(_, at, number): (K, usize, u64)| {
            lock(&ring.places[at]).as_deref().filter(|record| record.number == number).map(&show)
        };
        found.into_iter().filter_map(show).collect()
    }
}

impl Ring {
    fn push(&self, mut record: Box<Record>) {
        record.number = self.written.fetch_add(1, Ordering::Relaxed);
        // What was there is dropped after the lock is.
        let at = (record.number % self.places.len() as u64) as usize;
        let before = lock(&self.places[at]).replace(record);
        drop(before);
    }
}

fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Noting {
    /// Keeps nothing.
    #[cfg(test)]
    pub(crate) const fn off() -> Self {
        Self(None)
    }

    /// Writes something into the record.
    pub(crate) fn note(&mut self, write: impl FnOnce(&mut Record)) {
        if let Some(noted) = &mut self.0 {
            write(&mut noted.record);
        }
    }

    /// Whether anything is kept.
    pub(crate) const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What becomes of the request in its batches is kept, however far it comes.
    pub(crate) fn follow(&mut self, progress: &Arc<Progress>) {
        if let Some(noted) = &mut self.0 {
            noted.progress = Some(progress.clone());
        }
    }

    /// The request was answered.
    pub(crate) fn answered(&mut self) {
        self.note(|record| record.end = End::Answered);
    }

    /// The request was refused, or failed.
    pub(crate) fn failed(&mut self, error: &RankError) {
        self.note(|record| record.fail(error.code(), &chain(error)));
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        let Some(noted) = self.0.take() else { return };
        let Noted { ring, arrived, mut record, progress } = *noted;
        record.took = arrived.elapsed();
        if let Some(progress) = progress {
            record.share = progress.share();
            record.lookup = progress.account().map(|account| account.notes()).unwrap_or_default();
        }
        ring.push(record);
    }
}

/// A time in whole microseconds.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
