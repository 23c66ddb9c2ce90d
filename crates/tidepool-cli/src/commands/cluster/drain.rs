//! `tidepool cluster drain`: traffic leaves a node or a replica group, and comes back with `--undo`.

use anyhow::Result;
use serde_json::{Value, json};
use tidepool_proto::v1;
use tidepool_types::Name;

use crate::{
    commands::{control::refusal, release::asked},
    output::{Outcome, Output},
    remote::Remote,
};

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("whom").required(true).args(["node", "group"])))]
pub(crate) struct Args {
    /// The node.
    #[arg(value_name = "NODE")]
    node: Option<Name>,
    /// Every node of a replica group.
    #[arg(long, value_name = "GROUP")]
    group: Option<Name>,
    /// Traffic may come back.
    #[arg(long)]
    undo: bool,
    /// Also where nobody else has what they serve: requests for that stay with them.
    #[arg(long, conflicts_with = "undo")]
    force: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: Args, remote: &Remote, output: Output) -> Result<Outcome> {
    let Args { node, group, undo, force, dry_run } = args;
    let word = |name: Option<Name>| name.map(|name| name.to_string()).unwrap_or_default();
    let (node, group) = (word(node), word(group));
    let request = v1::DrainNodeRequest { node, group, draining: !undo, dry_run, force };
    let mut control = remote.control().await?;
    let status = control.drain_node(asked(request)).await.map_err(|s| refusal(&s))?.into_inner();
    if dry_run {
        output.line("nothing was done; it would be:");
    }
    for node in &status.nodes {
        let draining = if node.draining { "draining" } else { "not draining" };
        let up = if node.up { "up" } else { "down" };
        output.line(format!(
            "{} of group {}: {up}, {draining} (epoch {})",
            node.node, node.group, status.epoch
        ));
    }
    for missing in &status.missing {
        output.line(format!("nobody else has {missing}: requests for that stay here"));
    }
    output.object(object(&status, dry_run));
    Ok(Outcome::Done)
}

fn object(status: &v1::DrainStatus, dry_run: bool) -> Value {
    let node = |node: &v1::NodeEntry| json!({ "node": node.node, "group": node.group, "up": node.up, "draining": node.draining });
    json!({
        "epoch": status.epoch,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "missing": status.missing,
        "dry_run": dry_run,
    })
}
