//! What `/status` shows.

use serde_json::{Value, json};
use tidepool_cluster::{ClusterState, HostMemory, Problem, TableLayout};

use crate::{lead::Lead, metrics::state_word};

/// Who leads and, if that is this controller, the state of the cluster.
pub(crate) fn status(lead: &Lead) -> Value {
    let standing = lead.standing();
    let Some(term) = standing.led() else {
        return json!({
            "role": "controller",
            "leading": false,
            "leader": standing.leader,
            "problem": standing.problem,
        });
    };
    let mut status = of_cluster(&term.handle.state());
    status["leader"] = json!(standing.leader);
    status["term"] = json!(term.number);
    status
}

fn of_memory(memory: &HostMemory) -> Value {
    json!({
        "budget_bytes": memory.budget_bytes,
        "locked_bytes": memory.locked_bytes,
        "copied_bytes": memory.copied_bytes,
        "mapped_bytes": memory.mapped_bytes,
        "charged_bytes": memory.charged_bytes,
    })
}

fn of_cluster(state: &ClusterState) -> Value {
    let map = state.map();
    let (placed, ready) = state.replicas_placed_and_ready();
    let nodes: Vec<_> = map
        .nodes
        .iter()
        .map(|(id, node)| {
            let placed: usize = map.assignment(id).tables.iter().map(|t| t.partitions.len()).sum();
            let report = state.node_reports().find(|r| r.node == *id);
            json!({
                "node": id,
                "group": node.group,
                "up": node.up,
                "draining": node.draining,
                "grpc_address": node.grpc_address,
                "http_address": node.http_address,
                "partitions_placed": placed,
                "partitions": report.map(|r| &r.partitions),
                "epoch": report.map(|r| r.epoch),
                "capacity_bytes": report.map(|r| r.capacity_bytes),
                "memory": report.and_then(|r| r.memory.as_ref()).map(of_memory),
            })
        })
        .collect();
    let table = |layout: &TableLayout| {
        let table = &layout.schema.table_version;
        json!({
            "table": table.table,
            "version": table.version,
            "schema": layout.schema,
            "groups": layout.placement.groups.keys().collect::<Vec<_>>(),
            "served": state.durable.served.contains(table),
            "waiting_for": state.table_waiting_for(table),
        })
    };
    let releases: Vec<_> = map
        .releases
        .iter()
        .map(|release| {
            json!({
                "model": release.model,
                "release": release.release,
                "state": state_word(release.state),
                "pinned": release.pinned,
                "tables": release.tables.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "waiting_for": state.waiting_for(release),
            })
        })
        .collect();
    let rankers: Vec<_> = state
        .ranker_reports()
        .map(|r| {
            let loaded: Vec<_> = r.releases.iter().filter(|l| l.ready).collect();
            json!({
                "ranker": r.ranker,
                "grpc_address": r.grpc_address,
                "http_address": r.http_address,
                "epoch": r.epoch,
                "releases_ready": loaded.iter().map(|l| format!("{}@{}", l.model, l.release)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let problem = |problem: Problem| json!({ "gravity": problem.gravity.as_str(), "what": problem.what, "todo": problem.todo });
    json!({
        "role": "controller",
        "leading": true,
        "problems": state.problems().into_iter().map(problem).collect::<Vec<_>>(),
        "incarnation": map.epoch.incarnation(),
        "epoch": map.epoch,
        "partitions": { "placed": placed, "ready": ready },
        "nodes": nodes,
        "rankers": rankers,
        "tables": map.layouts.iter().map(table).collect::<Vec<_>>(),
        "releases": releases,
    })
}
