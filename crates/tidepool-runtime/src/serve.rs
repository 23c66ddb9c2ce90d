//! A role that runs: its gRPC server and its HTTP server side by side, and their end in order.

use std::{error::Error, fmt, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use prometheus::Registry;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{ServeError, chain},
    health::Health,
    http::{AdminState, HttpServer, Routes, StatusFn},
    security::Security,
    shutdown::Shutdown,
};

/// What a role brings along when it begins to serve.
pub struct Role {
    /// For logs: "node", "ranker".
    pub word: &'static str,
    /// Behind `/metrics`.
    pub registry: Registry,
    /// Behind `/healthz` and `/readyz`.
    pub health: Health,
    /// Behind `/status`.
    pub status: StatusFn,
    /// The role's own; its loops are spawned there.
    pub shutdown: Shutdown,
    /// For what is in flight at the end.
    pub drain_timeout: Duration,
    /// What locks its doors.
    pub security: Security,
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Role").field("word", &self.word).finish_non_exhaustive()
    }
}

/// A role that answers. It stops when the token it was started with is cancelled; dropping this does not
/// stop it.
pub struct Running {
    /// Where its gRPC service is.
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

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("grpc_address", &self.grpc_address).finish_non_exhaustive()
    }
}

impl Running {
    /// What `/status` shows.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        (self.status)()
    }

    /// Waits until the role has stopped: told to, or by itself.
    ///
    /// # Errors
    /// [`ServeError`] when a server of it ended by itself; the rest has then been stopped too.
    pub async fn wait(self) -> Result<(), ServeError> {
        let broken =
            |e: JoinError| ServeError { what: "gRPC", address: self.grpc_address, problem: e.to_string() };
        self.supervisor.await.unwrap_or_else(|e| Err(broken(e)))
    }
}

impl Role {
    /// Serves until `told` is cancelled or a server ends by itself, then drains: `grpc` must end when
    /// `shutdown` is draining, the HTTP server ends last, after it `last`, which [`Running::wait`] awaits.
    pub fn serve<E: Error + Send + 'static>(
        self,
        (grpc_address, grpc): (SocketAddr, impl Future<Output = Result<(), E>> + Send + 'static),
        (http, routes): (HttpServer, Routes),
        told: CancellationToken,
        last: impl Future<Output = ()> + Send + 'static,
    ) -> Running {
        let http_address = http.address();
        let Self { word, registry, health, status, shutdown, drain_timeout, security } = self;
        let status = with_security(status, security.clone());
        let admin = AdminState { registry: registry.clone(), health: health.clone(), status: status.clone() };
        tokio::spawn(security.clone().follow(shutdown.token()));
        let mut http_task = tokio::spawn(http.serve(admin, routes, security, shutdown.clone()));
        let mut grpc_task = shutdown.spawn(grpc);
        let drained_health = health.clone();
        let supervisor = tokio::spawn(async move {
            let mut failure = tokio::select! {
                () = told.cancelled() => None,
                ended = &mut grpc_task => Some(by_itself("gRPC", grpc_address, ended)),
                ended = &mut http_task => Some(by_itself("HTTP", http_address, ended)),
            };
            let outcome = shutdown.drain(&drained_health, drain_timeout).await;
            // What the bound cut off is abandoned with its connections.
            grpc_task.abort();
            if failure.as_ref().is_none_or(|f| f.what != "HTTP") {
                let ended = http_task.await;
                if failure.is_none() && !matches!(ended, Ok(Ok(()))) {
                    failure = Some(by_itself("HTTP", http_address, ended));
                }
            }
            last.await;
            tracing::info!(role = word, %grpc_address, drained = %outcome, "stopped");
            failure.map_or(Ok(()), Err)
        });
        Running { grpc_address, http_address, registry, health, status, supervisor }
    }
}

/// What `/status` of every role shows besides its own.
fn with_security(status: StatusFn, security: Security) -> StatusFn {
    Arc::new(move || {
        let mut shown = status();
        if let Some(shown) = shown.as_object_mut() {
            shown.insert("security".to_owned(), security.status());
        }
        shown
    })
}

/// A server ended that nobody had told to.
fn by_itself<E: Error>(
    what: &'static str,
    address: SocketAddr,
    ended: Result<Result<(), E>, JoinError>,
) -> ServeError {
    let problem = match ended {
        Ok(Ok(())) => "it stopped listening".to_owned(),
        Ok(Err(error)) => chain(&error),
        Err(error) => error.to_string(),
    };
    ServeError { what, address, problem }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::security::SecurityOptions;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// A role whose gRPC server is `grpc`, and whether its last part has run.
    async fn role(
        grpc: impl FnOnce(&Shutdown) -> JoinHandle<io::Result<()>>,
        told: CancellationToken,
    ) -> (Running, Arc<AtomicBool>) {
        let (shutdown, ended) = (Shutdown::new(), Arc::new(AtomicBool::new(false)));
        let task = grpc(&shutdown);
        let grpc = async move { task.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())) };
        let registry = Registry::new();
        let role = Role {
            word: "test",
            security: Security::open(&SecurityOptions::default(), &registry).unwrap(),
            registry,
            health: Health::new(),
            status: Arc::new(|| serde_json::json!({ "role": "test" })),
            shutdown,
            drain_timeout: DEADLINE,
        };
        role.health.set_ready(true, "");
        let http = HttpServer::bind("127.0.0.1:0").await.unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let last = {
            let ended = ended.clone();
            async move { ended.store(true, Ordering::SeqCst) }
        };
        (role.serve((address, grpc), (http, Routes::default()), told, last), ended)
    }

    #[tokio::test]
    async fn it_ends_when_it_is_told_and_the_last_part_has_run() {
        let told = CancellationToken::new();
        let (running, ended) = role(
            |shutdown| {
                let draining = shutdown.draining();
                tokio::spawn(async move {
                    draining.await;
                    Ok(())
                })
            },
            told.clone(),
        )
        .await;
        assert_eq!(running.status()["role"], "test");
        assert_eq!(running.status()["security"]["rules"], false);
        assert!(running.health.is_ready());
        let health = running.health.clone();
        told.cancel();
        tokio::time::timeout(DEADLINE, running.wait()).await.unwrap().unwrap();
        assert!(!health.is_ready() && ended.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_server_that_fails_panics_or_just_ends_takes_the_role_down_and_is_named() {
        type Ends = fn() -> io::Result<()>;
        let ways: [(Ends, &str); 3] = [
            (|| Err(io::Error::other("the socket is gone")), "the socket is gone"),
            (|| panic!("a defect"), "panicked"),
            (|| Ok(()), "it stopped listening"),
        ];
        for (end, problem) in ways {
            let (running, ended) =
                role(|_| tokio::spawn(async move { end() }), CancellationToken::new()).await;
            let error = tokio::time::timeout(DEADLINE, running.wait()).await.unwrap().unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("the gRPC server at 127.0.0.1:1 ended: "), "{text}");
            assert!(text.contains(problem), "{text} does not say {problem:?}");
            assert!(ended.load(Ordering::SeqCst));
        }
    }
}
