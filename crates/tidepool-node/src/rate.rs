//! A bound on how much is taken per second, decided with one atomic number and without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// So much may be taken at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Units per second; at least 1.
    pub(crate) per_second: u64,
    /// What a second's worth of units has to be multiplied with to give the burst.
    pub(crate) burst: Duration,
}

/// A token bucket. It may be overdrawn: whoever comes while anything is left takes what they need, and the
/// next ones wait until it is made up for. So what is large gets through too, and what turns out larger than
/// thought can be charged afterwards, and over time the rate holds all the same.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    /// When all that was taken has been made up for, in nanoseconds of the caller's clock.
    even_at: AtomicU64,
}

/// Nothing is left; something is after so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Empty {
    pub(crate) wait: Duration,
}

impl Bucket {
    /// A full one.
    pub(crate) const fn new(rate: Rate) -> Self {
        Self { rate, even_at: AtomicU64::new(0) }
    }

    pub(crate) const fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes `units` if anything is left. `now` is the time since a moment that the caller chooses, the same one
    /// throughout.
    pub(crate) fn take(&self, units: u64, now: Duration) -> Result<(), Empty> {
        let (now, burst, cost) = (nanos(now), nanos(self.rate.burst), self.nanos_of(units));
        let taken = self.even_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |even_at| {
            let even_at = even_at.max(now);
            (even_at - now < burst).then(|| even_at.saturating_add(cost))
        });
        taken.map(drop).map_err(|even_at| {
            // One more, for it is not enough to be even with the burst.
            Empty { wait: Duration::from_nanos((even_at - now).saturating_sub(burst).saturating_add(1)) }
        })
    }

    /// Takes `units` whether or not they are there.
    pub(crate) fn charge(&self, units: u64, now: Duration) {
        let (now, cost) = (nanos(now), self.nanos_of(units));
        self.update(|even_at| even_at.max(now).saturating_add(cost));
    }

    /// Puts back what was taken and not used.
    pub(crate) fn put_back(&self, units: u64) {
        let cost = self.nanos_of(units);
        self.update(|even_at| even_at.saturating_sub(cost));
    }

    fn update(&self, next: impl Fn(u64) -> u64) {
        let all = |even_at| Some(next(even_at));
        // The closure always gives a value, so this cannot fail.
        let _ = self.even_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, all);
    }

    /// How long it takes to make up for `units`; at most half of what the clock counts.
    fn nanos_of(&self, units: u64) -> u64 {
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.rate.per_second.max(1));
        u64::try_from(nanos).unwrap_or(u64::MAX).min(u64::MAX / 2)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn bucket(per_second: u64, burst: Duration) -> Bucket {
        Bucket::new(Rate { per_second, burst })
    }

    #[test]
    fn a_burst_goes_through_and_then_the_rate_holds() {
        let bucket = bucket(1000, 100 * MS);
        let taken = (0..1000).take_while(|_| bucket.take(1, MS).is_ok()).count();
        assert_eq!(taken, 100);
        let Empty { wait } = bucket.take(1, MS).unwrap_err();
        assert!(wait > Duration::ZERO && wait < MS, "{wait:?}");
        assert!(bucket.take(1, MS + wait).is_ok(), "so long and no longer");
        let later = (0..1000).take_while(|_| bucket.take(1, 21 * MS).is_ok()).count();
        assert!((19..=20).contains(&later), "{later} in 20 ms");
    }

    #[test]
    fn what_is_larger_than_the_burst_goes_through_and_is_made_up_for() {
        let bucket = bucket(1000, 100 * MS);
        assert!(bucket.take(5000, Duration::ZERO).is_ok());
        let Empty { wait } = bucket.take(1, Duration::ZERO).unwrap_err();
        assert!((wait.as_secs_f64() - 4.9).abs() < 1e-6, "{wait:?}");
        assert!(bucket.take(1, Duration::from_secs(5)).is_ok());
    }

    #[test]
    fn charges_count_and_what_is_put_back_does_not() {
        let bucket = bucket(10, Duration::from_secs(1));
        bucket.charge(30, Duration::ZERO);
        assert_eq!(bucket.take(1, Duration::ZERO).unwrap_err().wait.as_secs(), 2);
        bucket.put_back(25);
        assert!(bucket.take(1, Duration::ZERO).is_ok());
    }

    #[test]
    fn no_number_overflows() {
        let bucket = bucket(1, Duration::MAX);
        for now in [Duration::ZERO, Duration::from_secs(1), Duration::MAX] {
            bucket.charge(u64::MAX, now);
            let _ = bucket.take(u64::MAX, now);
        }
        bucket.put_back(u64::MAX);
    }

    proptest! {
        #[test]
        fn over_time_no_more_than_rate_burst_and_the_last_request(
            per_second in 1u64..10_000,
            asks in proptest::collection::vec((1u64..5000, 0u64..50_000), 1..200),
        ) {
            let bucket = bucket(per_second, 100 * MS);
            let (mut now, mut taken, mut largest) = (Duration::ZERO, 0, 0);
            for (units, after_us) in asks {
                now += Duration::from_micros(after_us);
                if bucket.take(units, now).is_ok() {
                    taken += units;
                    largest = largest.max(units);
                }
            }
            let bound = (now.as_secs_f64() + 0.1) * per_second as f64 + largest as f64 + 1.0;
            prop_assert!(taken as f64 <= bound, "{} of at most {}", taken, bound);
        }
    }
}
