//! The controller: drives the control state machine of `tidepool-cluster` against real nodes and rankers,
//! and owns the metastore.
//!
//! **Invariant:** it must not know what a row is, nor how to ask a node for one: it reads manifests, never
//! partition files. All decisions are in `tidepool-cluster`; nobody hears of a decision before it is
//! written down. One task owns the state while this controller leads; everyone else reads snapshots.
//!
//! Read first: [`start`], `lead::Candidate` (who leads), `actor::Actor` (events in, effects out),
//! [`metastore::Metastore`].

mod access;
mod actor;
mod changes;
mod config;
mod controller;
mod controllers;
mod convert;
mod drain;
mod durable;
mod error;
mod halts;
mod lead;
pub mod maintenance;
pub mod metastore;
mod metrics;
mod releases;
mod service;
mod session;
mod status;

pub use config::{Config, MetastoreConfig, MetastoreKind, RawConfig};
pub use controller::start;
pub use error::StartError;
pub use tidepool_runtime::{error::ServeError, serve::Running};
