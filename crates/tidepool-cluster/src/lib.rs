//! The cluster as data: its map, placement, and the control state machine, all of it pure functions.
//!
//! **Invariant:** no tokio, no tonic, no clocks, no files, no unseeded randomness. The same state and the
//! same event give the same next state and the same effects, so a run can be replayed.
//!
//! Read first: [`ClusterMap`], [`ClusterState`], [`step`].

mod drain;
mod error;
mod events;
mod evidence;
mod guards;
mod keys;
mod map;
mod placement;
mod problems;
mod quota;
mod readiness;
mod rebuild;
mod releases;
mod retire;
mod scores;
mod state;
mod step;
#[cfg(test)]
mod tests;
mod traffic;

pub use error::StepError;
pub use events::{ClusterEvent, EventKind, EventList};
pub use guards::{Breach, Guards, Rate, Tally};
pub use keys::KeyCounts;
pub use map::{
    Assignment, ClusterMap, MapError, NodeEntry, PartitionState, PartitionStatus, Placement, ReleaseEntry,
    ReleaseState, TableAssignment, TableLayout,
};
pub use placement::{Member, place};
pub use problems::{Gravity, Problem};
pub use quota::{Quota, Quotas};
pub use rebuild::{Rebuilt, Remains, rebuild};
pub use releases::GUARDS;
pub use scores::ScoreHistogram;
pub use state::{
    ClusterState, Durable, HostMemory, NodeReport, Ramp, RankerRelease, RankerReport, Serving, SessionId,
    Settings, ShadowTally, TableArtifact, TableIdentity,
};
pub use step::{Effect, Event, step};
pub use traffic::{Arm, BUCKETS, BucketRange, Shadow, Traffic, TrafficError, bucket_of};
