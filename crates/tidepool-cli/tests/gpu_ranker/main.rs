//! The `tidepool ranker` process on the simulated device: what it says that cannot have its device, and what becomes of it,
//! and of its callers, when the device breaks down or the process is killed.
//!
//! It needs the stand-in for the driver and NVRTC, and fails without them:
//! `scripts/with-sim.sh cargo test --workspace --locked --test gpu_ranker`. The suite of the same name in tests/ has what can be
//! seen in one process: answers, counts, memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

mod breakdowns;
#[expect(dead_code, reason = "the suite that needs only Rust uses the rest")]
#[path = "../it/command.rs"]
mod command;
mod machine;
#[expect(dead_code, reason = "the suite that needs only Rust uses the rest")]
#[path = "../it/models.rs"]
mod models;
mod starts;
#[expect(dead_code, reason = "the suite that needs only Rust uses the rest")]
#[path = "../it/trained.rs"]
mod trained;
