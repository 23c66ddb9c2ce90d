//! The control state machine: an event and the time make the next state and what must be done about it.
//!
//! A new node gets no partitions of tables that are placed in its group already, and a node that goes
//! down keeps its own: nothing moves by itself. A group in which a table has no place gets one as soon as
//! it has settled, over the nodes that are up then and not draining.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tidepool_types::{Name, NodeId, ReleaseManifest, TableVersion};

use crate::{
    error::StepError,
    events::EventKind,
    guards::Guards,
    map::{ClusterMap, NodeEntry, Placement, TableLayout},
    placement::{Member, place},
    quota::{Quota, Quotas},
    rebuild::{Remains, rebuild},
    state::{
        ClusterState, Durable, NodeReport, ObservedNode, ObservedRanker, RankerReport, SessionId,
        TableArtifact, TableIdentity,
    },
};

/// What happens to a cluster.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node reports; its first report registers it.
    NodeReported {
        /// Over which session.
        session: SessionId,
        /// What it says.
        report: NodeReport,
    },
    /// A node's session has ended. Ignored when a newer one has taken over.
    NodeGone {
        /// Which node.
        node: NodeId,
        /// Which session.
        session: SessionId,
    },
    /// A ranker reports; its first report registers it.
    RankerReported {
        /// Over which session.
        session: SessionId,
        /// What it says.
        report: RankerReport,
    },
    /// A ranker's session has ended. Ignored when a newer one has taken over.
    RankerGone {
        /// Which ranker.
        ranker: Name,
        /// Which session.
        session: SessionId,
    },
    /// Take a release in: place its tables and wait until it is loaded. Again, with the same content: nothing.
    PublishRelease {
        /// Its manifest.
        manifest: ReleaseManifest,
        /// The tables that it pins, as they lie in the store.
        tables: Vec<TableArtifact>,
        /// Who asks for it, in words.
        by: String,
    },
    /// Make a release the current one of its model, with all traffic. The former stays for rollback; the one
    /// before is let go.
    PromoteRelease {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// Who asks for it, in words.
        by: String,
    },
    /// Give releases of a model a share of its traffic each, under guards; what others have stays theirs. One is a
    /// ramp, several are an experiment.
    SetShares {
        /// The model.
        model: Name,
        /// Releases and the buckets that each should have; 0 takes a release off the traffic.
        shares: Vec<(Name, u32)>,
        /// What each of them must keep to.
        guards: Guards,
        /// Who asks for it, in words.
        by: String,
    },
    /// Have a release asked in the shadow of others, whose answers nobody is given.
    ShadowRelease {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// Of [`BUCKETS`](crate::BUCKETS) requests so many; 0 ends it.
        sample: u32,
        /// Who asks for it, in words.
        by: String,
    },
    /// One step back: arms lose their traffic; without any, the release before the current one takes over.
    Rollback {
        /// The model.
        model: Name,
        /// What is to be taken back; `None`: every arm, or else the current release.
        release: Option<Name>,
        /// Who asks for it, in words.
        by: String,
    },
    /// Let a release go that nobody is sent to: it leaves once what began with it has ended.
    RetireRelease {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// Who asks for it, in words.
        by: String,
    },
    /// Keep a release loaded whatever is promoted, or no longer.
    PinRelease {
        /// The model.
        model: Name,
        /// The release of it.
        release: Name,
        /// Whether it is to stay.
        pinned: bool,
        /// Who asks for it, in words.
        by: String,
    },
    /// Have traffic leave nodes, or come back to them. What they hold they keep; they get nothing new meanwhile.
    DrainNodes {
        /// The nodes.
        nodes: BTreeSet<NodeId>,
        /// Whether traffic is to leave them.
        draining: bool,
        /// Also where nobody else has what they serve.
        force: bool,
        /// Who asks for it, in words.
        by: String,
    },
    /// Serve a table version on its own account.
    ServeTable {
        /// The table as it lies in the store.
        table: TableArtifact,
    },
    /// No longer serve it on its own account; it goes, after a grace, unless a release pins it.
    StopTable {
        /// Which table.
        table_version: TableVersion,
    },
    /// Give a tenant a quota, in place of the one before.
    SetQuota {
        /// Which; `None` for each tenant without one of its own.
        tenant: Option<Name>,
        /// What it may ask of each node.
        quota: Quota,
    },
    /// Take a quota away.
    RemoveQuota {
        /// Of which tenant; `None` for the default one.
        tenant: Option<Name>,
    },
    /// Make the state anew: see [`rebuild`](crate::rebuild).
    Rebuild {
        /// What the store holds.
        remains: Remains,
    },
    /// Time has passed: see [`ClusterState::next_deadline`].
    Tick,
}

/// What must be done about an event, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the durable part down. Until that is done nobody may hear of the new state.
    Persist,
    /// Send the new map out, and to each node its assignment by it.
    PublishMap,
    /// Send to each node its assignment with the new quotas. The map stays.
    PublishQuotas,
}

/// Applies an event. On an error nothing has happened.
///
/// # Errors
/// [`StepError`] says why the event is refused.
pub fn step(
    state: &ClusterState,
    event: Event,
    now: Duration,
) -> Result<(ClusterState, Vec<Effect>), StepError> {
    let mut draft = Draft {
        state: state.clone(),
        now,
        durable_changed: false,
        map_changed: false,
        quotas_changed: false,
    };
    match event {
        Event::NodeReported { session, report } => draft.node_reported(session, report)?,
        Event::NodeGone { node, session } => draft.node_gone(&node, session),
        Event::RankerReported { session, report } => draft.ranker_reported(session, report)?,
        Event::RankerGone { ranker, session } => {
            if draft.state.observed.rankers.get(&ranker).is_some_and(|r| r.session == session) {
                draft.state.observed.rankers.remove(&ranker);
                draft.forget_evidence();
            }
        }
        Event::PublishRelease { manifest, tables, by } => draft.publish(manifest, tables, &by)?,
        Event::PromoteRelease { model, release, by } => draft.promote(&model, &release, &by)?,
        Event::SetShares { model, shares, guards, by } => draft.set_shares(&model, &shares, guards, &by)?,
        Event::ShadowRelease { model, release, sample, by } => draft.shadow(&model, &release, sample, &by)?,
        Event::Rollback { model, release, by } => draft.rollback(&model, release.as_ref(), &by)?,
        Event::RetireRelease { model, release, by } => draft.retire(&model, &release, &by)?,
        Event::PinRelease { model, release, pinned, by } => draft.pin(&model, &release, pinned, &by)?,
        Event::DrainNodes { nodes, draining, force, by } => draft.drain(&nodes, draining, force, &by)?,
        Event::ServeTable { table } => draft.serve(table)?,
        Event::StopTable { table_version } => draft.stop(&table_version)?,
        Event::SetQuota { tenant, quota } => draft.quotas(|quotas| quotas.set(tenant, quota))?,
        Event::RemoveQuota { tenant } => draft.quotas(|quotas| quotas.remove(tenant.as_ref()))?,
        Event::Rebuild { remains } => draft.rebuild(&remains),
        Event::Tick => {}
    }
    draft.end_recovery();
    draft.place_unplaced();
    draft.advance_releases();
    draft.advance_leaving();
    Ok(draft.finish())
}

/// A state in the making.
pub(crate) struct Draft {
    pub(crate) state: ClusterState,
    pub(crate) now: Duration,
    durable_changed: bool,
    pub(crate) map_changed: bool,
    quotas_changed: bool,
}

impl Draft {
    /// The durable part, to be changed.
    pub(crate) fn durable(&mut self) -> &mut Durable {
        self.durable_changed = true;
        Arc::make_mut(&mut self.state.durable)
    }

    /// The map, to be changed.
    pub(crate) fn map(&mut self) -> &mut ClusterMap {
        self.map_changed = true;
        &mut self.durable().map
    }

    fn finish(mut self) -> (ClusterState, Vec<Effect>) {
        let mut effects = Vec::new();
        if self.map_changed {
            self.map().epoch.0 += 1;
            self.forget_evidence();
        }
        if self.durable_changed {
            effects.push(Effect::Persist);
        }
        if self.map_changed {
            effects.push(Effect::PublishMap);
        }
        if self.quotas_changed {
            effects.push(Effect::PublishQuotas);
        }
        (self.state, effects)
    }

    fn node_reported(&mut self, session: SessionId, report: NodeReport) -> Result<(), StepError> {
        let node = report.node.clone();
        if let Some(seen) = self.state.observed.nodes.get(&node) {
            check_session(
                &node.0,
                (seen.session, &seen.report.grpc_address),
                (session, &report.grpc_address),
            )?;
        }
        let known = self.state.map().nodes.get(&node);
        let holds = |l: &TableLayout| l.placement.partitions_of(&node).next().is_some();
        if let Some(known) = known
            && known.group != report.group
            && self.state.map().layouts.iter().any(holds)
        {
            let group = known.group.clone();
            return Err(StepError::GroupChanged { node, group, asked: report.group });
        }
        let entry = NodeEntry {
            group: report.group.clone(),
            grpc_address: report.grpc_address.clone(),
            http_address: report.http_address.clone(),
            up: true,
            draining: known.is_some_and(|known| known.draining),
        };
        let joins = known.is_none_or(|n| !n.up || n.group != entry.group);
        let changed = known != Some(&entry);
        if joins {
            self.state.observed.joined.insert(report.group.clone(), self.now);
            let why = format!("{} of group {}", entry.grpc_address, entry.group);
            self.event(EventKind::NodeUp, "the cluster", (&node.0, None), why);
        }
        if changed {
            self.map().nodes.insert(node.clone(), entry);
        }
        if self.state.durable.capacities.get(&node) != Some(&report.capacity_bytes) {
            self.durable().capacities.insert(node.clone(), report.capacity_bytes);
        }
        self.state.observed.nodes.insert(node, Arc::new(ObservedNode::new(session, report)));
        Ok(())
    }

    fn node_gone(&mut self, node: &NodeId, session: SessionId) {
        if self.state.observed.nodes.get(node).is_some_and(|n| n.session == session) {
            self.state.observed.nodes.remove(node);
            self.mark_down(node);
        }
    }

    fn mark_down(&mut self, node: &NodeId) {
        if self.state.map().nodes.get(node).is_some_and(|n| n.up)
            && let Some(entry) = self.map().nodes.get_mut(node)
        {
            entry.up = false;
            self.event(EventKind::NodeDown, "the cluster", (&node.0, None), String::new());
        }
    }

    fn ranker_reported(&mut self, session: SessionId, report: RankerReport) -> Result<(), StepError> {
        if let Some(seen) = self.state.observed.rankers.get(&report.ranker) {
            let holder = (seen.session, seen.report.grpc_address.as_str());
            check_session(&report.ranker, holder, (session, &report.grpc_address))?;
        }
        let models = report.releases.iter().map(|release| release.model.clone()).collect();
        let observed = Arc::new(ObservedRanker { session, report });
        let ClusterState { durable, observed: seen, .. } = &mut self.state;
        let current = |model: &Name| durable.map.current_release(model).map(|entry| &entry.release);
        Arc::make_mut(&mut seen.evidence).take(&observed, current);
        seen.rankers.insert(observed.report.ranker.clone(), observed);
        self.judge(&models);
        Ok(())
    }

    /// Drops what was counted for ramps that there are no more.
    fn forget_evidence(&mut self) {
        let ClusterState { durable, observed, .. } = &mut self.state;
        let running = |model: &Name, release: &Name| {
            durable.ramp(model, release).is_some_and(|ramp| ramp.halted.is_none())
        };
        let shadowing = |model: &Name, release: &Name| {
            let traffic = durable.map.traffic.get(model);
            traffic.is_some_and(|traffic| traffic.shadows.iter().any(|shadow| shadow.release == *release))
        };
        Arc::make_mut(&mut observed.evidence).retain(running, shadowing, &observed.rankers);
    }

    fn serve(&mut self, table: TableArtifact) -> Result<(), StepError> {
        self.check_table(&table)?;
        let table_version = table.schema.table_version.clone();
        self.add_table(table);
        if !self.state.durable.served.contains(&table_version) {
            self.durable().served.insert(table_version);
        }
        Ok(())
    }

    fn rebuild(&mut self, remains: &Remains) {
        let durable = rebuild(&self.state, remains).durable;
        self.map();
        *self.durable() = durable;
    }

    fn quotas(&mut self, change: impl FnOnce(&mut Quotas) -> Result<(), StepError>) -> Result<(), StepError> {
        let mut quotas = self.state.durable.quotas.clone();
        change(&mut quotas)?;
        if quotas != self.state.durable.quotas {
            self.durable().quotas = quotas;
            self.quotas_changed = true;
        }
        Ok(())
    }

    pub(crate) fn check_table(&self, table: &TableArtifact) -> Result<(), StepError> {
        let name = &table.schema.table_version;
        let refused = |source| StepError::Schema { table: name.clone(), source: Box::new(source) };
        table.schema.validate().map_err(refused)?;
        let other_schema = self.state.map().layout(name).is_some_and(|l| l.schema != table.schema);
        let other_hash = self.state.durable.table_hash(name).is_some_and(|h| h != table.manifest_hash);
        if other_schema || other_hash {
            return Err(StepError::AnotherContent { what: format!("table {name}") });
        }
        Ok(())
    }

    pub(crate) fn add_table(&mut self, table: TableArtifact) {
        let name = &table.schema.table_version;
        if self.state.map().layout(name).is_some() {
            return;
        }
        let identity = TableIdentity { table_version: name.clone(), manifest_hash: table.manifest_hash };
        let layouts = &mut self.map().layouts;
        let at = layouts.partition_point(|l| l.schema.table_version < *name);
        layouts.insert(at, TableLayout { schema: table.schema, placement: Placement::default() });
        self.durable().tables.push(identity);
    }

    /// After the grace of a restart: who has not reported is down.
    fn end_recovery(&mut self) {
        if self.state.observed.recovering_until.is_none_or(|until| self.now < until) {
            return;
        }
        self.state.observed.recovering_until = None;
        let silent = |id: &NodeId| !self.state.observed.nodes.contains_key(id);
        let down: Vec<_> = self.state.map().nodes.keys().filter(|id| silent(id)).cloned().collect();
        down.iter().for_each(|node| self.mark_down(node));
    }

    /// Places every table in every settled group that has a node up and no place for it.
    fn place_unplaced(&mut self) {
        let mut settled = BTreeMap::<Name, Vec<Member>>::new();
        for (node, entry) in self.state.map().nodes.iter().filter(|(_, n)| n.up && !n.draining) {
            if self.now >= self.state.settled_at(&entry.group) {
                let capacity_bytes = self.state.durable.capacities.get(node).copied().unwrap_or(0);
                let member = Member { node: node.clone(), capacity_bytes };
                settled.entry(entry.group.clone()).or_default().push(member);
            }
        }
        let mut plans = Vec::new();
        for (at, layout) in self.state.map().layouts.iter().enumerate() {
            let mut groups = settled.clone();
            groups.retain(|group, _| !layout.placement.groups.contains_key(group));
            if !groups.is_empty() {
                let schema = &layout.schema;
                let table = &schema.table_version.table;
                plans.push((at, place(table, schema.partitions, &groups, &layout.placement)));
            }
        }
        for (at, placement) in plans {
            self.map().layouts[at].placement = placement;
        }
    }
}

/// Whether a session may report under a name: not when a newer one has, and not while another process
/// has a session. The same process may open a new one before the old one is seen to have ended.
fn check_session(
    name: &Name,
    (held_by, holder): (SessionId, &str),
    (session, asked): (SessionId, &str),
) -> Result<(), StepError> {
    if session < held_by {
        return Err(StepError::Superseded { name: name.clone() });
    }
    if session > held_by && holder != asked {
        let (holder, asked) = (holder.to_owned(), asked.to_owned());
        return Err(StepError::NameTaken { name: name.clone(), holder, asked });
    }
    Ok(())
}
