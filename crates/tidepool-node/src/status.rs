//! What `/status` shows.

use serde_json::{Value, json};
use tidepool_cluster::PartitionState;
use tidepool_kernels::Isa;
use tidepool_proto::v1;

use crate::{partitions::Snapshot, state::NodeState};

/// The node as JSON: who it is, what it should hold, and what it serves.
pub(crate) fn status(
    introduction: &v1::NodeReport,
    isa: Isa,
    state: &NodeState,
    snapshot: &Snapshot,
) -> Value {
    let partitions: Vec<Value> = state
        .partitions
        .iter()
        .map(|held| {
            let status = &held.status;
            let (word, problem) = match &status.state {
                PartitionState::Loading => ("loading", None),
                PartitionState::Ready => ("ready", None),
                PartitionState::Failed(problem) => ("failed", Some(problem)),
            };
            let mut value = json!({
                "table": status.table_version.table,
                "version": status.table_version.version,
                "partitions": status.partitions,
                "partition": status.partition,
                "state": word,
                "rows": held.rows,
                "file_bytes": status.file_bytes,
                "resident_bytes": held.memory.resident_bytes,
                "huge_page_bytes": held.memory.huge_page_bytes,
            });
            if let Some(problem) = problem {
                value["problem"] = json!(problem);
            }
            value
        })
        .collect();
    let tables: Vec<Value> = snapshot
        .schemas()
        .map(|schema| {
            json!({
                "table": schema.table_version.table,
                "version": schema.table_version.version,
                "partitions": schema.partitions,
                "dim": schema.dim,
                "row_format": schema.format,
                "keying": schema.keying,
            })
        })
        .collect();
    let warm_up: Vec<Value> = state
        .warmth()
        .into_iter()
        .map(|((table_version, partitions), warmth)| {
            json!({
                "table": table_version.table,
                "version": table_version.version,
                "partitions": partitions,
                "bytes_done": warmth.done_bytes,
                "bytes_in_all": warmth.all_bytes,
            })
        })
        .collect();
    let mapped: u64 = snapshot.partitions().map(|file| file.file_bytes()).sum();
    json!({
        "role": "node",
        "node": introduction.node,
        "group": introduction.group,
        "grpc_address": introduction.grpc_address,
        "http_address": introduction.http_address,
        "isa": isa.as_str(),
        "epoch": state.epoch,
        "ready": state.readiness().is_ok(),
        "capacity_bytes": introduction.capacity_bytes,
        "mapped_bytes": mapped,
        "table_versions": tables,
        "warm_up": warm_up,
        "partitions": partitions,
    })
}
