//! Whole rankers on the simulated device, in this process: a cluster with a ranker on the GPU and one on the CPU, which must
//! say the same; what each request asks of the device, what a release keeps there, and what becomes of faults.
//!
//! It needs the stand-in for the driver and NVRTC, and fails without them:
//! `scripts/with-sim.sh cargo test --workspace --locked --test gpu_ranker`. The suite of the same name in tidepool-cli has what
//! takes a process of its own.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod answers;
mod counts;
mod faults;
#[expect(dead_code, reason = "its data set is used here, and the suite that needs only Rust uses the rest")]
#[path = "../it/fixture.rs"]
mod fixture;
mod memory;
mod models;
mod releases;
mod resident;
#[expect(dead_code, reason = "the tests of the engine use all of it")]
#[path = "../../crates/tidepool-dense/tests/gpu_sim/sim.rs"]
mod sim;
mod site;
