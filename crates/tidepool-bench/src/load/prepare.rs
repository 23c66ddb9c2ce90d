//! Requests made ahead by a thread of their own, each with the moment at which it is to be sent.

use std::{fmt, thread, time::Duration};

use tidepool_client::LookupRequest;
use tokio::sync::mpsc as tokio_mpsc;

use crate::{BenchError, draw::Random};

/// Ids that are prepared ahead at most: 256 MiB of them.
const PREPARED_IDS: usize = 32 << 20;
/// Requests that are prepared ahead at least and at most.
const PREPARED_REQUESTS: (usize, usize) = (64, 1 << 20);

/// A request, and when it is to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// After the beginning of the load. Of no account when the load is as fast as it goes.
    pub at: Duration,
    /// What is asked.
    pub request: LookupRequest,
}

/// What is to be sent, in the order of sending.
pub struct Plan {
    pub(super) items: Box<dyn Iterator<Item = Planned> + Send>,
    pub(super) ahead: usize,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("ahead", &self.ahead).finish_non_exhaustive()
    }
}

impl Plan {
    /// A plan of any requests; `ids` is what one has on average, which bounds how many are made ahead.
    pub fn new(items: impl Iterator<Item = Planned> + Send + 'static, ids: usize) -> Self {
        let (least, most) = PREPARED_REQUESTS;
        Self { items: Box::new(items), ahead: (PREPARED_IDS / ids.max(1)).clamp(least, most) }
    }

    /// Requests that arrive by chance, independently of each other (Poisson), at `per_second` on average,
    /// until `until`.
    pub fn poisson(
        requests: impl Iterator<Item = LookupRequest> + Send + 'static,
        per_second: f64,
        until: Duration,
        ids: usize,
        seed: u64,
    ) -> Self {
        let arrivals = Arrivals::new(per_second, seed).take_while(move |at| *at < until);
        Self::new(arrivals.zip(requests).map(|(at, request)| Planned { at, request }), ids)
    }

    /// Requests for a load that is as fast as it goes.
    pub fn endless(requests: impl Iterator<Item = LookupRequest> + Send + 'static, ids: usize) -> Self {
        Self::new(requests.map(|request| Planned { at: Duration::ZERO, request }), ids)
    }

    /// Begins to make requests, and waits until as many are there as are made ahead, or all.
    pub(super) async fn prepare(self) -> Result<tokio_mpsc::Receiver<Planned>, BenchError> {
        let Self { mut items, ahead } = self;
        let (to_sender, receiver) = tokio_mpsc::channel(ahead);
        let (ready, prepared) = tokio::sync::oneshot::channel();
        thread::Builder::new()
            .name("load-prepare".into())
            .spawn(move || {
                for planned in items.by_ref().take(ahead) {
                    // Nobody listens any more: the load has ended.
                    if to_sender.blocking_send(planned).is_err() {
                        return;
                    }
                }
                drop(ready);
                for planned in items {
                    if to_sender.blocking_send(planned).is_err() {
                        return;
                    }
                }
            })
            .map_err(BenchError::io("starting the thread that prepares requests"))?;
        // It is dropped, not sent.
        let _: Result<(), _> = prepared.await;
        Ok(receiver)
    }
}

/// Moments of a Poisson process: the gaps between them are exponential, and independent.
#[derive(Clone, Debug)]
pub struct Arrivals {
    per_second: f64,
    at: f64,
    random: Random,
}

impl Arrivals {
    /// `per_second` moments a second on average; `per_second` is above 0.
    #[must_use]
    pub const fn new(per_second: f64, seed: u64) -> Self {
        Self { per_second, at: 0.0, random: Random::new(seed ^ 0x6172_7269_7661_6c73) }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at -= (1.0 - self.random.unit()).ln() / self.per_second;
        Duration::try_from_secs_f64(self.at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_their_rate_and_depend_on_the_seed_alone() {
        for rate in [0.5, 100.0, 20_000.0] {
            let arrivals: Vec<_> = Arrivals::new(rate, 3).take(20_000).collect();
            assert_eq!(arrivals, Arrivals::new(rate, 3).take(20_000).collect::<Vec<_>>());
            assert_ne!(arrivals, Arrivals::new(rate, 4).take(20_000).collect::<Vec<_>>());
            let found = arrivals.len() as f64 / arrivals[19_999].as_secs_f64();
            assert!((found / rate - 1.0).abs() < 0.03, "{found}");
            let mut before = Duration::ZERO;
            let gaps: Vec<f64> = arrivals
                .iter()
                .map(|at| (*at - std::mem::replace(&mut before, *at)).as_secs_f64() * rate)
                .collect();
            // Of an exponential distribution: the variance is the square of the mean, and e^-1 are longer.
            let variance = gaps.iter().map(|gap| (gap - 1.0).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((variance - 1.0).abs() < 0.1, "{variance}");
            let longer = gaps.iter().filter(|gap| **gap > 1.0).count() as f64 / gaps.len() as f64;
            assert!((longer - (-1.0f64).exp()).abs() < 0.02, "{longer}");
        }
    }

    #[tokio::test]
    async fn a_plan_is_prepared_ahead_and_in_order() {
        let requests = (0..).map(|n: u32| LookupRequest { request_id: n.to_string(), features: Vec::new() });
        let plan = Plan::poisson(requests, 1000.0, Duration::from_secs(1), 1 << 30, 1);
        assert_eq!(plan.ahead, 64, "large requests are few");
        let mut prepared = plan.prepare().await.unwrap();
        assert!(prepared.len() >= 64);
        let mut received = Vec::new();
        while let Some(planned) = prepared.recv().await {
            received.push(planned);
        }
        assert!((800..1200).contains(&received.len()), "{}", received.len());
        assert!(received.is_sorted_by_key(|planned| planned.at));
        assert!(received.iter().enumerate().all(|(n, planned)| planned.request.request_id == n.to_string()));
    }
}
