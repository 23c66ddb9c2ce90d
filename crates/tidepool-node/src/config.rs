//! The configuration of a node: what people write ([`RawConfig`]), and what it means ([`Config`]).
//! `config/node.toml` says of each key why it is there.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tidepool_kernels::Isa;
use tidepool_runtime::{
    config::{InvalidConfig, Problems},
    logs::{self, LogOptions},
    pool::CpuPool,
    security::{RawAuth, RawTls, SecurityOptions},
};
use tidepool_store::StoreLocation;
use tidepool_table::Residency;
use tidepool_types::{Name, NodeId, ports};

/// The keys of a node's configuration, with their defaults. An empty string means "not given".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// The node's name in its cluster; required.
    pub node: String,
    /// Its replica group; required.
    pub group: String,
    /// Controllers, `host:port`, tried in turn. None: the node serves its last assignment.
    pub controllers: Vec<String>,
    /// Where lookups are answered. Port 0 takes a free one.
    pub grpc_address: String,
    /// Where `/metrics`, `/healthz`, `/readyz` and `/status` are.
    pub http_address: String,
    /// `host:port` under which clients reach `grpc_address`; empty for the address itself.
    pub advertise_address: String,
    /// The same for `http_address`.
    pub advertise_http_address: String,
    /// The artifact store: a directory, or `s3://BUCKET/PREFIX`.
    pub store: String,
    /// The node's own directory: its last assignment, which files it has verified, and copies from an object store.
    pub data_dir: String,
    /// Bytes of partition files that it may hold; 0 for no limit.
    pub capacity_bytes: u64,
    /// Bytes of memory that partitions may take; 0: what there is, less a reserve.
    pub memory_capacity_bytes: u64,
    /// Bytes that copies from an object store may take on the disk; 0 for no limit.
    pub disk_capacity_bytes: u64,
    /// Ranges that are fetched from an object store at the same time.
    pub fetch_parallelism: usize,
    /// Bytes per second of all of them together; 0 for no limit.
    pub fetch_bytes_per_second: u64,
    /// After this, copies that are not assigned any more are taken away.
    pub collect_after_ms: u64,
    /// `auto`, or an instruction set to insist on.
    pub isa: String,
    /// Threads that receive, send, and answer small lookups; 0 for one per core.
    pub io_threads: usize,
    /// Threads for large lookups; 0 for one per core.
    pub pool_threads: usize,
    /// Large lookups that may wait for a thread.
    pub pool_queue_len: usize,
    /// Cores that the threads for large lookups stay on, one after the other; none: wherever there is room.
    pub pin_cores: Vec<usize>,
    /// Rows of work up to which a lookup is answered where it arrives.
    pub inline_max_rows: u64,
    /// Rows of the pieces that larger lookups are cut into.
    pub piece_rows: u64,
    /// Rows of all lookups that are waiting or being worked on.
    pub admission_max_rows: u64,
    /// Rows of lookups that are taken on per second; 0 for no limit.
    pub admission_rows_per_second: u64,
    /// Ids in all features of a request together.
    pub max_ids_per_request: u64,
    /// Bytes of a request message.
    pub max_request_bytes: usize,
    /// Bytes of an answer.
    pub max_response_bytes: u64,
    /// Bytes of messages that have not come whole and of answers that have not been taken, of all callers.
    pub max_held_bytes: u64,
    /// For the rest of a message once the node waits for it.
    pub receive_timeout_ms: u64,
    /// Lookups at one time on one connection.
    pub max_streams_per_connection: u32,
    /// Partitions that are verified at the same time.
    pub load_parallelism: usize,
    /// `auto`, `mapped`, `locked` or `copied`: where rows lie.
    pub residency: String,
    /// Bytes per second at which partitions are read into memory; 0 for no limit.
    pub warm_up_bytes_per_second: u64,
    /// After this, partitions that failed are tried again.
    pub load_retry_ms: u64,
    /// Between two reports when nothing changes.
    pub report_interval_ms: u64,
    /// For a connection to a controller.
    pub connect_timeout_ms: u64,
    /// First wait before connecting again; it doubles with each failure.
    pub reconnect_min_ms: u64,
    /// Longest such wait.
    pub reconnect_max_ms: u64,
    /// Between HTTP/2 pings, in both directions.
    pub keepalive_interval_ms: u64,
    /// After an unanswered ping, until the connection is given up.
    pub keepalive_timeout_ms: u64,
    /// For requests in flight when the node is told to stop.
    pub drain_timeout_ms: u64,
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
            node: String::new(),
            group: String::new(),
            controllers: vec![format!("127.0.0.1:{}", ports::CONTROLLER_GRPC)],
            grpc_address: format!("127.0.0.1:{}", ports::NODE_GRPC),
            http_address: format!("127.0.0.1:{}", ports::NODE_HTTP),
            advertise_address: String::new(),
            advertise_http_address: String::new(),
            store: "data/store".into(),
            data_dir: "data/node".into(),
            capacity_bytes: 0,
            memory_capacity_bytes: 0,
            disk_capacity_bytes: 0,
            fetch_parallelism: 4,
            fetch_bytes_per_second: 0,
            collect_after_ms: 3_600_000,
            isa: "auto".into(),
            io_threads: 0,
            pool_threads: 0,
            pool_queue_len: 256,
            pin_cores: Vec::new(),
            inline_max_rows: 8192,
            piece_rows: 4096,
            admission_max_rows: 4 << 20,
            admission_rows_per_second: 0,
            max_ids_per_request: 1_000_000,
            max_request_bytes: 64 << 20,
            max_response_bytes: 64 << 20,
            max_held_bytes: 512 << 20,
            receive_timeout_ms: 10_000,
            max_streams_per_connection: 1024,
            load_parallelism: 2,
            residency: "auto".into(),
            warm_up_bytes_per_second: 0,
            load_retry_ms: 30_000,
            report_interval_ms: 2000,
            connect_timeout_ms: 2000,
            reconnect_min_ms: 100,
            reconnect_max_ms: 5000,
            keepalive_interval_ms: 10_000,
            keepalive_timeout_ms: 5000,
            drain_timeout_ms: 10_000,
            tls: RawTls::default(),
            auth: RawAuth::default(),
            log: LogOptions::default(),
        }
    }
}

/// A configuration that a node can start with. Made from [`RawConfig`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node: NodeId,
    /// Its replica group.
    pub group: Name,
    /// `host:port` each.
    pub controllers: Vec<String>,
    /// Where lookups are answered.
    pub grpc_address: SocketAddr,
    /// Where status and metrics are.
    pub http_address: SocketAddr,
    /// What clients are told instead of the bound addresses.
    pub advertise_address: Option<String>,
    /// The same for HTTP.
    pub advertise_http_address: Option<String>,
    /// Where the artifact store is.
    pub store: StoreLocation,
    /// The node's own directory.
    pub data_dir: PathBuf,
    /// Bytes of partition files, if limited.
    pub capacity_bytes: Option<u64>,
    /// Bytes of memory, if not what there is.
    pub memory_capacity_bytes: Option<u64>,
    /// Bytes of copies on the disk, if limited.
    pub disk_capacity_bytes: Option<u64>,
    /// Ranges fetched at the same time.
    pub fetch_parallelism: usize,
    /// Bytes per second of what is fetched, if limited.
    pub fetch_bytes_per_second: Option<u64>,
    /// For how long copies stay that are not assigned.
    pub collect_after: Duration,
    /// The instruction set, if insisted on.
    pub isa: Option<Isa>,
    /// Threads of the runtime that the node is started in, if not one per core. Who starts it sees to that.
    pub io_threads: Option<usize>,
    /// Threads for large lookups.
    pub pool_threads: usize,
    /// Large lookups that may wait.
    pub pool_queue_len: usize,
    /// Where those threads stay; anywhere when empty.
    pub pin_cores: Vec<usize>,
    /// Rows of work up to which a lookup runs inline.
    pub inline_max_rows: u64,
    /// Rows of a piece of a larger lookup.
    pub piece_rows: u64,
    /// Rows in flight.
    pub admission_max_rows: u64,
    /// Rows per second, if limited.
    pub admission_rows_per_second: Option<u64>,
    /// Ids per request.
    pub max_ids_per_request: u64,
    /// Bytes of a request message.
    pub max_request_bytes: usize,
    /// Bytes of an answer.
    pub max_response_bytes: u64,
    /// Bytes held for all callers.
    pub max_held_bytes: u64,
    /// For the rest of a message.
    pub receive_timeout: Duration,
    /// Lookups at one time on one connection.
    pub max_streams_per_connection: u32,
    /// Partitions verified at the same time.
    pub load_parallelism: usize,
    /// Where rows lie.
    pub residency: Residency,
    /// Bytes per second of warm-up, if limited.
    pub warm_up_bytes_per_second: Option<u64>,
    /// Until failed partitions are tried again.
    pub load_retry: Duration,
    /// Between two reports.
    pub report_interval: Duration,
    /// For a connection to a controller.
    pub connect_timeout: Duration,
    /// First wait before connecting again.
    pub reconnect_min: Duration,
    /// Longest such wait.
    pub reconnect_max: Duration,
    /// Between HTTP/2 pings.
    pub keepalive_interval: Duration,
    /// For the answer to a ping.
    pub keepalive_timeout: Duration,
    /// For requests in flight at the end.
    pub drain_timeout: Duration,
    /// What locks its doors.
    pub security: SecurityOptions,
    /// Log lines; whoever owns the process sets them up.
    pub log: LogOptions,
}

impl TryFrom<RawConfig> for Config {
    type Error = InvalidConfig;

    fn try_from(raw: RawConfig) -> Result<Self, InvalidConfig> {
        let mut problems = Problems::default();
        let p = &mut problems;
        let node = p.parse("node", &raw.node).map(NodeId);
        let group = p.parse("group", &raw.group);
        let grpc_address: Option<SocketAddr> = p.parse("grpc_address", &raw.grpc_address);
        let http_address: Option<SocketAddr> = p.parse("http_address", &raw.http_address);
        for controller in &raw.controllers {
            check_host_port(p, "controllers", controller);
        }
        let advertised = [
            ("advertise_address", &raw.advertise_address, "grpc_address", grpc_address),
            ("advertise_http_address", &raw.advertise_http_address, "http_address", http_address),
        ];
        for (key, text, listen_key, listen) in advertised {
            if !text.is_empty() {
                check_host_port(p, key, text);
            } else if let Some(listen) = listen
                && listen.ip().is_unspecified()
            {
                p.add(format!("{key}: must be given, for nobody can connect to {listen_key} = {listen}"));
            }
        }
        let isa = if raw.isa == "auto" { None } else { p.parse("isa", &raw.isa) };
        let residency = p.parse("residency", &raw.residency);
        let store = p.parse("store", &raw.store);
        p.check(!raw.data_dir.is_empty(), "data_dir: must be given");
        p.check(raw.pool_queue_len > 0, "pool_queue_len: at least 1");
        p.check(raw.load_parallelism > 0, "load_parallelism: at least 1");
        p.check(raw.fetch_parallelism > 0, "fetch_parallelism: at least 1");
        p.check(raw.piece_rows > 0, "piece_rows: at least 1");
        p.check(raw.admission_max_rows > 0, "admission_max_rows: at least 1");
        // Members are u32 positions in the ids.
        p.check(
            (1..=u64::from(u32::MAX)).contains(&raw.max_ids_per_request),
            "max_ids_per_request: from 1 to 4294967295",
        );
        p.check(raw.max_request_bytes > 0, "max_request_bytes: at least 1");
        p.check(raw.max_response_bytes > 0, "max_response_bytes: at least 1");
        let longest = raw.max_response_bytes.max(raw.max_request_bytes as u64);
        p.check(
            raw.max_held_bytes >= longest,
            "max_held_bytes: at least max_request_bytes and max_response_bytes, or the longest could never pass",
        );
        p.check(raw.max_streams_per_connection > 0, "max_streams_per_connection: at least 1");
        let durations = [
            ("receive_timeout_ms", raw.receive_timeout_ms),
            ("load_retry_ms", raw.load_retry_ms),
            ("report_interval_ms", raw.report_interval_ms),
            ("connect_timeout_ms", raw.connect_timeout_ms),
            ("reconnect_min_ms", raw.reconnect_min_ms),
            ("keepalive_interval_ms", raw.keepalive_interval_ms),
            ("keepalive_timeout_ms", raw.keepalive_timeout_ms),
        ];
        for (key, millis) in durations {
            p.check(millis > 0, format!("{key}: at least 1"));
        }
        p.check(raw.reconnect_max_ms >= raw.reconnect_min_ms, "reconnect_max_ms: at least reconnect_min_ms");
        let listens = [("grpc_address", grpc_address), ("http_address", http_address)];
        let connects = !raw.controllers.is_empty();
        let security = SecurityOptions::check(p, (raw.tls, raw.auth), &listens, connects);
        if let Err(error) = logs::check(&raw.log) {
            p.add(error.to_string());
        }

        let given = |text: String| (!text.is_empty()).then_some(text);
        let threads = if raw.pool_threads == 0 { CpuPool::default_threads() } else { raw.pool_threads };
        problems.finish(|| {
            Some(Self {
                node: node?,
                group: group?,
                controllers: raw.controllers,
                grpc_address: grpc_address?,
                http_address: http_address?,
                advertise_address: given(raw.advertise_address),
                advertise_http_address: given(raw.advertise_http_address),
                store: store?,
                data_dir: raw.data_dir.into(),
                capacity_bytes: (raw.capacity_bytes > 0).then_some(raw.capacity_bytes),
                memory_capacity_bytes: (raw.memory_capacity_bytes > 0).then_some(raw.memory_capacity_bytes),
                disk_capacity_bytes: (raw.disk_capacity_bytes > 0).then_some(raw.disk_capacity_bytes),
                fetch_parallelism: raw.fetch_parallelism,
                fetch_bytes_per_second: (raw.fetch_bytes_per_second > 0)
                    .then_some(raw.fetch_bytes_per_second),
                collect_after: Duration::from_millis(raw.collect_after_ms),
                isa,
                io_threads: (raw.io_threads > 0).then_some(raw.io_threads),
                pool_threads: threads,
                pool_queue_len: raw.pool_queue_len,
                pin_cores: raw.pin_cores,
                inline_max_rows: raw.inline_max_rows,
                piece_rows: raw.piece_rows,
                admission_max_rows: raw.admission_max_rows,
                admission_rows_per_second: (raw.admission_rows_per_second > 0)
                    .then_some(raw.admission_rows_per_second),
                max_ids_per_request: raw.max_ids_per_request,
                max_request_bytes: raw.max_request_bytes,
                max_response_bytes: raw.max_response_bytes,
                max_held_bytes: raw.max_held_bytes,
                receive_timeout: Duration::from_millis(raw.receive_timeout_ms),
                max_streams_per_connection: raw.max_streams_per_connection,
                load_parallelism: raw.load_parallelism,
                residency: residency?,
                warm_up_bytes_per_second: (raw.warm_up_bytes_per_second > 0)
                    .then_some(raw.warm_up_bytes_per_second),
                load_retry: Duration::from_millis(raw.load_retry_ms),
                report_interval: Duration::from_millis(raw.report_interval_ms),
                connect_timeout: Duration::from_millis(raw.connect_timeout_ms),
                reconnect_min: Duration::from_millis(raw.reconnect_min_ms),
                reconnect_max: Duration::from_millis(raw.reconnect_max_ms),
                keepalive_interval: Duration::from_millis(raw.keepalive_interval_ms),
                keepalive_timeout: Duration::from_millis(raw.keepalive_timeout_ms),
                drain_timeout: Duration::from_millis(raw.drain_timeout_ms),
                security,
                log: raw.log,
            })
        })
    }
}

fn check_host_port(problems: &mut Problems, key: &str, text: &str) {
    let good = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c));
    problems.check(good && plain, format!("{key}: {text:?} is not host:port"));
}

#[cfg(test)]
mod tests {
    use tidepool_runtime::config::sample_matches_defaults;

    use super::*;

    fn named() -> RawConfig {
        RawConfig { node: "n1".into(), group: "a".into(), ..RawConfig::default() }
    }

    #[test]
    fn the_sample_lists_every_key_with_its_default() {
        let sample = include_str!("../../../config/node.toml");
        sample_matches_defaults::<RawConfig>(sample).unwrap();
    }

    #[test]
    fn defaults_with_a_name_and_a_group_are_valid() {
        let config = Config::try_from(named()).unwrap();
        assert_eq!(config.grpc_address.port(), ports::NODE_GRPC);
        assert!(config.pool_threads > 0);
        assert_eq!((config.capacity_bytes, config.isa), (None, None));
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let raw = RawConfig {
            node: "a/b".into(),
            group: String::new(),
            controllers: vec!["localhost".into()],
            grpc_address: "0.0.0.0:7410".into(),
            http_address: "here".into(),
            advertise_http_address: "host:0".into(),
            store: "gs://bucket".into(),
            isa: "avx9".into(),
            residency: "anywhere".into(),
            max_ids_per_request: 1 << 32,
            report_interval_ms: 0,
            reconnect_max_ms: 1,
            ..RawConfig::default()
        };
        let problems = Config::try_from(raw).unwrap_err().problems;
        let keys = [
            "node",
            "group",
            "http_address",
            "controllers",
            "advertise_address",
            "advertise_http_address",
            "isa",
            "residency",
            "store",
            "max_ids_per_request",
            "report_interval_ms",
            "reconnect_max_ms",
            "grpc_address",
        ];
        assert_eq!(problems.len(), keys.len(), "{problems:#?}");
        for (problem, key) in problems.iter().zip(keys) {
            assert!(problem.starts_with(key), "{problem:?} is not about {key}");
        }
    }

    #[test]
    fn an_unspecified_address_is_fine_when_another_is_advertised() {
        let raw = RawConfig {
            grpc_address: "0.0.0.0:7410".into(),
            advertise_address: "node-1.example:7410".into(),
            tls: RawTls { insecure_plaintext: true, ..RawTls::default() },
            ..named()
        };
        assert_eq!(Config::try_from(raw).unwrap().advertise_address.unwrap(), "node-1.example:7410");
    }
}
