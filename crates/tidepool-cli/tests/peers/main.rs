//! The `tidepool` command beside real peers: etcd under the controllers, moto as the object store, clients of Triton and
//! ONNX Runtime before a ranker, and namespaces with disks and networks of their own. It needs more than Rust, so
//! `cargo test` leaves it out; `scripts/check.sh peers` installs what is missing and runs it. Without its peers it fails.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

#[path = "../it/command.rs"]
mod command;
mod etcd;
mod isolated;
#[path = "../it/models.rs"]
mod models;
mod s3;
#[expect(dead_code, reason = "the suite that needs only Rust uses the rest")]
#[path = "../it/trained.rs"]
mod trained;
mod triton;
