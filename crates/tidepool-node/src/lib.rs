//! The embedding node: maps the partitions that the controller assigns to it, and answers lookups.
//!
//! **Invariant:** it must not know clients, models or rankers, nor where other nodes are. A lookup is
//! answered from one snapshot; it takes no lock, and waits for nothing but a place in the CPU pool. The
//! node needs no controller to answer: it keeps its last assignment.
//!
//! Read first: [`start`], `lookup::answer` (a request from end to end), `loader::Loader`.

mod access;
mod admission;
mod budget;
mod config;
mod cut;
mod decode;
mod disk;
mod error;
mod fetch;
mod guard;
#[doc(hidden)]
pub mod in_process;
mod loader;
mod lookup;
mod metrics;
mod node;
mod part;
mod partition;
mod partitions;
mod quota;
mod rate;
mod residency;
mod service;
mod session;
mod state;
mod status;
mod stream;

pub use config::{Config, RawConfig};
pub use error::StartError;
pub use node::{start, start_on};
pub use tidepool_runtime::{error::ServeError, serve::Running};
