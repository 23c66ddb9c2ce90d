//! A controller from start to stop: its parts are made, run side by side, and taken down in order.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use prometheus::Registry;
use serde_json::Value;
use tidepool_cluster::ClusterState;
use tidepool_proto::v1::control_server::ControlServer;
use tidepool_runtime::{
    health::Health,
    http::{AdminState, HttpServer, StatusFn},
    net::bind_tcp,
    shutdown::Shutdown,
};
use tidepool_store::ArtifactStore;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    actor::{self, recover},
    config::Config,
    error::{ServeError, StartError, chain},
    metastore::{FileMetastore, RealDisk},
    metrics::Metrics,
    service::ControlService,
    status::status,
};

/// The largest report: a node with every partition of the largest layout fits many times.
const MAX_REPORT_BYTES: usize = 64 << 20;

/// A controller that answers. It stops when the token it was started with is cancelled.
pub struct Running {
    /// Where the Control service is.
    pub grpc_address: SocketAddr,
    /// Where `/metrics`, `/healthz`, `/readyz` and `/status` are.
    pub http_address: SocketAddr,
    /// What `/metrics` shows.
    pub registry: Registry,
    /// What `/readyz` shows.
    pub health: Health,
    status: StatusFn,
    supervisor: JoinHandle<Result<(), ServeError>>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("grpc_address", &self.grpc_address).finish_non_exhaustive()
    }
}

impl Running {
    /// What `/status` shows.
    #[must_use]
    pub fn status(&self) -> Value {
        (self.status)()
    }

    /// Waits until the controller has stopped, told to or by itself, and has let go of its directory.
    ///
    /// # Errors
    /// [`ServeError`] when a server of it ended by itself; the rest has then been stopped too.
    pub async fn wait(self) -> Result<(), ServeError> {
        let ended = self.supervisor.await;
        ended.unwrap_or_else(|error| {
            Err(ServeError { what: "gRPC", address: self.grpc_address, problem: error.to_string() })
        })
    }
}

/// Starts a controller: it recovers the state of the cluster, and takes sessions and requests from then on.
///
/// # Errors
/// [`StartError`] names the address, the directory or the file that does not do.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Running, StartError> {
    let store = Arc::new(ArtifactStore::open(&config.store)?);
    let registry = Registry::new();
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
    let states = handle.states();
    let status: StatusFn = Arc::new(move || {
        let state = states.borrow().clone();
        status(&state)
    });
    let service = ControlService { handle, store, lifecycle: lifecycle.clone() };
    let (failed, failures) = mpsc::channel(2);
    let grpc_server = serve_grpc(&config, service, grpc, grpc_address, &lifecycle, failed.clone());
    let admin = AdminState { registry: registry.clone(), health: health.clone(), status: status.clone() };
    let admin = http.serve(admin, axum::Router::new(), lifecycle.clone());
    let http_server = tokio::spawn(async move {
        if let Err(error) = admin.await {
            let problem = chain(&error);
            let _ = failed.try_send(ServeError { what: "HTTP", address: http_address, problem });
        }
    });
    health.set_ready(true, "");
    let parts = Parts { grpc_server, http_server, actor };
    let supervisor = tokio::spawn(supervise(config, health.clone(), lifecycle, shutdown, failures, parts));
    Ok(Running { grpc_address, http_address, registry, health, status, supervisor })
}

fn serve_grpc(
    config: &Config,
    service: ControlService,
    listener: TcpListener,
    address: SocketAddr,
    lifecycle: &Shutdown,
    failed: mpsc::Sender<ServeError>,
) -> JoinHandle<()> {
    // The server's own nodelay option does nothing for a listener of ours: the incoming stream must set it.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .add_service(ControlServer::new(service).max_decoding_message_size(MAX_REPORT_BYTES))
        .serve_with_incoming_shutdown(incoming, lifecycle.draining());
    lifecycle.spawn(async move {
        if let Err(error) = server.await {
            let problem = chain(&error);
            let _ = failed.try_send(ServeError { what: "gRPC", address, problem });
        }
    })
}

struct Parts {
    grpc_server: JoinHandle<()>,
    http_server: JoinHandle<()>,
    actor: JoinHandle<()>,
}

/// Waits for the end, and brings it about: streams and requests first, then the admin server, and last the
/// state, whose directory is free for another controller when this returns.
async fn supervise(
    config: Config,
    health: Health,
    lifecycle: Shutdown,
    shutdown: CancellationToken,
    mut failures: mpsc::Receiver<ServeError>,
    parts: Parts,
) -> Result<(), ServeError> {
    let failure = tokio::select! {
        () = shutdown.cancelled() => None,
        Some(failure) = failures.recv() => Some(failure),
    };
    let drained = lifecycle.drain(&health, config.drain_timeout).await;
    parts.grpc_server.abort();
    let _ = parts.http_server.await;
    // Its last handle went with the server, unless a connection would not end.
    if tokio::time::timeout(config.drain_timeout, parts.actor).await.is_err() {
        tracing::warn!("the state machine did not end in time");
    }
    tracing::info!(%drained, "controller stopped");
    failure.map_or(Ok(()), Err)
}
