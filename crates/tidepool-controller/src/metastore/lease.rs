//! The right to lead, and how long it is certain.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::time;
use tokio_util::sync::CancellationToken;

/// Held by the controller that leads. Once it is lost it stays lost. Clones share it.
///
/// Its end is reckoned by this process's monotonic clock from before the renewal was asked for: it has ended
/// here before anyone else can be granted it, whatever the network does, and also when the process was
/// stopped in between.
#[derive(Clone)]
pub struct Lease(Arc<Shared>);

struct Shared {
    lost: CancellationToken,
    /// `None`: as long as the process lives.
    until: Mutex<Option<Instant>>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("held", &self.is_held()).finish_non_exhaustive()
    }
}

impl Lease {
    /// A lease that is held until then, if it is not extended.
    #[must_use]
    pub fn until(until: Instant) -> Self {
        Self::new(Some(until))
    }

    /// A lease that does not end by itself.
    #[must_use]
    pub fn for_ever() -> Self {
        Self::new(None)
    }

    fn new(until: Option<Instant>) -> Self {
        Self(Arc::new(Shared { lost: CancellationToken::new(), until: Mutex::new(until) }))
    }

    /// Holds it until then, unless it has been lost.
    pub fn extend(&self, until: Instant) {
        let mut held = self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(ends) if Instant::now() < *ends => *ends = until.max(*ends),
            Some(_) => self.lose(),
            None => {}
        }
    }

    /// Gives it up.
    pub fn lose(&self) {
        self.0.lost.cancel();
    }

    /// Whether it is certain that nobody else leads.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let ended = self.ends().is_some_and(|until| Instant::now() >= until);
        if ended {
            self.lose();
        }
        !self.0.lost.is_cancelled()
    }

    /// Resolves when it is lost.
    pub async fn lost(&self) {
        while self.is_held() {
            let Some(until) = self.ends() else { return self.0.lost.cancelled().await };
            tokio::select! {
                () = self.0.lost.cancelled() => {}
                () = time::sleep_until(until.into()) => {}
            }
        }
    }

    fn ends(&self) -> Option<Instant> {
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_ends_by_itself_unless_it_is_extended_and_never_comes_back() {
        let (short, long) = (Duration::from_millis(40), Duration::from_secs(60));
        let lease = Lease::until(Instant::now() + short);
        assert!(lease.is_held());
        lease.extend(Instant::now() + short * 2);
        let began = Instant::now();
        lease.lost().await;
        assert!(began.elapsed() >= short, "it was extended");
        lease.extend(Instant::now() + long);
        assert!(!lease.is_held(), "what was lost stays lost");

        let lease = Lease::until(Instant::now() + long);
        let other = lease.clone();
        let waits = tokio::spawn(async move { other.lost().await });
        lease.lose();
        waits.await.unwrap();
        assert!(Lease::for_ever().is_held());
    }

    #[test]
    fn one_that_has_ended_unnoticed_cannot_be_extended() {
        let lease = Lease::until(Instant::now());
        lease.extend(Instant::now() + Duration::from_secs(60));
        assert!(!lease.is_held());
    }
}
