//! What a stream keeps of its caller: rules may change while it is open, and then it must not go on as before.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio_stream::{Stream, wrappers::WatchStream};

use super::{Access, Caller, Needs, Policy, Refusal, Shown};
use crate::listen::Peer;

/// How a caller has passed a gate, to be looked at again.
#[derive(Clone, Debug)]
pub(super) struct Passed {
    access: Access,
    shown: Shown,
    call: &'static str,
    needs: Needs,
}

impl Passed {
    /// Notes down at `caller` how it has passed, where rules may change.
    pub(super) fn note(
        access: &Access,
        shown: Shown,
        (call, needs): (&'static str, Needs),
        caller: Caller,
    ) -> Caller {
        let passed = access.has_rules().then(|| Self { access: access.clone(), shown, call, needs });
        Caller { passed, ..caller }
    }
}

impl Caller {
    /// The same caller by the rules as they are now, for the call that it has made.
    ///
    /// # Errors
    /// [`Refusal`]: it would not be let in any more.
    pub fn again(&self) -> Result<Self, Refusal> {
        let Some(passed) = &self.passed else { return Ok(self.clone()) };
        let Passed { access, shown, call, needs } = passed;
        let peer = self.from.map(|address| Peer { address, certificate: None });
        let caller = access.by_shown(peer.as_ref(), shown)?;
        caller.check(call, needs)?;
        Ok(Self { passed: self.passed.clone(), ..caller })
    }
}

/// The caller of a stream, as long as it may go on.
#[derive(Debug)]
pub struct Standing {
    caller: Arc<Caller>,
    /// A mark for each change of the rules; `None` where there are none.
    changes: Option<WatchStream<u64>>,
}

impl Standing {
    /// Of a caller who has passed a gate.
    #[must_use]
    pub fn new(caller: Caller) -> Self {
        let changes = caller.passed.as_ref().and_then(|passed| match &*passed.access.0 {
            // Its first mark is there at once: rules may have changed since the gate.
            Policy::Rules(file) => Some(WatchStream::new(file.changes())),
            Policy::Open { .. } | Policy::Certified => None,
        });
        Self { caller: Arc::new(caller), changes }
    }

    /// The caller, by the rules at the last look.
    #[must_use]
    pub const fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Looks at the rules if they have changed: ready when the caller would not be let in any more, and woken with
    /// the next change otherwise.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        let Some(changes) = &mut self.changes else { return Poll::Pending };
        while ready!(Pin::new(&mut *changes).poll_next(cx)).is_some() {
            match self.caller.again() {
                Ok(caller) => self.caller = Arc::new(caller),
                Err(Refusal { message, .. }) => {
                    let message = format!("the rules have changed while this was open: {message}");
                    return Poll::Ready(Refusal { known: true, message });
                }
            }
        }
        // The rules are gone with their process.
        self.changes = None;
        Poll::Pending
    }

    /// Resolves when the caller would not be let in any more.
    pub async fn lost(&mut self) -> Refusal {
        poll_fn(|cx| self.poll_lost(cx)).await
    }
}
