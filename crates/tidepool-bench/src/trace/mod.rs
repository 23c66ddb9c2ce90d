//! Traces of real lookups ([`tidepool_client::trace`]): what they hold, and asking them again.

mod in_order;
mod replay;
mod summary;

pub(crate) use in_order::{Damage, InOrder};
pub use replay::{ReplaySpec, Replayed, Survey, replay};
pub use summary::{Distribution, TableSummary, TenantSummary, TraceSummary, summarize};
