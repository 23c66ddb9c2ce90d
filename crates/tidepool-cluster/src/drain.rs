//! Draining: traffic leaves a node, and the other replica groups serve what it holds. It keeps that, gets nothing
//! new, and nobody waits for it where another has the same.

use std::collections::BTreeSet;

use tidepool_types::{NodeId, PartitionIndex};

use crate::{error::StepError, events::EventKind, map::TableLayout, state::ClusterState, step::Draft};

impl ClusterState {
    /// What nobody but `nodes` has ready that is up and not draining, in words: requests for it would fail without
    /// them, or stay with them.
    #[must_use]
    pub fn only_on(&self, nodes: &BTreeSet<NodeId>) -> Vec<String> {
        let mut words = Vec::new();
        for layout in &self.map().layouts {
            let (mut only, mut all) = (BTreeSet::new(), 0u32);
            for of_group in layout.placement.groups.values() {
                for (partition, node) in (0u32..).map(PartitionIndex).zip(of_group) {
                    if nodes.contains(node) && self.may_serve(layout, partition, node) {
                        all += 1;
                        if !self.is_ready_elsewhere(layout, partition, nodes) {
                            only.insert(partition);
                        }
                    }
                }
            }
            if !only.is_empty() {
                let table = &layout.schema.table_version;
                words.push(format!("{} of the {all} partitions of {table} that are there", only.len()));
            }
        }
        words
    }

    /// Whether a node that is up, not draining and not one of `but` has a partition ready.
    pub(crate) fn is_ready_elsewhere(
        &self,
        layout: &TableLayout,
        partition: PartitionIndex,
        but: &BTreeSet<NodeId>,
    ) -> bool {
        let nodes = layout.placement.groups.values().filter_map(|nodes| nodes.get(partition.0 as usize));
        nodes.filter(|node| !but.contains(*node)).any(|node| {
            let asked_first = self.map().nodes.get(node).is_some_and(|n| n.up && !n.draining);
            let seen = self.observed.nodes.get(node);
            asked_first && seen.and_then(|n| n.ready(&layout.schema)).is_some_and(|r| r.contains(&partition))
        })
    }

    /// Whether a node answers for a partition; of one that has not reported since a restart it is taken for granted.
    fn may_serve(&self, layout: &TableLayout, partition: PartitionIndex, node: &NodeId) -> bool {
        match self.observed.nodes.get(node) {
            Some(seen) => seen.ready(&layout.schema).is_some_and(|ready| ready.contains(&partition)),
            None => self.map().nodes.get(node).is_some_and(|n| n.up),
        }
    }

    /// Whether traffic is to leave a node.
    pub(crate) fn is_draining(&self, node: &NodeId) -> bool {
        self.map().nodes.get(node).is_some_and(|n| n.draining)
    }
}

impl Draft {
    /// Has traffic leave nodes, or come back to them.
    pub(crate) fn drain(
        &mut self,
        nodes: &BTreeSet<NodeId>,
        draining: bool,
        force: bool,
        by: &str,
    ) -> Result<(), StepError> {
        let known = |node: &&NodeId| !self.state.map().nodes.contains_key(*node);
        if let Some(unknown) = nodes.iter().find(known) {
            return Err(StepError::NotFound { what: format!("node {unknown}") });
        }
        let changed: Vec<_> =
            nodes.iter().filter(|n| self.state.is_draining(n) != draining).cloned().collect();
        if changed.is_empty() {
            return Ok(());
        }
        let only = if draining { self.state.only_on(nodes) } else { Vec::new() };
        if !only.is_empty() && !force {
            let nodes = nodes.iter().map(ToString::to_string).collect();
            return Err(StepError::OnlyThere { nodes, only });
        }
        let why = if only.is_empty() {
            String::new()
        } else {
            format!("though nobody else has {}", only.join("; "))
        };
        let kind = if draining { EventKind::Drained } else { EventKind::Undrained };
        for node in changed {
            if let Some(entry) = self.map().nodes.get_mut(&node) {
                entry.draining = draining;
            }
            self.event(kind, by, (&node.0, None), why.clone());
        }
        Ok(())
    }
}
