//! Has traffic leave a node or a replica group, and says what nobody else has.

use std::collections::BTreeSet;

use tidepool_cluster::Event;
use tidepool_proto::{node_to_wire, v1};
use tidepool_types::NodeId;

use crate::{convert::name, error::RequestError, lead::Lead, releases};

/// Drains what `request` names, or only tries it; says how it stands afterwards.
pub(crate) async fn drain(
    lead: &Lead,
    request: v1::DrainNodeRequest,
    by: String,
) -> Result<v1::DrainStatus, RequestError> {
    let v1::DrainNodeRequest { node, group, draining, dry_run, force } = request;
    let nodes: BTreeSet<_> = match (node.is_empty(), group.is_empty()) {
        (false, true) => [NodeId(name("node", node)?)].into(),
        (true, false) => {
            let (state, group) = (lead.handle()?.state(), name("group", group)?);
            let of_group = state.map().nodes.iter().filter(|(_, node)| node.group == group);
            let nodes: BTreeSet<_> = of_group.map(|(id, _)| id.clone()).collect();
            if nodes.is_empty() {
                return Err(RequestError::NotFound { what: format!("group {group}") });
            }
            nodes
        }
        _ => return Err(RequestError::NodeOrGroup),
    };
    let event = Event::DrainNodes { nodes: nodes.clone(), draining, force, by };
    let state = releases::apply(lead, event, dry_run).await?;
    let asked = state.map().nodes.iter().filter(|(id, _)| nodes.contains(*id));
    Ok(v1::DrainStatus {
        epoch: state.map().epoch.0,
        nodes: asked.map(node_to_wire).collect(),
        missing: if draining { state.only_on(&nodes) } else { Vec::new() },
    })
}
