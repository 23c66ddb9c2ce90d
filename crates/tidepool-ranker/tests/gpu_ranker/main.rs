//! Models of rankers on a device, as rankers load and run them: rows that travel as they are stored give what vectors give.
//! What a whole ranker does with it is tested in `tests/gpu_ranker`.
//!
//! It needs a driver, NVRTC and cuBLASLt in the loader's path, and fails without them:
//! `scripts/with-sim.sh cargo test --workspace --test gpu_ranker`.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod case;
mod rows;
