//! What a client is told when it is made.

use std::{path::PathBuf, time::Duration};

use prometheus::Registry;
use tidepool_types::Name;

use crate::{
    channels::{self, BearerToken, Connector},
    error::ClientError,
    request::OnUnavailable,
};

/// How a [`Client`](crate::Client) finds its cluster and how it asks.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of each controller; the map is watched at one of them at a time. Not used by
    /// [`Client::with_map`](crate::Client::with_map).
    pub controllers: Vec<String>,
    /// The replica group that is asked first, usually the one in the caller's zone. None: the less loaded of two.
    pub preferred_group: Option<Name>,
    /// By how much the preferred group may be slower or more loaded than another before that one is asked,
    /// as a factor.
    pub spill_factor: f64,
    /// Where the last cluster map is kept, so that a restart needs no controller.
    pub map_file: Option<PathBuf>,
    /// How connections are made; None: over plain TCP.
    pub connector: Option<Connector>,
    /// What is shown to controllers and nodes, so that they know who asks; None: the connection alone.
    pub token: Option<BearerToken>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// The budget of a lookup that [`Client::default_options`](crate::Client::default_options) gives.
    pub default_timeout: Duration,
    /// Every lookup is answered to the bit: stored rows travel and are pooled here, in request order.
    pub exact: bool,
    /// Who asks; quotas at the nodes go by it.
    pub tenant: String,
    /// The largest message sent or received, in bytes.
    pub max_message_bytes: usize,
    /// Bytes of question and answer together up to which a lookup goes over the long-lived stream to its node;
    /// larger ones are calls of their own, and so is what takes more than half of `max_message_bytes`. 0: all are.
    pub stream_max_bytes: usize,
    /// How often an idle or silent connection is probed.
    pub keep_alive_interval: Duration,
    /// How long a probe may stay unanswered before the connection counts as dead.
    pub keep_alive_timeout: Duration,
    /// How many connections to the nodes of a new map are made at a time, before they are needed; 0: none.
    pub connects_at_once: usize,
    /// When a call is asked of another group as well.
    pub hedge: HedgeConfig,
    /// How often failed calls are asked again.
    pub retry: RetryConfig,
    /// When a node is not asked for a while.
    pub breaker: BreakerConfig,
    /// What [`Client::default_options`](crate::Client::default_options) does about ids that nobody answers for.
    pub on_unavailable: OnUnavailable,
    /// What the cache of rows that are asked for often may take, in bytes, its overhead included; 0: there is
    /// none.
    pub cache_bytes: u64,
    /// Where the metrics are registered; None: they are counted and shown nowhere.
    pub registry: Option<Registry>,
}

/// When a call that is late is asked of another replica group as well; the first answer wins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HedgeConfig {
    /// A call is late when it takes longer than this share of the calls of its size, from 0 to 1.
    pub quantile: f64,
    /// No call is late before.
    pub min_delay: Duration,
    /// Every call is late after; also while too few calls have been measured.
    pub max_delay: Duration,
    /// Hedges per call, from 0 to 1; 0: none. It keeps a slow cluster from being asked twice as much.
    pub budget: f64,
    /// Hedges that may be made at once by what was saved.
    pub burst: u32,
}

impl Default for HedgeConfig {
    fn default() -> Self {
        Self {
            quantile: 0.95,
            min_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(100),
            budget: 0.1,
            burst: 20,
        }
    }
}

/// How often failed calls are asked again, elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryConfig {
    /// Retries per call, from 0 to 1.
    pub budget: f64,
    /// Retries per second that are allowed however few calls there are. Ten seconds of them can be saved; with a
    /// budget, a thousand at least.
    pub min_per_second: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { budget: 0.2, min_per_second: 10 }
    }
}

/// When a node is not asked for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerConfig {
    /// Failed calls in a row that are enough, at least 1.
    pub failures: u32,
    /// The share of failed calls of the last seconds that is enough, from 0 to 1.
    pub failure_rate: f64,
    /// How long the node is left alone at first; twice as long after each probe that fails.
    pub backoff: Duration,
    /// How long at most.
    pub max_backoff: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 3,
            failure_rate: 0.5,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(10),
        }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            controllers: Vec::new(),
            preferred_group: None,
            spill_factor: 4.0,
            map_file: None,
            connector: None,
            token: None,
            connect_timeout: Duration::from_millis(500),
            default_timeout: Duration::from_millis(500),
            exact: false,
            tenant: String::new(),
            max_message_bytes: 64 << 20,
            stream_max_bytes: 1 << 20,
            keep_alive_interval: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(1),
            connects_at_once: 8,
            hedge: HedgeConfig::default(),
            retry: RetryConfig::default(),
            breaker: BreakerConfig::default(),
            on_unavailable: OnUnavailable::default(),
            cache_bytes: 0,
            registry: None,
        }
    }
}

impl ClientConfig {
    /// Checks what [`Client::start`](crate::Client::start) needs, all problems at once.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let mut problems = Vec::new();
        if self.controllers.is_empty() {
            problems.push("no controller is named".to_owned());
        }
        for controller in &self.controllers {
            if let Err(problem) = channels::uri(controller) {
                problems.push(format!("controller {controller:?} is no host:port: {problem}"));
            }
        }
        self.check_asking(problems)
    }

    /// Checks what a client needs that watches no map itself, beside the `problems` there are.
    pub(crate) fn check_asking(&self, mut problems: Vec<String>) -> Result<(), ClientError> {
        if self.max_message_bytes == 0 {
            problems.push("max_message_bytes is 0".to_owned());
        }
        let shares = [
            ("hedge.quantile", self.hedge.quantile, 1.0),
            ("hedge.budget", self.hedge.budget, 1.0),
            ("retry.budget", self.retry.budget, 1.0),
            ("breaker.failure_rate", self.breaker.failure_rate, 1.0),
        ];
        for (name, value, most) in shares {
            if !(0.0..=most).contains(&value) {
                problems.push(format!("{name} is {value}, it goes from 0 to {most}"));
            }
        }
        if self.spill_factor.is_nan() || self.spill_factor < 1.0 {
            problems.push(format!("spill_factor is {}, it is at least 1", self.spill_factor));
        }
        if self.hedge.min_delay > self.hedge.max_delay {
            problems.push("hedge.min_delay is above hedge.max_delay".to_owned());
        }
        if self.breaker.failures == 0 {
            problems.push("breaker.failures is 0".to_owned());
        }
        if problems.is_empty() { Ok(()) } else { Err(ClientError::Config(problems)) }
    }
}
