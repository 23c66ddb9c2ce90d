//! What `/status` shows.

use serde_json::{Value, json};
use tidepool_runtime::pool::CpuPool;
use tidepool_types::InputSource;

use crate::{
    device::{Engine, memory_document},
    loaded::LoadedRelease,
    releases::{Slot, Snapshot, State},
    resident::Filled,
};

/// What a ranker knows of itself.
pub(crate) struct Facts<'a> {
    pub(crate) ranker: &'a str,
    pub(crate) grpc_address: &'a str,
    pub(crate) http_address: &'a str,
    /// The controller that is followed, if one is.
    pub(crate) controller: Option<&'a str>,
    pub(crate) pool: &'a CpuPool,
    pub(crate) engine: &'a Engine,
    /// Why it is not ready, if so.
    pub(crate) not_ready: Option<String>,
}

pub(crate) fn document(facts: &Facts<'_>, now: &Snapshot) -> Value {
    json!({
        "schema_version": 1,
        "role": "ranker",
        "ranker": facts.ranker,
        "grpc_address": facts.grpc_address,
        "http_address": facts.http_address,
        "controller": facts.controller,
        "ready": facts.not_ready.is_none(),
        "not_ready_because": facts.not_ready,
        "epoch": now.seen.then_some(now.map.epoch.0),
        "device": facts.engine.document(),
        "cpu_pool": {
            "threads": facts.pool.threads(),
            "waiting_jobs": facts.pool.depth(),
            "queue_len": facts.pool.queue_len(),
        },
        "rolled_back": now.rollbacks.iter().map(|(model, r)| json!({
            "model": model, "answers": r.to, "off": r.off,
        })).collect::<Vec<_>>(),
        "releases": now.slots.iter().map(|slot| release(slot, now)).collect::<Vec<_>>(),
    })
}

fn release(slot: &Slot, now: &Snapshot) -> Value {
    let entry = &slot.entry;
    let current = now.map.current_release(&entry.model).is_some_and(|c| c.release == entry.release);
    let device_memory = match &slot.state {
        State::Ready(loaded) => memory_document(&loaded.device_memory),
        State::Loading | State::Failed(_) => json!([]),
    };
    let resident = match &slot.state {
        State::Ready(loaded) => loaded.filled.document(),
        State::Loading | State::Failed(_) => Filled::default().document(),
    };
    let (state, problem, model) = match &slot.state {
        State::Loading => ("loading", None, None),
        State::Ready(loaded) => ("ready", None, Some(contract(loaded))),
        State::Failed(problem) => ("failed", Some(problem), None),
    };
    json!({
        "model": entry.model,
        "release": entry.release,
        "current": current,
        "buckets": now.map.traffic.get(&entry.model).map_or(0, |traffic| traffic.share(&entry.release)),
        "state": state,
        "problem": problem,
        "tables": entry.tables,
        "device_memory": device_memory,
        "resident": resident,
        "contract": model,
    })
}

fn contract(loaded: &LoadedRelease) -> Value {
    let spec = &loaded.spec;
    let inputs = spec.inputs.iter().zip(&loaded.table_of).zip(&loaded.widths);
    let inputs = inputs.map(|((input, table), width)| {
        let pooling = match &input.source {
            InputSource::Pooled { pooling, .. } => Some(pooling.as_str()),
            InputSource::Sequence { .. } | InputSource::Dense { .. } => None,
        };
        json!({ "name": input.name, "side": input.side.as_str(), "width": width, "table": table, "pooling": pooling })
    });
    json!({
        "inputs": inputs.collect::<Vec<_>>(),
        "outputs": spec.outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(),
        "score": spec.score_name(),
    })
}
