//! Whether processes that work go on growing.
//!
//! Mapped pages come into memory once, and an allocator keeps what the largest requests so far have needed: such
//! growth ends. A leak goes on with the work. So only memory that no file stands behind is judged, only after
//! half of the work, and by a line through many samples, which a few outliers do not move.

use crate::{Spread, process::Process};

/// Samples that are taken over all the work, about. Between two of them the memory of a process that does not grow
/// differs by tens of MiB; a line through so many is off by a few.
const SAMPLES: u64 = 256;

/// Resident memory of some processes, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resident {
    /// Bytes that no file stands behind (`RssAnon`).
    pub(super) anonymous_bytes: u64,
    /// Bytes of mapped files (`RssFile`).
    pub(super) file_bytes: u64,
}

impl Resident {
    /// That of the processes that run.
    pub(super) fn of(processes: &[Process]) -> Self {
        let sum = |of: fn(&Process) -> Option<u64>| processes.iter().filter_map(of).sum();
        Self { anonymous_bytes: sum(Process::anonymous_bytes), file_bytes: sum(Process::file_bytes) }
    }
}

/// Samples of anonymous bytes at regular points of some work.
#[derive(Clone, Debug)]
pub(super) struct Growth {
    work: u64,
    /// After so much work, so many bytes.
    samples: Vec<(u64, u64)>,
}

impl Growth {
    /// Of something that does so much work in all.
    pub(super) const fn over(work: u64) -> Self {
        Self { work, samples: Vec::new() }
    }

    /// Whether `done` work is beyond the next point at which a sample is taken.
    pub(super) fn is_due(&self, done: u64) -> bool {
        done.saturating_mul(SAMPLES) >= self.work.saturating_mul(self.samples.len() as u64)
    }

    /// Adds a sample.
    pub(super) fn sample(&mut self, done: u64, bytes: u64) {
        self.samples.push((done, bytes));
    }

    /// Every sample's bytes, in the order of the work.
    pub(super) fn bytes(&self) -> impl Iterator<Item = u64> {
        self.samples.iter().map(|(_, bytes)| *bytes)
    }

    /// Bytes for a unit of work over the second half of it: the median of the slopes between any two samples
    /// (Theil and Sen). 0 when there are not two.
    pub(super) fn bytes_per_work(&self) -> f64 {
        let half = &self.samples[self.samples.partition_point(|(done, _)| *done < self.work / 2)..];
        let slopes = half.iter().enumerate().flat_map(|(at, (done, bytes))| {
            half[at + 1..]
                .iter()
                .filter(move |(later, _)| later > done)
                .map(move |(later, then)| (*then as f64 - *bytes as f64) / (later - done) as f64)
        });
        Spread::of(slopes).median
    }

    /// What that makes of half of the work.
    pub(super) fn over_half(&self) -> f64 {
        self.bytes_per_work() * (self.work / 2) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Random;

    const MIB: f64 = (1 << 20) as f64;
    const LOOKUPS: u64 = 20_000;

    /// Samples of something that is `size` large after a share of the work, up to 8 MiB of noise and rare peaks.
    fn growth(size: impl Fn(f64) -> f64) -> Growth {
        let (mut growth, mut random) = (Growth::over(LOOKUPS), Random::new(7));
        for done in (16..=LOOKUPS).step_by(16) {
            if growth.is_due(done) {
                let peak = if random.below(12) == 0 { 40.0 } else { 0.0 };
                let mib = 400.0 + size(done as f64 / LOOKUPS as f64) + 8.0 * random.unit() + peak;
                growth.sample(done, (mib * MIB) as u64);
            }
        }
        growth
    }

    #[test]
    fn warming_up_is_told_from_a_leak() {
        let flat = growth(|_| 0.0);
        assert!((250..=258).contains(&flat.bytes().count()), "{}", flat.bytes().count());
        assert!(flat.over_half().abs() < 4.0 * MIB, "{flat:?}");
        let warming = growth(|share| 200.0 * (1.0 - (-12.0 * share).exp()));
        assert!(warming.over_half().abs() < 4.0 * MIB, "{} {warming:?}", warming.over_half());
        // 2 KiB for each lookup.
        let leaking = growth(|share| share * LOOKUPS as f64 * 2048.0 / MIB);
        assert!((leaking.bytes_per_work() - 2048.0).abs() < 400.0, "{}", leaking.bytes_per_work());
        assert!(leaking.over_half() > 15.0 * MIB);
    }

    #[test]
    fn without_two_samples_there_is_no_slope() {
        let mut growth = Growth::over(1000);
        assert_eq!(growth.bytes_per_work(), 0.0);
        growth.sample(600, 5);
        assert_eq!((growth.bytes_per_work(), growth.is_due(3), growth.is_due(4)), (0.0, false, true));
        growth.sample(600, 9);
        assert_eq!(growth.bytes_per_work(), 0.0, "no work between them");
    }
}
