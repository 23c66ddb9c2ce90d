//! Default ports: the one table of them. `docs/operations.md` repeats it for people.

/// Controller: gRPC.
pub const CONTROLLER_GRPC: u16 = 7400;
/// Controller: HTTP (`/metrics`, `/healthz`, `/readyz`, `/status`).
pub const CONTROLLER_HTTP: u16 = 7401;
/// Embedding node: gRPC.
pub const NODE_GRPC: u16 = 7410;
/// Embedding node: HTTP.
pub const NODE_HTTP: u16 = 7411;
/// Ranker: gRPC.
pub const RANKER_GRPC: u16 = 7420;
/// Ranker: HTTP, with `POST /v1/rank`.
pub const RANKER_HTTP: u16 = 7421;
