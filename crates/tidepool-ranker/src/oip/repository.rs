//! The extension of the model repository. The repository is the cluster map: which releases there are, is the
//! controller's to say (`tidepool release`), so
//! - the index lists the releases of the map, and how far each is here;
//! - to load is to try again now what could not be loaded, instead of after `load_retry_ms`;
//! - to unload is refused, with the command that lets a release go everywhere.

use serde_json::json;
use tidepool_runtime::auth::Caller;
use tidepool_types::Name;
use tokio::sync::{mpsc, oneshot};

use super::{Inference, tensors::told};
use crate::{
    RankError,
    releases::{Slot, Snapshot, State},
};

/// Requests to try again that may wait.
pub(crate) const MAX_RETRIES: usize = 8;

/// Where requests to try again go.
pub(crate) type Retries = mpsc::Sender<Retry>;

/// Releases of a model that are to be tried again.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) model: Name,
    /// Told when none of them is being loaded any more.
    pub(crate) done: oneshot::Sender<Result<(), RankError>>,
}

/// A release of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) state: &'static str,
    /// Why it is not ready.
    pub(super) reason: String,
}

impl Inference {
    /// The releases of the map; of all, or of those that are ready.
    pub(super) fn index(&self, repository: &str, ready: bool) -> Result<Vec<Entry>, RankError> {
        check_repository(repository)?;
        let snapshot = self.service.ranker.releases.snapshot();
        if !snapshot.seen {
            return Err(RankError::NoMap);
        }
        let entries = snapshot.slots.iter().map(entry);
        Ok(entries.filter(|entry| !ready || entry.state == "READY").collect())
    }

    /// Tries again to load the releases of a model that are not loaded, and waits until that has ended.
    pub(super) async fn load(
        &self,
        caller: Caller,
        repository: &str,
        model: &str,
        parameters: &[String],
    ) -> Result<(), RankError> {
        check_repository(repository)?;
        if let Some(name) = parameters.first() {
            return Err(RankError::Invalid(format!(
                "parameter {:?}: a release is loaded as it was published, with a configuration and files of its own",
                told(name)
            )));
        }
        let unknown = |_| RankError::Invalid(format!("{:?} is no name of a model", told(model)));
        let model = Name::new(model).map_err(unknown)?;
        let (done, answer) = oneshot::channel();
        let (retries, retry) = (self.retries.clone(), Retry { model: model.clone(), done });
        let change = async move {
            // Both ends are lost when the ranker ends.
            retries.send(retry).await.map_err(|_| RankError::Ending)?;
            answer.await.unwrap_or(Err(RankError::Ending))
        };
        self.desk.written_down(caller, "load_here", json!({ "model": model }), change).await
    }

    /// Why a model is not unloaded.
    pub(super) fn unload(&self, repository: &str, model: &str) -> RankError {
        if let Err(error) = check_repository(repository) {
            return error;
        }
        let snapshot = self.service.ranker.releases.snapshot();
        if !snapshot.seen {
            return RankError::NoMap;
        }
        match snapshot.map.releases.iter().find(|entry| entry.model.as_str() == model) {
            Some(entry) => RankError::NotUnloaded(entry.model.clone()),
            None => RankError::UnknownModel(told(model)),
        }
    }
}

fn check_repository(repository: &str) -> Result<(), RankError> {
    if repository.is_empty() {
        return Ok(());
    }
    let repository = told(repository);
    Err(RankError::Invalid(format!(
        "there is no repository {repository:?}: there is one, the cluster's, and it has no name"
    )))
}

fn entry(slot: &Slot) -> Entry {
    let (state, reason) = match &slot.state {
        State::Ready(_) => ("READY", String::new()),
        State::Loading => ("LOADING", "it is being loaded".to_owned()),
        State::Failed(problem) => ("UNAVAILABLE", problem.clone()),
    };
    let (name, version) = (slot.entry.model.to_string(), slot.entry.release.to_string());
    Entry { name, version, state, reason }
}

/// What became of loading the releases of a model: `None` while one of them is still being loaded. Before there is a
/// map it is not known which there are.
pub(crate) fn outcome(now: &Snapshot, model: &Name) -> Option<Result<(), RankError>> {
    if !now.seen {
        return Some(Err(RankError::NoMap));
    }
    let slots = || now.slots.iter().filter(|slot| slot.entry.model == *model);
    if slots().next().is_none() {
        return Some(Err(RankError::UnknownModel(model.to_string())));
    }
    if slots().any(Slot::is_being_loaded) {
        return None;
    }
    let failed = slots().find_map(|slot| match &slot.state {
        State::Failed(problem) => Some(RankError::NotLoaded {
            model: model.clone(),
            release: slot.entry.release.clone(),
            epoch: now.map.epoch,
            problem: problem.clone(),
        }),
        State::Loading | State::Ready(_) => None,
    });
    Some(failed.map_or(Ok(()), Err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_there_is_a_map_no_model_is_unknown() {
        let model = Name::new("m").unwrap();
        let unseen = outcome(&Snapshot::default(), &model);
        assert!(matches!(unseen, Some(Err(RankError::NoMap))), "{unseen:?}");
        let empty = outcome(&Snapshot { seen: true, ..Snapshot::default() }, &model);
        assert!(matches!(empty, Some(Err(RankError::UnknownModel(_)))), "{empty:?}");
    }
}
