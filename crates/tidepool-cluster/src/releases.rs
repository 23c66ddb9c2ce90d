//! What operators and guards do with releases: take them in, give them traffic, make them current, take them back.
//! How they are let go stands in `retire.rs`.
//!
//! A release that was given a share is watched by its guards from then on; a breach takes its buckets away at once,
//! and only a person gives it some again. Going back is never further than to what answered well before: arms first,
//! and without any the release before the current one, which then has everything.

use std::{collections::BTreeSet, sync::Arc};

use tidepool_types::{Name, ReleaseManifest};

use crate::{
    error::StepError,
    events::{ClusterEvent, EventKind},
    guards::Guards,
    map::{ReleaseEntry, ReleaseState},
    state::{Ramp, TableArtifact},
    step::Draft,
    traffic::{BUCKETS, Shadow, Traffic},
};

/// Who causes what the state machine does by itself.
pub const GUARDS: &str = "guards";

impl Draft {
    pub(crate) fn publish(
        &mut self,
        manifest: ReleaseManifest,
        tables: Vec<TableArtifact>,
        by: &str,
    ) -> Result<(), StepError> {
        let (model, release) = (manifest.model.clone(), manifest.release.clone());
        if self.state.map().release(&model, &release).is_some_and(|r| r.state == ReleaseState::Retiring) {
            return Err(StepError::Retiring { model, release });
        }
        if let Some(known) = self.state.durable.manifest(&model, &release) {
            let what = format!("release {model}@{release}");
            return if *known == manifest { Ok(()) } else { Err(StepError::AnotherContent { what }) };
        }
        manifest.validate().map_err(|source| StepError::Manifest {
            model: model.clone(),
            release: release.clone(),
            source: Box::new(source),
        })?;
        for (table, hash) in manifest.tables.iter().zip(&manifest.table_manifest_hashes) {
            let is_it = |t: &TableArtifact| t.schema.table_version == *table && t.manifest_hash == *hash;
            if !tables.iter().any(is_it) {
                return Err(StepError::OtherTable { model, release, table: table.clone() });
            }
        }
        let pinned = |t: &TableArtifact| manifest.tables.contains(&t.schema.table_version);
        let tables: Vec<_> = tables.into_iter().filter(pinned).collect();
        tables.iter().try_for_each(|table| self.check_table(table))?;
        tables.into_iter().for_each(|table| self.add_table(table));
        self.event(EventKind::Published, by, (&model, Some(&release)), String::new());
        let (tables, state) = (manifest.tables.clone(), ReleaseState::Loading);
        let entry = ReleaseEntry { model, release, tables, state, pinned: false };
        self.map().releases.push(entry);
        self.durable().manifests.push(manifest);
        Ok(())
    }

    pub(crate) fn promote(&mut self, model: &Name, release: &Name, by: &str) -> Result<(), StepError> {
        if self.entry(model, release)?.state == ReleaseState::Current {
            return Ok(());
        }
        self.check_ready(model, release)?;
        if let Some(why) = self.state.durable.ramp(model, release).and_then(|ramp| ramp.halted.clone()) {
            let (model, release) = (model.clone(), release.clone());
            return Err(StepError::Halted { model, release, why });
        }
        let mut let_go = Vec::new();
        for entry in self.map().releases.iter_mut().filter(|r| r.model == *model) {
            if entry.release == *release {
                entry.state = ReleaseState::Current;
            } else if entry.state == ReleaseState::Current {
                entry.state = ReleaseState::Previous;
            } else if entry.state == ReleaseState::Previous && entry.pinned {
                entry.state = ReleaseState::Ready;
            } else if entry.state == ReleaseState::Previous {
                entry.state = ReleaseState::Retiring;
                let_go.push(entry.release.clone());
            }
        }
        self.end_arms(model);
        self.event(EventKind::Promoted, by, (model, Some(release)), String::new());
        for older in let_go {
            self.durable().ramps.retain(|ramp| (&ramp.model, &ramp.release) != (model, &older));
            let why = format!("{release} was promoted, and one release is kept for the way back");
            self.event(EventKind::Retired, by, (model, Some(&older)), why);
        }
        Ok(())
    }

    /// Gives releases of a model so many buckets each; what others have stays theirs.
    pub(crate) fn set_shares(
        &mut self,
        model: &Name,
        shares: &[(Name, u32)],
        guards: Guards,
        by: &str,
    ) -> Result<(), StepError> {
        self.check_shares(model, shares)?;
        guards.validate()?;
        let mut traffic = self.traffic(model);
        let others: u32 = traffic
            .arms
            .iter()
            .filter(|arm| !shares.iter().any(|(release, _)| *release == arm.release))
            .map(|arm| arm.share())
            .sum();
        let asked: u64 = shares.iter().map(|(_, share)| u64::from(*share)).sum();
        if asked + u64::from(others) > u64::from(BUCKETS) {
            return Err(StepError::Shares { model: model.clone(), asked, others });
        }
        for (release, share) in shares {
            if *share > traffic.share(release) {
                self.check_ready(model, release)?;
            }
        }
        // Who gives back goes first, or there might be nothing to take.
        let mut in_order: Vec<_> = shares.iter().collect();
        in_order.sort_by_key(|(release, share)| *share > traffic.share(release));
        let before = traffic.clone();
        in_order.into_iter().for_each(|(release, share)| traffic.set_share(release, *share));
        if traffic.arms.len() > Traffic::MAX_ARMS {
            return Err(StepError::TooManyArms { model: model.clone() });
        }
        let known = |release: &Name| self.state.durable.ramp(model, release);
        let same = |(release, share): &(Name, u32)| {
            let (is, known) = (before.share(release), known(release));
            is == *share
                && match known {
                    Some(Ramp { halted: Some(_), known, .. }) => *share == 0 && *known,
                    Some(ramp) => *share > 0 && ramp.guards == guards,
                    None => *share == 0,
                }
        };
        let changed: Vec<_> = shares.iter().filter(|share| !same(share)).cloned().collect();
        for (release, share) in changed {
            let why =
                format!("{} of the traffic, {} before", percent(share), percent(before.share(&release)));
            self.event(EventKind::Ramped, by, (model, Some(&release)), why);
            let unix_seconds = self.unix_seconds();
            // That it was halted is kept until somebody gives it a share again.
            let goes = |ramp: &Ramp| (&ramp.model, &ramp.release) == (model, &release);
            self.durable().ramps.retain(|ramp| !goes(ramp) || (share == 0 && ramp.halted.is_some()));
            self.durable().ramps.iter_mut().filter(|ramp| goes(ramp)).for_each(|ramp| ramp.known = true);
            if share > 0 {
                let (model, by) = (model.clone(), by.to_owned());
                Arc::make_mut(&mut self.state.observed.evidence).begin(&model, &release);
                let ramp = Ramp { model, release, guards, by, unix_seconds, halted: None, known: false };
                self.durable().ramps.push(ramp);
            }
        }
        self.set_traffic(model, traffic);
        Ok(())
    }

    /// Has a release asked in the shadow of others; a sample of 0 ends that.
    pub(crate) fn shadow(
        &mut self,
        model: &Name,
        release: &Name,
        sample: u32,
        by: &str,
    ) -> Result<(), StepError> {
        if sample > BUCKETS {
            let problem = format!("a sample of {sample} in {BUCKETS} is more than everything");
            return Err(StepError::ShareList { model: model.clone(), problem });
        }
        self.check_beside_current(model, release)?;
        let mut traffic = self.traffic(model);
        let before = traffic.shadows.iter().find(|s| s.release == *release).map_or(0, |s| s.sample);
        if before == sample {
            return Ok(());
        }
        traffic.shadows.retain(|shadow| shadow.release != *release);
        if sample > 0 {
            self.check_ready(model, release)?;
            traffic.shadows.push(Shadow { release: release.clone(), sample });
            if before == 0 {
                Arc::make_mut(&mut self.state.observed.evidence).begin_shadow(model, release);
            }
        }
        if traffic.shadows.len() > Traffic::MAX_SHADOWS {
            return Err(StepError::TooManyArms { model: model.clone() });
        }
        let why =
            format!("asked in the shadow of {} of the traffic, {} before", percent(sample), percent(before));
        self.event(EventKind::Shadowed, by, (model, Some(release)), why);
        self.set_traffic(model, traffic);
        Ok(())
    }

    /// One step back: takes the buckets of `release` away, or of every arm. Where there is no arm, or `release` is
    /// the current one, the previous release takes everything over; the one that was taken back is not the next
    /// to be gone back to.
    pub(crate) fn rollback(
        &mut self,
        model: &Name,
        release: Option<&Name>,
        by: &str,
    ) -> Result<(), StepError> {
        let nothing = |problem: String| StepError::NothingBefore { model: model.clone(), problem };
        let current = self.state.map().current_release(model).map(|entry| entry.release.clone());
        let Some(current) = current else {
            return Err(nothing("it has no current release; promote one".into()));
        };
        let mut traffic = self.traffic(model);
        let is_asked = |arm: &Name| release.is_none_or(|release| release == arm);
        let arms: Vec<_> =
            traffic.arms.iter().map(|arm| arm.release.clone()).filter(|a| is_asked(a)).collect();
        if !arms.is_empty() {
            for arm in arms {
                let why = format!("its {} of the traffic go to {current}", percent(traffic.share(&arm)));
                traffic.set_share(&arm, 0);
                self.durable().ramps.retain(|ramp| (&ramp.model, &ramp.release) != (model, &arm));
                self.event(EventKind::RolledBack, by, (model, Some(&arm)), why);
            }
            if release.is_none() {
                // Whoever takes back all there is has seen what was halted before.
                let known = |ramp: &&mut Ramp| ramp.model == *model && ramp.halted.is_some();
                self.durable().ramps.iter_mut().filter(known).for_each(|ramp| ramp.known = true);
            }
            self.set_traffic(model, traffic);
            return Ok(());
        }
        let halted = |ramp: &&Ramp| ramp.model == *model && ramp.halted.is_some() && !ramp.known;
        if release.is_none()
            && let Some(ramp) = self.state.durable.ramps.iter().find(halted)
        {
            // Whoever says this has seen the ramp and not yet its end: the current release is not what they mean.
            return Err(nothing(format!(
                "release {} was halted already and answers nobody who does not name it; to take {current} back as \
                 well, name it",
                ramp.release
            )));
        }
        if let Some(release) = release.filter(|release| **release != current) {
            self.entry(model, release)?;
            return Err(nothing(format!("release {release} answers nobody who does not name it")));
        }
        let is_previous = |r: &&ReleaseEntry| r.model == *model && r.state == ReleaseState::Previous;
        let previous = self.state.map().releases.iter().find(is_previous).cloned();
        let previous = previous.ok_or_else(|| {
            nothing(format!("no release was current before {current}; promote one that is ready"))
        })?;
        // Just after a start nobody has reported yet; it was loaded before, and waiting may be worse than trying.
        let waiting_for = self.state.waiting_for(&previous);
        if self.state.observed.recovering_until.is_none() && !waiting_for.is_empty() {
            let (model, release) = (previous.model, previous.release);
            return Err(StepError::NotReady { model, release, waiting_for });
        }
        for entry in self.map().releases.iter_mut().filter(|r| r.model == *model) {
            if entry.release == current {
                entry.state = ReleaseState::Ready;
            } else if entry.release == previous.release {
                entry.state = ReleaseState::Current;
            }
        }
        self.end_arms(model);
        let why = format!("{} answers everything again", previous.release);
        self.event(EventKind::RolledBack, by, (model, Some(&current)), why);
        Ok(())
    }

    /// Judges every running ramp of the models that a ranker has just reported on.
    pub(crate) fn judge(&mut self, models: &BTreeSet<Name>) {
        let running = self.state.durable.ramps.iter().filter(|ramp| ramp.halted.is_none());
        let running: Vec<_> = running.filter(|ramp| models.contains(&ramp.model)).cloned().collect();
        for Ramp { model, release, guards, .. } in running {
            let pair = self.state.observed.evidence.of(&model, &release);
            let Some(breach) = guards.judge(&pair.candidate, &pair.current) else {
                Arc::make_mut(&mut self.state.observed.evidence).close(&model, &release, &guards);
                continue;
            };
            let mut traffic = self.traffic(&model);
            let why = format!("at {} of the traffic: {breach}", percent(traffic.share(&release)));
            traffic.set_share(&release, 0);
            self.set_traffic(&model, traffic);
            for ramp in &mut self.durable().ramps {
                if (&ramp.model, &ramp.release) == (&model, &release) {
                    ramp.halted = Some(why.clone());
                }
            }
            self.event(EventKind::Halted, GUARDS, (&model, Some(&release)), why);
        }
    }

    /// Loading releases that wait for nothing become ready.
    pub(crate) fn advance_releases(&mut self) {
        let releases = self.state.map().releases.iter().enumerate();
        let ready = |entry: &ReleaseEntry| {
            entry.state == ReleaseState::Loading && self.state.waiting_for(entry).is_empty()
        };
        let ready: Vec<_> = releases.filter(|(_, r)| ready(r)).map(|(at, r)| (at, r.clone())).collect();
        for (at, ReleaseEntry { model, release, .. }) in ready {
            self.map().releases[at].state = ReleaseState::Ready;
            self.event(EventKind::Ready, "the cluster", (&model, Some(&release)), String::new());
        }
    }

    /// The releases of a model that are not current have no traffic any more. That one of them was halted is kept.
    fn end_arms(&mut self, model: &Name) {
        self.set_traffic(model, Traffic::default());
        let current = self.state.map().current_release(model).map(|entry| entry.release.clone());
        let ramps = &mut self.durable().ramps;
        let stays = |ramp: &Ramp| ramp.halted.is_some() && Some(&ramp.release) != current.as_ref();
        ramps.retain(|ramp| ramp.model != *model || stays(ramp));
        ramps.iter_mut().filter(|ramp| ramp.model == *model).for_each(|ramp| ramp.known = true);
    }

    pub(crate) fn traffic(&self, model: &Name) -> Traffic {
        self.state.map().traffic.get(model).cloned().unwrap_or_default()
    }

    pub(crate) fn set_traffic(&mut self, model: &Name, traffic: Traffic) {
        if self.traffic(model) == traffic {
            return;
        }
        if traffic.is_empty() {
            self.map().traffic.remove(model);
        } else {
            self.map().traffic.insert(model.clone(), traffic);
        }
    }

    fn check_shares(&self, model: &Name, shares: &[(Name, u32)]) -> Result<(), StepError> {
        let list = |problem: String| Err(StepError::ShareList { model: model.clone(), problem });
        if shares.is_empty() {
            return list("no release is named".into());
        }
        for (at, (release, share)) in shares.iter().enumerate() {
            if shares[..at].iter().any(|(other, _)| other == release) {
                return list(format!("release {release} stands there twice"));
            }
            if *share > BUCKETS {
                return list(format!("release {release} would have {share} buckets, there are {BUCKETS}"));
            }
            self.check_beside_current(model, release)?;
        }
        Ok(())
    }

    /// Traffic is given to what is not current, beside what is.
    fn check_beside_current(&self, model: &Name, release: &Name) -> Result<(), StepError> {
        self.check_not_current(model, release, "it has all traffic that is no other's")?;
        match self.state.map().current_release(model) {
            Some(_) => Ok(()),
            None => Err(StepError::NoCurrent { model: model.clone() }),
        }
    }

    pub(crate) fn check_not_current(
        &self,
        model: &Name,
        release: &Name,
        instead: &'static str,
    ) -> Result<(), StepError> {
        if self.entry(model, release)?.state != ReleaseState::Current {
            return Ok(());
        }
        Err(StepError::IsCurrent { model: model.clone(), release: release.clone(), instead })
    }

    fn check_ready(&self, model: &Name, release: &Name) -> Result<(), StepError> {
        let entry = self.entry(model, release)?;
        if entry.state == ReleaseState::Retiring {
            let (model, release) = (model.clone(), release.clone());
            return Err(StepError::Retiring { model, release });
        }
        let mut waiting_for = self.state.waiting_for(entry);
        if entry.state != ReleaseState::Loading {
            waiting_for.extend(self.state.ranker_failures(entry));
            if waiting_for.is_empty() {
                return Ok(());
            }
        }
        Err(StepError::NotReady { model: model.clone(), release: release.clone(), waiting_for })
    }

    pub(crate) fn entry(&self, model: &Name, release: &Name) -> Result<&ReleaseEntry, StepError> {
        let entry = self.state.map().release(model, release);
        entry.ok_or_else(|| StepError::NotFound { what: format!("release {model}@{release}") })
    }

    /// Writes down that something happened.
    pub(crate) fn event(
        &mut self,
        kind: EventKind,
        by: &str,
        (subject, release): (&Name, Option<&Name>),
        why: String,
    ) {
        let unix_seconds = self.unix_seconds();
        let event = ClusterEvent {
            number: 0,
            unix_seconds,
            by: by.to_owned(),
            kind,
            subject: subject.clone(),
            release: release.cloned(),
            why,
        };
        self.durable().events.push(event);
    }

    fn unix_seconds(&self) -> u64 {
        self.state.began_unix_seconds.saturating_add(self.now.as_secs())
    }
}

/// Buckets as people read them.
fn percent(buckets: u32) -> String {
    format!("{} %", f64::from(buckets) * 100.0 / f64::from(BUCKETS))
}
