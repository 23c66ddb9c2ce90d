//! A bound on bytes per second, of everybody who shares it: whoever takes too much waits until it is made up for.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// After a rest, so much time's worth of bytes goes through at once.
const BURST: Duration = Duration::from_millis(50);

/// A token bucket that may be overdrawn: what is larger than the burst gets through too, and the next wait longer.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: u64,
    /// When all that was taken has been made up for.
    even_at: Mutex<Option<Instant>>,
}

impl Throttle {
    pub(crate) const fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, even_at: Mutex::new(None) }
    }

    /// Takes so many bytes, and waits for as long as that is too fast.
    pub(crate) async fn take(&self, bytes: u64) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let until = {
            let mut even_at = self.even_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let from = even_at.map_or(now, |at| at.max(now));
            *even_at = Some(from + cost);
            (from + cost).checked_sub(BURST).unwrap_or(now)
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_share_it_are_as_fast_together_as_it_says() {
        let throttle = Throttle::new(1_000_000);
        let start = Instant::now();
        let takes = async |count: u64, bytes: u64| {
            for _ in 0..count {
                throttle.take(bytes).await;
            }
        };
        tokio::join!(takes(100, 10_000), takes(10, 100_000), takes(1, 1_000_000));
        let took = start.elapsed();
        assert!(took <= Duration::from_secs(3) && took >= Duration::from_secs(3) - 2 * BURST, "{took:?}");

        // A rest gives no more than the burst.
        tokio::time::advance(Duration::from_secs(60)).await;
        let start = Instant::now();
        takes(100, 10_000).await;
        assert!(start.elapsed() >= Duration::from_secs(1) - 2 * BURST, "{:?}", start.elapsed());
    }
}
