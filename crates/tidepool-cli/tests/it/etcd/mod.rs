//! The metastore in etcd, and several controllers on it: what needs an etcd is run by `scripts/check.sh peers`.

mod elections;
mod outages;
mod server;
mod stores;
