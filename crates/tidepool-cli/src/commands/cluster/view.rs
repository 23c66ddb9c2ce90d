//! The cluster as its controller tells it, put together by node, table and group.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tidepool_cluster::{ClusterMap, TableLayout};
use tidepool_proto::v1::{self, control_client::ControlClient, releases_client::ReleasesClient};
use tidepool_types::{Epoch, Name, NodeId, TableVersion};

use super::super::control::refusal;
use crate::{
    leader,
    remote::{Caller, Remote},
};

/// Partitions that a node could not load, of which people are told why.
const PROBLEMS_SHOWN: usize = 3;

/// What the controller that leads knows.
#[derive(Debug)]
pub(super) struct View {
    pub(super) map: ClusterMap,
    /// By node; only of those with a session.
    reports: BTreeMap<String, v1::NodeReport>,
    pub(super) rankers: Vec<v1::RankerReport>,
    pub(super) releases: Vec<v1::ReleaseStatus>,
    pub(super) problems: Vec<v1::Problem>,
    served: BTreeSet<TableVersion>,
}

/// A node: what it should hold, and what it says that it holds.
#[derive(Debug)]
pub(super) struct NodeView<'v> {
    pub(super) node: &'v NodeId,
    pub(super) group: &'v Name,
    pub(super) up: bool,
    pub(super) grpc_address: &'v str,
    pub(super) http_address: &'v str,
    pub(super) placed: usize,
    pub(super) ready: usize,
    /// Bytes of the partition files that it holds; None: it has no session.
    pub(super) bytes: Option<u64>,
    /// What they may be; None: no limit, or no session.
    pub(super) capacity: Option<u64>,
    /// The map that it works by.
    pub(super) epoch: Option<Epoch>,
    /// What it could not load, and why.
    pub(super) failed: Vec<String>,
}

/// A table version.
#[derive(Debug)]
pub(super) struct TableView<'v> {
    pub(super) layout: &'v TableLayout,
    /// Partitions that are ready, per group.
    pub(super) ready: BTreeMap<&'v Name, usize>,
    /// Bytes of its files on all nodes that should have them.
    pub(super) bytes: u64,
    pub(super) pinned_by: Vec<String>,
    /// Whether it is served on its own account.
    pub(super) served: bool,
}

impl View {
    /// Asks the controller that leads.
    pub(super) async fn fetch(remote: &Remote) -> Result<(Self, Caller)> {
        let caller = leader::channel(remote).await?;
        let asked = ControlClient::new(caller.clone()).get_cluster(v1::GetClusterRequest {}).await;
        Ok((Self::of(asked.map_err(|status| refusal(&status))?.into_inner())?, caller))
    }

    fn of(cluster: v1::ClusterReport) -> Result<Self> {
        let served = cluster.served.into_iter().map(TryInto::try_into).collect::<Result<_, _>>();
        Ok(Self {
            map: cluster.map.unwrap_or_default().try_into().context("the controller's cluster map")?,
            reports: cluster.nodes.into_iter().map(|report| (report.node.clone(), report)).collect(),
            rankers: cluster.rankers,
            releases: cluster.releases,
            problems: cluster.problems,
            served: served.context("the controller's list of served tables")?,
        })
    }

    /// Every node of the map, by group and name.
    pub(super) fn nodes(&self) -> Vec<NodeView<'_>> {
        let mut nodes: Vec<_> = self.map.nodes.iter().map(|(node, entry)| self.node(node, entry)).collect();
        nodes.sort_by_key(|node| (node.group, node.node));
        nodes
    }

    fn node<'v>(&'v self, node: &'v NodeId, entry: &'v tidepool_cluster::NodeEntry) -> NodeView<'v> {
        let report = self.reports.get(node.0.as_str());
        let ready = self.ready_on(node);
        let (mut placed, mut ready_here) = (0, 0);
        for table in &self.map.assignment(node).tables {
            placed += table.partitions.len();
            let key = |partition| (&table.schema.table_version, table.schema.partitions.get(), partition);
            ready_here += table.partitions.iter().filter(|p| ready.contains_key(&key(p.0))).count();
        }
        NodeView {
            node,
            group: &entry.group,
            up: entry.up,
            grpc_address: &entry.grpc_address,
            http_address: &entry.http_address,
            placed,
            ready: ready_here,
            bytes: report.map(|report| report.partitions.iter().map(|p| p.file_bytes).sum()),
            capacity: report.map(|report| report.capacity_bytes).filter(|bytes| *bytes > 0),
            epoch: report.map(|report| Epoch(report.epoch)),
            failed: report.map(failed).unwrap_or_default(),
        }
    }

    /// What a node serves: table version, partitions of the layout, partition; with the bytes of its file.
    fn ready_on(&self, node: &NodeId) -> BTreeMap<(&TableVersion, u32, u32), u64> {
        let mut ready = BTreeMap::new();
        let Some(report) = self.reports.get(node.0.as_str()) else { return ready };
        let tables: BTreeMap<(&str, &str), &TableVersion> = self
            .map
            .layouts
            .iter()
            .map(|layout| &layout.schema.table_version)
            .map(|table| ((table.table.as_str(), table.version.as_str()), table))
            .collect();
        for status in report.partitions.iter().filter(|p| p.state() == v1::PartitionState::Ready) {
            let Some(named) = &status.table_version else { continue };
            if let Some(table) = tables.get(&(named.table.as_str(), named.version.as_str())) {
                ready.insert((*table, status.partitions, status.partition), status.file_bytes);
            }
        }
        ready
    }

    /// Every table version of the map.
    pub(super) fn tables(&self) -> Vec<TableView<'_>> {
        let by_node: BTreeMap<_, _> = self.map.nodes.keys().map(|node| (node, self.ready_on(node))).collect();
        let mut tables = Vec::new();
        for layout in &self.map.layouts {
            let TableLayout { schema, placement } = layout;
            let table = &schema.table_version;
            let (mut ready, mut bytes) = (BTreeMap::new(), 0);
            for (group, nodes) in &placement.groups {
                let found = (0u32..).zip(nodes).filter_map(|(partition, node)| {
                    by_node.get(node)?.get(&(table, schema.partitions.get(), partition)).copied()
                });
                let found: Vec<u64> = found.collect();
                ready.insert(group, found.len());
                bytes += found.iter().sum::<u64>();
            }
            let pins = self.map.releases.iter().filter(|release| release.tables.contains(table));
            tables.push(TableView {
                layout,
                ready,
                bytes,
                pinned_by: pins.map(|release| format!("{}@{}", release.model, release.release)).collect(),
                served: self.served.contains(table),
            });
        }
        tables
    }

    /// How far behind the map somebody is who works by `epoch`; None: it is of another incarnation.
    pub(super) fn lag(&self, epoch: Epoch) -> Option<u64> {
        let same = epoch.incarnation() == self.map.epoch.incarnation();
        same.then(|| self.map.epoch.0.saturating_sub(epoch.0))
    }

    /// The same for people.
    pub(super) fn lag_words(&self, epoch: Option<Epoch>) -> String {
        match epoch {
            None => "-".into(),
            Some(Epoch(0)) => "no map yet".into(),
            Some(epoch) => self.lag(epoch).map_or_else(|| "another cluster".into(), |lag| lag.to_string()),
        }
    }
}

impl TableView<'_> {
    pub(super) fn placed(&self) -> usize {
        self.layout.placement.groups.len() * self.layout.schema.partitions.get() as usize
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.values().sum()
    }
}

/// Why a node could not load what it could not load, the first few.
fn failed(report: &v1::NodeReport) -> Vec<String> {
    let failed = report.partitions.iter().filter(|p| p.state() == v1::PartitionState::Failed);
    let words = failed.clone().take(PROBLEMS_SHOWN).map(|status| {
        let table =
            status.table_version.as_ref().map_or_else(String::new, |t| format!("{}@{}", t.table, t.version));
        format!("partition {} of {table}: {}", status.partition, status.problem)
    });
    let mut words: Vec<_> = words.collect();
    let more = failed.count() - words.len();
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words
}

/// Who answers the requests of each model.
pub(super) async fn traffic(caller: &Caller) -> Result<Vec<v1::TrafficStatus>> {
    let request = v1::GetTrafficRequest { model: String::new() };
    let asked = ReleasesClient::new(caller.clone()).get_traffic(request).await;
    Ok(asked.map_err(|status| refusal(&status))?.into_inner().models)
}

/// A problem for machines.
pub(super) fn problem(problem: &v1::Problem) -> Value {
    json!({ "gravity": problem.gravity, "what": problem.what, "todo": problem.todo })
}
