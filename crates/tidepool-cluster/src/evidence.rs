//! What rankers have counted since a ramp began, so that its guards can judge: of the release under the ramp and
//! of the current one, over the same time.
//!
//! Rankers report what they have counted since they loaded a release; here it becomes differences. A ranker whose
//! count began anew (it was started again, or has loaded the release again) counts from nothing; of one that is
//! heard of for the first time nothing is known of when it counted, so its first report only sets the mark.

use std::{collections::BTreeMap, sync::Arc};

use tidepool_types::Name;

use crate::{
    guards::{Guards, Tally},
    state::{ObservedRanker, RankerRelease, ShadowTally},
};

/// A window is closed when the release under the ramp has answered so many times the requests that it is judged
/// by. The judgement is on the last closed window and the open one: never on old news alone, nor on too few.
const WINDOW: u64 = 5;

/// What is counted for guards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// The last report of each ranker, also of those that are gone: they may come back and go on counting.
    last: BTreeMap<Name, Arc<ObservedRanker>>,
    /// By model and release under a ramp.
    windows: BTreeMap<(Name, Name), Windows>,
    /// By model and release that is a shadow, since it is one.
    shadows: BTreeMap<(Name, Name), ShadowTally>,
}

#[derive(Clone, Debug, Default)]
struct Windows {
    closed: Pair,
    open: Pair,
}

/// Both sides over the same time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pair {
    pub(crate) candidate: Tally,
    pub(crate) current: Tally,
}

impl Evidence {
    /// Counts from here on for a release under a ramp, and from nothing.
    pub(crate) fn begin(&mut self, model: &Name, release: &Name) {
        self.windows.insert((model.clone(), release.clone()), Windows::default());
    }

    /// Counts from here on for a shadow, and from nothing.
    pub(crate) fn begin_shadow(&mut self, model: &Name, release: &Name) {
        self.shadows.insert((model.clone(), release.clone()), ShadowTally::default());
    }

    /// Keeps the windows of which `running`, and the shadows of which `shadowing` says so, and forgets gone rankers when
    /// there are none.
    pub(crate) fn retain(
        &mut self,
        running: impl Fn(&Name, &Name) -> bool,
        shadowing: impl Fn(&Name, &Name) -> bool,
        rankers: &BTreeMap<Name, Arc<ObservedRanker>>,
    ) {
        self.windows.retain(|(model, release), _| running(model, release));
        self.shadows.retain(|(model, release), _| shadowing(model, release));
        if self.windows.is_empty() && self.shadows.is_empty() {
            self.last.retain(|ranker, _| rankers.contains_key(ranker));
        }
    }

    /// Takes a report in. `current` gives the current release of a model.
    pub(crate) fn take<'a>(
        &mut self,
        observed: &Arc<ObservedRanker>,
        current: impl Fn(&Name) -> Option<&'a Name>,
    ) {
        let last = self.last.insert(observed.report.ranker.clone(), observed.clone());
        let Some(last) = last else { return };
        for release in &observed.report.releases {
            let of_last = last.report.releases.iter().find(|r| r.is_of(release));
            let counted = of_last.and_then(|before| counted_since(before, release));
            let Some((counted, shadowed)) = counted else { continue };
            if let Some(sum) = self.shadows.get_mut(&(release.model.clone(), release.release.clone())) {
                sum.add(&shadowed);
            }
            for ((model, candidate), windows) in &mut self.windows {
                if *model != release.model {
                    continue;
                }
                if *candidate == release.release {
                    windows.open.candidate.add(&counted);
                } else if current(model) == Some(&release.release) {
                    windows.open.current.add(&counted);
                }
            }
        }
    }

    /// What the guards of a release under a ramp judge by; nothing when it is under none.
    pub(crate) fn of(&self, model: &Name, release: &Name) -> Pair {
        let Some(windows) = self.windows.get(&(model.clone(), release.clone())) else {
            return Pair::default();
        };
        let mut pair = windows.closed.clone();
        pair.candidate.add(&windows.open.candidate);
        pair.current.add(&windows.open.current);
        pair
    }

    /// What was counted of a shadow since it is one; nothing when it is none.
    pub(crate) fn of_shadow(&self, model: &Name, release: &Name) -> ShadowTally {
        self.shadows.get(&(model.clone(), release.clone())).cloned().unwrap_or_default()
    }

    /// After a judgement that found nothing: closes the window when it is full.
    pub(crate) fn close(&mut self, model: &Name, release: &Name, guards: &Guards) {
        let Some(windows) = self.windows.get_mut(&(model.clone(), release.clone())) else { return };
        if windows.open.candidate.requests >= guards.min_requests.saturating_mul(WINDOW) {
            windows.closed = std::mem::take(&mut windows.open);
        }
    }
}

/// What was counted of a release between two reports of one ranker.
fn counted_since(before: &RankerRelease, now: &RankerRelease) -> Option<(Tally, ShadowTally)> {
    let (before, now) = (before.serving.as_ref()?, now.serving.as_ref()?);
    let same = before.since == now.since;
    let chosen = same.then(|| now.chosen.since(&before.chosen)).flatten();
    let shadow = same.then(|| now.shadow.since(&before.shadow)).flatten();
    Some((chosen.unwrap_or_else(|| now.chosen.clone()), shadow.unwrap_or_else(|| now.shadow.clone())))
}
