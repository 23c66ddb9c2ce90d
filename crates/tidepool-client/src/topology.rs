//! A cluster map turned into indices, once per epoch: a request is routed by array look-ups, and nothing is
//! done per node or partition that it does not need.

use std::{collections::HashMap, sync::Arc, time::Instant};

use tidepool_cluster::{ClusterMap, NodeEntry};
use tidepool_types::{Name, NodeId, PartitionIndex};

use crate::{metrics::TableMetrics, peer::Peer};

/// A place in [`Topology::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeAt(pub(crate) u32);

impl NodeAt {
    /// A node that is not in the map.
    const NOWHERE: Self = Self(u32::MAX);

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A map, and what the client knows of its nodes.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) map: Arc<ClusterMap>,
    /// Every node of the map, in its order.
    pub(crate) nodes: Vec<Node>,
    /// Every replica group that holds anything, in the order of their names.
    pub(crate) groups: Vec<Name>,
    /// `[layout][group][partition]`; empty where a group does not hold a layout.
    placed: Vec<Vec<Vec<NodeAt>>>,
    /// One per layout of the map, in its order; empty without metrics.
    pub(crate) metrics: Vec<TableMetrics>,
}

/// A node of the map.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Whether its session with the controller is open.
    pub(crate) up: bool,
    /// Whether traffic is to leave it.
    pub(crate) draining: bool,
    pub(crate) peer: Arc<Peer>,
}

impl Topology {
    /// Nodes that `old` has too, under the same address, keep their peers; `connect` makes the others.
    pub(crate) fn new(
        map: Arc<ClusterMap>,
        old: Option<&Self>,
        now: Instant,
        connect: impl Fn(&NodeEntry) -> Peer,
    ) -> Self {
        let known: HashMap<&NodeId, &Node> =
            old.into_iter().flat_map(|old| &old.nodes).map(|node| (&node.id, node)).collect();
        let node = |(id, entry): (&NodeId, &NodeEntry)| {
            let same = known.get(id).filter(|node| node.peer.address == entry.grpc_address);
            let peer = same.map_or_else(|| Arc::new(connect(entry)), |node| Arc::clone(&node.peer));
            if same.is_some_and(|node| !node.up && entry.up) {
                peer.forgive(now);
            }
            Node { id: id.clone(), up: entry.up, draining: entry.draining, peer }
        };
        let nodes: Vec<Node> = map.nodes.iter().map(node).collect();
        let at: HashMap<&NodeId, NodeAt> =
            (0u32..).zip(&nodes).map(|(at, node)| (&node.id, NodeAt(at))).collect();
        let mut groups: Vec<&Name> = map.layouts.iter().flat_map(|l| l.placement.groups.keys()).collect();
        groups.sort_unstable();
        groups.dedup();
        let placed = map.layouts.iter().map(|layout| {
            let of_group = |group: &&Name| {
                let nodes = layout.placement.groups.get(*group).into_iter().flatten();
                nodes.map(|node| at.get(node).copied().unwrap_or(NodeAt::NOWHERE)).collect()
            };
            groups.iter().map(of_group).collect()
        });
        let placed = placed.collect();
        let groups = groups.into_iter().cloned().collect();
        Self { map, nodes, groups, placed, metrics: Vec::new() }
    }

    /// The node of a partition of the map's layout number `layout` in group number `group`.
    #[inline]
    pub(crate) fn node(&self, layout: usize, group: usize, partition: PartitionIndex) -> Option<NodeAt> {
        let node = *self.placed.get(layout)?.get(group)?.get(partition.0 as usize)?;
        (node != NodeAt::NOWHERE).then_some(node)
    }

    pub(crate) fn peer(&self, node: NodeAt) -> &Peer {
        &self.nodes[node.index()].peer
    }

    pub(crate) fn id(&self, node: NodeAt) -> &NodeId {
        &self.nodes[node.index()].id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BreakerConfig;

    fn map(nodes: &str, placement: &str) -> Arc<ClusterMap> {
        let text = format!(
            r#"{{"epoch": 1, "nodes": {{{nodes}}}, "releases": [], "layouts": [{{"placement": {placement},
                "schema": {{"table_version": {{"table": "t", "version": "v"}}, "dim": 2, "format": "f32",
                "keying": "dense", "partitions": 2, "rows": 9}}}}]}}"#
        );
        Arc::new(serde_json::from_str(&text).unwrap())
    }

    fn node(name: &str, address: &str) -> String {
        format!(r#""{name}": {{"group": "g", "grpc_address": "{address}", "http_address": "", "up": true}}"#)
    }

    fn topology(map: Arc<ClusterMap>, old: Option<&Topology>) -> Topology {
        let connect =
            |entry: &NodeEntry| Peer::new(&entry.grpc_address, Err("-".into()), BreakerConfig::default());
        Topology::new(map, old, Instant::now(), connect)
    }

    #[test]
    fn each_partition_has_its_node_per_group() {
        let nodes = [node("a", "1"), node("b", "2"), node("c", "3")].join(",");
        let topology = topology(map(&nodes, r#"{"g": ["c", "a"], "h": ["b", "gone"]}"#), None);
        let of = |group, partition| {
            let node = topology.node(0, group, PartitionIndex(partition));
            node.map(|node| topology.id(node).to_string())
        };
        assert_eq!((of(0, 0).as_deref(), of(0, 1).as_deref()), (Some("c"), Some("a")));
        assert_eq!((of(1, 0).as_deref(), of(1, 1)), (Some("b"), None));
        assert_eq!((of(2, 0), of(0, 2), topology.node(1, 0, PartitionIndex(0))), (None, None, None));
    }

    #[test]
    fn what_is_known_of_a_node_outlives_the_map_but_not_its_address() {
        let first = topology(map(&[node("a", "1"), node("b", "2")].join(","), "{}"), None);
        let second = topology(map(&[node("a", "1"), node("b", "3")].join(","), "{}"), Some(&first));
        assert!(Arc::ptr_eq(&first.nodes[0].peer, &second.nodes[0].peer));
        assert!(!Arc::ptr_eq(&first.nodes[1].peer, &second.nodes[1].peer));
        assert_eq!(second.nodes[1].peer.address, "3");
        let gone = Arc::downgrade(&first.nodes[1].peer);
        drop(first);
        assert!(gone.upgrade().is_none(), "the connection to an address that left is dropped");
    }
}
