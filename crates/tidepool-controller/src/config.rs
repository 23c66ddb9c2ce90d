//! The configuration of a controller: what people write ([`RawConfig`]), and what it means ([`Config`]).
//! `config/controller.toml` says of each key why it is there.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidepool_cluster::Settings;
use tidepool_runtime::{
    audit::AuditOptions,
    config::{InvalidConfig, Problems},
    logs::{self, LogOptions},
    security::{RawAuth, RawTls, SecurityOptions},
    tls::ClientFiles,
};
use tidepool_store::StoreLocation;
use tidepool_types::ports;

use crate::metastore::EtcdOptions;

/// The keys of a controller's configuration, with their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Where nodes, rankers, clients and operators connect. Port 0 takes a free one.
    pub grpc_address: String,
    /// Where `/metrics`, `/healthz`, `/readyz` and `/status` are.
    pub http_address: String,
    /// The artifact store: a directory, or `s3://BUCKET/PREFIX`.
    pub store: String,
    /// The controller's own directory: the durable state of the cluster.
    pub data_dir: String,
    /// `host:port` by which nodes, rankers, operators and other controllers find this one; empty: `grpc_address`.
    pub advertise_address: String,
    /// Where the durable state is: `file` (in `data_dir`) or `etcd`.
    pub metastore: MetastoreKind,
    /// `http://host:port` or `https://host:port` of the members of etcd.
    pub etcd_endpoints: Vec<String>,
    /// The authorities that etcd's certificates are checked against, PEM.
    pub etcd_ca: String,
    /// This controller's certificate for etcd, PEM.
    pub etcd_certificate: String,
    /// Its private key, PEM.
    pub etcd_key: String,
    /// In front of the keys in etcd.
    pub etcd_prefix: String,
    /// For an answer of etcd.
    pub etcd_timeout_ms: u64,
    /// Revisions of the state after which etcd is told to forget old ones; 0: never.
    pub etcd_compact_every: u64,
    /// How long a controller that falls silent keeps the others from leading.
    pub leader_lease_seconds: u64,
    /// How long nodes have to come back after a restart of the controller before they count as down.
    pub reconnect_grace_ms: u64,
    /// How long no node must have joined a group before a table is placed in it.
    pub group_settle_ms: u64,
    /// How long a release that is let go stays loaded after every ranker knows.
    pub retire_grace_ms: u64,
    /// Between HTTP/2 pings.
    pub keepalive_interval_ms: u64,
    /// After an unanswered ping, until the connection is given up.
    pub keepalive_timeout_ms: u64,
    /// Events that may wait for the state machine.
    pub event_queue_len: usize,
    /// For what is in flight when the controller is told to stop.
    pub drain_timeout_ms: u64,
    /// Where changes are written down; empty: in the log of the process only.
    pub audit_log: String,
    /// Bytes of that file until it is put aside.
    pub audit_log_max_bytes: u64,
    /// How many such files are kept.
    pub audit_log_keep: u32,
    /// TLS on both ports, and with other roles.
    pub tls: RawTls,
    /// Who may do what.
    pub auth: RawAuth,
    /// Log lines.
    pub log: LogOptions,
}

/// Where the durable state of the cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetastoreKind {
    /// In a directory of the one controller.
    #[default]
    File,
    /// In etcd, for any number of controllers.
    Etcd,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            grpc_address: format!("127.0.0.1:{}", ports::CONTROLLER_GRPC),
            http_address: format!("127.0.0.1:{}", ports::CONTROLLER_HTTP),
            store: "data/store".into(),
            data_dir: "data/controller".into(),
            advertise_address: String::new(),
            metastore: MetastoreKind::File,
            etcd_endpoints: vec!["http://127.0.0.1:2379".into()],
            etcd_ca: String::new(),
            etcd_certificate: String::new(),
            etcd_key: String::new(),
            etcd_prefix: "/tidepool".into(),
            etcd_timeout_ms: 1000,
            etcd_compact_every: 100,
            leader_lease_seconds: 4,
            reconnect_grace_ms: 10_000,
            group_settle_ms: 1000,
            retire_grace_ms: 35_000,
            keepalive_interval_ms: 2000,
            keepalive_timeout_ms: 2000,
            event_queue_len: 1024,
            drain_timeout_ms: 5000,
            audit_log: String::new(),
            audit_log_max_bytes: 64 << 20,
            audit_log_keep: 8,
            tls: RawTls::default(),
            auth: RawAuth::default(),
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
    /// Where the artifact store is.
    pub store: StoreLocation,
    /// The controller's own directory.
    pub data_dir: PathBuf,
    /// By which others find this controller; `None`: by the address it listens at.
    pub advertise_address: Option<String>,
    /// Where the durable state is.
    pub metastore: MetastoreConfig,
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
    /// Where changes are written down beside the log.
    pub audit: Option<AuditOptions>,
    /// What locks its doors.
    pub security: SecurityOptions,
    /// Log lines; whoever owns the process sets them up.
    pub log: LogOptions,
}

/// Where the durable state is, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetastoreConfig {
    /// In a directory that one controller has.
    File {
        /// The directory.
        dir: PathBuf,
    },
    /// In etcd.
    Etcd(EtcdOptions),
}

impl fmt::Display for MetastoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { dir } => write!(f, "{}", dir.display()),
            Self::Etcd(etcd) => write!(f, "etcd {} at {}", etcd.prefix, etcd.endpoints.join(", ")),
        }
    }
}

/// The host of a text that is `SCHEME://host:port`, and nothing else.
fn host_of<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let address = text.strip_prefix(scheme)?.strip_prefix("://")?;
    let (host, port) = address.rsplit_once(':')?;
    let good =
        !host.is_empty() && !host.contains(['/', '@', ' ']) && port.parse::<u16>().is_ok_and(|p| p > 0);
    good.then_some(host)
}

/// Whether what is sent to this host stays on this machine.
fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Checks where etcd is, and by which certificates TLS is spoken with it.
fn etcd_tls(p: &mut Problems, raw: &RawConfig) -> Option<ClientFiles> {
    let given = |text: &String| (!text.is_empty()).then(|| PathBuf::from(text));
    let (ca, own) = (given(&raw.etcd_ca), given(&raw.etcd_certificate).zip(given(&raw.etcd_key)));
    p.check(!raw.etcd_endpoints.is_empty(), "etcd_endpoints: at least one");
    for endpoint in &raw.etcd_endpoints {
        if host_of(endpoint, "https").is_some() {
            p.check(ca.is_some(), format!("etcd_ca: must be given to check who answers at {endpoint}"));
        } else if let Some(host) = host_of(endpoint, "http") {
            let problem =
                format!("etcd_endpoints: with etcd_ca, {endpoint} must be https, or it would be plaintext");
            p.check(ca.is_none(), problem);
            let problem = format!(
                "etcd_endpoints: what is sent to {endpoint} would be plaintext that leaves this machine: use https \
                 and etcd_ca, or say tls.insecure_plaintext = true"
            );
            p.check(is_this_machine(host) || raw.tls.insecure_plaintext, problem);
        } else {
            p.add(format!(
                "etcd_endpoints: {endpoint:?} is neither http://host:port nor https://host:port, as in \
                 http://127.0.0.1:2379"
            ));
        }
    }
    let half = raw.etcd_certificate.is_empty() != raw.etcd_key.is_empty();
    p.check(!half, "etcd_certificate and etcd_key: both or neither must be given");
    p.check(own.is_none() || ca.is_some(), "etcd_ca: must be given with etcd_certificate");
    ca.map(|ca| ClientFiles { ca, own })
}

impl TryFrom<RawConfig> for Config {
    type Error = InvalidConfig;

    fn try_from(raw: RawConfig) -> Result<Self, InvalidConfig> {
        let mut problems = Problems::default();
        let p = &mut problems;
        let grpc_address: Option<SocketAddr> = p.parse("grpc_address", &raw.grpc_address);
        let http_address = p.parse("http_address", &raw.http_address);
        let store = p.parse("store", &raw.store);
        p.check(!raw.data_dir.is_empty(), "data_dir: must be given");
        let advertised = ("advertise_address", raw.advertise_address.clone());
        let advertise_address = p.advertised(advertised, ("grpc_address", grpc_address));
        let etcd_tls = etcd_tls(p, &raw);
        let prefix = raw.etcd_prefix.trim_end_matches('/').to_owned();
        p.check(
            prefix.starts_with('/') && !prefix.contains(char::is_whitespace),
            "etcd_prefix: begins with a slash, as in /tidepool",
        );
        p.check(raw.etcd_timeout_ms > 0, "etcd_timeout_ms: at least 1");
        p.check(
            raw.leader_lease_seconds >= 2,
            "leader_lease_seconds: at least 2, which is the shortest that etcd grants",
        );
        p.check(
            raw.etcd_timeout_ms <= raw.leader_lease_seconds.saturating_mul(250),
            "etcd_timeout_ms: at most a quarter of leader_lease_seconds, or one late answer would cost the lead",
        );
        p.check(raw.keepalive_interval_ms > 0, "keepalive_interval_ms: at least 1");
        p.check(raw.keepalive_timeout_ms > 0, "keepalive_timeout_ms: at least 1");
        p.check(raw.event_queue_len > 0, "event_queue_len: at least 1");
        p.check(
            raw.retire_grace_ms > 0,
            "retire_grace_ms: at least 1, and longer than max_deadline_ms of every ranker, or requests that began with a \
             release find its tables gone",
        );
        let listens = [("grpc_address", grpc_address), ("http_address", http_address)];
        let security = SecurityOptions::check(p, (raw.tls, raw.auth), &listens, false);
        p.check(raw.audit_log_max_bytes > 0, "audit_log_max_bytes: at least 1");
        let audit = (!raw.audit_log.is_empty()).then(|| AuditOptions {
            path: raw.audit_log.into(),
            max_bytes: raw.audit_log_max_bytes,
            keep: raw.audit_log_keep,
        });
        if let Err(error) = logs::check(&raw.log) {
            p.add(error.to_string());
        }
        problems.finish(|| {
            Some(Self {
                grpc_address: grpc_address?,
                http_address: http_address?,
                store: store?,
                data_dir: PathBuf::from(&raw.data_dir),
                advertise_address,
                metastore: match raw.metastore {
                    MetastoreKind::File => MetastoreConfig::File { dir: raw.data_dir.into() },
                    MetastoreKind::Etcd => MetastoreConfig::Etcd(EtcdOptions {
                        endpoints: raw.etcd_endpoints,
                        tls: etcd_tls,
                        prefix,
                        timeout: Duration::from_millis(raw.etcd_timeout_ms),
                        lease: Duration::from_secs(raw.leader_lease_seconds),
                        compact_every: raw.etcd_compact_every,
                    }),
                },
                settings: Settings {
                    reconnect_grace: Duration::from_millis(raw.reconnect_grace_ms),
                    group_settle: Duration::from_millis(raw.group_settle_ms),
                    retire_grace: Duration::from_millis(raw.retire_grace_ms),
                },
                keepalive_interval: Duration::from_millis(raw.keepalive_interval_ms),
                keepalive_timeout: Duration::from_millis(raw.keepalive_timeout_ms),
                event_queue_len: raw.event_queue_len,
                drain_timeout: Duration::from_millis(raw.drain_timeout_ms),
                audit,
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
            advertise_address: "nowhere".into(),
            etcd_endpoints: vec!["https://etcd:2379".into(), "http://etcd:2379".into(), "etcd:2379".into()],
            etcd_key: "etcd.key".into(),
            etcd_prefix: "tidepool".into(),
            leader_lease_seconds: 1,
            keepalive_timeout_ms: 0,
            event_queue_len: 0,
            retire_grace_ms: 0,
            ..RawConfig::default()
        };
        let problems = Config::try_from(raw).unwrap_err().problems;
        let keys = [
            "grpc_address",
            "store",
            "advertise_address",
            "etcd_ca",
            "etcd_endpoints",
            "etcd_endpoints",
            "etcd_certificate",
            "etcd_prefix",
            "leader_lease_seconds",
            "etcd_timeout_ms",
            "keepalive_timeout_ms",
            "event_queue_len",
            "retire_grace_ms",
        ];
        assert_eq!(problems.len(), keys.len(), "{problems:#?}");
        for (problem, key) in problems.iter().zip(keys) {
            assert!(problem.starts_with(key), "{problem:?} is not about {key}");
        }
    }

    #[test]
    fn an_address_that_nobody_can_connect_to_is_not_told_to_others() {
        let tls = RawTls { insecure_plaintext: true, ..RawTls::default() };
        let raw = RawConfig { grpc_address: "0.0.0.0:7400".into(), tls, ..RawConfig::default() };
        let problems = Config::try_from(raw.clone()).unwrap_err().problems;
        assert!(
            problems.len() == 1 && problems[0].starts_with("advertise_address: must be given"),
            "{problems:?}"
        );
        Config::try_from(RawConfig { advertise_address: "c-1:7400".into(), ..raw }).unwrap();
    }

    #[test]
    fn etcd_is_plaintext_here_and_tls_elsewhere() {
        let at = |endpoint: &str, ca: &str| {
            let (etcd_endpoints, etcd_ca) = (vec![endpoint.into()], ca.into());
            let raw =
                RawConfig { metastore: MetastoreKind::Etcd, etcd_endpoints, etcd_ca, ..RawConfig::default() };
            Config::try_from(raw).map(|config| match config.metastore {
                MetastoreConfig::Etcd(options) => options.tls,
                MetastoreConfig::File { .. } => panic!("it is etcd"),
            })
        };
        for here in ["http://127.0.0.1:2379", "http://localhost:2379", "http://[::1]:2379"] {
            assert_eq!(at(here, ""), Ok(None));
        }
        let files = ClientFiles { ca: "ca.pem".into(), own: None };
        assert_eq!(at("https://etcd-1.example:2379", "ca.pem"), Ok(Some(files)));
        for bad in
            [("http://10.0.0.7:2379", ""), ("https://etcd-1:2379", ""), ("http://127.0.0.1:2379", "ca.pem")]
        {
            assert_eq!(at(bad.0, bad.1).unwrap_err().problems.len(), 1, "{bad:?}");
        }
    }
}
