//! How releases and tables leave: first nobody is sent to them any more, and only when what began with them has
//! ended are they taken away.
//!
//! A release that is let go stays in the map, without traffic. It is removed when every connected ranker works by a
//! map that lets it go **and** a grace has passed since: the last request that one of them began with it unasked is
//! over by then. Requests that name it are answered until a ranker has the map without it. So its tables stay on the
//! nodes for the same time once more: until every connected ranker works by a map in which nobody has them, and a grace
//! has passed since. A table that is no longer served on its own account leaves likewise.
//! How far they are is not written down: after a restart the grace begins anew.
//!
//! **Invariant:** rankers let go first. With a grace above zero, and the controller's configuration takes no other, no
//! table leaves in the step in which a release that pins it does.

use std::{collections::BTreeSet, time::Duration};

use tidepool_types::{Epoch, Name, TableVersion};

use crate::{
    error::StepError,
    events::EventKind,
    map::{ReleaseEntry, ReleaseState},
    state::{ClusterState, Durable, RankerReport},
    step::Draft,
};

/// What is on its way out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaver {
    /// A release of a model.
    Release(Name, Name),
    /// A table version that neither a release, be it one that is let go, nor an operator asks for.
    Table(TableVersion),
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    /// The map that lets it go, or a later one.
    epoch: Epoch,
    /// Since when every connected ranker works by such a map; `None` while one does not.
    since: Option<Duration>,
}

impl Leaving {
    /// When its grace is over, if it has begun.
    pub(crate) fn ends(&self, grace: Duration) -> Option<Duration> {
        self.since.map(|since| since.saturating_add(grace))
    }
}

impl ClusterState {
    /// Why a release that is let go is still there, in words.
    pub(crate) fn still_needing(&self, entry: &ReleaseEntry) -> Vec<String> {
        let mut words = vec!["it is being let go, and leaves when what began with it has ended".to_owned()];
        let leaver = Leaver::Release(entry.model.clone(), entry.release.clone());
        if let Some(leaving) = self.observed.leaving.get(&leaver) {
            let late = self.ranker_reports().filter(|report| report.epoch < leaving.epoch);
            words.extend(late.map(|report| {
                format!(
                    "ranker {} works by map epoch {}, and {} lets it go",
                    report.ranker, report.epoch, leaving.epoch
                )
            }));
            let back = self.ranker_reports().filter(|report| is_gone_back_to(report, &leaver));
            words.extend(back.map(|report| {
                format!("ranker {} was rolled back to it by itself, and answers by it", report.ranker)
            }));
        }
        words
    }

    /// Whether a release pins a table version, or an operator wants it served.
    fn wants(&self, table: &TableVersion) -> bool {
        let Durable { map, served, .. } = self.durable.as_ref();
        served.contains(table) || map.releases.iter().any(|r| r.tables.contains(table))
    }

    /// What should leave by the state as it is.
    fn leavers(&self) -> BTreeSet<Leaver> {
        let map = self.map();
        let retiring = map.releases.iter().filter(|r| r.state == ReleaseState::Retiring);
        let releases = retiring.map(|r| Leaver::Release(r.model.clone(), r.release.clone()));
        let tables = map.layouts.iter().map(|layout| &layout.schema.table_version);
        let tables = tables.filter(|table| !self.wants(table)).cloned().map(Leaver::Table);
        releases.chain(tables).collect()
    }
}

/// Whether a ranker has gone back to a release by itself: it may tell so only after the release was let go.
fn is_gone_back_to(report: &RankerReport, leaver: &Leaver) -> bool {
    let is_it = |(of, to): &(Name, Name)| matches!(leaver, Leaver::Release(model, release) if of == model && to == release);
    report.rolled_back_to.iter().any(is_it)
}

impl Draft {
    /// Lets a release go that nobody is sent to.
    pub(crate) fn retire(&mut self, model: &Name, release: &Name, by: &str) -> Result<(), StepError> {
        let instead = "promote another, or roll back, before it is let go";
        self.check_not_current(model, release, instead)?;
        if self.entry(model, release)?.state == ReleaseState::Retiring {
            return Ok(());
        }
        let traffic = self.traffic(model);
        let share = traffic.share(release);
        let sample = traffic.shadows.iter().find(|s| s.release == *release).map_or(0, |s| s.sample);
        if share > 0 || sample > 0 {
            let (model, release) = (model.clone(), release.clone());
            return Err(StepError::HasTraffic { model, release, share, sample });
        }
        if self.entry(model, release)?.pinned {
            return Err(StepError::ReleasePinned { model: model.clone(), release: release.clone() });
        }
        let leaver = Leaver::Release(model.clone(), release.clone());
        let answers = |report: &&RankerReport| is_gone_back_to(report, &leaver);
        let rankers: Vec<_> =
            self.state.ranker_reports().filter(answers).map(|report| report.ranker.to_string()).collect();
        if !rankers.is_empty() {
            let (model, release) = (model.clone(), release.clone());
            return Err(StepError::RolledBackTo { model, release, rankers });
        }
        for entry in &mut self.map().releases {
            if (&entry.model, &entry.release) == (model, release) {
                entry.state = ReleaseState::Retiring;
            }
        }
        self.durable().ramps.retain(|ramp| (&ramp.model, &ramp.release) != (model, release));
        self.event(EventKind::Retired, by, (model, Some(release)), String::new());
        Ok(())
    }

    /// Keeps a release loaded whatever is promoted, or no longer.
    pub(crate) fn pin(
        &mut self,
        model: &Name,
        release: &Name,
        pinned: bool,
        by: &str,
    ) -> Result<(), StepError> {
        let entry = self.entry(model, release)?;
        if entry.state == ReleaseState::Retiring {
            return Err(StepError::Retiring { model: model.clone(), release: release.clone() });
        }
        if entry.pinned == pinned {
            return Ok(());
        }
        for entry in &mut self.map().releases {
            if (&entry.model, &entry.release) == (model, release) {
                entry.pinned = pinned;
            }
        }
        let kind = if pinned { EventKind::Pinned } else { EventKind::Unpinned };
        self.event(kind, by, (model, Some(release)), String::new());
        Ok(())
    }

    /// No longer serves a table version on its own account.
    pub(crate) fn stop(&mut self, table: &TableVersion) -> Result<(), StepError> {
        if self.state.durable.served.contains(table) {
            self.durable().served.remove(table);
            return Ok(());
        }
        if self.state.observed.leaving.contains_key(&Leaver::Table(table.clone())) {
            return Ok(());
        }
        let pins = self.state.map().releases.iter().filter(|r| r.tables.contains(table));
        let releases: Vec<_> = pins.map(|r| format!("release {}@{}", r.model, r.release)).collect();
        if releases.is_empty() {
            return Err(StepError::NotFound { what: format!("table {table}") });
        }
        Err(StepError::Pinned { table: table.clone(), releases })
    }

    /// Sees how far everything is that is on its way out, and takes away whose time is over. The tables of a release
    /// that is taken away are on their way out from then on.
    pub(crate) fn advance_leaving(&mut self) {
        while self.leave() {}
    }

    /// Whether anything has left, by which something else may be on its way out. Releases and tables are a finite
    /// number, and what has left does not come back in the same step.
    fn leave(&mut self) -> bool {
        let leavers = self.state.leavers();
        if leavers.is_empty() && self.state.observed.leaving.is_empty() {
            return false;
        }
        // The map of this step has no number yet.
        let epoch = Epoch(self.state.map().epoch.0 + u64::from(self.map_changed));
        let (now, grace) = (self.now, self.state.settings.retire_grace);
        // Just after a start rankers may be there that have not reported yet.
        let recovering = self.state.observed.recovering_until.is_some();
        let mut leaving = std::mem::take(&mut self.state.observed.leaving);
        leaving.retain(|leaver, _| leavers.contains(leaver));
        for leaver in leavers {
            leaving.entry(leaver).or_insert(Leaving { epoch, since: None });
        }
        for (leaver, of_it) in &mut leaving {
            let seen = !recovering
                && self
                    .state
                    .ranker_reports()
                    .all(|report| report.epoch >= of_it.epoch && !is_gone_back_to(report, leaver));
            of_it.since = seen.then(|| of_it.since.unwrap_or(now));
        }
        let over = |of_it: &Leaving| of_it.ends(grace).is_some_and(|end| now >= end);
        let gone: Vec<_> = leaving.extract_if(.., |_, of_it| over(of_it)).map(|(leaver, _)| leaver).collect();
        self.state.observed.leaving = leaving;
        if gone.is_empty() {
            return false;
        }
        self.take_away(&gone);
        true
    }

    /// Removes what has left.
    fn take_away(&mut self, gone: &[Leaver]) {
        let stays = |leaver: &Leaver| !gone.contains(leaver);
        let release_stays = |r: &ReleaseEntry| stays(&Leaver::Release(r.model.clone(), r.release.clone()));
        let table_stays = |table: &TableVersion| stays(&Leaver::Table(table.clone()));
        self.map().releases.retain(release_stays);
        let Durable { map, tables, manifests, .. } = self.durable();
        map.layouts.retain(|l| table_stays(&l.schema.table_version));
        tables.retain(|t| table_stays(&t.table_version));
        manifests.retain(|m| map.release(&m.model, &m.release).is_some());
    }
}
