//! A controller from start to stop: its parts are made, run side by side, and taken down in order.

use std::sync::Arc;

use prometheus::Registry;
use tidepool_proto::v1::{
    control_server::ControlServer, controllers_server::ControllersServer, releases_server::ReleasesServer,
};
use tidepool_runtime::{
    audit::AuditLog,
    health::Health,
    http::{HttpServer, Routes, StatusFn},
    metrics::register_process,
    net::bind_tcp,
    security::Security,
    serve::{Role, Running},
    shutdown::Shutdown,
};
use tidepool_store::Artifacts;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    access::CALLS,
    changes::Changes,
    config::{Config, MetastoreConfig},
    controllers::ControllersService,
    error::StartError,
    halts::Halts,
    lead::{Candidate, standing},
    metastore::{Election, EtcdElection, FileElection, MetastoreError},
    metrics::{self, Metrics},
    releases::ReleasesService,
    service::ControlService,
    status::status,
};

/// Up to where guards' doings are in the audit log, in the data directory.
const HALTS_FILE: &str = "audited-events";
/// The largest report: a node with every partition of the largest layout fits many times.
const MAX_REPORT_BYTES: usize = 64 << 20;

/// Starts a controller. With the embedded metastore it leads at once: it recovers the state of the cluster, and takes
/// sessions and requests from then on. With etcd it does so whenever it is elected.
///
/// # Errors
/// [`StartError`] names the address, the directory or the file that does not do.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Running, StartError> {
    let store = Arc::new(Artifacts::open(&config.store, &config.data_dir)?);
    let registry = Registry::new();
    register_process(&registry)?;
    let metrics = Metrics::new(&registry)?;
    let audit_failures = metrics.audit_failures.clone();
    let security = Security::open(&config.security, &registry)?;
    let audit = AuditLog::open(config.audit.clone())?;

    let listen = |what| move |source| StartError::Listen { what, source };
    let grpc = bind_tcp(config.grpc_address).await.map_err(listen("control (grpc_address)"))?;
    let grpc_address = grpc.local_addr().unwrap_or(config.grpc_address);
    let http =
        HttpServer::bind(config.http_address).await.map_err(listen("status and metrics (http_address)"))?;
    let http_address = http.address();

    let address = config.advertise_address.clone().unwrap_or_else(|| grpc_address.to_string());
    tracing::info!(%grpc_address, %http_address, metastore = %config.metastore, "controller starts");
    let (health, lifecycle) = (Health::new(), Shutdown::new());
    let (sender, lead) = standing();
    let stop = CancellationToken::new();
    let mut candidate = Candidate {
        election: election(&config.metastore, &address)?,
        address,
        settings: config.settings,
        event_queue_len: config.event_queue_len,
        metrics,
        health: health.clone(),
        lifecycle: lifecycle.clone(),
        stop: stop.clone(),
        standing: sender,
    };
    // A directory that is in use or damaged is an error of the start; etcd that cannot be reached is waited for.
    let won = match config.metastore {
        MetastoreConfig::File { .. } => Some(candidate.win().await?),
        MetastoreConfig::Etcd(_) => None,
    };
    let leads = won.is_some();
    let candidate = tokio::spawn(candidate.run(won));
    if leads {
        lead.begun().await;
    }

    metrics::register_replicas(&registry, &lead)?;
    let halts = Halts {
        audit: audit.clone(),
        lead: lead.clone(),
        noted: config.data_dir.join(HALTS_FILE),
        failures: audit_failures.clone(),
    };
    let halts = tokio::spawn(halts.run());
    let closing = audit.clone();
    let status: StatusFn = {
        let lead = lead.clone();
        Arc::new(move || status(&lead))
    };
    let services = Services {
        control: ControlService { lead: lead.clone(), store: store.clone(), lifecycle: lifecycle.clone() },
        releases: ReleasesService { lead: lead.clone() },
        controllers: ControllersService { lead: lead.clone(), store },
    };
    let changes =
        Changes { audit, lead: lead.clone(), lifecycle: lifecycle.clone(), failures: audit_failures };
    let grpc = serve_grpc(&config, services, (&security, changes), grpc, lifecycle.draining());
    let drain_timeout = config.drain_timeout;
    // The lead goes last: another controller has it as soon as nobody is served by this one any more.
    let last = async move {
        stop.cancel();
        if tokio::time::timeout(drain_timeout, candidate).await.is_err() {
            tracing::warn!("the controller could not resign in time; its lease ends by itself");
        }
        // Nothing more happens that would have to be written down.
        halts.abort();
        if tokio::time::timeout(drain_timeout, closing.close()).await.is_err() {
            tracing::warn!("the audit log could not be written to its end in time");
        }
    };
    let role =
        Role { word: "controller", registry, health, status, shutdown: lifecycle, drain_timeout, security };
    Ok(role.serve((grpc_address, grpc), (http, Routes::default()), shutdown, last))
}

/// What decides who leads.
fn election(metastore: &MetastoreConfig, address: &str) -> Result<Box<dyn Election>, MetastoreError> {
    Ok(match metastore {
        MetastoreConfig::File { dir } => Box::new(FileElection::new(dir)),
        MetastoreConfig::Etcd(options) => Box::new(EtcdElection::new(options, address.to_owned())?),
    })
}

/// What is served on the gRPC port.
struct Services {
    control: ControlService,
    releases: ReleasesService,
    controllers: ControllersService,
}

fn serve_grpc<F: Future<Output = ()>>(
    config: &Config,
    services: Services,
    (security, changes): (&Security, Changes),
    listener: TcpListener,
    draining: F,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<F> {
    let refusing = changes.clone();
    let gate = security.gate(CALLS, move |refused| refusing.refuse(&refused));
    Server::builder()
        .layer(gate)
        .layer(changes)
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .add_service(ControlServer::new(services.control).max_decoding_message_size(MAX_REPORT_BYTES))
        .add_service(ControllersServer::new(services.controllers))
        .add_service(ReleasesServer::new(services.releases))
        .serve_with_incoming_shutdown(security.grpc(listener), draining)
}
