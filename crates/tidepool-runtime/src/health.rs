//! Whether the process lives and whether it should be sent work: what `/healthz` and `/readyz` say.

use std::sync::Arc;

use tokio::sync::watch;

/// A handle on the health of this process. Clones share it. It begins alive and not ready.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug)]
struct State {
    /// Why it cannot go on, if so.
    failed: Option<String>,
    /// Why it should not be sent work, if so.
    not_ready: Option<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Alive, and not ready because it is starting.
    #[must_use]
    pub fn new() -> Self {
        let state = State { failed: None, not_ready: Some("starting".into()) };
        Self { state: Arc::new(watch::Sender::new(state)) }
    }

    /// Says whether work should be sent here; if not, why, in a few words. The reason of a ready
    /// process is not kept.
    pub fn set_ready(&self, ready: bool, reason: impl Into<String>) {
        let not_ready = (!ready).then(|| reason.into());
        self.state.send_modify(|state| state.not_ready = not_ready);
    }

    /// Says that the process cannot go on and should be started anew. There is no way back.
    pub fn fail(&self, reason: impl Into<String>) {
        self.state.send_modify(|state| state.failed = Some(reason.into()));
    }

    /// Whether work should be sent here.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// Whether work should be sent here.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), String> {
        let state = self.state.borrow();
        state.failed.as_ref().or(state.not_ready.as_ref()).map_or(Ok(()), |why| Err(why.clone()))
    }

    /// Whether the process can go on.
    ///
    /// # Errors
    /// Why not.
    pub fn live(&self) -> Result<(), String> {
        self.state.borrow().failed.clone().map_or(Ok(()), Err)
    }

    /// Waits until work should be sent here.
    pub async fn wait_ready(&self) {
        let mut seen = self.state.subscribe();
        // The sender is in `self`, so the channel cannot close under us.
        let _ = seen.wait_for(|state| state.failed.is_none() && state.not_ready.is_none()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_alive_and_not_ready() {
        let health = Health::new();
        assert_eq!(health.readiness(), Err("starting".into()));
        assert_eq!(health.live(), Ok(()));
    }

    #[test]
    fn readiness_flips_and_failure_stays() {
        let health = Health::new();
        let other = health.clone();
        health.set_ready(true, "");
        assert!(other.is_ready());
        other.set_ready(false, "draining");
        assert_eq!(health.readiness(), Err("draining".into()));
        health.fail("the disk is gone");
        health.set_ready(true, "");
        assert_eq!(health.readiness(), Err("the disk is gone".into()));
        assert_eq!(health.live(), Err("the disk is gone".into()));
    }

    #[tokio::test]
    async fn waiting_ends_when_it_is_ready() {
        let health = Health::new();
        let waiting = tokio::spawn({
            let health = health.clone();
            async move { health.wait_ready().await }
        });
        health.set_ready(true, "");
        waiting.await.unwrap();
    }
}
