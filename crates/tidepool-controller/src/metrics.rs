//! The metrics of a controller. They are registered in a registry of its own: several may share a process.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, PullingGauge, Registry,
    core::Collector, exponential_buckets,
};
use tidepool_cluster::{ClusterState, ReleaseState};

use crate::lead::Lead;

/// Counters and gauges; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Epoch of the published map.
    epoch: IntGauge,
    /// Registered nodes, `up` and `down`.
    nodes: IntGaugeVec,
    /// Nodes that traffic is to leave.
    draining_nodes: IntGauge,
    /// Open sessions of nodes and rankers.
    sessions: IntGaugeVec,
    /// Releases of the map by state.
    releases: IntGaugeVec,
    /// Releases that were given a share of the traffic, `running` and `halted` by their guards.
    ramps: IntGaugeVec,
    /// Table versions of the map.
    tables: IntGauge,
    /// 1 while this controller leads.
    is_leader: IntGauge,
    /// Number of the term in which it leads.
    term: IntGauge,
    /// Times that it came to lead.
    terms: IntCounter,
    /// Times that it could not be decided who leads.
    pub(crate) election_failures: IntCounter,
    /// Events that wait for the state machine.
    pub(crate) queued_events: IntGauge,
    /// Events that the state machine was given.
    pub(crate) events: IntCounter,
    /// From a new state to its being written down, successful or not.
    pub(crate) persist_seconds: Histogram,
    /// States that could not be written down.
    pub(crate) persist_failures: IntCounter,
    /// Changes that could not be written into the audit log.
    pub(crate) audit_failures: IntCounter,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When `registry` has a metric of such a name already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let name = |rest: &str| format!("tidepool_controller_{rest}");
        let seconds =
            HistogramOpts::new(name("persist_seconds"), "Time to write the state of the cluster down");
        let by = |rest: &str, help: &str, label| IntGaugeVec::new(Opts::new(name(rest), help), &[label]);
        let metrics = Self {
            epoch: IntGauge::new(name("epoch"), "Epoch of the published cluster map")?,
            nodes: by("nodes", "Registered nodes, by state", "state")?,
            draining_nodes: IntGauge::new(name("draining_nodes"), "Nodes that traffic is to leave")?,
            sessions: by("sessions", "Open sessions, by role", "role")?,
            releases: by("releases", "Releases in the cluster map, by state", "state")?,
            ramps: by("ramps", "Releases that were given a share of the traffic, by state", "state")?,
            tables: IntGauge::new(name("tables"), "Table versions in the cluster map")?,
            is_leader: IntGauge::new(name("is_leader"), "1 while this controller leads, otherwise 0")?,
            term: IntGauge::new(
                name("term"),
                "Number of the term in which this controller leads, otherwise 0",
            )?,
            terms: IntCounter::new(name("terms_total"), "Times that this controller came to lead")?,
            election_failures: IntCounter::new(
                name("election_failures_total"),
                "Times that it could not be decided who leads",
            )?,
            queued_events: IntGauge::new(name("queued_events"), "Events that wait for the state machine")?,
            events: IntCounter::new(name("events_total"), "Events given to the state machine")?,
            persist_seconds: Histogram::with_opts(seconds.buckets(exponential_buckets(100e-6, 2.0, 16)?))?,
            persist_failures: IntCounter::new(
                name("persist_failures_total"),
                "States that could not be written down",
            )?,
            audit_failures: IntCounter::new(
                name("audit_failures_total"),
                "Changes that could not be written into the audit log",
            )?,
        };
        let all: [Box<dyn Collector>; 16] = [
            Box::new(metrics.is_leader.clone()),
            Box::new(metrics.term.clone()),
            Box::new(metrics.terms.clone()),
            Box::new(metrics.election_failures.clone()),
            Box::new(metrics.epoch.clone()),
            Box::new(metrics.nodes.clone()),
            Box::new(metrics.draining_nodes.clone()),
            Box::new(metrics.sessions.clone()),
            Box::new(metrics.releases.clone()),
            Box::new(metrics.ramps.clone()),
            Box::new(metrics.tables.clone()),
            Box::new(metrics.queued_events.clone()),
            Box::new(metrics.events.clone()),
            Box::new(metrics.persist_seconds.clone()),
            Box::new(metrics.persist_failures.clone()),
            Box::new(metrics.audit_failures.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))?;
        Ok(metrics)
    }

    /// Shows that this controller leads.
    pub(crate) fn begin_term(&self, number: u64) {
        self.terms.inc();
        self.is_leader.set(1);
        self.term.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// Shows that it leads no more, and knows nothing of the cluster.
    pub(crate) fn end_term(&self) {
        self.is_leader.set(0);
        self.term.set(0);
        self.queued_events.set(0);
        for gauge in [&self.epoch, &self.tables, &self.draining_nodes] {
            gauge.set(0);
        }
        for by_label in [&self.nodes, &self.sessions, &self.releases, &self.ramps] {
            by_label.reset();
        }
    }

    /// Shows a state.
    pub(crate) fn show(&self, state: &ClusterState) {
        let map = state.map();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.epoch.set(i64::try_from(map.epoch.0).unwrap_or(i64::MAX));
        let up = map.nodes.values().filter(|n| n.up).count();
        self.nodes.with_label_values(&["up"]).set(count(up));
        self.nodes.with_label_values(&["down"]).set(count(map.nodes.len() - up));
        let draining = map.nodes.values().filter(|n| n.draining).count();
        self.draining_nodes.set(count(draining));
        self.sessions.with_label_values(&["node"]).set(count(state.node_reports().count()));
        self.sessions.with_label_values(&["ranker"]).set(count(state.ranker_reports().count()));
        self.tables.set(count(map.layouts.len()));
        let halted = state.durable.ramps.iter().filter(|ramp| ramp.halted.is_some()).count();
        self.ramps.with_label_values(&["halted"]).set(count(halted));
        self.ramps.with_label_values(&["running"]).set(count(state.durable.ramps.len() - halted));
        for release_state in [
            ReleaseState::Loading,
            ReleaseState::Ready,
            ReleaseState::Current,
            ReleaseState::Previous,
            ReleaseState::Retiring,
        ] {
            let releases = map.releases.iter().filter(|r| r.state == release_state).count();
            self.releases.with_label_values(&[state_word(release_state)]).set(count(releases));
        }
    }
}

/// Shows how many replicas of partitions the map places, and how many are ready. They are counted when they
/// are asked for, not with each report: the count looks at every partition of the map.
///
/// # Errors
/// When `registry` has a metric of such a name already.
pub(crate) fn register_replicas(registry: &Registry, lead: &Lead) -> prometheus::Result<()> {
    let gauge = |name: &str, help: &str, count: fn((u64, u64)) -> u64| {
        let lead = lead.clone();
        let value = move || lead.state().map_or(0.0, |state| count(state.replicas_placed_and_ready()) as f64);
        registry.register(Box::new(PullingGauge::new(name, help, Box::new(value))?))
    };
    gauge(
        "tidepool_controller_placed_partitions",
        "Partitions that the cluster map places, each once per replica group",
        |(placed, _)| placed,
    )?;
    gauge(
        "tidepool_controller_ready_partitions",
        "Those of them that are ready on their node",
        |(_, ready)| ready,
    )
}

/// The word for a state in labels and in `/status`.
pub(crate) const fn state_word(state: ReleaseState) -> &'static str {
    match state {
        ReleaseState::Loading => "loading",
        ReleaseState::Ready => "ready",
        ReleaseState::Current => "current",
        ReleaseState::Previous => "previous",
        ReleaseState::Retiring => "retiring",
    }
}
