//! What a ranker is told when it starts: `config/ranker.toml` explains every key.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidepool_runtime::{
    audit::AuditOptions,
    config::{InvalidConfig, Problems},
    logs::{self, LogOptions},
    pool::CpuPool,
    security::{RawAuth, RawTls, SecurityOptions},
};
use tidepool_store::StoreLocation;
use tidepool_types::{Name, ports};

use crate::{
    asking::{Asking, RawBreaker, RawHedge, RawRetry},
    audit_sample::{AuditSampleOptions, RawAuditSample},
    batch::{self, BatchOptions, ModelLimits, RawBatch, RawModel},
    device::{DeviceOptions, RawCuda},
    request::Limits,
};

/// The document, key by key. A required key has an empty default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// Name of this ranker in the cluster; required.
    pub ranker: String,
    /// Where gRPC listens.
    pub grpc_address: String,
    /// Where HTTP listens.
    pub http_address: String,
    /// `host:port` that the cluster reaches gRPC by; empty: what it listens at.
    pub advertise_address: String,
    /// `host:port` that the cluster reaches HTTP by; empty: what it listens at.
    pub advertise_http_address: String,
    /// `host:port` of every controller; at least one.
    pub controllers: Vec<String>,
    /// The artifact store: a directory, or `s3://BUCKET/PREFIX`.
    pub store: String,
    /// Where the last cluster map is kept.
    pub data_dir: String,
    /// The replica group that is asked first; empty: by turns.
    pub preferred_group: String,
    /// How much worse than another the preferred group may be, as a factor.
    pub spill_factor: f64,
    /// What becomes of ids that nobody answers for: `fail` or `default`.
    pub on_unavailable: String,
    /// Whether lookups are answered to the bit on any layout.
    pub exact: bool,
    /// What the cache of rows that are asked for often may take, in bytes; 0: there is none.
    pub cache_bytes: u64,
    /// Ids of each table that a release which comes is warmed with; 0: none.
    pub warm_ids: u32,
    /// How long the warming of a release may take.
    pub warm_timeout_ms: u64,
    /// What runs dense models: `cpu`, or `cuda:N`.
    pub device: String,
    /// Threads that move bytes; 0: one for two cores.
    pub io_threads: u32,
    /// Threads of the CPU pool; 0: one per core.
    pub pool_threads: u32,
    /// Dense runs that may wait for a thread.
    pub pool_queue_len: u32,
    /// Candidates that a request may have.
    pub max_candidates: u32,
    /// Ids that a request may have.
    pub max_ids: u64,
    /// Size of the largest request, in bytes.
    pub max_request_bytes: u32,
    /// The last requests of which it is kept what became of them; 0: none.
    pub recent_requests: u32,
    /// Budget of a request that names none.
    pub default_deadline_ms: u64,
    /// The longest budget that a request is granted.
    pub max_deadline_ms: u64,
    /// How long a connection may take to be made.
    pub connect_timeout_ms: u64,
    /// How often a release that could not be loaded is tried again.
    pub load_retry_ms: u64,
    /// How long requests in flight may take once the ranker is asked to end.
    pub drain_timeout_ms: u64,
    /// Where changes that this ranker is asked for are written down; empty: in the log of the process only.
    pub audit_log: String,
    /// Bytes of that file until it is put aside.
    pub audit_log_max_bytes: u64,
    /// How many such files are kept.
    pub audit_log_keep: u32,
    /// Answered requests that are written down with their scores.
    pub audit_sample: RawAuditSample,
    /// When a late call is asked of another replica group as well.
    pub hedge: RawHedge,
    /// How often failed calls are asked again.
    pub retry: RawRetry,
    /// When a node is left alone for a while.
    pub breaker: RawBreaker,
    /// How models use a GPU, where `device` is one.
    pub cuda: RawCuda,
    /// How requests share batches.
    pub batch: RawBatch,
    /// What single models may have.
    pub models: BTreeMap<String, RawModel>,
    /// The model of each scenario.
    pub scenarios: BTreeMap<String, String>,
    /// TLS on both ports, and with other roles.
    pub tls: RawTls,
    /// Who may do what.
    pub auth: RawAuth,
    /// Log lines.
    pub log: LogOptions,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            ranker: String::new(),
            grpc_address: format!("127.0.0.1:{}", ports::RANKER_GRPC),
            http_address: format!("127.0.0.1:{}", ports::RANKER_HTTP),
            advertise_address: String::new(),
            advertise_http_address: String::new(),
            controllers: vec![format!("127.0.0.1:{}", ports::CONTROLLER_GRPC)],
            store: "data/store".into(),
            data_dir: "data/ranker".into(),
            preferred_group: String::new(),
            spill_factor: 4.0,
            on_unavailable: "fail".into(),
            exact: false,
            cache_bytes: 0,
            warm_ids: 100_000,
            warm_timeout_ms: 10_000,
            device: "cpu".into(),
            io_threads: 0,
            pool_threads: 0,
            pool_queue_len: 256,
            max_candidates: 100_000,
            max_ids: 1_000_000,
            max_request_bytes: 32 << 20,
            recent_requests: 4096,
            default_deadline_ms: 1_000,
            max_deadline_ms: 30_000,
            connect_timeout_ms: 500,
            load_retry_ms: 5_000,
            drain_timeout_ms: 10_000,
            audit_log: String::new(),
            audit_log_max_bytes: 64 << 20,
            audit_log_keep: 8,
            audit_sample: RawAuditSample::default(),
            hedge: RawHedge::default(),
            retry: RawRetry::default(),
            breaker: RawBreaker::default(),
            cuda: RawCuda::default(),
            batch: RawBatch::default(),
            models: BTreeMap::new(),
            scenarios: BTreeMap::new(),
            tls: RawTls::default(),
            auth: RawAuth::default(),
            log: LogOptions::default(),
        }
    }
}

/// The validated configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of this ranker in the cluster.
    pub ranker: Name,
    /// Where gRPC listens; port 0: a free one.
    pub grpc_address: SocketAddr,
    /// Where HTTP listens; port 0: a free one.
    pub http_address: SocketAddr,
    /// `host:port` that the cluster reaches gRPC by; `None`: what it listens at.
    pub advertise_address: Option<String>,
    /// `host:port` that the cluster reaches HTTP by; `None`: what it listens at.
    pub advertise_http_address: Option<String>,
    /// `host:port` of every controller.
    pub controllers: Vec<String>,
    /// Where the artifact store is.
    pub store: StoreLocation,
    /// Where the last cluster map is kept.
    pub data_dir: PathBuf,
    /// The replica group that is asked first.
    pub preferred_group: Option<Name>,
    /// How the cluster is asked.
    pub asking: Asking,
    /// Whether lookups are answered to the bit on any layout.
    pub exact: bool,
    /// What the cache of rows that are asked for often may take, in bytes; 0: there is none.
    pub cache_bytes: u64,
    /// Ids of each table that a release which comes is warmed with; 0: none.
    pub warm_ids: usize,
    /// How long the warming of a release may take.
    pub warm_timeout: Duration,
    /// What runs dense models.
    pub device: DeviceOptions,
    /// Threads of the CPU pool.
    pub pool_threads: usize,
    /// Threads of the runtime that the ranker is started in, at least one. Who starts it sees to that.
    pub io_threads: usize,
    /// Dense runs that may wait for a thread.
    pub pool_queue_len: usize,
    /// What one request may ask for.
    pub limits: Limits,
    /// How requests share batches.
    pub batch: BatchOptions,
    /// What single models may have.
    pub models: BTreeMap<Name, ModelLimits>,
    /// The model of each scenario.
    pub scenarios: BTreeMap<String, Name>,
    /// Size of the largest request, in bytes.
    pub max_request_bytes: usize,
    /// The last requests of which it is kept what became of them; 0: none.
    pub recent_requests: usize,
    /// Budget of a request that names none.
    pub default_deadline: Duration,
    /// The longest budget that a request is granted.
    pub max_deadline: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How often a release that could not be loaded is tried again.
    pub load_retry: Duration,
    /// How long requests in flight may take once the ranker is asked to end.
    pub drain_timeout: Duration,
    /// Where changes are written down beside the log.
    pub audit: Option<AuditOptions>,
    /// Which answered requests are written down with their scores; `None`: none.
    pub audit_sample: Option<AuditSampleOptions>,
    /// What locks its doors.
    pub security: SecurityOptions,
    /// Log lines; whoever owns the process sets them up.
    pub log: LogOptions,
}

/// Requests that are kept at most: with the largest record that there can be, 32 GiB.
const MAX_RECENT: u32 = 1 << 20;

/// No duration of a ranker is longer than a day.
const MAX_MS: u64 = 24 * 3600 * 1000;

impl TryFrom<RawConfig> for Config {
    type Error = InvalidConfig;

    fn try_from(raw: RawConfig) -> Result<Self, InvalidConfig> {
        let mut problems = Problems::default();
        let ranker = problems.parse("ranker", &raw.ranker);
        let grpc_address = problems.parse("grpc_address", &raw.grpc_address);
        let http_address = problems.parse("http_address", &raw.http_address);
        let advertise_address =
            problems.advertised(("advertise_address", raw.advertise_address), ("grpc_address", grpc_address));
        let advertise_http_address = problems.advertised(
            ("advertise_http_address", raw.advertise_http_address),
            ("http_address", http_address),
        );
        problems.check(!raw.controllers.is_empty(), "controllers: at least one");
        for controller in &raw.controllers {
            problems.host_port("controllers", controller);
        }
        let store = problems.parse("store", &raw.store);
        problems.check(!raw.data_dir.is_empty(), "data_dir: must be given");
        let preferred_group = (!raw.preferred_group.is_empty())
            .then(|| problems.parse("preferred_group", &raw.preferred_group))
            .flatten();
        let asking = Asking::check(
            &mut problems,
            (&raw.on_unavailable, raw.spill_factor),
            &raw.hedge,
            &raw.retry,
            &raw.breaker,
        );
        let device = DeviceOptions::check(&mut problems, &raw.device, &raw.cuda, &raw.data_dir);
        problems.check(raw.pool_threads <= 4096, "pool_threads: at most 4096");
        problems.check(raw.io_threads <= 4096, "io_threads: at most 4096");
        problems.check((1..=1_000_000).contains(&raw.pool_queue_len), "pool_queue_len: from 1 to 1000000");
        problems.check(raw.max_candidates > 0, "max_candidates: at least 1");
        problems.check(raw.max_ids > 0, "max_ids: at least 1");
        problems.check(raw.max_request_bytes >= 1024, "max_request_bytes: at least 1024");
        problems.check(raw.recent_requests <= MAX_RECENT, format!("recent_requests: at most {MAX_RECENT}"));
        let mut duration = |key: &str, ms: u64| {
            problems.check((1..=MAX_MS).contains(&ms), format!("{key}: from 1 to {MAX_MS}"));
            Duration::from_millis(ms)
        };
        let default_deadline = duration("default_deadline_ms", raw.default_deadline_ms);
        let max_deadline = duration("max_deadline_ms", raw.max_deadline_ms);
        let connect_timeout = duration("connect_timeout_ms", raw.connect_timeout_ms);
        let warm_timeout = duration("warm_timeout_ms", raw.warm_timeout_ms);
        let load_retry = duration("load_retry_ms", raw.load_retry_ms);
        let drain_timeout = duration("drain_timeout_ms", raw.drain_timeout_ms);
        let listens = [("grpc_address", grpc_address), ("http_address", http_address)];
        let security = SecurityOptions::check(&mut problems, (raw.tls, raw.auth), &listens, true);
        problems.check(raw.audit_log_max_bytes > 0, "audit_log_max_bytes: at least 1");
        let audit = (!raw.audit_log.is_empty()).then(|| AuditOptions {
            path: raw.audit_log.into(),
            max_bytes: raw.audit_log_max_bytes,
            keep: raw.audit_log_keep,
        });
        let audit_sample =
            AuditSampleOptions::check(&mut problems, raw.audit_sample, Path::new(&raw.data_dir));
        if let Err(error) = logs::check(&raw.log) {
            problems.add(error.to_string());
        }
        problems.check(default_deadline <= max_deadline, "default_deadline_ms: at most max_deadline_ms");
        let pool_threads = match raw.pool_threads {
            0 => CpuPool::default_threads(),
            threads => threads as usize,
        };
        let limits = Limits { max_candidates: raw.max_candidates, max_ids: raw.max_ids };
        let (batch, models) =
            batch::check(&mut problems, &raw.batch, &raw.models, (pool_threads, limits, raw.exact));
        let scenario = |(scenario, model): (&String, &String)| {
            problems.parse::<Name>("scenarios", scenario);
            let model = problems.parse::<Name>(&format!("scenarios.{scenario}"), model);
            Some((scenario.clone(), model?))
        };
        let scenarios = raw.scenarios.iter().filter_map(scenario).collect();
        problems.finish(|| {
            Some(Self {
                ranker: ranker?,
                grpc_address: grpc_address?,
                http_address: http_address?,
                advertise_address,
                advertise_http_address,
                controllers: raw.controllers,
                store: store?,
                data_dir: raw.data_dir.into(),
                preferred_group,
                asking: asking?,
                exact: raw.exact,
                cache_bytes: raw.cache_bytes,
                warm_ids: raw.warm_ids as usize,
                warm_timeout,
                device: device?,
                pool_threads,
                io_threads: match raw.io_threads {
                    0 => (CpuPool::default_threads() / 2).max(1),
                    threads => threads as usize,
                },
                pool_queue_len: raw.pool_queue_len as usize,
                limits,
                batch,
                models,
                scenarios,
                max_request_bytes: raw.max_request_bytes as usize,
                recent_requests: raw.recent_requests as usize,
                default_deadline,
                max_deadline,
                connect_timeout,
                load_retry,
                drain_timeout,
                audit,
                audit_sample,
                security,
                log: raw.log,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use tidepool_runtime::config::sample_matches_defaults;

    use super::*;

    fn minimal() -> RawConfig {
        RawConfig { ranker: "ranker-1".into(), ..RawConfig::default() }
    }

    #[test]
    fn the_sample_states_the_defaults() {
        let sample = include_str!("../../../config/ranker.toml");
        assert_eq!(sample_matches_defaults::<RawConfig>(sample), Ok(()));
    }

    #[test]
    fn the_minimum_is_enough() {
        let config = Config::try_from(minimal()).unwrap();
        assert_eq!(config.grpc_address.port(), 7420);
        assert!(config.pool_threads >= 1);
        assert_eq!(config.preferred_group, None);
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let raw = RawConfig {
            ranker: "a/b".into(),
            grpc_address: "here".into(),
            http_address: "0.0.0.0:7421".into(),
            controllers: vec!["nowhere".into()],
            data_dir: String::new(),
            on_unavailable: "guess".into(),
            hedge: RawHedge { min_delay_ms: 200, budget_percent: 101.0, ..RawHedge::default() },
            breaker: RawBreaker { failures: 0, ..RawBreaker::default() },
            pool_queue_len: 0,
            recent_requests: u32::MAX,
            default_deadline_ms: 60_000,
            load_retry_ms: 0,
            ..minimal()
        };
        let problems = Config::try_from(raw).unwrap_err().problems;
        let keys: Vec<_> = problems.iter().map(|p| p.split([' ', ':']).next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "ranker",
                "grpc_address",
                "advertise_http_address",
                "controllers",
                "data_dir",
                "on_unavailable",
                "hedge.budget_percent",
                "hedge.min_delay_ms",
                "breaker.failures",
                "pool_queue_len",
                "recent_requests",
                "load_retry_ms",
                "http_address",
                "default_deadline_ms"
            ]
        );
    }
}
