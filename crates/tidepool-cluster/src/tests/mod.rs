//! Tests of the state machine: single steps, and random runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tidepool_types::{
    Epoch, Keying, Name, NodeId, PartitionCount, ReleaseManifest, RowFormat, TableSchema, TableVersion,
};

use crate::{
    Assignment, BUCKETS, ClusterState, Effect, Event, Guards, NodeReport, PartitionState, PartitionStatus,
    RankerRelease, RankerReport, ReleaseState, SessionId, Settings, StepError, TableArtifact, retire::Leaver,
    step,
};

mod draining;
mod problems;
mod ramps;
mod random;
mod rebuilds;
mod retiring;
mod steps;

const SETTINGS: Settings = Settings {
    reconnect_grace: Duration::from_secs(10),
    group_settle: Duration::from_secs(1),
    retire_grace: Duration::from_secs(5),
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn node_id(text: &str) -> NodeId {
    NodeId(name(text))
}

fn table(table: &str, version: &str) -> TableVersion {
    TableVersion { table: name(table), version: name(version) }
}

fn artifact(table_version: &TableVersion, log_partitions: u32) -> TableArtifact {
    let schema = TableSchema {
        table_version: table_version.clone(),
        dim: 4,
        format: RowFormat::Int4,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(1 << log_partitions).unwrap(),
        rows: 100,
        default_row: Vec::new(),
        composite: None,
    };
    TableArtifact { schema, manifest_hash: format!("hash of {table_version}") }
}

fn manifest(model: &str, release: &str, tables: &[TableVersion]) -> ReleaseManifest {
    ReleaseManifest {
        schema_version: 1,
        model: name(model),
        release: name(release),
        tables: tables.to_vec(),
        table_manifest_hashes: tables.iter().map(|t| format!("hash of {t}")).collect(),
        model_toml_hash: "toml".into(),
        model_onnx_hash: "onnx".into(),
        golden_json_hash: None,
    }
}

/// The group is the part of the name before the dash.
fn report(node: &str, assignment: &Assignment, state: impl Fn(u32) -> PartitionState) -> NodeReport {
    let group = node.split('-').next().unwrap();
    let status = |t: &crate::TableAssignment| {
        let schema = t.schema.clone();
        t.partitions.clone().into_iter().map(move |partition| (schema.clone(), partition))
    };
    let partitions = assignment.tables.iter().flat_map(status).map(|(schema, partition)| PartitionStatus {
        table_version: schema.table_version,
        partitions: schema.partitions.get(),
        partition,
        state: state(partition.0),
        file_bytes: 0,
    });
    NodeReport {
        node: node_id(node),
        group: name(group),
        grpc_address: format!("{node}:7410"),
        http_address: format!("{node}:7411"),
        capacity_bytes: 0,
        epoch: assignment.epoch,
        partitions: partitions.collect(),
        memory: None,
    }
}

fn ranker_report(ranker: &str, ready: &[(&str, &str)]) -> RankerReport {
    let releases = ready.iter().map(|(model, release)| RankerRelease {
        model: name(model),
        release: name(release),
        ready: true,
        problem: String::new(),
        state: None,
        serving: None,
    });
    RankerReport {
        ranker: name(ranker),
        grpc_address: format!("{ranker}:7420"),
        http_address: format!("{ranker}:7421"),
        epoch: Epoch(0),
        releases: releases.collect(),
        rolled_back: Vec::new(),
        rolled_back_to: Vec::new(),
    }
}

/// A cluster that is driven step by step, and checks what must hold after each of them.
struct Run {
    state: ClusterState,
    now: Duration,
    sessions: u64,
    /// Every map that there was, by its epoch: rankers work by one of them.
    maps: BTreeMap<Epoch, crate::ClusterMap>,
    /// When a connected ranker last worked by a map in which a release has the table.
    asked: BTreeMap<TableVersion, Duration>,
}

impl Run {
    fn new() -> Self {
        let maps = BTreeMap::from([(Epoch(0), crate::ClusterMap::default())]);
        let (state, now) = (ClusterState::new(SETTINGS), Duration::ZERO);
        Self { state, now, sessions: 0, maps, asked: BTreeMap::new() }
    }

    fn step(&mut self, event: Event) -> Result<Vec<Effect>, StepError> {
        let (next, effects) = step(&self.state, event, self.now)?;
        check_step(&self.state, &next, &effects);
        self.check_taken_away(&next);
        self.maps.insert(next.map().epoch, next.map().clone());
        self.state = next;
        Ok(effects)
    }

    /// No release leaves that was not let go before; and no table while a connected ranker works by a map in which a
    /// release has it, for requests may name any release of the map, nor before a grace has passed since.
    fn check_taken_away(&mut self, next: &ClusterState) {
        for release in &self.state.map().releases {
            let stays = next.map().release(&release.model, &release.release).is_some();
            assert!(stays || release.state == ReleaseState::Retiring, "{release:?} left in one step");
        }
        for report in next.ranker_reports() {
            let releases = self.maps.get(&report.epoch).map_or(&[][..], |map| &map.releases);
            let tables = releases.iter().flat_map(|release| &release.tables);
            self.asked.extend(tables.map(|table| (table.clone(), self.now)));
        }
        let layouts = self.state.map().layouts.iter().map(|layout| &layout.schema.table_version);
        for table in layouts.filter(|table| next.map().layout(table).is_none()) {
            if let Some(last) = self.asked.get(table) {
                let since = self.now.saturating_sub(*last);
                assert!(since >= SETTINGS.retire_grace, "{table} left {since:?} after a ranker asked for it");
            }
        }
    }

    fn session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId(self.sessions)
    }

    /// A new session of `node`, which holds nothing yet.
    fn join(&mut self, node: &str) -> SessionId {
        let session = self.session();
        let report = report(node, &Assignment::default(), |_| PartitionState::Ready);
        self.step(Event::NodeReported { session, report }).unwrap();
        session
    }

    /// `node` reports all that it should hold as ready.
    fn ready(&mut self, node: &str, session: SessionId) -> Vec<Effect> {
        let report = report(node, &self.state.map().assignment(&node_id(node)), |_| PartitionState::Ready);
        self.step(Event::NodeReported { session, report }).unwrap()
    }

    fn pass(&mut self, seconds: u64) -> Vec<Effect> {
        self.now += Duration::from_secs(seconds);
        self.step(Event::Tick).unwrap()
    }

    fn publish(
        &mut self,
        model: &str,
        release: &str,
        tables: &[TableVersion],
    ) -> Result<Vec<Effect>, StepError> {
        let artifacts = tables.iter().map(|t| artifact(t, 3)).collect();
        let manifest = manifest(model, release, tables);
        self.step(Event::PublishRelease { manifest, tables: artifacts, by: "a test".into() })
    }

    fn promote(&mut self, model: &str, release: &str) -> Result<Vec<Effect>, StepError> {
        self.step(Event::PromoteRelease { model: name(model), release: name(release), by: "a test".into() })
    }

    fn ramp(&mut self, model: &str, shares: &[(&str, u32)]) -> Result<Vec<Effect>, StepError> {
        let shares = shares.iter().map(|(release, share)| (name(release), *share)).collect();
        let guards = Guards::default();
        self.step(Event::SetShares { model: name(model), shares, guards, by: "a test".into() })
    }

    fn shadow(&mut self, model: &str, release: &str, sample: u32) -> Result<Vec<Effect>, StepError> {
        let (model, release) = (name(model), name(release));
        self.step(Event::ShadowRelease { model, release, sample, by: "a test".into() })
    }

    fn rollback(&mut self, model: &str, release: Option<&str>) -> Result<Vec<Effect>, StepError> {
        let (model, release) = (name(model), release.map(name));
        self.step(Event::Rollback { model, release, by: "a test".into() })
    }

    fn retire(&mut self, model: &str, release: &str) -> Result<Vec<Effect>, StepError> {
        self.step(Event::RetireRelease { model: name(model), release: name(release), by: "a test".into() })
    }

    fn pin(&mut self, model: &str, release: &str, pinned: bool) -> Result<Vec<Effect>, StepError> {
        let (model, release) = (name(model), name(release));
        self.step(Event::PinRelease { model, release, pinned, by: "a test".into() })
    }

    fn drain(&mut self, nodes: &[&str], draining: bool, force: bool) -> Result<Vec<Effect>, StepError> {
        let nodes = nodes.iter().map(|node| node_id(node)).collect();
        self.step(Event::DrainNodes { nodes, draining, force, by: "a test".into() })
    }

    fn share(&self, model: &str, release: &str) -> u32 {
        self.state.map().traffic.get(model).map_or(0, |traffic| traffic.share(release))
    }

    fn release(&self, model: &str, release: &str) -> Option<ReleaseState> {
        self.state.map().release(model, release).map(|r| r.state)
    }

    fn waiting_for(&self, model: &str, release: &str) -> Vec<String> {
        self.state.waiting_for(self.state.map().release(model, release).unwrap())
    }

    fn restart(&mut self) {
        let written = serde_json::to_string(&*self.state.durable).unwrap();
        let durable = serde_json::from_str(&written).unwrap();
        let before = self.state.map().clone();
        self.state = ClusterState::recover(durable, SETTINGS, self.now);
        assert_eq!(*self.state.map(), before, "a restart changed the map");
    }
}

/// What must hold from any state to the next.
fn check_step(before: &ClusterState, after: &ClusterState, effects: &[Effect]) {
    let (old, new) = (before.map(), after.map());
    if effects.contains(&Effect::PublishMap) {
        assert_eq!(new.epoch.0, old.epoch.0 + 1);
        assert_eq!(effects, [Effect::Persist, Effect::PublishMap], "persisted first");
    } else {
        assert_eq!(new, old, "a map that changed is published");
    }
    assert_eq!(effects.contains(&Effect::Persist), after.durable != before.durable);
    new.validate().unwrap();
    for layout in &new.layouts {
        let table = &layout.schema.table_version;
        let pinned = new.releases.iter().any(|r| r.tables.contains(table));
        let leaving = after.observed.leaving.contains_key(&Leaver::Table(table.clone()));
        assert!(pinned || leaving || after.durable.served.contains(table), "{table} is kept for nobody");
        assert!(after.durable.table_hash(table).is_some());
        // Nothing that is placed moves.
        if let Some(old) = old.layout(table) {
            for (group, nodes) in &old.placement.groups {
                assert_eq!(layout.placement.groups.get(group), Some(nodes), "{table} moved in {group}");
            }
        }
        for (group, nodes) in &layout.placement.groups {
            assert!(nodes.iter().all(|n| new.nodes[n].group == *group), "{table} left its group");
        }
    }
    for release in &new.releases {
        let current = |r: &&crate::ReleaseEntry| r.model == release.model && r.state == ReleaseState::Current;
        assert!(
            new.releases.iter().filter(current).count() <= 1,
            "two current releases of {}",
            release.model
        );
        assert!(release.tables.iter().all(|t| new.layout(t).is_some()));
        assert!(after.durable.manifest(&release.model, &release.release).is_some());
        let was = old.release(&release.model, &release.release).map(|r| r.state);
        // One that was rolled back was loaded before.
        let loaded = was.is_none_or(|was| was == ReleaseState::Loading);
        if release.state == ReleaseState::Ready && loaded {
            check_ready(after, release);
        }
    }
    check_traffic(after);
    assert_eq!(after.durable.manifests.len(), new.releases.len());
    assert_eq!(after.durable.tables.len(), new.layouts.len());
}

/// Who has buckets has a ramp that runs, and nobody else; and beside traffic there is a current release.
fn check_traffic(state: &ClusterState) {
    let map = state.map();
    for ramp in &state.durable.ramps {
        let share = map.traffic.get(&ramp.model).map_or(0, |traffic| traffic.share(&ramp.release));
        assert_eq!(share > 0, ramp.halted.is_none(), "{ramp:?}");
        assert!(map.release(&ramp.model, &ramp.release).is_some(), "{ramp:?}");
    }
    for (model, traffic) in &map.traffic {
        assert!(map.current_release(model).is_some() && !traffic.is_empty());
        assert!(traffic.arms.iter().map(crate::Arm::share).sum::<u32>() <= BUCKETS);
        for arm in &traffic.arms {
            assert!(state.durable.ramp(model, &arm.release).is_some_and(|ramp| ramp.halted.is_none()));
            assert_ne!(map.release(model, &arm.release).unwrap().state, ReleaseState::Loading);
        }
    }
}

/// Looks at the reports, not at the state machine's own words.
fn check_ready(state: &ClusterState, release: &crate::ReleaseEntry) {
    for table in &release.tables {
        let layout = state.map().layout(table).unwrap();
        assert!(!layout.placement.groups.is_empty());
        for (group, nodes) in &layout.placement.groups {
            for (partition, node) in (0u32..).zip(nodes) {
                // Draining nodes are not waited for where another has the same.
                if state.map().nodes[node].draining
                    && state.is_ready_elsewhere(
                        layout,
                        tidepool_types::PartitionIndex(partition),
                        &BTreeSet::new(),
                    )
                {
                    continue;
                }
                let report = state.node_reports().find(|r| r.node == *node);
                let is_it = |s: &&PartitionStatus| s.table_version == *table && s.partition.0 == partition;
                let status = report.and_then(|r| r.partitions.iter().find(is_it));
                let ready = status.is_some_and(|s| s.state == PartitionState::Ready);
                assert!(ready, "{table} partition {partition} is not ready in {group}");
            }
        }
    }
    for ranker in state.ranker_reports() {
        let has = |r: &RankerRelease| r.ready && r.model == release.model && r.release == release.release;
        assert!(ranker.releases.iter().any(has), "{} is not ready", ranker.ranker);
    }
}
