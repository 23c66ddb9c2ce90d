//! Load on a cluster: requests that arrive when they arrive, whether earlier ones have been answered or not.
//!
//! **Invariants.** A latency runs from the moment at which a request was *meant* to be sent, so that waiting
//! behind slow ones counts (no coordinated omission, and nothing to correct afterwards). Ids are drawn, and
//! answers checked, outside the timed path: requests are prepared ahead by another thread, answers are kept
//! and checked when the load has ended, or beside it at the lowest priority. Both queues are bounded.
//!
//! Read first: [`run`], [`LoadSpec`], [`Asked`], [`LoadReport`]; [`drive`] and [`Target`] for other requests
//! and other servers.

mod answers;
mod ask;
mod drive;
mod pace;
mod prepare;
mod report;

pub use answers::{Check, CheckRows, Keep, Verdict};
pub use ask::{Asked, BatchShape, ParseBatchShapeError, Requests};
pub use drive::{Failure, LoadSpec, Lookups, Pace, Rate, Target, drive, run};
pub use prepare::{Arrivals, Plan, Planned};
pub use report::{LoadReport, Times};

pub(crate) use pace::Pacer;
