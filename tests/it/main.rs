//! One binary for every test that needs more than one crate.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

mod bad_input;
mod composite;
mod contracts;
mod conventions;
mod fixture;
mod lifecycle;
mod locks;
mod metrics;
mod mutations;
mod ramps;
mod same_answers;
mod sequences;
mod skew;
mod soak;
mod traces;
