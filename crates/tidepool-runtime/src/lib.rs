//! What every process of the cluster needs and none should write twice: configuration, logs, the admin
//! HTTP server, TLS and who may do what, health, draining, and a bounded pool of threads for computation.
//!
//! **Invariant:** it must not know any other crate of ours: no table, no model, no wire message. A role
//! tells it what to show (a registry, a status function, extra routes) and it shows that.
//!
//! A role's `main`, in the order that matters:
//! ```no_run
//! # use std::{sync::Arc, time::Duration};
//! # use tidepool_runtime::{health::Health, http::{AdminState, HttpServer, Routes}, logs, security, shutdown};
//! # async fn main_of_a_role() -> Result<(), Box<dyn std::error::Error>> {
//! logs::init(&logs::LogOptions::default())?;
//! let signal = shutdown::signal()?; // from here on SIGTERM no longer kills
//! let (health, shutdown) = (Health::new(), shutdown::Shutdown::new());
//! let admin = HttpServer::bind("127.0.0.1:7411").await?;
//! let registry = prometheus::Registry::new();
//! let security = security::Security::open(&security::SecurityOptions::default(), &registry)?;
//! let state = AdminState {
//!     registry,
//!     health: health.clone(),
//!     status: Arc::new(|| serde_json::json!({ "role": "node" })),
//! };
//! let admin = tokio::spawn(admin.serve(state, Routes::default(), security, shutdown.clone()));
//! // ... shutdown.spawn(a gRPC server that ends gracefully on shutdown.draining()) ...
//! health.set_ready(true, "");
//! tracing::info!(signal = %signal.await, "draining");
//! let outcome = shutdown.drain(&health, Duration::from_secs(10)).await;
//! tracing::info!(%outcome, "stopped");
//! admin.await??;
//! # Ok(()) }
//! ```
//! A role with a gRPC server has the last part done for it by [`serve::Role`].
//! Read first: [`config::load`], [`serve::Role`], [`security::Security`].

pub mod audit;
pub mod auth;
pub mod certs;
pub mod config;
pub mod error;
mod expiry;
mod handshakes;
pub mod health;
pub mod http;
pub mod idle;
pub mod listen;
pub mod logs;
pub mod metrics;
pub mod net;
pub mod owner;
pub mod pool;
pub mod rotating;
pub mod secret;
pub mod security;
pub mod serve;
pub mod shutdown;
pub mod tls;
pub mod utc;
