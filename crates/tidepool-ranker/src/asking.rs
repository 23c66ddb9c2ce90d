//! How a ranker asks the cluster: the sections `[hedge]`, `[retry]` and `[breaker]` of its configuration, and
//! what becomes of ids that nobody answers for. `config/ranker.toml` explains every key.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidepool_client::{BreakerConfig, HedgeConfig, OnUnavailable, RetryConfig};
use tidepool_runtime::config::Problems;

/// When a late call is asked of another replica group as well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawHedge {
    /// The share of calls that are not late.
    pub quantile_percent: f64,
    /// No call is late before.
    pub min_delay_ms: u64,
    /// Every call is late after.
    pub max_delay_ms: u64,
    /// Hedges per hundred calls; 0: none.
    pub budget_percent: f64,
    /// Hedges that may be made at once.
    pub burst_calls: u32,
}

/// How often failed calls are asked again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawRetry {
    /// Retries per hundred calls.
    pub budget_percent: f64,
    /// Retries per second that are allowed in any case.
    pub min_per_second: u32,
}

/// When a node is left alone for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawBreaker {
    /// Failed calls in a row that are enough.
    pub failures: u32,
    /// Failed calls per hundred that are enough.
    pub failure_percent: f64,
    /// How long at first.
    pub backoff_ms: u64,
    /// How long at most.
    pub max_backoff_ms: u64,
}

impl Default for RawHedge {
    fn default() -> Self {
        Self {
            quantile_percent: 95.0,
            min_delay_ms: 1,
            max_delay_ms: 100,
            budget_percent: 10.0,
            burst_calls: 20,
        }
    }
}

impl Default for RawRetry {
    fn default() -> Self {
        Self { budget_percent: 20.0, min_per_second: 10 }
    }
}

impl Default for RawBreaker {
    fn default() -> Self {
        Self { failures: 3, failure_percent: 50.0, backoff_ms: 500, max_backoff_ms: 10_000 }
    }
}

/// How the cluster is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asking {
    /// What becomes of ids that nobody answers for.
    pub on_unavailable: OnUnavailable,
    /// How much worse than another the preferred group may be, as a factor.
    pub spill_factor: f64,
    /// When a late call is asked of another group as well.
    pub hedge: HedgeConfig,
    /// How often failed calls are asked again.
    pub retry: RetryConfig,
    /// When a node is left alone for a while.
    pub breaker: BreakerConfig,
}

impl Asking {
    /// None, and the problems noted, when something cannot be.
    pub(crate) fn check(
        problems: &mut Problems,
        (on_unavailable, spill_factor): (&str, f64),
        hedge: &RawHedge,
        retry: &RawRetry,
        breaker: &RawBreaker,
    ) -> Option<Self> {
        let on_unavailable = problems.parse("on_unavailable", on_unavailable);
        problems.check((1.0..=1e6).contains(&spill_factor), "spill_factor: from 1 to 1000000");
        let mut share = |key: &str, percent: f64| {
            problems.check((0.0..=100.0).contains(&percent), format!("{key}: from 0 to 100"));
            percent / 100.0
        };
        let quantile = share("hedge.quantile_percent", hedge.quantile_percent);
        let hedges = share("hedge.budget_percent", hedge.budget_percent);
        let retries = share("retry.budget_percent", retry.budget_percent);
        let failure_rate = share("breaker.failure_percent", breaker.failure_percent);
        let mut time = |key: &str, ms: u64| {
            problems.check((1..=3_600_000).contains(&ms), format!("{key}: from 1 to 3600000"));
            Duration::from_millis(ms)
        };
        let min_delay = time("hedge.min_delay_ms", hedge.min_delay_ms);
        let max_delay = time("hedge.max_delay_ms", hedge.max_delay_ms);
        let backoff = time("breaker.backoff_ms", breaker.backoff_ms);
        let max_backoff = time("breaker.max_backoff_ms", breaker.max_backoff_ms);
        problems.check(min_delay <= max_delay, "hedge.min_delay_ms: at most hedge.max_delay_ms");
        problems.check(backoff <= max_backoff, "breaker.backoff_ms: at most breaker.max_backoff_ms");
        problems.check(breaker.failures > 0, "breaker.failures: at least 1");
        Some(Self {
            on_unavailable: on_unavailable?,
            spill_factor,
            hedge: HedgeConfig { quantile, min_delay, max_delay, budget: hedges, burst: hedge.burst_calls },
            retry: RetryConfig { budget: retries, min_per_second: retry.min_per_second },
            breaker: BreakerConfig { failures: breaker.failures, failure_rate, backoff, max_backoff },
        })
    }
}

#[cfg(test)]
mod tests {
    use tidepool_client::ClientConfig;

    use super::*;

    #[test]
    fn the_defaults_are_the_clients() {
        let mut problems = Problems::default();
        let (hedge, retry, breaker) = Default::default();
        let asking = Asking::check(&mut problems, ("fail", 4.0), &hedge, &retry, &breaker).unwrap();
        assert!(problems.is_empty());
        let client = ClientConfig::default();
        assert_eq!(asking.on_unavailable, client.on_unavailable);
        assert_eq!(asking.spill_factor, client.spill_factor);
        assert_eq!(
            (asking.hedge, asking.retry, asking.breaker),
            (client.hedge, client.retry, client.breaker)
        );
    }
}
