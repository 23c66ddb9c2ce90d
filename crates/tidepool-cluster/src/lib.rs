//! The cluster as data: its map, placement, and the control state machine, all of it pure functions.
//!
//! **Invariant:** no tokio, no tonic, no clocks, no files, no unseeded randomness. The same state and the
//! same event give the same next state and the same effects, so a run can be replayed.
//!
//! Read first: [`ClusterMap`], [`ClusterState`], [`step`].

mod error;
mod map;
mod placement;
mod quota;
mod readiness;
mod rebuild;
mod state;
mod step;
#[cfg(test)]
mod tests;

pub use error::StepError;
pub use map::{
    Assignment, ClusterMap, MapError, NodeEntry, PartitionState, PartitionStatus, Placement, ReleaseEntry,
    ReleaseState, TableAssignment, TableLayout,
};
pub use placement::{Member, place};
pub use quota::{Quota, Quotas};
pub use rebuild::{Rebuilt, Remains, rebuild};
pub use state::{
    ClusterState, Durable, NodeReport, RankerRelease, RankerReport, SessionId, Settings, TableArtifact,
    TableIdentity,
};
pub use step::{Effect, Event, step};
