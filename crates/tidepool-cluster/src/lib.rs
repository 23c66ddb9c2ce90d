//! The cluster as data: its map, placement, and the control state machine, all of it pure functions.
//!
//! **Invariant:** no tokio, no tonic, no clocks, no files, no unseeded randomness. The same state and the
//! same event give the same next state and the same effects, so a run can be replayed.
//!
//! Read first: [`ClusterMap`], [`TableLayout`], [`Placement`].

mod map;

pub use map::{
    Assignment, ClusterMap, MapError, NodeEntry, PartitionState, PartitionStatus, Placement, ReleaseEntry,
    ReleaseState, TableAssignment, TableLayout,
};
