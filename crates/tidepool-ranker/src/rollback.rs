//! A rollback at this ranker alone, for the hour in which no controller can be asked: `POST /v1/admin/rollback`.
//!
//! It holds until a cluster map has another say on the model, which only an operator's can be: another current release,
//! or an arm that there was not, or with another share. An arm that vanishes (guards have halted it, say) ends nothing,
//! but for a rollback that only took that arm back and so is one no more. It also ends when it is undone here. It is
//! kept on disk, so that a restart does not bring back what was taken away.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use tidepool_client::ClusterMap;
use tidepool_cluster::{Arm, ReleaseState};
use tidepool_types::Name;

use crate::RankError;

/// The rollbacks that hold, by model.
pub(crate) type Rollbacks = BTreeMap<Name, Rollback>;

/// What a model's requests find here instead of what the map says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollback {
    /// The release that answers in place of the current one; the same where only arms were taken back.
    pub(crate) to: Name,
    /// Releases that answer nobody who does not name them.
    pub(crate) off: Vec<Name>,
    /// What the map says of the model.
    current: Name,
    arms: Vec<Arm>,
}

/// Whether a rollback goes on by a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// The map says nothing new.
    Same,
    /// An arm of it has vanished.
    Less,
    /// It is over.
    No,
}

impl Rollback {
    /// One step back from what `map` and a rollback `before` say of `model`: `release`, or every arm, or else the
    /// current release is taken back.
    pub(crate) fn of(
        map: &ClusterMap,
        before: Option<&Self>,
        model: &Name,
        release: Option<&Name>,
    ) -> Result<Self, RankError> {
        let nothing = |problem: String| Err(RankError::NothingBefore { model: model.clone(), problem });
        let Some(current) = map.current_release(model).map(|entry| entry.release.clone()) else {
            return Err(RankError::NoCurrent { model: model.to_string(), epoch: map.epoch });
        };
        let arms = map.traffic.get(model).map(|traffic| traffic.arms.clone()).unwrap_or_default();
        let (to, mut off) =
            before.map_or_else(|| (current.clone(), Vec::new()), |b| (b.to.clone(), b.off.clone()));
        let is_asked = |arm: &Name| release.is_none_or(|release| release == arm);
        let taken: Vec<_> =
            arms.iter().map(|arm| &arm.release).filter(|a| !off.contains(a) && is_asked(a)).collect();
        if !taken.is_empty() {
            off.extend(taken.into_iter().cloned());
            return Ok(Self { to, off, current, arms });
        }
        if release.is_some_and(|release| *release != to) {
            return nothing("that release answers nobody here who does not name it".into());
        }
        if to != current {
            return nothing(format!("it was rolled back here already, {to} answers"));
        }
        let is_previous =
            |r: &&tidepool_client::ReleaseEntry| r.model == *model && r.state == ReleaseState::Previous;
        let Some(previous) = map.releases.iter().find(is_previous) else {
            return nothing(format!("no release was current before {current}"));
        };
        off.push(current.clone());
        Ok(Self { to: previous.release.clone(), off, current, arms })
    }

    /// Takes a map in, and says whether the rollback goes on by it.
    pub(crate) fn follow(&mut self, map: &ClusterMap, model: &Name) -> Holds {
        let current = map.current_release(model).map(|entry| &entry.release);
        let arms = map.traffic.get(model).map_or(&[][..], |traffic| &traffic.arms);
        let known = arms.iter().all(|arm| self.arms.contains(arm));
        // What was taken back may have been the arm alone, and that is gone by the map's word too.
        let says_something =
            self.to != self.current || arms.iter().any(|arm| self.off.contains(&arm.release));
        if current != Some(&self.current)
            || !known
            || !says_something
            || map.release(model, &self.to).is_none()
        {
            return Holds::No;
        }
        if arms.len() == self.arms.len() {
            return Holds::Same;
        }
        self.arms = arms.to_vec();
        Holds::Less
    }
}

/// The rollbacks of the last run; none when there is no file.
///
/// # Errors
/// When there is a file that cannot be read, or holds something else.
pub(crate) fn load(path: &Path) -> io::Result<Rollbacks> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Rollbacks::new()),
        Err(error) => Err(error),
    }
}

/// Writes beside the file and renames: a crash leaves the old list or the new one.
pub(crate) fn save(path: &Path, rollbacks: &Rollbacks) -> io::Result<()> {
    let draft = path.with_extension("json.tmp");
    let mut file = File::create(&draft)?;
    file.write_all(&serde_json::to_vec_pretty(rollbacks)?)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use tidepool_cluster::{BucketRange, Traffic};
    use tidepool_proto::v1;
    use tidepool_types::Epoch;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// `m` with r1 previous, r2 current, r3 ready, and arms.
    fn map(arms: &[&str]) -> ClusterMap {
        let states = [v1::ReleaseState::Previous, v1::ReleaseState::Current, v1::ReleaseState::Ready];
        let releases = ["r1", "r2", "r3"].into_iter().zip(states).map(|(release, state)| v1::ReleaseEntry {
            model: "m".into(),
            release: release.into(),
            tables: Vec::new(),
            state: state.into(),
            pinned: false,
        });
        let map = v1::ClusterMap { epoch: 5, releases: releases.collect(), ..v1::ClusterMap::default() };
        let mut map = ClusterMap::try_from(map).unwrap();
        let arms = arms
            .iter()
            .map(|release| Arm { release: name(release), buckets: vec![BucketRange { start: 0, end: 5 }] });
        let traffic = Traffic { arms: arms.collect(), shadows: Vec::new() };
        if !traffic.is_empty() {
            map.traffic.insert(name("m"), traffic);
        }
        map
    }

    #[test]
    fn arms_go_first_and_then_the_current_release_and_then_nothing() {
        let map = map(&["r3"]);
        let first = Rollback::of(&map, None, &name("m"), None).unwrap();
        assert_eq!((first.to.as_str(), first.off.as_slice()), ("r2", &[name("r3")][..]));
        let second = Rollback::of(&map, Some(&first), &name("m"), None).unwrap();
        assert_eq!((second.to.as_str(), second.off.len()), ("r1", 2));
        let third = Rollback::of(&map, Some(&second), &name("m"), None).unwrap_err();
        assert!(third.to_string().contains("rolled back here already, r1 answers"), "{third}");
        let other = Rollback::of(&map, None, &name("m"), Some(&name("r1"))).unwrap_err();
        assert!(other.to_string().contains("answers nobody here"), "{other}");
        assert!(matches!(Rollback::of(&map, None, &name("n"), None), Err(RankError::NoCurrent { .. })));
    }

    #[test]
    fn it_holds_until_an_operator_has_another_say_on_the_model() {
        let then = map(&["r3"]);
        let m = name("m");
        let arm = Rollback::of(&then, None, &m, None).unwrap();
        let both = Rollback::of(&then, Some(&arm), &m, None).unwrap();
        let node_came_back = ClusterMap { epoch: Epoch(9), ..then.clone() };
        for mut rollback in [arm.clone(), both.clone()] {
            assert_eq!(rollback.follow(&node_came_back, &m), Holds::Same);
        }
        // Guards halt the arm: what was current is not brought back by that.
        let halted = map(&[]);
        assert_eq!(arm.clone().follow(&halted, &m), Holds::No, "nothing is taken back any more");
        let mut rollback = both.clone();
        assert_eq!(rollback.follow(&halted, &m), Holds::Less);
        assert_eq!(rollback.follow(&halted, &m), Holds::Same);
        assert_eq!(rollback.follow(&then, &m), Holds::No, "somebody ramps it again");
        let mut grown = then.clone();
        grown.traffic.get_mut(&m).unwrap().arms[0].buckets[0].end = 50;
        assert_eq!(both.clone().follow(&grown, &m), Holds::No);
        let mut promoted = map(&["r3"]);
        promoted.releases[1].state = ReleaseState::Previous;
        promoted.releases[2].state = ReleaseState::Current;
        promoted.traffic.clear();
        assert_eq!(both.clone().follow(&promoted, &m), Holds::No);
        let mut gone = then;
        gone.releases.remove(0);
        assert_eq!(both.clone().follow(&gone, &m), Holds::No, "where to go back to has left");
    }

    #[test]
    fn what_was_saved_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollbacks.json");
        assert_eq!(load(&path).unwrap(), Rollbacks::new());
        let rollback = Rollback::of(&map(&["r3"]), None, &name("m"), None).unwrap();
        let rollbacks = Rollbacks::from([(name("m"), rollback)]);
        save(&path, &rollbacks).unwrap();
        assert_eq!(load(&path).unwrap(), rollbacks);
        fs::write(&path, "{").unwrap();
        assert!(load(&path).is_err());
    }
}
