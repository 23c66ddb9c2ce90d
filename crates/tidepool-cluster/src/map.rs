//! The cluster map: which node serves which partition of which layout, and which releases there are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tidepool_types::{Epoch, ManifestError, Name, NodeId, PartitionIndex, TableSchema, TableVersion};

use crate::{
    quota::Quotas,
    traffic::{Traffic, TrafficError},
};

/// One immutable picture of the cluster, numbered by its epoch. Clients route by it and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterMap {
    /// Its number; a later map has a larger one.
    pub epoch: Epoch,
    /// Every registered node.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Every table version that is served, in the order of table and version.
    pub layouts: Vec<TableLayout>,
    /// Every release that was published and not retired, in the order of publication.
    pub releases: Vec<ReleaseEntry>,
    /// By model: who is answered by another release than the current one. A model without an entry has none.
    #[serde(default)]
    pub traffic: BTreeMap<Name, Traffic>,
}

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// The replica group it belongs to.
    pub group: Name,
    /// `host:port` of its Embedding service.
    pub grpc_address: String,
    /// `host:port` of its `/status` and `/metrics`.
    pub http_address: String,
    /// False once its session has ended: it is asked last.
    pub up: bool,
    /// True while traffic is to leave it: it is asked when nobody else is left that is up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// A table version and where its partitions are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableLayout {
    /// What a reader must know of it; `schema.partitions` is the layout.
    pub schema: TableSchema,
    /// Where its partitions are.
    pub placement: Placement,
}

/// The node of each partition, per replica group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Placement {
    /// Group to nodes, one per partition, in partition order.
    pub groups: BTreeMap<Name, Vec<NodeId>>,
}

/// A release as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseEntry {
    /// The model.
    pub model: Name,
    /// The release of it.
    pub release: Name,
    /// The table versions that it pins.
    pub tables: Vec<TableVersion>,
    /// How far it is.
    pub state: ReleaseState,
    /// It stays loaded whatever is promoted, until somebody says otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

/// How far a release is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseState {
    /// Nodes and rankers are loading it.
    Loading,
    /// Every replica and every ranker has it: it can be promoted.
    Ready,
    /// It answers requests that name no release. At most one per model.
    Current,
    /// It was current before; it stays loaded, for rollback.
    Previous,
    /// It is being let go: nobody is sent to it, and it stays loaded until what began with it has ended.
    Retiring,
}

/// What one node should hold, whole: what is not listed is let go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The map that it belongs to.
    pub epoch: Epoch,
    /// Of the controller that gave it: each that comes to lead has a larger one, for quotas change at one epoch.
    #[serde(default)]
    pub term: u64,
    /// Partitions per table version.
    pub tables: Vec<TableAssignment>,
    /// What tenants may ask of the node.
    #[serde(default)]
    pub quotas: Quotas,
}

/// The partitions of one table version that a node should hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableAssignment {
    /// The table version and its layout.
    pub schema: TableSchema,
    /// Ascending, each once.
    pub partitions: Vec<PartitionIndex>,
}

/// How far a node is with one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionStatus {
    /// The table version.
    pub table_version: TableVersion,
    /// Partitions of the layout.
    pub partitions: u32,
    /// Which of them.
    pub partition: PartitionIndex,
    /// How far.
    pub state: PartitionState,
    /// Bytes of its file; 0 until it is ready.
    pub file_bytes: u64,
}

/// How far a node is with a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionState {
    /// Being verified and mapped.
    Loading,
    /// Serving.
    Ready,
    /// Not to be had, and why.
    Failed(String),
}

/// A map that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// A schema that is none.
    #[error("cluster map epoch {epoch}")]
    Schema {
        /// Of the map.
        epoch: Epoch,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A placement that does not list each partition's node.
    #[error("cluster map epoch {epoch}: group {group} of {table} places {found} partitions of {partitions}")]
    Placement {
        /// Of the map.
        epoch: Epoch,
        /// Which table.
        table: TableVersion,
        /// Which group.
        group: Name,
        /// Entries there are.
        found: usize,
        /// Entries there should be.
        partitions: u32,
    },
    /// A placement on a node that is not in the map.
    #[error("cluster map epoch {epoch}: {table} is placed on node {node}, which is not in the map")]
    UnknownNode {
        /// Of the map.
        epoch: Epoch,
        /// Which table.
        table: TableVersion,
        /// Which node.
        node: NodeId,
    },
    /// Buckets or samples that cannot be.
    #[error("cluster map epoch {epoch}: traffic of model {model}")]
    Traffic {
        /// Of the map.
        epoch: Epoch,
        /// Which model.
        model: Name,
        /// What is wrong with it.
        source: TrafficError,
    },
    /// Traffic to a release that is not there, or that has it anyway.
    #[error("cluster map epoch {epoch}: model {model} sends traffic to release {release}, which {problem}")]
    Release {
        /// Of the map.
        epoch: Epoch,
        /// Which model.
        model: Name,
        /// Which release.
        release: Name,
        /// "is not in the map", "is the current one", "is being let go".
        problem: &'static str,
    },
}

impl ClusterMap {
    /// The layout of a table version.
    #[must_use]
    pub fn layout(&self, table_version: &TableVersion) -> Option<&TableLayout> {
        self.layouts.iter().find(|l| &l.schema.table_version == table_version)
    }

    /// A release by name.
    #[must_use]
    pub fn release(&self, model: &str, release: &str) -> Option<&ReleaseEntry> {
        self.releases.iter().find(|r| r.model.as_str() == model && r.release.as_str() == release)
    }

    /// The release of `model` that answers requests which name none.
    #[must_use]
    pub fn current_release(&self, model: &str) -> Option<&ReleaseEntry> {
        self.releases.iter().find(|r| r.model.as_str() == model && r.state == ReleaseState::Current)
    }

    /// The release of `model` that answers a request of `bucket` which names none, and whether it does so as an arm.
    #[must_use]
    pub fn release_for(&self, model: &str, bucket: u32) -> Option<(&ReleaseEntry, bool)> {
        let arm = self.traffic.get(model).and_then(|traffic| traffic.arm(bucket));
        match arm.and_then(|arm| self.release(model, &arm.release)) {
            Some(entry) => Some((entry, true)),
            None => self.current_release(model).map(|entry| (entry, false)),
        }
    }

    /// What `node` should hold by this map, without quotas and term.
    #[must_use]
    pub fn assignment(&self, node: &NodeId) -> Assignment {
        let tables = self.layouts.iter().filter_map(|layout| {
            let partitions: Vec<_> = layout.placement.partitions_of(node).collect();
            (!partitions.is_empty()).then(|| TableAssignment { schema: layout.schema.clone(), partitions })
        });
        Assignment { epoch: self.epoch, tables: tables.collect(), ..Assignment::default() }
    }

    /// Checks that every schema is sound, every partition is placed, on a node of the map, and traffic goes to
    /// releases that there are.
    ///
    /// # Errors
    /// [`MapError`] names what does not fit.
    pub fn validate(&self) -> Result<(), MapError> {
        for layout in &self.layouts {
            let table = &layout.schema.table_version;
            layout.schema.validate().map_err(|source| MapError::Schema { epoch: self.epoch, source })?;
            for (group, nodes) in &layout.placement.groups {
                let partitions = layout.schema.partitions.get();
                if nodes.len() != partitions as usize {
                    return Err(MapError::Placement {
                        epoch: self.epoch,
                        table: table.clone(),
                        group: group.clone(),
                        found: nodes.len(),
                        partitions,
                    });
                }
                if let Some(node) = nodes.iter().find(|n| !self.nodes.contains_key(n)) {
                    return Err(MapError::UnknownNode {
                        epoch: self.epoch,
                        table: table.clone(),
                        node: node.clone(),
                    });
                }
            }
        }
        self.traffic.iter().try_for_each(|(model, traffic)| self.validate_traffic(model, traffic))
    }

    fn validate_traffic(&self, model: &Name, traffic: &Traffic) -> Result<(), MapError> {
        let epoch = self.epoch;
        traffic.validate().map_err(|source| MapError::Traffic { epoch, model: model.clone(), source })?;
        let arms = traffic.arms.iter().map(|arm| &arm.release);
        for release in arms.chain(traffic.shadows.iter().map(|shadow| &shadow.release)) {
            let problem = match self.release(model, release).map(|entry| entry.state) {
                None => "is not in the map",
                Some(ReleaseState::Current) => "is the current one",
                Some(ReleaseState::Retiring) => "is being let go",
                Some(_) => continue,
            };
            return Err(MapError::Release { epoch, model: model.clone(), release: release.clone(), problem });
        }
        Ok(())
    }
}

impl Assignment {
    /// Whether `held` is newer: a controller that was deposed, or whose state was lost, must not take back what
    /// another has said. Within an incarnation neither the term nor the epoch goes back: a successor has read what
    /// was announced before it, and a state that begins anew has small epochs however often its controller starts.
    #[must_use]
    pub fn is_older_than(&self, held: &Self) -> bool {
        let (asked, known) = (self.epoch.incarnation(), held.epoch.incarnation());
        asked < known || (asked == known && (self.term < held.term || self.epoch < held.epoch))
    }
}

impl Placement {
    /// The node that serves `partition` in `group`.
    #[must_use]
    pub fn node(&self, group: &str, partition: PartitionIndex) -> Option<&NodeId> {
        self.groups.get(group)?.get(partition.0 as usize)
    }

    /// The partitions that `node` holds, ascending. A node belongs to one group, so each stands once.
    pub fn partitions_of(&self, node: &NodeId) -> impl Iterator<Item = PartitionIndex> {
        self.groups.values().flat_map(move |nodes| {
            (0u32..).zip(nodes).filter(move |(_, n)| *n == node).map(|(p, _)| PartitionIndex(p))
        })
    }
}
