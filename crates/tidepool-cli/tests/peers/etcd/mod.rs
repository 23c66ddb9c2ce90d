//! The metastore in etcd, and several controllers on it.

mod elections;
pub(crate) mod outages;
pub(crate) mod server;
mod stores;
mod tls;
