//! `tidepool cluster nodes`.

use anyhow::Result;
use serde_json::{Value, json};

use super::view::{NodeView, View};
use crate::{
    columns::{self, Columns, harmless},
    output::{Outcome, Output},
    remote::Remote,
};

pub(super) async fn run(remote: &Remote, output: Output) -> Result<Outcome> {
    let (view, _) = View::fetch(remote).await?;
    let nodes = view.nodes();
    if nodes.is_empty() {
        output.line("no node has come to this cluster yet");
    }
    let mut table = Columns::new(&[
        "node",
        "group",
        "up",
        "address",
        ">placed",
        ">ready",
        ">bytes",
        ">capacity",
        ">epochs behind",
    ]);
    for node in &nodes {
        let bytes = |count: Option<u64>, none: &str| count.map_or_else(|| none.into(), columns::bytes);
        table.row([
            node.node.to_string(),
            node.group.to_string(),
            if node.up { "yes".into() } else { "DOWN".into() },
            harmless(node.grpc_address),
            node.placed.to_string(),
            node.ready.to_string(),
            bytes(node.bytes, "-"),
            bytes(node.capacity, if node.bytes.is_some() { "no limit" } else { "-" }),
            view.lag_words(node.epoch),
        ]);
    }
    table.print("", output);
    for node in &nodes {
        for failed in &node.failed {
            output.line(format!("{} could not load {}", node.node, harmless(failed)));
        }
    }
    let objects: Vec<_> = nodes.iter().map(|node| object(node, &view)).collect();
    output.object(json!({ "epoch": view.map.epoch, "nodes": objects }));
    Ok(Outcome::Done)
}

fn object(node: &NodeView<'_>, view: &View) -> Value {
    json!({
        "node": node.node,
        "group": node.group,
        "up": node.up,
        "grpc_address": node.grpc_address,
        "http_address": node.http_address,
        "partitions_placed": node.placed,
        "partitions_ready": node.ready,
        "file_bytes": node.bytes,
        "capacity_bytes": node.capacity,
        "epoch": node.epoch,
        "epochs_behind": node.epoch.and_then(|epoch| view.lag(epoch)),
        "failed": node.failed,
    })
}
