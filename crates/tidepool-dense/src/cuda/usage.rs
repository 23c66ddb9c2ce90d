//! What a model has asked of its device since it was loaded, counted where it happens: a few additions per batch.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What a model has asked of its device. Everything only ever grows; the batches by which a load tries itself are not in it.
///
/// Numbers are read one by one while others add to them, so those of a batch that ends just now may be there in part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Batches that the device has done. One that fits no bucket counts once for each of its pieces.
    pub batches: u64,
    /// Rows of these batches, without those that only fill a bucket.
    pub rows: u64,
    /// Bytes that were copied to the device for them.
    pub bytes_in: u64,
    /// Bytes that were copied back.
    pub bytes_out: u64,
    /// Launches: one graph per batch, or, where the options ask for no graphs, each of its steps.
    pub launches: u64,
    /// Time from the first call for a batch until the device was seen to be done with it, copies included. Streams work beside each other, so
    /// it grows by as many seconds per second as there are streams, at most.
    pub on_device: Duration,
    /// Time that batches waited for a lane, memory of a stream to be written into, where none was free. Also of those that got
    /// none in time.
    pub waited_for_lane: Duration,
    /// Time that written batches waited for their turn on their stream.
    pub waited_for_turn: Duration,
    /// Batches that were refused since as many waited as may.
    pub busy: u64,
    /// Batches that had no lane, or no turn, before their deadline.
    pub late: u64,
}

/// The same while it is counted; times in nanoseconds, of which u64 has room for centuries.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    batches: AtomicU64,
    rows: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    launches: AtomicU64,
    on_device: AtomicU64,
    waited_for_lane: AtomicU64,
    waited_for_turn: AtomicU64,
    busy: AtomicU64,
    late: AtomicU64,
}

/// What a batch has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) rows: usize,
    pub(crate) bytes_in: usize,
    pub(crate) bytes_out: usize,
    pub(crate) launches: usize,
}

impl Counts {
    /// The device is done with a batch.
    pub(crate) fn done(&self, moved: Moved, on_device: Duration) {
        add(&self.batches, 1);
        add(&self.rows, moved.rows as u64);
        add(&self.bytes_in, moved.bytes_in as u64);
        add(&self.bytes_out, moved.bytes_out as u64);
        add(&self.launches, moved.launches as u64);
        add(&self.on_device, nanos(on_device));
    }

    /// A batch waited so long for a lane.
    pub(crate) fn waited_for_lane(&self, waited: Duration) {
        add(&self.waited_for_lane, nanos(waited));
    }

    /// A batch waited so long for its turn.
    pub(crate) fn waited_for_turn(&self, waited: Duration) {
        add(&self.waited_for_turn, nanos(waited));
    }

    /// A batch was refused, since as many wait as may.
    pub(crate) fn busy(&self) {
        add(&self.busy, 1);
    }

    /// A batch was refused, since its time was over.
    pub(crate) fn late(&self) {
        add(&self.late, 1);
    }

    /// What was counted so far.
    pub(crate) fn read(&self) -> Usage {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let time = |of: &AtomicU64| Duration::from_nanos(count(of));
        Usage {
            batches: count(&self.batches),
            rows: count(&self.rows),
            bytes_in: count(&self.bytes_in),
            bytes_out: count(&self.bytes_out),
            launches: count(&self.launches),
            on_device: time(&self.on_device),
            waited_for_lane: time(&self.waited_for_lane),
            waited_for_turn: time(&self.waited_for_turn),
            busy: count(&self.busy),
            late: count(&self.late),
        }
    }
}

/// Nothing is ordered by a count, so the weakest addition does.
fn add(to: &AtomicU64, by: u64) {
    to.fetch_add(by, Ordering::Relaxed);
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
