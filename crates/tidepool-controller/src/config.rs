//! The configuration of a controller: what people write ([`RawConfig`]), and what it means ([`Config`]).
//! `config/controller.toml` says of each key why it is there.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tidepool_cluster::Settings;
use tidepool_runtime::{
    config::{InvalidConfig, Problems},
    logs::{self, LogOptions},
};
use tidepool_types::ports;

/// The keys of a controller's configuration, with their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Where nodes, rankers, clients and operators connect. Port 0 takes a free one.
    pub grpc_address: String,
    /// Where `/metrics`, `/healthz`, `/readyz` and `/status` are.
    pub http_address: String,
    /// The directory of the artifact store.
    pub store: String,
    /// The controller's own directory: the durable state of the cluster.
    pub data_dir: String,
    /// How long nodes have to come back after a restart of the controller before they count as down.
    pub reconnect_grace_ms: u64,
    /// How long no node must have joined a group before a table is placed in it.
    pub group_settle_ms: u64,
    /// Between HTTP/2 pings.
    pub keepalive_interval_ms: u64,
    /// After an unanswered ping, until the connection is given up.
    pub keepalive_timeout_ms: u64,
    /// Events that may wait for the state machine.
    pub event_queue_len: usize,
    /// For what is in flight when the controller is told to stop.
    pub drain_timeout_ms: u64,
    /// Log lines.
    pub log: LogOptions,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            grpc_address: format!("127.0.0.1:{}", ports::CONTROLLER_GRPC),
            http_address: format!("127.0.0.1:{}", ports::CONTROLLER_HTTP),
            store: "data/store".into(),
            data_dir: "data/controller".into(),
            reconnect_grace_ms: 10_000,
            group_settle_ms: 1000,
            keepalive_interval_ms: 2000,
            keepalive_timeout_ms: 2000,
            event_queue_len: 1024,
            drain_timeout_ms: 5000,
            log: LogOptions::default(),
        }
    }
}

/// A configuration that a controller can start with. Made from [`RawConfig`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the Control service listens.
    pub grpc_address: SocketAddr,
    /// Where status and metrics are.
    pub http_address: SocketAddr,
    /// Directory of the artifact store.
    pub store: PathBuf,
    /// Directory of the durable state.
    pub data_dir: PathBuf,
    /// How patient the state machine is.
    pub settings: Settings,
    /// Between HTTP/2 pings.
    pub keepalive_interval: Duration,
    /// For the answer to a ping.
    pub keepalive_timeout: Duration,
    /// Events that may wait.
    pub event_queue_len: usize,
    /// For what is in flight at the end.
    pub drain_timeout: Duration,
    /// Log lines; whoever owns the process sets them up.
    pub log: LogOptions,
}

impl TryFrom<RawConfig> for Config {
    type Error = InvalidConfig;

    fn try_from(raw: RawConfig) -> Result<Self, InvalidConfig> {
        let mut problems = Problems::default();
        let p = &mut problems;
        let grpc_address = p.parse("grpc_address", &raw.grpc_address);
        let http_address = p.parse("http_address", &raw.http_address);
        p.check(!raw.store.is_empty(), "store: must be given");
        p.check(!raw.data_dir.is_empty(), "data_dir: must be given");
        p.check(raw.keepalive_interval_ms > 0, "keepalive_interval_ms: at least 1");
        p.check(raw.keepalive_timeout_ms > 0, "keepalive_timeout_ms: at least 1");
        p.check(raw.event_queue_len > 0, "event_queue_len: at least 1");
        if let Err(error) = logs::check(&raw.log) {
            p.add(error.to_string());
        }
        problems.finish(|| {
            Some(Self {
                grpc_address: grpc_address?,
                http_address: http_address?,
                store: raw.store.into(),
                data_dir: raw.data_dir.into(),
                settings: Settings {
                    reconnect_grace: Duration::from_millis(raw.reconnect_grace_ms),
                    group_settle: Duration::from_millis(raw.group_settle_ms),
                },
                keepalive_interval: Duration::from_millis(raw.keepalive_interval_ms),
                keepalive_timeout: Duration::from_millis(raw.keepalive_timeout_ms),
                event_queue_len: raw.event_queue_len,
                drain_timeout: Duration::from_millis(raw.drain_timeout_ms),
                log: raw.log,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use tidepool_runtime::config::sample_matches_defaults;

    use super::*;

    #[test]
    fn the_sample_lists_every_key_with_its_default() {
        let sample = include_str!("../../../config/controller.toml");
        sample_matches_defaults::<RawConfig>(sample).unwrap();
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = Config::try_from(RawConfig::default()).unwrap();
        assert_eq!(config.grpc_address.port(), ports::CONTROLLER_GRPC);
        assert_eq!(config.settings.group_settle, Duration::from_secs(1));
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let raw = RawConfig {
            grpc_address: "localhost".into(),
            store: String::new(),
            keepalive_timeout_ms: 0,
            event_queue_len: 0,
            ..RawConfig::default()
        };
        let problems = Config::try_from(raw).unwrap_err().problems;
        let keys = ["grpc_address", "store", "keepalive_timeout_ms", "event_queue_len"];
        assert_eq!(problems.len(), keys.len(), "{problems:#?}");
        for (problem, key) in problems.iter().zip(keys) {
            assert!(problem.starts_with(key), "{problem:?} is not about {key}");
        }
    }
}
