//! The subcommands that are not the demo: a file each, thin over the libraries that do the work.

pub(crate) mod bench;
pub(crate) mod certs;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod drill;
pub(crate) mod hot_ids;
pub(crate) mod lookup;
pub(crate) mod metastore;
pub(crate) mod quota;
pub(crate) mod rank;
pub(crate) mod ranker_http;
pub(crate) mod release;
pub(crate) mod role;
pub(crate) mod store;
pub(crate) mod table;
pub(crate) mod trace;
pub(crate) mod train;
pub(crate) mod vectors;
pub(crate) mod why;
