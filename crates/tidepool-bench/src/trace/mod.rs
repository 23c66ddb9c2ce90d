//! Traces of real lookups ([`tidepool_client::trace`]): what they hold.

mod summary;

pub use summary::{Distribution, TableSummary, TenantSummary, TraceSummary, summarize};
