//! Releases that were loaded and run no more: a model on a GPU may be given up, alone or with its device.

use tracing::warn;

use crate::releases::{Snapshot, State};

impl Snapshot {
    /// A release whose model will run no batch any more counts as one that could not be loaded: requests go to the one
    /// before, the ranker is not ready where there is none, and the release is loaded anew.
    pub(crate) fn fail_lost(&mut self) {
        for slot in &mut self.slots {
            let State::Ready(loaded) = &slot.state else { continue };
            let Some(problem) = loaded.batch_model.scorer.lost() else { continue };
            let (model, release) = (&slot.entry.model, &slot.entry.release);
            warn!(%model, %release, %problem, "a release runs no more; it is loaded anew");
            slot.state = State::Failed(problem);
        }
    }
}
