//! The admin server of a process: `/metrics`, `/healthz`, `/readyz`, `/status`, and whatever routes the
//! role adds.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Registry, TextEncoder};
use serde_json::json;
use thiserror::Error;
use tokio::{
    net::{TcpListener, ToSocketAddrs},
    time,
};

use crate::{
    audit::AuditLog,
    auth::{Needs, Role, Table, pass},
    health::Health,
    listen::Peer,
    net::{NetError, bind_tcp},
    security::Security,
    shutdown::Shutdown,
};

/// The largest request body that a handler is given, unless its route says otherwise.
pub const MAX_BODY_BYTES: usize = 8 << 20;

/// Who may see what every role shows. Whether a process is alive and ready is no secret, and those who ask
/// (kubelets, load balancers) have no certificate.
const SHOWN: Table =
    &[("/healthz", &[]), ("/readyz", &[]), ("/metrics", &[Role::Read]), ("/status", &[Role::Read])];

/// How long connections may take to finish once the process has drained.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(1);

/// The content type of Prometheus' text format.
const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Gives what `/status` shows. It is called for each request, on a thread that moves bytes: it must not block.
pub type StatusFn = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the server shows.
#[derive(Clone)]
pub struct AdminState {
    /// Behind `/metrics`.
    pub registry: Registry,
    /// Behind `/healthz` and `/readyz`.
    pub health: Health,
    /// Behind `/status`.
    pub status: StatusFn,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").field("health", &self.health).finish_non_exhaustive()
    }
}

/// A server that has its address and does not answer yet.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// What a role adds to the server.
#[derive(Debug, Default)]
pub struct Routes {
    /// Its routes.
    pub router: Router,
    /// Who may call them, by path.
    pub table: Table,
    /// Where it is told who was refused a change.
    pub audit: Option<AuditLog>,
    /// Those of its routes that answer while it drains as well.
    pub to_the_end: Router,
    /// Where a path begins so, an error is `{"error": TEXT}`, as a protocol of others wants it.
    pub texts_below: Option<&'static str>,
}

/// How errors are told apart: by the path that they answer.
#[derive(Clone, Copy)]
struct Errors(Option<&'static str>);

impl Errors {
    fn is_text(self, path: &str) -> bool {
        self.0.is_some_and(|prefix| path.starts_with(prefix))
    }
}

/// The server ended by itself.
#[derive(Debug, Error)]
#[error("the HTTP server at {address} failed")]
pub struct HttpError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

impl HttpServer {
    /// Takes the address (port 0: a free one).
    ///
    /// # Errors
    /// [`NetError`] names it.
    pub async fn bind(address: impl ToSocketAddrs + fmt::Display) -> Result<Self, NetError> {
        let name = address.to_string();
        let listener = bind_tcp(address).await?;
        let address = listener.local_addr().map_err(|source| NetError::Listen { address: name, source })?;
        Ok(Self { listener, address })
    }

    /// Where it listens, with the port that was taken.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers, behind the locks of `security`, until `shutdown` has *stopped*: while the role drains, `/readyz` and `/metrics` still tell.
    ///
    /// The routes of `extra` are the role's work: each of their requests is in flight for the draining, and
    /// once that has begun, new ones are answered with 503. Bodies are bounded by [`MAX_BODY_BYTES`] unless
    /// `extra` sets another `DefaultBodyLimit`. Connections have `TCP_NODELAY`.
    ///
    /// # Errors
    /// [`HttpError`] when the listener fails.
    ///
    /// # Panics
    /// When `extra` has one of the four paths above, as axum does for any path that is routed twice.
    pub async fn serve(
        self,
        state: AdminState,
        extra: Routes,
        security: Security,
        shutdown: Shutdown,
    ) -> Result<(), HttpError> {
        let Routes { router, table, audit, to_the_end, texts_below } = extra;
        let errors = Errors(texts_below);
        let extra = router.layer(middleware::from_fn_with_state((shutdown.clone(), errors), track));
        let incoming = security.http(self.listener);
        let app = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .with_state(state)
            .merge(extra)
            .merge(to_the_end)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .layer(middleware::from_fn_with_state((security, table, audit, errors), let_pass))
            .into_make_service_with_connect_info::<Peer>();
        let server = axum::serve(incoming, app).with_graceful_shutdown(shutdown.stopped()).into_future();
        let too_late = async {
            shutdown.stopped().await;
            time::sleep(CLOSING_TIMEOUT).await;
        };
        tokio::select! {
            ended = server => ended.map_err(|source| HttpError { address: self.address, source }),
            // A client that will not let go of its connection must not hold the process.
            () = too_late => Ok(()),
        }
    }
}

/// Lets a request through when its caller may make it.
async fn let_pass(
    State((security, table, audit, errors)): State<(Security, Table, Option<AuditLog>, Errors)>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let table = if SHOWN.iter().any(|(shown, _)| *shown == path) { SHOWN } else { table };
    match pass(security.access(), table, path, Some(&peer), request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) => {
            security.count(&refused);
            let changes =
                |(call, needs): &(&str, Needs)| *call == refused.call && needs.iter().any(is_for_changes);
            if let Some(audit) = audit.filter(|_| refused.refusal.known && table.iter().any(changes)) {
                audit.refused(&refused);
            }
            let (status, code) = match refused.refusal.known {
                true => (StatusCode::FORBIDDEN, "forbidden"),
                false => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            };
            let message = &refused.refusal.message;
            let body = match errors.is_text(request.uri().path()) {
                true => json!({ "error": message }),
                false => json!({ "error": { "code": code, "message": message } }),
            };
            (status, [(header::WWW_AUTHENTICATE, "Bearer")], Json(body)).into_response()
        }
    }
}

const fn is_for_changes(role: &Role) -> bool {
    matches!(role, Role::Write | Role::Admin)
}

/// Counts a request of the role as in flight, or turns it away when the role drains.
async fn track(
    State((shutdown, errors)): State<(Shutdown, Errors)>,
    request: Request,
    next: Next,
) -> Response {
    let _in_flight = shutdown.in_flight();
    if shutdown.is_draining() {
        let message = "this process is draining";
        let answer = match errors.is_text(request.uri().path()) {
            true => json!({ "error": message }),
            false => json!({ "code": "unavailable", "message": message }),
        };
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::CONNECTION, "close")], Json(answer))
            .into_response();
    }
    next.run(request).await
}

async fn metrics(State(state): State<AdminState>) -> Response {
    match TextEncoder::new().encode_to_string(&state.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be encoded");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

async fn healthz(State(state): State<AdminState>) -> Response {
    verdict("ok", state.health.live())
}

async fn readyz(State(state): State<AdminState>) -> Response {
    verdict("ready", state.health.readiness())
}

fn verdict(good: &str, verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => (StatusCode::OK, format!("{good}\n")).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn status(State(state): State<AdminState>) -> Response {
    Json((state.status)()).into_response()
}
