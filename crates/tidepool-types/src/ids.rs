//! Newtypes: the things that are counted, named or numbered, so that they cannot be mistaken for each other.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::Name;

/// The name under which an embedding node is known to its cluster. People choose it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub Name);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a cluster map. Each published map has a larger one than the map before it.
///
/// The upper 32 bits are the **incarnation** of the durable state: 0 until the state is restored from a backup or
/// rebuilt, then one more. So the maps of a state that was put back in time are still newer than those that
/// nodes and rankers hold of the state that was lost. The lower 32 bits count the maps of an incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch before the first map of an incarnation.
    #[must_use]
    pub const fn before(incarnation: u32) -> Self {
        Self((incarnation as u64) << u32::BITS)
    }

    /// How many times the durable state was restored or rebuilt.
    #[must_use]
    pub const fn incarnation(self) -> u32 {
        (self.0 >> u32::BITS) as u32
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which partition of a layout, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionIndex(pub u32);

impl fmt::Display for PartitionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many partitions a layout has: a power of two from 1 to 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PartitionCount(u32);

impl PartitionCount {
    /// The largest count that the format allows.
    pub const MAX: u32 = 1 << 16;
    /// A layout that was not cut.
    pub const ONE: Self = Self(1);

    /// Accepts a power of two from 1 to [`Self::MAX`]; anything else is `None`.
    #[must_use]
    pub const fn new(count: u32) -> Option<Self> {
        if count.is_power_of_two() && count <= Self::MAX { Some(Self(count)) } else { None }
    }

    /// The count as a number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Every partition index of such a layout, in order.
    pub fn indexes(self) -> impl ExactSizeIterator<Item = PartitionIndex> {
        (0..self.0).map(PartitionIndex)
    }
}

impl fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u32> for PartitionCount {
    type Error = String;

    fn try_from(count: u32) -> Result<Self, String> {
        Self::new(count)
            .ok_or_else(|| format!("{count} partitions: not a power of two from 1 to {}", Self::MAX))
    }
}

impl From<PartitionCount> for u32 {
    fn from(count: PartitionCount) -> u32 {
        count.0
    }
}

/// One immutable content of one table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableVersion {
    /// The table.
    pub table: Name,
    /// The version of it.
    pub version: Name,
}

impl fmt::Display for TableVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.table, self.version)
    }
}
