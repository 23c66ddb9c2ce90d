//! The `tidepool` command beside real peers: etcd under the controllers, moto as the object store. It needs more than
//! Rust, so `cargo test` leaves it out; `scripts/check.sh peers` installs the peers and runs it. Without them it fails.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

#[expect(dead_code, reason = "the suite that needs only Rust uses the rest")]
#[path = "../it/command.rs"]
mod command;
mod etcd;
mod s3;
