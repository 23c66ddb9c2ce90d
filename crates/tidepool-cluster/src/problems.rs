//! What is not as it should be with the cluster now, in words, and what to do about it: for operators, who ask that
//! before anything else.

use std::{collections::BTreeMap, fmt};

use tidepool_types::{Name, TableVersion};

use crate::{
    map::{PartitionState, PartitionStatus, ReleaseEntry, ReleaseState, TableLayout},
    readiness::{by_node, problems_of},
    state::ClusterState,
};

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub gravity: Gravity,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub todo: String,
}

/// How bad a problem is; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// Requests fail, or are answered without some of their rows.
    Failing,
    /// Requests are answered; the next failure may be one too many.
    Exposed,
    /// Somebody has to decide something.
    Undecided,
    /// It is being worked on, and nobody has to do anything yet.
    Waiting,
}

impl Gravity {
    /// Every gravity, the worst first.
    pub const ALL: [Self; 4] = [Self::Failing, Self::Exposed, Self::Undecided, Self::Waiting];

    /// The word for the wire and for JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Exposed => "exposed",
            Self::Undecided => "undecided",
            Self::Waiting => "waiting",
        }
    }
}

impl fmt::Display for Gravity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether requests are sent to a release, or may be at once.
fn is_to_answer(entry: &ReleaseEntry) -> bool {
    !matches!(entry.state, ReleaseState::Loading | ReleaseState::Retiring)
}

impl ClusterState {
    /// What is not as it should be, the worst first; empty when all is as it was asked for.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut found = Found(Vec::new());
        if self.observed.recovering_until.is_some() {
            found.add(
                Gravity::Waiting,
                "the controller has just started and waits for nodes and rankers to report",
                "wait: until then it takes them to be as they were before",
            );
        }
        self.uncovered_tables(&mut found);
        self.nodes_down(&mut found);
        self.nodes_draining(&mut found);
        self.failed_partitions(&mut found);
        self.unplaced_tables(&mut found);
        self.rankers_without(&mut found);
        self.releases_undecided(&mut found);
        self.releases_loading(&mut found);
        found.0.sort_by_key(|problem| problem.gravity);
        found.0
    }

    /// Tables of which no node serves some partition. One that was never whole is loading, and nobody asks for it yet.
    fn uncovered_tables(&self, found: &mut Found) {
        // Until all had time to report, nothing is known of those that have not.
        if self.observed.recovering_until.is_some() {
            return;
        }
        let answers = |table: &TableVersion| {
            let of_releases = self.map().releases.iter().filter(|r| is_to_answer(r));
            of_releases.flat_map(|r| &r.tables).any(|pinned| pinned == table)
        };
        for layout in &self.map().layouts {
            let table = &layout.schema.table_version;
            let served = self.durable.served.contains(table) && !self.is_loading(layout);
            if !(answers(table) || served) {
                continue;
            }
            if let Some(what) = self.uncovered(layout) {
                found.add(
                    Gravity::Failing,
                    what,
                    "bring back a node that has them; what is missing on nodes that are up is told below",
                );
            }
        }
    }

    /// Whether all nodes of a table are up, and some still load its partitions.
    fn is_loading(&self, layout: &TableLayout) -> bool {
        let table = &layout.schema.table_version;
        let of_table = |status: &&PartitionStatus| &status.table_version == table;
        let mut loads = false;
        for (node, partitions) in by_node(layout) {
            let Some(seen) = self.observed.nodes.get(node) else { return false };
            let reported = seen.report.partitions.iter().filter(of_table);
            if reported.into_iter().any(|status| matches!(status.state, PartitionState::Failed(_))) {
                return false;
            }
            let ready = seen.ready(&layout.schema);
            loads |= partitions.iter().any(|p| !ready.is_some_and(|ready| ready.contains(p)));
        }
        loads
    }

    fn nodes_down(&self, found: &mut Found) {
        for (node, entry) in self.map().nodes.iter().filter(|(_, entry)| !entry.up) {
            let placed: usize = self.map().assignment(node).tables.iter().map(|t| t.partitions.len()).sum();
            let group = &entry.group;
            let (gravity, holds) = match placed {
                0 => (Gravity::Undecided, "it has no partitions".to_owned()),
                1 => (Gravity::Exposed, "1 partition has a copy less".to_owned()),
                n => (Gravity::Exposed, format!("{n} partitions have a copy less")),
            };
            found.add(
                gravity,
                format!("node {node} of group {group} is down: {holds}"),
                "start it again with the data_dir that it had; its log says why it ended",
            );
        }
    }

    fn failed_partitions(&self, found: &mut Found) {
        for report in self.node_reports() {
            let failed = report.partitions.iter().filter(|s| matches!(s.state, PartitionState::Failed(_)));
            let mut by_table = BTreeMap::<&TableVersion, usize>::new();
            failed.for_each(|status| *by_table.entry(&status.table_version).or_default() += 1);
            for (table, failed) in by_table {
                let why = problems_of(&report.partitions, table);
                found.add(
                    Gravity::Exposed,
                    format!("node {} does not serve {failed} partitions of {table}{why}", report.node),
                    format!(
                        "mend what it says; it tries again by itself. `tidepool table verify {table} --store STORE` says \
                         whether the store's files are whole"
                    ),
                );
            }
        }
    }

    fn unplaced_tables(&self, found: &mut Found) {
        for layout in &self.map().layouts {
            let table = &layout.schema.table_version;
            if layout.placement.groups.is_empty() {
                found.add(
                    Gravity::Waiting,
                    format!("{table} is placed on no node"),
                    "wait, if nodes have just started; otherwise start some",
                );
            }
        }
    }

    /// Nodes that an operator has traffic kept from: somebody has to have it come back.
    fn nodes_draining(&self, found: &mut Found) {
        for (node, entry) in self.map().nodes.iter().filter(|(_, entry)| entry.draining) {
            found.add(
                Gravity::Undecided,
                format!("traffic is kept from node {node} of group {}", entry.group),
                format!("`tidepool cluster drain {node} --undo` when it may come back"),
            );
        }
    }

    /// Releases that answer requests, and that a ranker cannot load or has taken back by itself.
    fn rankers_without(&self, found: &mut Found) {
        for entry in self.map().releases.iter().filter(|entry| is_to_answer(entry)) {
            let gravity = match entry.state {
                ReleaseState::Current => Gravity::Failing,
                _ => Gravity::Exposed,
            };
            for failure in self.ranker_failures(entry) {
                found.add(gravity, failure, "mend what it says; the ranker tries again by itself");
            }
        }
        for report in self.ranker_reports() {
            for model in &report.rolled_back {
                found.add(
                    Gravity::Undecided,
                    format!("ranker {} was rolled back by itself for model {model}", report.ranker),
                    format!(
                        "roll back the cluster too (`tidepool release rollback {model}`), or promote what should answer: the \
                         next change of the model ends it"
                    ),
                );
            }
        }
    }

    fn releases_undecided(&self, found: &mut Found) {
        for ramp in &self.durable.ramps {
            let (model, release) = (&ramp.model, &ramp.release);
            if let Some(why) = &ramp.halted {
                found.add(
                    Gravity::Undecided,
                    format!("release {model}@{release} was halted by its guards: {why}"),
                    format!(
                        "retire it (`tidepool release retire {model} {release}`), or ramp it again if the guards were wrong"
                    ),
                );
            }
        }
        let mut models: Vec<&Name> = self.map().releases.iter().map(|entry| &entry.model).collect();
        models.sort_unstable();
        models.dedup();
        for model in models.into_iter().filter(|model| self.map().current_release(model).is_none()) {
            found.add(
                Gravity::Undecided,
                format!("no release of model {model} is current: requests that name none are refused"),
                format!("promote one: `tidepool release promote {model} RELEASE`"),
            );
        }
    }

    /// What is on its way: releases, and tables that are served on their own account.
    fn releases_loading(&self, found: &mut Found) {
        for entry in self.map().releases.iter().filter(|entry| entry.state == ReleaseState::Loading) {
            let waiting = self.waiting_for(entry);
            let (model, release) = (&entry.model, &entry.release);
            let words = waiting.first().map_or_else(String::new, |first| match waiting.len() {
                1 => format!(": {first}"),
                more => format!(": {first}; and {} more", more - 1),
            });
            found.add(
                Gravity::Waiting,
                format!("release {model}@{release} is not loaded everywhere yet{words}"),
                "wait; what cannot come to an end by itself is told above",
            );
        }
        for layout in self.map().layouts.iter().filter(|layout| self.is_loading(layout)) {
            let table = &layout.schema.table_version;
            found.add(Gravity::Waiting, format!("nodes still load partitions of {table}"), "wait");
        }
    }
}

/// What has been found so far.
struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, gravity: Gravity, what: impl Into<String>, todo: impl Into<String>) {
        self.0.push(Problem { gravity, what: what.into(), todo: todo.into() });
    }
}
