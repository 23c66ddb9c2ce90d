//! The metastore in etcd, and several controllers on it.

mod elections;
mod outages;
mod server;
mod stores;
