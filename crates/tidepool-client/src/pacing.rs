//! What one client has learned of its cluster as a whole, and what it may spend on calls beside the first.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidepool_types::mix64;

use crate::{
    budget::Budget,
    config::{ClientConfig, HedgeConfig},
    latency::Latencies,
};

/// Calls are judged beside calls of about their size: up to so many ids, and more.
const SIZES: [usize; 3] = [256, 2_048, 16_384];
/// How many calls are measured between two looks at the quantile.
const LOOK_EVERY: u32 = 16;
/// How many retries may come at once: the lookups in flight on a node that dies, at some thousand a second.
const RETRY_BURST: f64 = 1000.0;
/// A node that is silent for so many hedge delays is no straggler.
const PATIENCE_DELAYS: u32 = 4;
/// A process that is not run for so long is nothing unusual.
const MIN_PATIENCE: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct Pacing {
    hedge: HedgeConfig,
    hedges: Mutex<Budget>,
    retries: Mutex<Budget>,
    sizes: [Size; SIZES.len() + 1],
    random: AtomicU64,
}

/// Calls of one size.
#[derive(Debug)]
struct Size {
    latencies: Mutex<Latencies>,
    /// The hedge delay, in nanoseconds.
    delay: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Pacing {
    /// `seed` is where chance begins.
    pub(crate) fn new(config: &ClientConfig, seed: u64) -> Self {
        let per_second = f64::from(config.retry.min_per_second);
        let size =
            |_| Size { latencies: Mutex::default(), delay: AtomicU64::new(nanos(config.hedge.max_delay)) };
        // Without a budget there is no burst either: hedging is off.
        let burst = if config.hedge.budget > 0.0 { f64::from(config.hedge.burst) } else { 0.0 };
        // What a node that dies leaves unanswered is asked again at once: that is as much as is in flight.
        let retry_burst = if config.retry.budget > 0.0 { RETRY_BURST } else { 0.0 }.max(per_second * 10.0);
        Self {
            hedge: config.hedge,
            hedges: Mutex::new(Budget::new(config.hedge.budget, 0.0, burst)),
            retries: Mutex::new(Budget::new(config.retry.budget, per_second, retry_burst)),
            sizes: [0, 1, 2, 3].map(size),
            random: AtomicU64::new(seed),
        }
    }

    /// A lookup makes `calls` ordinary calls.
    pub(crate) fn earn(&self, calls: usize) {
        lock(&self.hedges).earn(calls);
        lock(&self.retries).earn(calls);
    }

    /// Pays for a hedge of so many calls; false: it must not be made.
    pub(crate) fn spend_hedge(&self, now: Instant, calls: usize) -> bool {
        lock(&self.hedges).spend(now, calls)
    }

    /// Pays for a retry of so many calls; false: it must not be made.
    pub(crate) fn spend_retry(&self, now: Instant, calls: usize) -> bool {
        lock(&self.retries).spend(now, calls)
    }

    fn size(&self, ids: usize) -> &Size {
        &self.sizes[SIZES.partition_point(|most| *most < ids)]
    }

    /// After how long a call for `ids` ids is late.
    pub(crate) fn hedge_delay(&self, ids: usize) -> Duration {
        Duration::from_nanos(self.size(ids).delay.load(Ordering::Relaxed))
    }

    /// Whether a call that was given up after `waited` could have been late: one that had less time, or none,
    /// says nothing of its node.
    pub(crate) fn may_be_late(&self, waited: Duration) -> bool {
        !waited.is_zero() && waited >= self.hedge.min_delay
    }

    /// For how long a node that is asked for `ids` ids may be silent.
    pub(crate) fn patience(&self, ids: usize) -> Duration {
        (self.hedge_delay(ids) * PATIENCE_DELAYS).max(MIN_PATIENCE)
    }

    /// A call for `ids` ids took `latency`, or at least that long when it was given up: what is late must
    /// count as late, or the quantile would sink with every hedge.
    pub(crate) fn measured(&self, ids: usize, latency: Duration) {
        let size = self.size(ids);
        let mut latencies = lock(&size.latencies);
        if latencies.record(latency).is_multiple_of(LOOK_EVERY)
            && let Some(late) = latencies.quantile(self.hedge.quantile)
        {
            let late = late.min(self.hedge.max_delay).max(self.hedge.min_delay);
            size.delay.store(nanos(late), Ordering::Relaxed);
        }
    }

    /// A number that nobody else has.
    pub(crate) fn random(&self) -> u64 {
        mix64(self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// From 0 to 1.
    pub(crate) fn jitter(&self) -> f64 {
        f64::from((self.random() >> 32) as u32) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_delay_is_learned_per_size_and_kept_within_bounds() {
        let hedge = HedgeConfig { min_delay: 2 * MS, max_delay: 40 * MS, ..Default::default() };
        let pacing = Pacing::new(&ClientConfig { hedge, ..Default::default() }, 1);
        assert_eq!(pacing.hedge_delay(1), 40 * MS, "nothing is known yet");
        (0..1000).for_each(|_| pacing.measured(100, 9 * MS));
        let learned = pacing.hedge_delay(1);
        assert!((9 * MS..12 * MS).contains(&learned), "{learned:?}");
        assert_eq!(pacing.patience(1), learned * 4);
        assert_eq!(pacing.hedge_delay(100_000), 40 * MS, "large calls are others");
        (0..1000).for_each(|_| pacing.measured(100_000, 500 * MS));
        assert_eq!(pacing.hedge_delay(100_000), 40 * MS);
        (0..1000).for_each(|_| pacing.measured(1000, MS / 10));
        assert_eq!((pacing.hedge_delay(1000), pacing.patience(1000)), (2 * MS, MIN_PATIENCE));
    }

    #[test]
    fn a_budget_of_nothing_is_nothing() {
        let hedge = HedgeConfig { budget: 0.0, ..Default::default() };
        let pacing = Pacing::new(&ClientConfig { hedge, ..Default::default() }, 1);
        pacing.earn(1000);
        assert!(!pacing.spend_hedge(Instant::now(), 1));
        assert!(pacing.spend_retry(Instant::now(), 1));
        assert!((0..100).map(|_| pacing.jitter()).all(|jitter| (0.0..=1.0).contains(&jitter)));
    }
}
