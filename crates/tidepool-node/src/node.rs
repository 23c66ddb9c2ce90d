//! A node from start to stop: its parts are made, run side by side, and taken down in order.

use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus::Registry;
use tidepool_kernels::Isa;
use tidepool_proto::{
    refusal,
    v1::{self, embedding_server::EmbeddingServer},
};
use tidepool_runtime::{
    health::Health,
    http::{HttpServer, Routes, StatusFn},
    metrics::register_process,
    net::bind_tcp,
    pool::CpuPool,
    security::Security,
    serve::{Role, Running},
    shutdown::Shutdown,
};
use tidepool_store::Artifacts;
use tidepool_table::PartitionFile;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    access::CALLS,
    admission::Admission,
    budget::{Budgets, MemoryGauges},
    config::Config,
    disk::{DataDir, LastAssignment, VerifiedFiles},
    error::StartError,
    fetch::{Limits as FetchLimits, Source},
    loader::Loader,
    lookup::Limits,
    metrics::Metrics,
    partitions::Snapshot,
    quota::TenantQuotas,
    residency::Policy,
    service::{EmbeddingService, Grpc},
    session::Session,
    state::NodeState,
    status::status,
};

/// HTTP/2 frames of up to 1 MiB: of the default 16 KiB, a lookup would take many, each with its own turn through
/// the library and the kernel.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// What a client may send before it must wait for us to read, on one call or stream, and on all of a
/// connection's. It bounds what a connection can make us hold.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Streams that a connection may break by errors of its own before it is closed: hyper's default, which tonic's
/// would switch off.
const MAX_RESETS: usize = 1024;

/// Starts a node: it serves its last assignment at once, and follows the controllers' from then on.
///
/// # Errors
/// [`StartError`] names the address, the directory or the key that does not do.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Running, StartError> {
    let artifacts = Artifacts::open(&config.store, &config.data_dir)?;
    start_on(config, artifacts, shutdown).await
}

/// The same on a store that is open already, wherever `config` says it is.
///
/// # Errors
/// As [`start`].
pub async fn start_on(
    config: Config,
    artifacts: Artifacts,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let isa = config.isa.unwrap_or_else(Isa::detect);
    if !isa.is_available() {
        return Err(StartError::Isa { isa });
    }
    let data_dir = DataDir::take(&config.data_dir)?;
    let registry = Registry::new();
    register_process(&registry)?;
    let metrics = Metrics::new(&registry)?;
    let security = Security::open(&config.security, &registry)?;
    let limits = FetchLimits {
        parallelism: config.fetch_parallelism,
        bytes_per_second: config.fetch_bytes_per_second,
        disk_capacity_bytes: config.disk_capacity_bytes,
        collect_after: config.collect_after,
    };
    let source = Arc::new(Source::new(artifacts, limits, &registry)?);
    let pool = CpuPool::on_cores(config.pool_threads, config.pool_queue_len, &config.pin_cores)?;
    pool.register(&registry, "tidepool_node", Some("rows"))?;

    let budgets = Arc::new(Budgets::of(&config));
    let memory = MemoryGauges::new(&registry)?;

    let quotas = TenantQuotas::new();
    let admission = Admission::new(config.admission_max_rows, config.admission_rows_per_second);
    admission.register(&registry)?;

    let listen = |what| move |source| StartError::Listen { what, source };
    let grpc = bind_tcp(config.grpc_address).await.map_err(listen("lookups (grpc_address)"))?;
    let grpc_address = grpc.local_addr().unwrap_or(config.grpc_address);
    let http =
        HttpServer::bind(config.http_address).await.map_err(listen("status and metrics (http_address)"))?;
    let http_address = http.address();

    let introduction = v1::NodeReport {
        node: config.node.to_string(),
        group: config.group.to_string(),
        grpc_address: config.advertise_address.clone().unwrap_or_else(|| grpc_address.to_string()),
        http_address: config.advertise_http_address.clone().unwrap_or_else(|| http_address.to_string()),
        capacity_bytes: config.capacity_bytes.unwrap_or(0),
        ..v1::NodeReport::default()
    };
    tracing::info!(
        node = introduction.node, group = introduction.group, %grpc_address, %http_address, %isa, "node starts"
    );

    let last = Arc::new(LastAssignment::new(&config.data_dir));
    let (assignments, newest_assignment) = watch::channel(last.read().map(Arc::new));
    let (state, watched_state) = watch::channel(NodeState::default());
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (health, lifecycle) = (Health::new(), Shutdown::new());

    let loader = Loader {
        source: source.clone(),
        verified: Arc::new(VerifiedFiles::open(&config.data_dir)),
        last,
        quotas: quotas.clone(),
        snapshot: snapshot.clone(),
        state,
        health: health.clone(),
        metrics: metrics.clone(),
        isa,
        budgets: budgets.clone(),
        memory,
        _data_dir: data_dir,
        parallelism: config.load_parallelism,
        policy: Policy {
            residency: config.residency,
            warm_up_bytes_per_second: config.warm_up_bytes_per_second,
            shutdown: lifecycle.token(),
        },
        one_at_a_time: Arc::new(Semaphore::new(1)),
        retry: config.load_retry,
        shutdown: lifecycle.token(),
    };
    lifecycle.spawn(loader.run(newest_assignment));

    let session = Session {
        controllers: config.controllers.clone(),
        dial: security.dial(),
        introduction: introduction.clone(),
        report_interval: config.report_interval,
        connect_timeout: config.connect_timeout,
        reconnect_min: config.reconnect_min,
        reconnect_max: config.reconnect_max,
        keepalive_interval: config.keepalive_interval,
        keepalive_timeout: config.keepalive_timeout,
        state: watched_state.clone(),
        assignments,
        shutdown: lifecycle.token(),
    };
    lifecycle.spawn(session.run());

    let status: StatusFn = {
        let (snapshot, quotas) = (snapshot.clone(), quotas.clone());
        Arc::new(move || {
            let mut status = status(&introduction, isa, &watched_state.borrow(), &snapshot.load());
            status["quotas"] = quotas.status();
            status["store"] = source.status();
            status["memory"] = budgets.status(&snapshot.load(), &watched_state.borrow());
            status
        })
    };
    let service = EmbeddingService {
        node: Arc::new(config.node.clone()),
        snapshot,
        pool,
        limits: Limits {
            ids_per_request: config.max_ids_per_request,
            response_bytes: config.max_response_bytes,
        },
        admission,
        quotas,
        inline_max_rows: config.inline_max_rows,
        piece_rows: config.piece_rows,
        guard: metrics.guard(config.max_held_bytes, config.receive_timeout),
        metrics,
        draining: lifecycle.token(),
    };
    let grpc = serve_grpc(&config, service, &security, grpc, lifecycle.draining());
    let drain_timeout = config.drain_timeout;
    let role = Role { word: "node", registry, health, status, shutdown: lifecycle, drain_timeout, security };
    Ok(role.serve((grpc_address, grpc), (http, Routes::default()), shutdown, std::future::ready(())))
}

fn serve_grpc<F: Future<Output = ()>>(
    config: &Config,
    service: EmbeddingService<PartitionFile>,
    security: &Security,
    listener: TcpListener,
    draining: F,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<F> {
    let guard = service.guard.clone();
    let service =
        EmbeddingServer::new(Grpc(Arc::new(service))).max_decoding_message_size(config.max_request_bytes);
    let gate = security.gate(CALLS, |refused| {
        let why = refused.refusal;
        refusal(why.known, why.message).into_http()
    });
    Server::builder()
        .layer(gate)
        .max_concurrent_streams(config.max_streams_per_connection)
        .http2_max_local_error_reset_streams(Some(MAX_RESETS))
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .max_frame_size(MAX_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(guard.before(service))
        .serve_with_incoming_shutdown(security.grpc(listener), draining)
}
