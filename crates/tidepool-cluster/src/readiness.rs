//! What a table or a release still waits for, and the words for it.
//!
//! A release becomes ready when every partition of every table that it pins is ready on its node, in
//! **every** group it is placed in, and every connected ranker has it. A node that is down is waited for,
//! also when another group has all its partitions: a release that is promoted with one copy missing has
//! nowhere to fall back to. A node that is draining is waited for only where no other has the same. Zero connected rankers are none to wait for: a ranker that starts later loads
//! the release before it calls itself ready.

use std::collections::{BTreeMap, BTreeSet};

use tidepool_types::{Name, NodeId, PartitionIndex, TableVersion};

use crate::{
    map::{PartitionState, ReleaseEntry, ReleaseState, TableLayout},
    state::{ClusterState, RankerRelease},
};

/// How many problems of one node and table are spelled out.
const PROBLEMS_SHOWN: usize = 3;

impl ClusterState {
    /// What is missing before `entry` can be promoted, in words; empty when it can.
    ///
    /// Once a release has been ready it stays promotable while every partition is ready in at least one
    /// group: a node that is down must not stand in the way of a rollback.
    #[must_use]
    pub fn waiting_for(&self, entry: &ReleaseEntry) -> Vec<String> {
        if entry.state == ReleaseState::Retiring {
            return self.still_needing(entry);
        }
        let layouts = entry.tables.iter().map(|table| (table, self.map().layout(table)));
        let loading = entry.state == ReleaseState::Loading;
        let mut words = Vec::new();
        for (table, layout) in layouts {
            match layout {
                None => words.push(format!("table {table} is not in the cluster map")),
                Some(layout) if loading => words.extend(self.table_gaps(layout)),
                Some(layout) => words.extend(self.uncovered(layout)),
            }
        }
        if loading {
            words.extend(self.ranker_gaps(entry));
            if self.observed.recovering_until.is_some() {
                words.push("the controller has just started and waits for reports".into());
            }
        }
        words
    }

    /// What is missing before every partition of a table is ready in every group, in words.
    #[must_use]
    pub fn table_waiting_for(&self, table: &TableVersion) -> Vec<String> {
        match self.map().layout(table) {
            Some(layout) => self.table_gaps(layout),
            None => vec![format!("table {table} is not in the cluster map")],
        }
    }

    /// How many replicas of partitions the map places, and how many of them are ready.
    #[must_use]
    pub fn replicas_placed_and_ready(&self) -> (u64, u64) {
        let (mut placed, mut ready) = (0, 0);
        for layout in &self.map().layouts {
            for (node, partitions) in by_node(layout) {
                placed += partitions.len() as u64;
                ready += self.ready_of(layout, node, &partitions) as u64;
            }
        }
        (placed, ready)
    }

    fn ready_of(&self, layout: &TableLayout, node: &NodeId, partitions: &[PartitionIndex]) -> usize {
        let ready = self.observed.nodes.get(node).and_then(|n| n.ready(&layout.schema));
        ready.map_or(0, |ready| partitions.iter().filter(|p| ready.contains(p)).count())
    }

    fn table_gaps(&self, layout: &TableLayout) -> Vec<String> {
        let table = &layout.schema.table_version;
        let mut words = Vec::new();
        if layout.placement.groups.is_empty() {
            words.push(format!("{table} is placed on no node yet"));
        }
        for (id, entry) in self.map().nodes.iter().filter(|(_, n)| n.up && !n.draining) {
            if !layout.placement.groups.is_empty() && !layout.placement.groups.contains_key(&entry.group) {
                words.push(format!("{table} is not placed in group {} of node {id} yet", entry.group));
            }
        }
        for (node, mut partitions) in by_node(layout) {
            if self.is_draining(node) {
                // Nobody is sent there for what another has.
                partitions.retain(|partition| !self.is_ready_elsewhere(layout, *partition, &BTreeSet::new()));
            }
            let (ready, placed) = (self.ready_of(layout, node, &partitions), partitions.len());
            if ready == placed {
                continue;
            }
            let up = self.map().nodes.get(node).is_some_and(|n| n.up);
            words.push(match self.observed.nodes.get(node) {
                Some(seen) => {
                    let problems = problems_of(&seen.report.partitions, table);
                    format!("node {node} has {ready} of {placed} partitions of {table} ready{problems}")
                }
                None if up => format!(
                    "node {node} has not reported since the controller started: {placed} partitions of {table}"
                ),
                None => format!("node {node} is down: {placed} partitions of {table}"),
            });
        }
        words
    }

    /// The partitions of a table that no group has ready, in words.
    pub(crate) fn uncovered(&self, layout: &TableLayout) -> Option<String> {
        let mut covered = vec![false; layout.schema.partitions.get() as usize];
        for (node, partitions) in by_node(layout) {
            let Some(ready) = self.observed.nodes.get(node).and_then(|n| n.ready(&layout.schema)) else {
                continue;
            };
            for partition in partitions.iter().filter(|p| ready.contains(p)) {
                covered[partition.0 as usize] = true;
            }
        }
        let missing = covered.iter().filter(|c| !**c).count();
        let (table, all) = (&layout.schema.table_version, covered.len());
        (missing > 0).then(|| format!("{missing} of {all} partitions of {table} are ready on no node"))
    }

    /// The rankers that do not have a release ready, in words.
    fn ranker_gaps(&self, entry: &ReleaseEntry) -> Vec<String> {
        let (model, release) = (&entry.model, &entry.release);
        let missing = self.loads(entry).filter(|(_, loaded)| loaded.is_none_or(|l| !l.ready));
        let not_yet = |ranker| format!("ranker {ranker} has not loaded {model}@{release} yet");
        let words =
            missing.map(|(ranker, loaded)| failure(ranker, loaded).unwrap_or_else(|| not_yet(ranker)));
        words.collect()
    }

    /// The rankers that cannot load a release, in words. One that was started since the release became ready may be
    /// among them; while it only loads, it takes no requests and nobody waits for it.
    pub(crate) fn ranker_failures(&self, entry: &ReleaseEntry) -> Vec<String> {
        self.loads(entry).filter_map(|(ranker, loaded)| failure(ranker, loaded)).collect()
    }

    /// Every ranker with a session, and what it says of a release.
    fn loads<'a>(
        &'a self,
        entry: &'a ReleaseEntry,
    ) -> impl Iterator<Item = (&'a Name, Option<&'a RankerRelease>)> {
        self.ranker_reports().map(move |report| {
            let is_it = |r: &&RankerRelease| r.model == entry.model && r.release == entry.release;
            (&report.ranker, report.releases.iter().find(is_it))
        })
    }
}

fn failure(ranker: &Name, loaded: Option<&RankerRelease>) -> Option<String> {
    let RankerRelease { model, release, problem, .. } =
        loaded.filter(|l| !l.ready && !l.problem.is_empty())?;
    Some(format!("ranker {ranker} cannot load {model}@{release}: {problem}"))
}

/// The partitions of a layout per node.
pub(crate) fn by_node(layout: &TableLayout) -> BTreeMap<&NodeId, Vec<PartitionIndex>> {
    let mut partitions = BTreeMap::<_, Vec<_>>::new();
    for nodes in layout.placement.groups.values() {
        for (partition, node) in (0u32..).zip(nodes) {
            partitions.entry(node).or_default().push(PartitionIndex(partition));
        }
    }
    partitions
}

pub(crate) fn problems_of(reported: &[crate::map::PartitionStatus], table: &TableVersion) -> String {
    let failed = reported.iter().filter(|s| &s.table_version == table).filter_map(|s| match &s.state {
        PartitionState::Failed(problem) => Some(format!("partition {} failed: {problem}", s.partition)),
        _ => None,
    });
    let failed: Vec<_> = failed.collect();
    match failed.len() {
        0 => String::new(),
        n if n <= PROBLEMS_SHOWN => format!(" ({})", failed.join("; ")),
        n => format!(" ({}; and {} more)", failed[..PROBLEMS_SHOWN].join("; "), n - PROBLEMS_SHOWN),
    }
}
