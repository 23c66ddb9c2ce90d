//! A ranker's life: started with its servers listening, ended by a token, drained in between.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use axum::Router;
use prometheus::Registry;
use tidepool_client::{Client, ClientConfig, ClusterMap, Connector};
use tidepool_proto::{
    refusal,
    v1::{RankerReport, ranker_server::RankerServer},
};
use tidepool_runtime::{
    audit::AuditLog,
    health::Health,
    http::{HttpServer, Routes},
    metrics::register_process,
    net::bind_tcp,
    pool::CpuPool,
    security::Security,
    serve::{Role, Running},
    shutdown::Shutdown,
};
use tidepool_store::Artifacts;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    Config, StartError,
    access::{CALLS, ROUTES},
    admin::{self, Desk},
    audit_sample::AuditSample,
    batch::{BatchMetrics, Batchers, InPlaceOf},
    counters::ReleaseMetrics,
    device::Engine,
    gpu_metrics::GpuMetrics,
    hot_ids::{self, Warming},
    http,
    metrics::Metrics,
    models,
    oip::{self, Inference, MAX_RETRIES},
    rank::Ranker,
    recent::{self, Recent},
    releases::{Loader, Releases},
    resident::Filling,
    rollback::{self, Rollbacks},
    scenario::Scenarios,
    service::RankService,
    session::{self, Session},
    shadow::Shadows,
    status::{Facts, document},
    trace,
};

/// HTTP/2 frames of up to 1 MiB: of the default 16 KiB, a request of some hundred candidates would take several, and one of
/// a hundred thousand some hundreds, each with its own turn through the library.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// What a caller may send before it must wait for us to read, in one call and in all of a connection.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The last cluster map, in the data directory.
const MAP_FILE: &str = "cluster-map.json";
/// The rollbacks that were asked of this ranker alone, beside it.
const ROLLBACKS_FILE: &str = "rollbacks.json";

/// Starts a ranker. It listens when this returns; it is ready when its releases are loaded, which its
/// `/readyz` says. It ends, after draining, when `token` is cancelled.
///
/// # Errors
/// [`StartError`] names the address, directory or store that cannot be had.
pub async fn start(config: Config, token: CancellationToken) -> Result<Running, StartError> {
    start_with(config, token, None).await
}

/// As [`start`], with something in the place of each release's model.
///
/// # Errors
/// As [`start`].
pub async fn start_with(
    config: Config,
    token: CancellationToken,
    in_place_of: Option<InPlaceOf>,
) -> Result<Running, StartError> {
    // First of all: without the device that was asked for there is no ranker, and no other device takes its place.
    let engine = Engine::open(&config.device)?;
    Filling::check(config.device.resident.as_ref())?;
    let artifacts = Artifacts::open(&config.store, &config.data_dir)?;
    let data_dir = |source| StartError::DataDir { path: config.data_dir.clone(), source };
    fs::create_dir_all(&config.data_dir).map_err(data_dir)?;
    let registry = Registry::new();
    register_process(&registry)?;
    let metrics = Metrics::new(&registry)?;
    let security = Security::open(&config.security, &registry)?;
    let audit = AuditLog::open(config.audit.clone())?;
    let audit_sample = AuditSample::open(config.audit_sample.clone(), &registry)?;
    let pool = CpuPool::new(config.pool_threads, config.pool_queue_len)?;
    pool.register(&registry, "tidepool_ranker", None)?;
    let net = |source| StartError::Net { ranker: config.ranker.clone(), source };
    let grpc = bind_tcp(config.grpc_address).await.map_err(net)?;
    let admin = HttpServer::bind(config.http_address).await.map_err(net)?;
    let grpc_address = grpc.local_addr().unwrap_or(config.grpc_address);
    let http_address = admin.address();
    let (health, shutdown) = (Health::new(), Shutdown::new());

    let map_file = config.data_dir.join(MAP_FILE);
    let (maps, mut followed) = watch::channel(Arc::new(ClusterMap::default()));
    if let Some(map) = last_map(&map_file) {
        maps.send_replace(Arc::new(map));
        followed.mark_changed();
    }
    let rollbacks_file = config.data_dir.join(ROLLBACKS_FILE);
    let rollbacks = last_rollbacks(&rollbacks_file);
    let report = introduction(&config, grpc_address, http_address);
    let (reports, to_send) = watch::channel(report.clone());
    let connected = Arc::new(ArcSwapOption::empty());
    let releases = Releases::default();
    registry.register(Box::new(ReleaseMetrics::new(releases.clone())?))?;
    registry.register(Box::new(GpuMetrics::new(releases.clone(), engine.clone())?))?;
    let client = Client::with_map(client_config(&config, &security, &registry), maps.subscribe())?;
    let batchers = batchers(&config, &pool, &client, &registry)?.with_in_place_of(in_place_of);
    let service = service(&config, (&releases, &client, &pool), &audit_sample, &metrics);
    let status = {
        let (releases, connected, health) = (releases.clone(), connected.clone(), health.clone());
        let engine = engine.clone();
        move || {
            let controller: Option<Arc<String>> = connected.load_full();
            let facts = Facts {
                ranker: &report.ranker,
                grpc_address: &report.grpc_address,
                http_address: &report.http_address,
                controller: controller.as_ref().map(|c| c.as_str()),
                pool: &pool,
                engine: &engine,
                not_ready: health.readiness().err(),
            };
            document(&facts, &releases.snapshot())
        }
    };
    let desk = Desk::new(&audit, &releases, &shutdown, &metrics);
    let (rollback_route, asked) = admin::routes(desk.clone());
    let (retries, to_retry) = mpsc::channel(MAX_RETRIES);
    let inference = Inference::new(service.clone(), health.clone(), desk, retries);
    let (inference_routes, to_the_end) = inference.routes(config.max_request_bytes);
    let routes = routes(&config, &service, &shutdown).merge(rollback_route).merge(inference_routes);
    let grpc_service = RankerServer::new(service)
        .max_decoding_message_size(config.max_request_bytes)
        .max_encoding_message_size(usize::MAX);
    let gate = security.gate(CALLS, |refused| {
        let why = refused.refusal;
        refusal(why.known, why.message).into_http()
    });
    let serve = Server::builder()
        .layer(gate)
        .max_frame_size(MAX_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(grpc_service)
        .add_service(inference.server(config.max_request_bytes))
        .serve_with_incoming_shutdown(security.grpc(grpc), shutdown.draining());
    let to_let_go = releases.clone();
    let loader = Loader {
        artifacts,
        batchers,
        engine,
        maps: followed,
        releases,
        reports,
        health: health.clone(),
        metrics,
        retry: config.load_retry,
        warming: Warming { client: client.clone(), ids: config.warm_ids, within: config.warm_timeout },
        filling: Filling { client, options: config.device.resident.clone() },
        shutdown: shutdown.clone(),
        asked,
        to_retry,
        rollbacks,
        rollbacks_file,
    };
    shutdown.spawn(loader.run());
    let session = Session {
        controllers: config.controllers.clone(),
        dial: security.dial(),
        connect_timeout: config.connect_timeout,
        reports: to_send,
        maps,
        map_file,
        shutdown: shutdown.clone(),
        connected,
    };
    keep_up(session, &shutdown);
    info!(ranker = %config.ranker, %grpc_address, %http_address, "ranker started");
    let drain_timeout = config.drain_timeout;
    let status = Arc::new(status);
    let texts_below = Some(oip::PREFIX);
    let routes =
        Routes { router: routes, table: ROUTES, audit: Some(audit.clone()), to_the_end, texts_below };
    let role = Role { word: "ranker", registry, health, status, shutdown, drain_timeout, security };
    let last = close(to_let_go, audit, audit_sample, drain_timeout);
    Ok(role.serve((grpc_address, serve), (admin, routes), token, last))
}

/// A report of who this is, and of nothing that it has.
fn introduction(config: &Config, grpc_address: SocketAddr, http_address: SocketAddr) -> RankerReport {
    RankerReport {
        ranker: config.ranker.to_string(),
        grpc_address: config.advertise_address.clone().unwrap_or_else(|| grpc_address.to_string()),
        http_address: config.advertise_http_address.clone().unwrap_or_else(|| http_address.to_string()),
        ..RankerReport::default()
    }
}

/// Lets go of what is loaded, and brings the audit log and the audit sample to their ends.
async fn close(releases: Releases, audit: AuditLog, audit_sample: AuditSample, within: Duration) {
    // The metrics know the releases, which know the client, which knows the metrics: by itself nobody would let them go, and
    // a device would be given back by the end of the process alone.
    releases.0.store(Arc::default());
    if tokio::time::timeout(within, audit_sample.close()).await.is_err() {
        warn!("the audit sample could not be written to its end in time");
    }
    if tokio::time::timeout(within, audit.close()).await.is_err() {
        warn!("the audit log could not be written to its end in time");
    }
}

/// The cluster map of the last run, if there is one that can be used.
fn last_map(file: &Path) -> Option<ClusterMap> {
    let map = session::load(file).unwrap_or_else(|error| {
        // A controller will bring another; without one there is nothing to serve, and /readyz says so.
        warn!(%error, path = %file.display(), "the saved cluster map cannot be used");
        None
    })?;
    info!(epoch = %map.epoch, "the cluster map of the last run");
    Some(map)
}

/// The rollbacks of the last run that were asked of this ranker alone.
fn last_rollbacks(file: &Path) -> Rollbacks {
    rollback::load(file).unwrap_or_else(|error| {
        // The map is what there is to go by, then; whoever rolled back is told to do so again.
        warn!(%error, path = %file.display(), "rollbacks of the last run are lost: repeat them");
        Rollbacks::new()
    })
}

/// The routes of rankings, traces, hot ids, what became of requests, and what models take.
fn routes(config: &Config, service: &RankService, shutdown: &Shutdown) -> Router {
    let client = &service.ranker.client;
    http::routes(service.clone(), config.max_request_bytes)
        .merge(trace::routes(config.ranker.to_string(), client.clone(), shutdown.clone()))
        .merge(hot_ids::routes(client.clone(), config.cache_bytes > 0, service.ranker.releases.clone()))
        .merge(recent::routes(config.ranker.to_string(), service.ranker.recent.clone()))
        .merge(models::routes(config.ranker.to_string(), service.ranker.releases.clone()))
}

/// What answers rankings.
fn service(
    config: &Config,
    (releases, client, pool): (&Releases, &Client, &CpuPool),
    audit_sample: &AuditSample,
    metrics: &Metrics,
) -> RankService {
    RankService {
        ranker: Arc::new(Ranker {
            releases: releases.clone(),
            client: client.clone(),
            scenarios: Scenarios::new(config.scenarios.clone()),
            pool: pool.clone(),
            limits: config.limits,
            default_deadline: config.default_deadline,
            max_deadline: config.max_deadline,
            shadows: Shadows::of_pool(config.pool_threads),
            recent: Recent::new(config.recent_requests),
            audit_sample: audit_sample.clone(),
        }),
        metrics: metrics.clone(),
    }
}

/// Follows the controller until the draining begins, so that it sends nobody here any more.
fn keep_up(session: Session, shutdown: &Shutdown) {
    let draining = shutdown.draining();
    shutdown.spawn(async move {
        tokio::select! {
            () = session.run() => {}
            () = draining => {}
        }
    });
}

/// Where requests share batches.
fn batchers(
    config: &Config,
    pool: &CpuPool,
    client: &Client,
    registry: &Registry,
) -> Result<Batchers, StartError> {
    let metrics = BatchMetrics::new()?;
    metrics.register(registry)?;
    let source = Arc::new(client.clone());
    Ok(Batchers::new(config.batch, config.models.clone(), pool.clone(), source, metrics))
}

/// How the ranker's client asks the cluster.
fn client_config(config: &Config, security: &Security, registry: &Registry) -> ClientConfig {
    let dial = security.dial();
    ClientConfig {
        connector: dial.is_tls().then(|| Connector::new(move |endpoint| dial.channel(endpoint))),
        preferred_group: config.preferred_group.clone(),
        connect_timeout: config.connect_timeout,
        default_timeout: config.default_deadline,
        exact: config.exact,
        spill_factor: config.asking.spill_factor,
        on_unavailable: config.asking.on_unavailable,
        hedge: config.asking.hedge,
        retry: config.asking.retry,
        breaker: config.asking.breaker,
        tenant: config.ranker.to_string(),
        cache_bytes: config.cache_bytes,
        registry: Some(registry.clone()),
        ..ClientConfig::default()
    }
}
