//! The controller over real gRPC on loopback, with a store of hand-written manifests.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod audit;
mod drains;
mod fixture;
mod maintenance;
mod releases;
mod restart;
mod sessions;
