//! What is learned from how long calls take: a peak-sensitive average per node, by which groups are chosen,
//! and quantiles per size of call, by which lateness is judged. Time is passed in.

use std::time::{Duration, Instant};

/// How fast a peak is forgotten: after so long it counts a third.
const FORGET: Duration = Duration::from_secs(1);

/// An average that jumps to a longer latency at once and comes down over [`FORGET`]. It goes on falling when
/// nothing is measured, so that a node which is not asked any more is tried again.
#[derive(Debug, Default)]
pub(crate) struct PeakEwma {
    nanos: f64,
    at: Option<Instant>,
}

impl PeakEwma {
    /// A call took `latency`.
    pub(crate) fn observe(&mut self, now: Instant, latency: Duration) {
        let weight = self.weight(now);
        let latency = latency.as_secs_f64() * 1e9;
        let average = self.nanos.mul_add(weight, latency * (1.0 - weight));
        self.nanos = latency.max(average);
        self.at = Some(now);
    }

    /// Nanoseconds; 0 when nothing is known.
    pub(crate) fn nanos(&self, now: Instant) -> f64 {
        self.nanos * self.weight(now)
    }

    /// What is left of the average.
    fn weight(&self, now: Instant) -> f64 {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (-passed.as_secs_f64() / FORGET.as_secs_f64()).exp()
    }
}

/// Four buckets per power of two, from 1 µs: at most 19 % apart.
const PER_OCTAVE: usize = 4;
const FIRST_OCTAVE: usize = 10;
const BUCKETS: usize = 26 * PER_OCTAVE;
/// Calls after which all counts are halved, so that the past is forgotten.
const FULL: u32 = 4096;
/// Below so many calls nothing is said.
const ENOUGH: u32 = 64;

/// How latencies are spread, lately.
#[derive(Debug)]
pub(crate) struct Latencies {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }
}

impl Latencies {
    /// A call took `latency`; how many calls are counted now.
    pub(crate) fn record(&mut self, latency: Duration) -> u32 {
        if self.total >= FULL {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        self.counts[bucket(latency)] += 1;
        self.total += 1;
        self.total
    }

    /// The latency that a share `quantile` of the calls did not exceed, to the next bucket's bound; None: too
    /// few calls.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<Duration> {
        if self.total < ENOUGH {
            return None;
        }
        let mut left = f64::from(self.total) * quantile;
        let at = self.counts.iter().position(|count| {
            left -= f64::from(*count);
            left <= 0.0
        });
        Some(bound(at.unwrap_or(BUCKETS - 1)))
    }
}

fn bucket(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1 << FIRST_OCTAVE);
    let octave = nanos.ilog2() as usize;
    let part = (nanos >> (octave - 2)) as usize % PER_OCTAVE;
    ((octave - FIRST_OCTAVE) * PER_OCTAVE + part).min(BUCKETS - 1)
}

/// The latency above all of a bucket.
fn bound(bucket: usize) -> Duration {
    let (octave, part) = (bucket / PER_OCTAVE + FIRST_OCTAVE, bucket % PER_OCTAVE);
    Duration::from_nanos((PER_OCTAVE + part + 1) as u64 * (1 << (octave - 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_is_seen_at_once_and_forgotten_slowly() {
        let (mut ewma, start) = (PeakEwma::default(), Instant::now());
        assert_eq!(ewma.nanos(start), 0.0);
        ewma.observe(start, MS);
        ewma.observe(start, 50 * MS);
        assert_eq!(ewma.nanos(start), 50e6);
        ewma.observe(start + FORGET / 10, MS);
        let after = ewma.nanos(start + FORGET / 10);
        assert!((40e6..50e6).contains(&after), "{after}");
        for n in 1..100 {
            ewma.observe(start + FORGET / 10 * n, MS);
        }
        let settled = ewma.nanos(start + FORGET * 10);
        assert!((0.9e6..1.3e6).contains(&settled), "{settled}");
        assert!(ewma.nanos(start + FORGET * 20) < 1e3, "and of nothing comes nothing");
    }

    #[test]
    fn a_latency_lies_in_its_bucket() {
        let mut last = Duration::ZERO;
        for at in 0..BUCKETS {
            assert!(bound(at) > last);
            assert_eq!(bucket(bound(at) - Duration::from_nanos(1)), at);
            last = bound(at);
        }
        assert_eq!((bucket(Duration::ZERO), bucket(Duration::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn quantiles_follow_what_is_measured() {
        let mut latencies = Latencies::default();
        for n in 0..ENOUGH {
            assert_eq!(latencies.quantile(0.95), None, "{n} calls");
            latencies.record(MS);
        }
        let near = |got: Option<Duration>, want: Duration| {
            let got = got.unwrap();
            assert!(got >= want && got <= want.mul_f64(1.25), "{got:?} for {want:?}");
        };
        near(latencies.quantile(0.95), MS);
        for n in 0..1000 {
            latencies.record(if n % 10 == 0 { 30 * MS } else { MS });
        }
        near(latencies.quantile(0.5), MS);
        near(latencies.quantile(0.95), 30 * MS);
        let total = (0..20_000).map(|_| latencies.record(2 * MS)).max();
        assert_eq!(total, Some(FULL));
        near(latencies.quantile(0.99), 2 * MS);
    }
}
