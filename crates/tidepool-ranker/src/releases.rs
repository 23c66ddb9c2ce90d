//! The releases that this ranker serves: what the cluster map lists is loaded, what it no longer lists is
//! let go. Requests read one immutable snapshot.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tidepool_client::{ClusterMap, ReleaseEntry};
use tidepool_cluster::ReleaseState;
use tidepool_proto::v1;
use tidepool_runtime::{health::Health, shutdown::Shutdown};
use tidepool_store::Artifacts;
use tidepool_types::{Epoch, Name};
use tokio::{
    sync::{mpsc, watch},
    time::{self, MissedTickBehavior},
};
use tracing::{info, warn};

use crate::{
    RankError,
    admin::{Asked, Stands},
    batch::Batchers,
    choice::Choice,
    device::Engine,
    hot_ids::Warming,
    loaded::LoadedRelease,
    loads::Loads,
    metrics::Metrics,
    oip::{MAX_RETRIES, Retry, outcome},
    resident::Filling,
    rollback::{self, Holds, Rollback, Rollbacks},
};

/// How often it is seen to whether what is loaded can still run; and the controller is told what was counted, while guards
/// wait for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What requests see. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Releases(pub(crate) Arc<ArcSwap<Snapshot>>);

/// One picture of the releases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Whether `map` came from a controller or from disk; otherwise it is empty.
    pub(crate) seen: bool,
    /// The map that lists the releases.
    pub(crate) map: Arc<ClusterMap>,
    /// One per release of the map, in its order.
    pub(crate) slots: Vec<Slot>,
    /// Models that were rolled back here, and not by the map.
    pub(crate) rollbacks: Rollbacks,
}

/// The release that answers a request.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) release: Arc<LoadedRelease>,
    /// Of the map that it was chosen by.
    pub(crate) epoch: Epoch,
    pub(crate) choice: Choice,
}

/// A release of the map.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// As the map lists it.
    pub(crate) entry: ReleaseEntry,
    /// How far it is here.
    pub(crate) state: State,
    /// Which load of this slot is under way, if one is.
    pub(crate) loading: Option<u64>,
}

/// How far a release is.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// Not yet loaded for the first time.
    Loading,
    /// Serving.
    Ready(Arc<LoadedRelease>),
    /// It could not be loaded, and why. It is tried again.
    Failed(String),
}

impl Releases {
    /// The current picture.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// One release, loaded.
    #[cfg(test)]
    pub(crate) fn of(map: Arc<ClusterMap>, loaded: LoadedRelease) -> Self {
        let entry = map.releases[0].clone();
        let slot = Slot { entry, state: State::Ready(Arc::new(loaded)), loading: None };
        Self(Arc::new(ArcSwap::from_pointee(Snapshot {
            seen: true,
            map,
            slots: vec![slot],
            ..Snapshot::default()
        })))
    }

    /// A release by name, if it is loaded here.
    pub(crate) fn pin(&self, model: &str, release: &str) -> Result<(Arc<LoadedRelease>, Epoch), RankError> {
        self.0.load().pin(model, release)
    }

    /// The release that answers a request for `model`: the named one, or the one that has its bucket.
    pub(crate) fn choose(
        &self,
        model: &str,
        release: Option<&str>,
        bucket: u32,
    ) -> Result<Chosen, RankError> {
        self.0.load().choose(model, release, bucket)
    }
}

impl Snapshot {
    fn pin(&self, model: &str, release: &str) -> Result<(Arc<LoadedRelease>, Epoch), RankError> {
        if !self.seen {
            return Err(RankError::NoMap);
        }
        let epoch = self.map.epoch;
        let entry = self.map.release(model, release).ok_or_else(|| RankError::UnknownRelease {
            model: model.to_owned(),
            release: release.to_owned(),
            epoch,
        })?;
        Ok((self.ready(entry)?, epoch))
    }

    /// As [`Releases::choose`], by this picture.
    pub(crate) fn choose(
        &self,
        model: &str,
        release: Option<&str>,
        bucket: u32,
    ) -> Result<Chosen, RankError> {
        if let Some(release) = release {
            let (release, epoch) = self.pin(model, release)?;
            return Ok(Chosen { release, epoch, choice: Choice::Named });
        }
        if !self.seen {
            return Err(RankError::NoMap);
        }
        let epoch = self.map.epoch;
        let rollback = self.rollbacks.get(model);
        let arm = self.map.release_for(model, bucket).filter(|(_, is_arm)| *is_arm).map(|(entry, _)| entry);
        let arm = arm.filter(|arm| rollback.is_none_or(|rollback| !rollback.off.contains(&arm.release)));
        if let Some(release) = arm.and_then(|arm| self.ready(arm).ok()) {
            return Ok(Chosen { release, epoch, choice: Choice::Arm });
        }
        let entry = match rollback {
            Some(rollback) => self.map.release(model, &rollback.to),
            None => self.map.current_release(model),
        };
        let entry = entry.ok_or_else(|| RankError::NoCurrent { model: model.to_owned(), epoch })?;
        let loaded = match self.ready(entry) {
            // A release that could not be loaded again leaves the old one serving.
            Err(error) => {
                let instead = rollback.is_none().then(|| self.previous(model)).flatten();
                let release = instead.ok_or(error)?;
                return Ok(Chosen { release, epoch, choice: Choice::Fallback });
            }
            Ok(loaded) => loaded,
        };
        let choice = match (arm, rollback) {
            (Some(_), _) => Choice::Fallback,
            (None, Some(_)) => Choice::RolledBack,
            (None, None) => Choice::Current,
        };
        Ok(Chosen { release: loaded, epoch, choice })
    }

    /// The release of an entry of the map, if it is loaded here.
    fn ready(&self, entry: &ReleaseEntry) -> Result<Arc<LoadedRelease>, RankError> {
        let not_loaded = |problem: &str| RankError::NotLoaded {
            model: entry.model.clone(),
            release: entry.release.clone(),
            epoch: self.map.epoch,
            problem: problem.to_owned(),
        };
        match self.slot(entry).map(|slot| &slot.state) {
            Some(State::Ready(loaded)) => Ok(loaded.clone()),
            Some(State::Failed(problem)) => Err(not_loaded(problem)),
            Some(State::Loading) | None if entry.state == ReleaseState::Retiring => {
                Err(not_loaded("it is being let go, and was not loaded before"))
            }
            Some(State::Loading) | None => Err(not_loaded("it is being loaded")),
        }
    }

    /// The release that was current before, if it is loaded here.
    fn previous(&self, model: &str) -> Option<Arc<LoadedRelease>> {
        let is_previous = |r: &&ReleaseEntry| r.model.as_str() == model && r.state == ReleaseState::Previous;
        self.map.releases.iter().find(is_previous).and_then(|entry| self.ready(entry).ok())
    }

    /// Whether the requests of its model go to a release, but for those that an arm has: it is the current one, or the
    /// model was rolled back to it here.
    fn answers(&self, slot: &Slot) -> bool {
        let model = &slot.entry.model;
        match self.rollbacks.get(model) {
            Some(rollback) => rollback.to == slot.entry.release,
            None => self.map.current_release(model).is_some_and(|current| slot.is_of(current)),
        }
    }

    /// The releases that are loaded, in the order of the map.
    pub(crate) fn loaded(&self) -> impl Iterator<Item = &Arc<LoadedRelease>> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            State::Ready(loaded) => Some(loaded),
            State::Loading | State::Failed(_) => None,
        })
    }

    /// One step back for `model`, to what is loaded here.
    fn roll_back_to(&self, model: &Name, release: Option<&Name>) -> Result<Rollback, RankError> {
        if !self.seen {
            return Err(RankError::NoMap);
        }
        let rollback = Rollback::of(&self.map, self.rollbacks.get(model), model, release)?;
        self.pin(model, &rollback.to)?;
        Ok(rollback)
    }

    /// Ends the rollback of `model` here.
    fn undo(&mut self, model: &Name) -> Result<Stands, RankError> {
        let current = self.map.current_release(model).map(|entry| entry.release.clone());
        let epoch = self.map.epoch;
        let answers = current.ok_or_else(|| RankError::NoCurrent { model: model.to_string(), epoch })?;
        match self.rollbacks.remove(model) {
            Some(_) => Ok(Stands { answers, off: Vec::new() }),
            None => Err(RankError::NotRolledBack(model.clone())),
        }
    }

    fn slot(&self, entry: &ReleaseEntry) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.is_of(entry))
    }

    /// Whether requests should be sent here, and if not, why. A release that is published, or fails, while
    /// others serve does not turn a ranker away that was ready before.
    fn readiness(&self, was_ready: bool) -> Result<(), String> {
        if !self.seen {
            return Err("no cluster map has been seen".into());
        }
        let loaded = |slot: &Slot| matches!(slot.state, State::Ready(_));
        for slot in self.slots.iter().filter(|slot| slot.is_wanted(&self.rollbacks)) {
            // One that serves goes on with the release before, where that is loaded; a new one does not begin so.
            let model = &slot.entry.model;
            let stands_in =
                was_ready && !self.rollbacks.contains_key(model) && self.previous(model).is_some();
            let answers = self.answers(slot) && !stands_in;
            match &slot.state {
                State::Loading if answers || !was_ready => {
                    return Err(format!("release {} is being loaded", slot.words()));
                }
                State::Failed(problem) if answers => {
                    let which = if self.rollbacks.contains_key(model) { "rolled back to" } else { "current" };
                    return Err(format!("the {which} release {} is not loaded: {problem}", slot.words()));
                }
                _ => {}
            }
        }
        if self.slots.iter().any(loaded) { Ok(()) } else { Err("no release is loaded".into()) }
    }
}

impl Slot {
    /// Whether this slot is of that release, by name.
    pub(crate) fn is_of(&self, entry: &ReleaseEntry) -> bool {
        self.entry.model == entry.model && self.entry.release == entry.release
    }

    /// Whether a load of it is under way, the first or another.
    pub(crate) const fn is_being_loaded(&self) -> bool {
        self.loading.is_some()
    }

    /// Whether it is to be loaded: one that is being let go stays as it is, loaded or not, unless the model was rolled
    /// back to it here.
    pub(crate) fn is_wanted(&self, rollbacks: &Rollbacks) -> bool {
        self.entry.state != ReleaseState::Retiring
            || rollbacks.get(&self.entry.model).is_some_and(|rollback| rollback.to == self.entry.release)
    }

    fn words(&self) -> String {
        format!("{} of model {}", self.entry.release, self.entry.model)
    }
}

/// What the loader needs.
pub(crate) struct Loader {
    pub(crate) artifacts: Artifacts,
    /// What the requests of each model are put into.
    pub(crate) batchers: Batchers,
    /// What runs them.
    pub(crate) engine: Engine,
    pub(crate) maps: watch::Receiver<Arc<ClusterMap>>,
    pub(crate) releases: Releases,
    /// The report as it is to be sent; its epoch and releases are kept up to date.
    pub(crate) reports: watch::Sender<v1::RankerReport>,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    pub(crate) retry: Duration,
    pub(crate) warming: Warming,
    /// What each release has on the GPU.
    pub(crate) filling: Filling,
    pub(crate) shutdown: Shutdown,
    /// Rollbacks that are asked for.
    pub(crate) asked: mpsc::Receiver<Asked>,
    /// Models whose releases are to be tried again at once.
    pub(crate) to_retry: mpsc::Receiver<Retry>,
    /// Those that hold, and where they are kept.
    pub(crate) rollbacks: Rollbacks,
    pub(crate) rollbacks_file: PathBuf,
}

impl Loader {
    /// Follows the map until the ranker drains. The receiver's first map is taken only if it is marked as
    /// changed.
    pub(crate) async fn run(mut self) {
        let mut loads = Loads::default();
        let mut now = Snapshot { rollbacks: std::mem::take(&mut self.rollbacks), ..Snapshot::default() };
        let mut was_ready = false;
        let mut waiting: Vec<Retry> = Vec::new();
        let mut retry = time::interval(self.retry);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let draining = self.shutdown.draining();
        tokio::pin!(draining);
        loop {
            let to_retry = |s: &Slot| {
                matches!(s.state, State::Failed(_)) && s.loading.is_none() && s.is_wanted(&now.rollbacks)
            };
            let failed = now.slots.iter().any(to_retry);
            tokio::select! {
                () = &mut draining => return,
                changed = self.maps.changed() => {
                    if changed.is_err() {
                        // The session has ended, and with it the ranker.
                        return;
                    }
                    let map = self.maps.borrow_and_update().clone();
                    self.take_map(&mut now, map, &mut loads).await;
                }
                () = loads.take_next(&mut now), if !loads.is_empty() => {}
                _ = retry.tick(), if failed => self.start_loads(&mut now, &mut loads, None),
                Some(retry) = self.to_retry.recv(), if waiting.len() < MAX_RETRIES => {
                    self.start_loads(&mut now, &mut loads, Some(&retry.model));
                    waiting.push(retry);
                }
                Some(asked) = self.asked.recv() => self.roll_back(&mut now, asked).await,
                // Always, since a device or a model on it may be lost when nothing else happens.
                _ = look.tick() => {
                    self.engine.look();
                    for note in self.engine.notes() {
                        warn!(note, "the device");
                    }
                    // With the whole device lost there is nothing to load anew on: callers are sent elsewhere.
                    if self.engine.lost().is_none() {
                        now.fail_lost();
                    }
                }
            }
            self.publish(&now, &mut was_ready);
            answer_retries(&now, &mut waiting);
        }
    }

    /// Takes over what is loaded, drops what is no longer listed, and loads the rest.
    async fn take_map(&self, now: &mut Snapshot, map: Arc<ClusterMap>, loads: &mut Loads) {
        let slots = map.releases.iter().map(|entry| {
            // A release of the same name with other tables is another release.
            let known = now.slot(entry).filter(|slot| slot.entry.tables == entry.tables);
            let (state, loading) =
                known.map_or((State::Loading, None), |slot| (slot.state.clone(), slot.loading));
            Slot { entry: entry.clone(), state, loading }
        });
        let slots: Vec<_> = slots.collect();
        for gone in now.slots.iter().filter(|old| !slots.iter().any(|new| new.is_of(&old.entry))) {
            info!(model = %gone.entry.model, release = %gone.entry.release, "release let go");
        }
        let mut rollbacks = std::mem::take(&mut now.rollbacks);
        let mut changed = false;
        rollbacks.retain(|model, rollback| {
            let holds = rollback.follow(&map, model);
            changed |= holds != Holds::Same;
            if holds == Holds::No {
                info!(%model, epoch = %map.epoch, "the cluster map has another say: the rollback of here has ended");
            }
            holds != Holds::No
        });
        let known = map.releases.iter().map(|entry| (entry.model.clone(), entry.release.clone())).collect();
        self.artifacts.forget_releases_but(known);
        *now = Snapshot { seen: true, map, slots, rollbacks };
        if changed {
            self.save_rollbacks(now).await;
        }
        self.start_loads(now, loads, None);
    }

    /// Takes a release back here, or ends that, and answers who asked. What was decided holds also when it cannot be
    /// saved.
    async fn roll_back(&self, now: &mut Snapshot, asked: Asked) {
        let Asked { model, release, undo, by, done } = asked;
        let stands = if undo {
            now.undo(&model).inspect(|stands| {
                warn!(%model, to = %stands.answers, %by, "the rollback of here was undone");
            })
        } else {
            now.roll_back_to(&model, release.as_ref()).map(|rollback| {
                warn!(%model, to = %rollback.to, %by, "rolled back here, until a cluster map has another say");
                let stands = Stands { answers: rollback.to.clone(), off: rollback.off.clone() };
                now.rollbacks.insert(model, rollback);
                stands
            })
        };
        if stands.is_ok() {
            self.publish_snapshot(now);
            self.save_rollbacks(now).await;
        }
        // Whoever asked may have left.
        let _ = done.send(stands);
    }

    async fn save_rollbacks(&self, now: &Snapshot) {
        let (file, rollbacks) = (self.rollbacks_file.clone(), now.rollbacks.clone());
        let shown = file.display().to_string();
        let saved = tokio::task::spawn_blocking(move || rollback::save(&file, &rollbacks)).await;
        if let Err(error) = saved.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            warn!(%error, path = shown, "rollbacks could not be saved: a restart would forget them");
        }
    }

    /// From here on requests see it.
    fn publish_snapshot(&self, now: &Snapshot) {
        self.releases.0.store(Arc::new(now.clone()));
    }

    fn publish(&self, now: &Snapshot, was_ready: &mut bool) {
        let count = |is: fn(&State) -> bool| now.slots.iter().filter(|slot| is(&slot.state)).count();
        self.metrics.releases(
            now.map.epoch.0,
            count(|s| matches!(s, State::Loading)),
            count(|s| matches!(s, State::Ready(_))),
            count(|s| matches!(s, State::Failed(_))),
        );
        self.publish_snapshot(now);
        let serving = |slot: &Slot| match &slot.state {
            State::Ready(loaded) if now.map.traffic.contains_key(&slot.entry.model) => {
                Some((&loaded.counters.snapshot()).into())
            }
            _ => None,
        };
        let release = |slot: &Slot| v1::RankerRelease {
            model: slot.entry.model.to_string(),
            release: slot.entry.release.to_string(),
            ready: matches!(slot.state, State::Ready(_)),
            problem: match &slot.state {
                State::Failed(problem) => problem.clone(),
                State::Loading | State::Ready(_) => String::new(),
            },
            state: v1::ReleaseState::from(slot.entry.state).into(),
            serving: serving(slot),
        };
        let releases: Vec<_> = now.slots.iter().map(release).collect();
        self.reports.send_if_modified(|report| {
            let rolled_back: Vec<_> = now.rollbacks.keys().map(ToString::to_string).collect();
            let to = |(model, rollback): (&Name, &Rollback)| v1::RolledBackTo {
                model: model.to_string(),
                release: rollback.to.to_string(),
            };
            let rolled_back_to: Vec<_> = now.rollbacks.iter().map(to).collect();
            let news = report.epoch != now.map.epoch.0
                || report.releases != releases
                || report.rolled_back != rolled_back
                || report.rolled_back_to != rolled_back_to;
            report.epoch = now.map.epoch.0;
            report.releases = releases;
            report.rolled_back = rolled_back;
            report.rolled_back_to = rolled_back_to;
            news
        });
        if self.shutdown.is_draining() {
            return;
        }
        if let Some(why) = self.engine.lost() {
            return self.health.set_ready(false, why);
        }
        match now.readiness(*was_ready) {
            Ok(()) => {
                *was_ready = true;
                self.health.set_ready(true, "");
            }
            Err(why) => self.health.set_ready(false, why),
        }
    }
}

/// Answers those who wait for a model of which nothing is being loaded any more.
fn answer_retries(now: &Snapshot, waiting: &mut Vec<Retry>) {
    for retry in std::mem::take(waiting) {
        match outcome(now, &retry.model) {
            // Whoever asked may have left.
            Some(outcome) => drop(retry.done.send(outcome)),
            None => waiting.push(retry),
        }
    }
}

#[cfg(test)]
#[path = "releases_tests.rs"]
mod tests;
