//! What the controller knows: what must survive a restart, and what has been observed since.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidepool_types::{Epoch, Name, NodeId, PartitionIndex, ReleaseManifest, TableSchema, TableVersion};

use crate::{
    events::EventList,
    evidence::Evidence,
    guards::{Guards, Tally},
    map::{ClusterMap, PartitionState, PartitionStatus, ReleaseState},
    quota::Quotas,
    retire::{Leaver, Leaving},
    scores::ScoreHistogram,
};

/// The whole state. Cheap to clone: the parts that are large are shared until they change.
///
/// Times are durations since a moment that the caller chooses, the same one throughout.
#[derive(Clone, Debug)]
pub struct ClusterState {
    /// What must survive a restart.
    pub durable: Arc<Durable>,
    /// How patient to be.
    pub settings: Settings,
    /// The moment that times are counted from, in seconds since 1970: for the list of events only.
    pub began_unix_seconds: u64,
    pub(crate) observed: Observed,
}

/// How patient the state machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long after a start nodes and rankers have to open their sessions again. Until then nodes
    /// count as up as they did before, and no release becomes ready.
    pub reconnect_grace: Duration,
    /// How long no node must have joined a group before a table is placed in it: nodes start one by one,
    /// and the first of them should not get everything.
    pub group_settle: Duration,
    /// How long a release that is let go, or a table that is no longer served, stays loaded after every connected
    /// ranker works by a map that says so. It must be longer than the longest deadline of a request.
    pub retire_grace: Duration,
}

/// What must survive a restart. It is written down before anyone hears of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Durable {
    /// Of this document: [`Durable::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// How many times a controller has come to lead since the state was begun.
    #[serde(default)]
    pub term: u64,
    /// The map, with the epoch that was published last.
    pub map: ClusterMap,
    /// Table versions that are served on their own account, whether or not a release pins them.
    pub served: BTreeSet<TableVersion>,
    /// Which content each table version of the map has.
    pub tables: Vec<TableIdentity>,
    /// The manifest of each release of the map.
    pub manifests: Vec<ReleaseManifest>,
    /// Bytes that each node of the map may hold, as it said last; 0 for no limit.
    pub capacities: BTreeMap<NodeId, u64>,
    /// What tenants may ask of each node.
    #[serde(default)]
    pub quotas: Quotas,
    /// Releases that were given a share of the traffic, and what they must keep to.
    #[serde(default)]
    pub ramps: Vec<Ramp>,
    /// What happened.
    #[serde(default)]
    pub events: EventList,
}

/// A release on its way to be the current one. While it runs it is an arm of the map; when it was halted it is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// The model.
    pub model: Name,
    /// The release of it.
    pub release: Name,
    /// What it must keep to.
    pub guards: Guards,
    /// Who gave it its share.
    pub by: String,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
    /// Why its guards have taken its share away, if they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<String>,
    /// Since it was halted, another release was promoted, the model was rolled back, or its share was set to nothing:
    /// somebody knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub known: bool,
}

/// Which content stands under the name of a table version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableIdentity {
    /// The name.
    pub table_version: TableVersion,
    /// The hash of its manifest.
    pub manifest_hash: String,
}

/// A table version as it lies in the artifact store.
#[derive(Clone, Debug, PartialEq)]
pub struct TableArtifact {
    /// Its schema.
    pub schema: TableSchema,
    /// The hash of its manifest.
    pub manifest_hash: String,
}

/// Numbers the sessions of one controller process; a later session has a larger number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What a node says of itself. Each report is whole: a partition that it does not list is not held.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    /// Who reports.
    pub node: NodeId,
    /// Its replica group.
    pub group: Name,
    /// `host:port` of its Embedding service.
    pub grpc_address: String,
    /// `host:port` of its `/status` and `/metrics`.
    pub http_address: String,
    /// Bytes of partition files that it may hold; 0 for no limit.
    pub capacity_bytes: u64,
    /// The assignment that it works on.
    pub epoch: Epoch,
    /// How far it is.
    pub partitions: Vec<PartitionStatus>,
    /// What partitions take of its memory; `None` when it does not say.
    pub memory: Option<HostMemory>,
}

/// What partitions take of a node's memory, and what they may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// What they may take together; 0 where that is not known.
    pub budget_bytes: u64,
    /// In maps that the kernel may not take out of memory.
    pub locked_bytes: u64,
    /// In memory of their own.
    pub copied_bytes: u64,
    /// In maps of files.
    pub mapped_bytes: u64,
    /// What the control group of the node is charged with, page cache included; 0 where that is not known.
    pub charged_bytes: u64,
}

/// What a ranker says of itself. Each report is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankerReport {
    /// Who reports.
    pub ranker: Name,
    /// `host:port` of its Ranker service.
    pub grpc_address: String,
    /// `host:port` of its HTTP endpoints.
    pub http_address: String,
    /// The map that it works by.
    pub epoch: Epoch,
    /// The releases that it has, or tries to have.
    pub releases: Vec<RankerRelease>,
    /// Models that were rolled back there, and not by the map.
    pub rolled_back: Vec<Name>,
    /// The releases that answer there in place of the map's, by their model.
    pub rolled_back_to: Vec<(Name, Name)>,
}

/// How far a ranker is with a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankerRelease {
    /// The model.
    pub model: Name,
    /// The release of it.
    pub release: Name,
    /// Loaded and warmed.
    pub ready: bool,
    /// Why it cannot be loaded; empty while it loads, and when it is ready.
    pub problem: String,
    /// As the map has it that the ranker works by; `None` when it does not say.
    pub state: Option<ReleaseState>,
    /// What it has answered; only of models that have traffic beside their current release.
    pub serving: Option<Serving>,
}

/// What a ranker has counted of a release since it has loaded it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Another number after each load: counts of different loads are not to be subtracted.
    pub since: u64,
    /// Of requests that named no release.
    pub chosen: Tally,
    /// Of its answers in the shadow of others.
    pub shadow: ShadowTally,
}

/// What was counted of a release in the shadow of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShadowTally {
    /// Requests that it has answered too.
    pub compared: u64,
    /// Requests that it could not answer.
    pub failed: u64,
    /// Requests that it was not asked, because the ranker had better things to do.
    pub dropped: u64,
    /// Its scores.
    pub scores: ScoreHistogram,
    /// The scores that were given to the callers of the same requests.
    pub answered: ScoreHistogram,
    /// How far each of its scores was from the one that was given.
    pub differences: ScoreHistogram,
}

/// What has been heard since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) nodes: BTreeMap<NodeId, Arc<ObservedNode>>,
    pub(crate) rankers: BTreeMap<Name, Arc<ObservedRanker>>,
    /// When a node last came up in each group.
    pub(crate) joined: BTreeMap<Name, Duration>,
    /// Until when sessions from before a restart are waited for.
    pub(crate) recovering_until: Option<Duration>,
    /// What the guards of ramps judge by.
    pub(crate) evidence: Arc<Evidence>,
    /// What is on its way out, and how far.
    pub(crate) leaving: BTreeMap<Leaver, Leaving>,
}

#[derive(Debug)]
pub(crate) struct ObservedNode {
    pub(crate) session: SessionId,
    pub(crate) report: NodeReport,
    /// The partitions that are ready, per table version and layout.
    ready: BTreeMap<(TableVersion, u32), BTreeSet<PartitionIndex>>,
}

#[derive(Debug)]
pub(crate) struct ObservedRanker {
    pub(crate) session: SessionId,
    pub(crate) report: RankerReport,
}

impl ObservedNode {
    pub(crate) fn new(session: SessionId, report: NodeReport) -> Self {
        let mut ready = BTreeMap::<_, BTreeSet<_>>::new();
        for status in report.partitions.iter().filter(|s| s.state == PartitionState::Ready) {
            let layout = (status.table_version.clone(), status.partitions);
            ready.entry(layout).or_default().insert(status.partition);
        }
        Self { session, report, ready }
    }

    pub(crate) fn ready(&self, schema: &TableSchema) -> Option<&BTreeSet<PartitionIndex>> {
        self.ready.get(&(schema.table_version.clone(), schema.partitions.get()))
    }
}

impl RankerRelease {
    /// Whether it is of the same release, by name.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.model == other.model && self.release == other.release
    }
}

impl ShadowTally {
    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.compared = self.compared.saturating_add(other.compared);
        self.failed = self.failed.saturating_add(other.failed);
        self.dropped = self.dropped.saturating_add(other.dropped);
        self.scores.add(&other.scores);
        self.answered.add(&other.answered);
        self.differences.add(&other.differences);
    }

    /// What has been counted since `before`; `None` when it is no continuation.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            compared: self.compared.checked_sub(before.compared)?,
            failed: self.failed.checked_sub(before.failed)?,
            dropped: self.dropped.checked_sub(before.dropped)?,
            scores: self.scores.since(&before.scores)?,
            answered: self.answered.since(&before.answered)?,
            differences: self.differences.since(&before.differences)?,
        })
    }
}

impl Durable {
    /// The document version that is written: 2 since releases can be let go or pinned, and nodes drained. The manifest of
    /// a release with golden vectors is not read by programs of before those either, though the version is the same.
    pub const SCHEMA_VERSION: u32 = 2;

    /// The manifest of a release of the map.
    #[must_use]
    pub fn manifest(&self, model: &str, release: &str) -> Option<&ReleaseManifest> {
        self.manifests.iter().find(|m| m.model.as_str() == model && m.release.as_str() == release)
    }

    /// The ramp of a release, running or halted.
    #[must_use]
    pub fn ramp(&self, model: &str, release: &str) -> Option<&Ramp> {
        self.ramps.iter().find(|r| r.model.as_str() == model && r.release.as_str() == release)
    }

    /// The manifest hash of a table version of the map.
    #[must_use]
    pub fn table_hash(&self, table: &TableVersion) -> Option<&str> {
        self.tables.iter().find(|t| &t.table_version == table).map(|t| t.manifest_hash.as_str())
    }
}

impl Default for Durable {
    fn default() -> Self {
        Self {
            schema_version: Self::SCHEMA_VERSION,
            term: 0,
            map: ClusterMap::default(),
            served: BTreeSet::new(),
            tables: Vec::new(),
            manifests: Vec::new(),
            capacities: BTreeMap::new(),
            quotas: Quotas::default(),
            ramps: Vec::new(),
            events: EventList::default(),
        }
    }
}

impl ClusterState {
    /// A cluster that nobody has joined yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { durable: Arc::default(), settings, began_unix_seconds: 0, observed: Observed::default() }
    }

    /// The cluster as it was written down, `now` being the start of this process. The map is the same, to
    /// the epoch: clients must not see every node go down because a controller started.
    #[must_use]
    pub fn recover(durable: Durable, settings: Settings, now: Duration) -> Self {
        let mut state = Self::new(settings);
        // Who had not settled before the restart has not settled now.
        state.observed.joined = durable.map.nodes.values().map(|n| (n.group.clone(), now)).collect();
        state.durable = Arc::new(durable);
        state.observed.recovering_until = Some(now + settings.reconnect_grace);
        // What was counted before the restart is forgotten: a running ramp is judged from here on.
        let evidence = Arc::make_mut(&mut state.observed.evidence);
        let running = state.durable.ramps.iter().filter(|ramp| ramp.halted.is_none());
        running.for_each(|ramp| evidence.begin(&ramp.model, &ramp.release));
        for (model, traffic) in &state.durable.map.traffic {
            traffic.shadows.iter().for_each(|shadow| evidence.begin_shadow(model, &shadow.release));
        }
        state
    }

    /// The same with the moment that times are counted from, in seconds since 1970.
    #[must_use]
    pub const fn begun_at(mut self, unix_seconds: u64) -> Self {
        self.began_unix_seconds = unix_seconds;
        self
    }

    /// What the guards of a release under a ramp judge by now: its own tally, and the current release's over the
    /// same time. Both are empty when it is under none.
    #[must_use]
    pub fn evidence(&self, model: &Name, release: &Name) -> (Tally, Tally) {
        let pair = self.observed.evidence.of(model, release);
        (pair.candidate, pair.current)
    }

    /// What rankers have counted of a release in the shadow of others, since it is one: what they counted before was
    /// beside another current release, perhaps.
    #[must_use]
    pub fn shadow_tally(&self, model: &Name, release: &Name) -> ShadowTally {
        self.observed.evidence.of_shadow(model, release)
    }

    /// The map.
    #[must_use]
    pub fn map(&self) -> &ClusterMap {
        &self.durable.map
    }

    /// The latest report of every node with a session.
    pub fn node_reports(&self) -> impl Iterator<Item = &NodeReport> {
        self.observed.nodes.values().map(|n| &n.report)
    }

    /// The latest report of every ranker with a session.
    pub fn ranker_reports(&self) -> impl Iterator<Item = &RankerReport> {
        self.observed.rankers.values().map(|r| &r.report)
    }

    /// When [`Event::Tick`](crate::Event::Tick) has something to do next, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let groups = self.unplaced_groups().into_iter().map(|group| self.settled_at(&group));
        let grace = self.settings.retire_grace;
        let leaving = self.observed.leaving.values().filter_map(|leaving| leaving.ends(grace));
        self.observed.recovering_until.into_iter().chain(groups).chain(leaving).min()
    }

    /// From when on tables may be placed in a group.
    pub(crate) fn settled_at(&self, group: &Name) -> Duration {
        self.observed
            .joined
            .get(group)
            .map_or(Duration::ZERO, |joined| joined.saturating_add(self.settings.group_settle))
    }

    /// The groups in which a node is up and a table of the map has no place.
    fn unplaced_groups(&self) -> BTreeSet<Name> {
        let map = self.map();
        let up = map.nodes.values().filter(|n| n.up && !n.draining);
        let up = up.map(|n| n.group.clone()).collect::<BTreeSet<_>>();
        let unplaced =
            |group: &Name| map.layouts.iter().any(|l| !l.placement.groups.contains_key(group.as_str()));
        up.into_iter().filter(unplaced).collect()
    }
}
