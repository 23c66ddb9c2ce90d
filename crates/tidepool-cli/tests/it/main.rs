//! The `tidepool` command as a user meets it: real processes, their output and their exit codes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

mod bad_days;
mod bench;
mod by_hand;
mod command;
mod composite;
mod demo;
mod doors;
mod drains;
mod drills;
mod golden;
mod hostile;
mod lookup_bench;
mod metastore;
mod models;
mod operators;
mod quantizers;
mod quotas;
mod rank_bench;
mod release_drills;
mod releases;
mod retiring;
mod secrets;
mod skew;
mod store;
mod tables;
mod train;
mod trained;
