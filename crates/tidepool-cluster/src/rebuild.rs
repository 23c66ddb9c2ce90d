//! A state made anew from what is left of it: the reports of nodes and rankers, and the manifests in the store.
//! For when the metastore was lost and there is no backup.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidepool_types::{Epoch, Name, NodeId, PartitionIndex, ReleaseManifest, TableSchema, TableVersion};

use crate::{
    map::{ClusterMap, NodeEntry, Placement, ReleaseEntry, ReleaseState, TableLayout},
    state::{ClusterState, Durable, TableArtifact, TableIdentity},
};

/// What the artifact store holds of what nodes and rankers report.
#[derive(Clone, Debug, Default)]
pub struct Remains {
    /// The tables that nodes report, and those that releases of `manifests` pin.
    pub tables: Vec<TableArtifact>,
    /// The releases that rankers report.
    pub manifests: Vec<ReleaseManifest>,
}

/// A state that was made anew.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// What is written down.
    pub durable: Durable,
    /// Per table version: replicas of partitions that have a place, and those of them that a node reports.
    pub tables: Vec<(TableVersion, u32, u32)>,
    /// What could not be made anew, in words.
    pub problems: Vec<String>,
}

/// The state by what is reported now. Its incarnation is larger than that of every map that anyone holds.
///
/// Partitions stay where they are reported; in a group that has some of a layout, those that nobody reports go to
/// the node with the fewest of it. A release is in the state that most rankers know it in.
#[must_use]
pub fn rebuild(state: &ClusterState, remains: &Remains) -> Rebuilt {
    let mut problems = Vec::new();
    let nodes: BTreeMap<_, _> = state
        .node_reports()
        .map(|report| {
            let entry = NodeEntry {
                group: report.group.clone(),
                grpc_address: report.grpc_address.clone(),
                http_address: report.http_address.clone(),
                up: true,
                draining: false,
            };
            (report.node.clone(), entry)
        })
        .collect();
    let (mut layouts, mut tables, mut identities) = (Vec::new(), Vec::new(), Vec::new());
    let by_name: BTreeMap<_, _> = remains.tables.iter().map(|t| (&t.schema.table_version, t)).collect();
    for (name, artifact) in by_name {
        let (placement, found) = placement(state, &artifact.schema, &nodes);
        let placed: usize = placement.groups.values().map(Vec::len).sum();
        tables.push((name.clone(), u32::try_from(placed).unwrap_or(u32::MAX), found));
        layouts.push(TableLayout { schema: artifact.schema.clone(), placement });
        identities.push(TableIdentity {
            table_version: name.clone(),
            manifest_hash: artifact.manifest_hash.clone(),
        });
    }
    let has = |table: &TableVersion| identities.iter().any(|t| &t.table_version == table);
    let (mut releases, mut manifests) = (Vec::new(), Vec::new());
    for manifest in &remains.manifests {
        let whole = manifest.tables.iter().zip(&manifest.table_manifest_hashes).all(|(table, hash)| {
            identities.iter().any(|t| &t.table_version == table && &t.manifest_hash == hash)
        });
        if !whole {
            let (model, release) = (&manifest.model, &manifest.release);
            problems.push(format!("release {model}@{release}: not all tables that it pins are in the store"));
            continue;
        }
        releases.push(ReleaseEntry {
            model: manifest.model.clone(),
            release: manifest.release.clone(),
            tables: manifest.tables.clone(),
            state: known_as(state, manifest),
            pinned: false,
        });
        manifests.push(manifest.clone());
    }
    problems.extend(one_current_each(&mut releases));
    let reported: BTreeSet<_> =
        state.node_reports().flat_map(|r| r.partitions.iter().map(|s| &s.table_version)).collect();
    let pinned = |table: &TableVersion| releases.iter().any(|r| r.tables.contains(table));
    let served = reported.iter().filter(|t| has(t) && !pinned(t)).map(|t| (*t).clone()).collect();
    if state.durable.quotas == crate::quota::Quotas::default() {
        problems.push("quotas are not reported by nodes: those that there were must be set again".to_owned());
    }
    problems.push(
        "shares of traffic and shadows are not reported: current releases answer everything".to_owned(),
    );
    problems.push(
        "what was pinned or drained is not reported: no release is pinned, and no node drains".to_owned(),
    );
    let held = state.node_reports().map(|r| r.epoch).chain(state.ranker_reports().map(|r| r.epoch));
    let newest = held.chain([state.map().epoch]).max().unwrap_or_default();
    // The step that takes it over numbers it.
    let epoch = Epoch::before(newest.incarnation().saturating_add(1));
    let map = ClusterMap { epoch, nodes, layouts, releases, ..ClusterMap::default() };
    let capacities = state.node_reports().map(|r| (r.node.clone(), r.capacity_bytes)).collect();
    let durable = Durable {
        map,
        served,
        tables: identities,
        manifests,
        capacities,
        ramps: Vec::new(),
        ..Arc::unwrap_or_clone(state.durable.clone())
    };
    Rebuilt { durable, tables, problems }
}

/// Where the partitions of a layout are, and how many of them a node reports.
fn placement(
    state: &ClusterState,
    schema: &TableSchema,
    nodes: &BTreeMap<NodeId, NodeEntry>,
) -> (Placement, u32) {
    let mut held = BTreeMap::<&Name, BTreeMap<PartitionIndex, &NodeId>>::new();
    for report in state.node_reports() {
        let of_it = report.partitions.iter().filter(|status| {
            status.table_version == schema.table_version
                && status.partitions == schema.partitions.get()
                && status.partition.0 < status.partitions
        });
        for status in of_it {
            held.entry(&report.group).or_default().entry(status.partition).or_insert(&report.node);
        }
    }
    let found = held.values().map(BTreeMap::len).sum::<usize>();
    let mut placement = Placement::default();
    for (group, of_group) in held {
        let mut load: BTreeMap<&NodeId, usize> =
            nodes.iter().filter(|(_, n)| n.group == *group).map(|(id, _)| (id, 0)).collect();
        of_group.values().for_each(|node| *load.entry(node).or_default() += 1);
        let mut node_of = |partition| {
            if let Some(node) = of_group.get(&partition) {
                return (*node).clone();
            }
            // The group reports something, so it has a node.
            let fewest = load.iter().min_by_key(|(_, count)| **count).map(|(node, _)| *node);
            let fewest = fewest.or(of_group.values().next().copied());
            fewest.map_or_else(
                || NodeId(group.clone()),
                |node| {
                    *load.entry(node).or_default() += 1;
                    node.clone()
                },
            )
        };
        placement.groups.insert(group.clone(), schema.partitions.indexes().map(&mut node_of).collect());
    }
    (placement, u32::try_from(found).unwrap_or(u32::MAX))
}

/// The state in which most rankers know a release; `Loading` when none says.
fn known_as(state: &ClusterState, manifest: &ReleaseManifest) -> ReleaseState {
    let reports = state.ranker_reports().flat_map(|report| &report.releases);
    let said: Vec<_> = reports
        .filter(|r| r.model == manifest.model && r.release == manifest.release)
        .filter_map(|r| r.state)
        .collect();
    let votes = |state: &ReleaseState| said.iter().filter(|s| *s == state).count();
    said.iter().copied().max_by_key(votes).unwrap_or(ReleaseState::Loading)
}

/// Rankers that were cut off know another current release than the others: the one that was published last stays.
fn one_current_each(releases: &mut [ReleaseEntry]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen = BTreeMap::<Name, Name>::new();
    for entry in releases.iter_mut().rev().filter(|r| r.state == ReleaseState::Current) {
        if let Some(kept) = seen.get(&entry.model) {
            entry.state = ReleaseState::Previous;
            let (model, release) = (&entry.model, &entry.release);
            problems.push(format!(
                "rankers know two current releases of {model}: {kept} stays, {release} is kept for rollback"
            ));
        } else {
            seen.insert(entry.model.clone(), entry.release.clone());
        }
    }
    let models: BTreeSet<_> = releases.iter().map(|r| r.model.clone()).collect();
    for model in models.into_iter().filter(|model| !seen.contains_key(model)) {
        problems.push(format!("no ranker knows a current release of model {model}: promote one"));
    }
    problems
}
