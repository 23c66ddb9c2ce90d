//! Drills: what goes wrong between processes, made to happen.

mod proxy;

pub use proxy::Proxy;
