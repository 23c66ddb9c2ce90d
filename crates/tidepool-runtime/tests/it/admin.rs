//! The admin server as Prometheus, Kubernetes and a client see it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use prometheus::{IntCounter, Registry};
use serde_json::{Value, json};
use tidepool_runtime::{
    health::Health,
    http::{AdminState, HttpError, HttpServer, MAX_BODY_BYTES, Routes},
    net::NetError,
    security::{Security, SecurityOptions},
    shutdown::{Drained, Shutdown},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// A running server.
struct Admin {
    address: SocketAddr,
    health: Health,
    registry: Registry,
    shutdown: Shutdown,
    running: JoinHandle<Result<(), HttpError>>,
}

impl Admin {
    async fn start(router: Router) -> Self {
        Self::start_with(Routes { router, ..Routes::default() }).await
    }

    async fn start_with(extra: Routes) -> Self {
        let (health, registry, shutdown) = (Health::new(), Registry::new(), Shutdown::new());
        let server = HttpServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.address();
        let state = AdminState {
            registry: registry.clone(),
            health: health.clone(),
            status: Arc::new(|| json!({ "role": "node", "partitions": [1, 2] })),
        };
        let security = Security::open(&SecurityOptions::default(), &registry).unwrap();
        let running = tokio::spawn(server.serve(state, extra, security, shutdown.clone()));
        Self { address, health, registry, shutdown, running }
    }

    async fn get(&self, path: &str) -> Reply {
        request(self.address, "GET", path, b"").await
    }
}

/// An answer: status, head in lower case, body.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

async fn request(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer, and close, before it has read a body that is too long.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let mut block = [0; 4096];
    loop {
        match timeout(DEADLINE, stream.read(&mut block)).await.unwrap() {
            Ok(0) | Err(_) => break,
            Ok(read) => answer.extend_from_slice(&block[..read]),
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_lowercase(), body: body.to_owned() }
}

#[tokio::test]
async fn metrics_are_in_the_text_format_of_prometheus() {
    let admin = Admin::start(Router::new()).await;
    let counter = IntCounter::new("tidepool_node_things_total", "Things").unwrap();
    admin.registry.register(Box::new(counter.clone())).unwrap();
    counter.inc_by(3);
    let reply = admin.get("/metrics").await;
    assert_eq!(reply.status, 200);
    assert!(reply.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", reply.head);
    assert!(reply.body.contains("# TYPE tidepool_node_things_total counter\n"), "{}", reply.body);
    assert!(reply.body.contains("\ntidepool_node_things_total 3\n"), "{}", reply.body);
}

#[tokio::test]
async fn readiness_flips_with_its_reason_and_liveness_does_not() {
    let admin = Admin::start(Router::new()).await;
    let reply = admin.get("/readyz").await;
    assert_eq!((reply.status, reply.body.as_str()), (503, "starting\n"));
    assert_eq!(admin.get("/healthz").await.status, 200);
    admin.health.set_ready(true, "");
    let reply = admin.get("/readyz").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "ready\n"));
    admin.health.set_ready(false, "waiting for partition 3");
    let reply = admin.get("/readyz").await;
    assert_eq!((reply.status, reply.body.as_str()), (503, "waiting for partition 3\n"));
    admin.health.fail("the disk is gone");
    let reply = admin.get("/healthz").await;
    assert_eq!((reply.status, reply.body.as_str()), (503, "the disk is gone\n"));
}

#[tokio::test]
async fn status_is_json_and_the_rest_is_not_found() {
    let admin = Admin::start(Router::new()).await;
    let reply = admin.get("/status").await;
    assert!(reply.head.contains("content-type: application/json"), "{}", reply.head);
    let status: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(status, json!({ "role": "node", "partitions": [1, 2] }));
    assert_eq!(admin.get("/else").await.status, 404);
    assert_eq!(request(admin.address, "POST", "/status", b"").await.status, 405);
}

#[tokio::test]
async fn a_role_adds_routes_with_bounded_bodies() {
    let small = Router::new().route("/small", post(|Json(v): Json<Value>| async { Json(v) }));
    let extra = Router::new()
        .route("/v1/rank", post(|Json(v): Json<Value>| async { Json(v) }))
        .merge(small.layer(DefaultBodyLimit::max(16)));
    let admin = Admin::start(extra).await;
    let reply = request(admin.address, "POST", "/v1/rank", b"{\"a\": 1}").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "{\"a\":1}"));
    let long = vec![b' '; MAX_BODY_BYTES + 1];
    assert_eq!(request(admin.address, "POST", "/v1/rank", &long).await.status, 413);
    assert_eq!(request(admin.address, "POST", "/small", b"[1, 2, 3, 4, 5, 6, 7]").await.status, 413);
    assert_eq!(request(admin.address, "POST", "/v1/rank", b"{").await.status, 400);
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let admin = Admin::start(Router::new()).await;
    let error = HttpServer::bind(admin.address).await.unwrap_err();
    assert!(matches!(error, NetError::Taken { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("{} is taken", admin.address)), "{error}");
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight_and_turns_new_work_away() {
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (entered, release) = (entered.clone(), release.clone());
        get(move || async move {
            entered.notify_one();
            release.notified().await;
            "done"
        })
    };
    // Another protocol's routes: errors are texts, and its health is told to the end.
    let work = || async { "worked" };
    let router = Router::new().route("/slow", slow).route("/v2/work", get(work));
    let to_the_end = Router::new().route("/v2/live", get(|| async { "live" }));
    let routes = Routes { router, to_the_end, texts_below: Some("/v2"), ..Routes::default() };
    let admin = Admin::start_with(routes).await;
    admin.health.set_ready(true, "");
    assert_eq!(admin.get("/v2/work").await.body, "worked");
    let address = admin.address;
    let in_flight = tokio::spawn(async move { request(address, "GET", "/slow", b"").await });
    timeout(DEADLINE, entered.notified()).await.unwrap();
    // A client that keeps its connection and says nothing must not hold the end back.
    let idle = TcpStream::connect(address).await.unwrap();

    let draining = tokio::spawn({
        let (health, shutdown) = (admin.health.clone(), admin.shutdown.clone());
        async move { shutdown.drain(&health, DEADLINE).await }
    });
    timeout(DEADLINE, admin.shutdown.draining()).await.unwrap();

    let refused = admin.get("/slow").await;
    assert_eq!(refused.status, 503);
    let body: Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!(body["code"], "unavailable");
    let refused = admin.get("/v2/work").await;
    assert_eq!((refused.status, refused.body.as_str()), (503, r#"{"error":"this process is draining"}"#));
    assert_eq!(admin.get("/v2/live").await.body, "live");
    let ready = admin.get("/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (503, "draining\n"));
    assert_eq!(admin.get("/metrics").await.status, 200);
    assert!(!draining.is_finished() && !admin.running.is_finished());

    release.notify_one();
    assert_eq!(in_flight.await.unwrap().body, "done");
    assert_eq!(timeout(DEADLINE, draining).await.unwrap().unwrap(), Drained::Clean);
    timeout(DEADLINE, admin.running).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the address is free again");
    drop(idle);
}
