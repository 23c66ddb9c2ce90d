//! A controller from start to stop: its parts are made, run side by side, and taken down in order.

use std::{sync::Arc, time::Instant};

use prometheus::Registry;
use tidepool_cluster::ClusterState;
use tidepool_proto::v1::control_server::ControlServer;
use tidepool_runtime::{
    health::Health,
    http::{HttpServer, StatusFn},
    metrics::register_process,
    net::bind_tcp,
    serve::{Role, Running},
    shutdown::Shutdown,
};
use tidepool_store::ArtifactStore;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    actor::{self, recover},
    config::Config,
    error::StartError,
    metastore::{FileMetastore, RealDisk},
    metrics::{self, Metrics},
    service::ControlService,
    status::status,
};

/// The largest report: a node with every partition of the largest layout fits many times.
const MAX_REPORT_BYTES: usize = 64 << 20;

/// Starts a controller: it recovers the state of the cluster, and takes sessions and requests from then on.
///
/// # Errors
/// [`StartError`] names the address, the directory or the file that does not do.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Running, StartError> {
    let store = Arc::new(ArtifactStore::open(&config.store)?);
    let registry = Registry::new();
    register_process(&registry)?;
    let metrics = Metrics::new(&registry)?;

    let listen = |what| move |source| StartError::Listen { what, source };
    let grpc = bind_tcp(config.grpc_address).await.map_err(listen("control (grpc_address)"))?;
    let grpc_address = grpc.local_addr().unwrap_or(config.grpc_address);
    let http =
        HttpServer::bind(config.http_address).await.map_err(listen("status and metrics (http_address)"))?;
    let http_address = http.address();

    // Small files of one directory, read before anyone waits for us.
    let mut metastore = FileMetastore::open(Box::new(RealDisk), &config.data_dir)?;
    let state_path = metastore.path();
    let (revision, durable) = recover(&mut metastore, state_path)?;
    let started = Instant::now();
    let state = match durable {
        Some(durable) => ClusterState::recover(durable, config.settings, started.elapsed()),
        None => ClusterState::new(config.settings),
    };
    tracing::info!(
        %grpc_address, %http_address, data_dir = %config.data_dir.display(), revision,
        epoch = %state.map().epoch, "controller starts"
    );
    let metastore = (revision, Box::new(metastore) as _);
    let (handle, actor) = actor::spawn(state, metastore, started, config.event_queue_len, metrics);

    let (health, lifecycle) = (Health::new(), Shutdown::new());
    metrics::register_replicas(&registry, handle.states())?;
    let states = handle.states();
    let status: StatusFn = Arc::new(move || {
        let state = states.borrow().clone();
        status(&state)
    });
    let service = ControlService { handle, store, lifecycle: lifecycle.clone() };
    let grpc = serve_grpc(&config, service, grpc, lifecycle.draining());
    health.set_ready(true, "");
    let drain_timeout = config.drain_timeout;
    // The state goes last: its directory is free for another controller once the role has stopped.
    let last = async move {
        // Its last handle went with the server, unless a connection would not end.
        if tokio::time::timeout(drain_timeout, actor).await.is_err() {
            tracing::warn!("the state machine did not end in time");
        }
    };
    let role = Role { word: "controller", registry, health, status, shutdown: lifecycle, drain_timeout };
    Ok(role.serve((grpc_address, grpc), (http, axum::Router::new()), shutdown, last))
}

fn serve_grpc<F: Future<Output = ()>>(
    config: &Config,
    service: ControlService,
    listener: TcpListener,
    draining: F,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<F> {
    // The server's own nodelay option does nothing for a listener of ours: the incoming stream must set it.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .add_service(ControlServer::new(service).max_decoding_message_size(MAX_REPORT_BYTES))
        .serve_with_incoming_shutdown(incoming, draining)
}
