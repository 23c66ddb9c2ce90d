//! Traces of real lookups ([`tidepool_client::trace`]): what they hold, and asking them again.

mod replay;
mod summary;

pub use replay::{ReplaySpec, Replayed, Survey, replay};
pub use summary::{Distribution, TableSummary, TenantSummary, TraceSummary, summarize};
