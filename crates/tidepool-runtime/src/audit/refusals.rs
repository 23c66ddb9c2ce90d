//! Calls that were refused, counted until they are told of: one line a second for each caller and call, however many
//! there were.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;

use super::{Line, bytes};
use crate::{
    auth::{Caller, Refused},
    utc,
};

/// Callers and calls that are told apart in a second; what is more is counted together.
const MAX_KINDS: usize = 256;

/// What was refused since it was last told of.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    kinds: BTreeMap<(Arc<str>, String), Kind>,
    more: u64,
}

#[derive(Debug)]
struct Kind {
    caller: Caller,
    calls: u64,
    /// What the last of them was told.
    problem: String,
}

impl Refusals {
    pub(super) fn count(&self, Refused { call, caller, refusal }: &Refused) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { kinds, more } = &mut *counts;
        if let Some(kind) = kinds.get_mut(&(caller.name.clone(), call.clone())) {
            kind.calls += 1;
        } else if kinds.len() < MAX_KINDS {
            let kind = Kind { caller: caller.clone(), calls: 1, problem: refusal.message.clone() };
            kinds.insert((caller.name.clone(), call.clone()), kind);
        } else {
            *more += 1;
        }
    }

    /// The lines about what was counted, which begins anew.
    pub(super) fn lines(&self) -> Vec<Vec<u8>> {
        let Counts { kinds, more } = mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lines = Vec::new();
        for ((_, call), Kind { caller, calls, problem }) in kinds {
            lines.push(line(&caller, &call, calls, &problem));
        }
        if more > 0 {
            lines.push(line(&Caller::nobody("others"), "", more, "there are too many of them to name"));
        }
        lines
    }
}

fn line(caller: &Caller, call: &str, calls: u64, problem: &str) -> Vec<u8> {
    let Caller { name, by, from, .. } = caller;
    tracing::info!(target: "audit", who = %name, ?from, call, calls, problem, "calls were refused");
    bytes(&Line {
        time: utc::format(utc::now()),
        change: None,
        who: name,
        known_by: *by,
        from: from.map(|from| from.to_string()),
        action: "refused",
        what: &json!({ "call": call, "calls": calls }),
        outcome: "forbidden",
        problem: Some(problem),
        epoch: None,
    })
}
