//! Reports from and to the wire.

use tidepool_cluster::{NodeReport, Problem, RankerRelease, RankerReport, TableArtifact};
use tidepool_proto::{WireError, release_state, v1};
use tidepool_types::{Epoch, Name, NodeId, TableManifest};

pub(crate) fn name(field: &'static str, text: String) -> Result<Name, WireError> {
    Name::new(text).map_err(|source| WireError::Name { field, source })
}

fn address(field: &'static str, text: String) -> Result<String, WireError> {
    if text.is_empty() { Err(WireError::Missing(field)) } else { Ok(text) }
}

pub(crate) fn node_report(from: v1::NodeReport) -> Result<NodeReport, WireError> {
    Ok(NodeReport {
        node: NodeId(name("node", from.node)?),
        group: name("group", from.group)?,
        grpc_address: address("grpc_address", from.grpc_address)?,
        http_address: from.http_address,
        capacity_bytes: from.capacity_bytes,
        epoch: Epoch(from.epoch),
        partitions: from.partitions.into_iter().map(TryInto::try_into).collect::<Result<_, WireError>>()?,
        memory: from.memory.map(Into::into),
    })
}

pub(crate) fn node_report_to_wire(from: &NodeReport) -> v1::NodeReport {
    v1::NodeReport {
        node: from.node.to_string(),
        group: from.group.to_string(),
        grpc_address: from.grpc_address.clone(),
        http_address: from.http_address.clone(),
        capacity_bytes: from.capacity_bytes,
        epoch: from.epoch.0,
        partitions: from.partitions.iter().map(Into::into).collect(),
        memory: from.memory.as_ref().map(Into::into),
    }
}

pub(crate) fn ranker_report(from: v1::RankerReport) -> Result<RankerReport, WireError> {
    let release = |r: v1::RankerRelease| {
        let state = release_state(r.state());
        Ok(RankerRelease {
            state,
            model: name("model", r.model)?,
            release: name("release", r.release)?,
            ready: r.ready,
            problem: r.problem,
            serving: r.serving.map(TryInto::try_into).transpose()?,
        })
    };
    Ok(RankerReport {
        ranker: name("ranker", from.ranker)?,
        grpc_address: address("grpc_address", from.grpc_address)?,
        http_address: from.http_address,
        epoch: Epoch(from.epoch),
        releases: from.releases.into_iter().map(release).collect::<Result<_, WireError>>()?,
        rolled_back: from
            .rolled_back
            .into_iter()
            .map(|model| name("rolled_back", model))
            .collect::<Result<_, WireError>>()?,
        rolled_back_to: from
            .rolled_back_to
            .into_iter()
            .map(|to| Ok((name("rolled_back_to", to.model)?, name("rolled_back_to", to.release)?)))
            .collect::<Result<_, WireError>>()?,
    })
}

pub(crate) fn ranker_report_to_wire(from: &RankerReport) -> v1::RankerReport {
    let release = |r: &RankerRelease| v1::RankerRelease {
        model: r.model.to_string(),
        release: r.release.to_string(),
        ready: r.ready,
        problem: r.problem.clone(),
        serving: r.serving.as_ref().map(Into::into),
        state: r.state.map_or(v1::ReleaseState::Unspecified, Into::into).into(),
    };
    v1::RankerReport {
        ranker: from.ranker.to_string(),
        grpc_address: from.grpc_address.clone(),
        http_address: from.http_address.clone(),
        epoch: from.epoch.0,
        releases: from.releases.iter().map(release).collect(),
        rolled_back: from.rolled_back.iter().map(ToString::to_string).collect(),
        rolled_back_to: from.rolled_back_to.iter().map(rolled_back_to).collect(),
    }
}

pub(crate) fn problem_to_wire(from: Problem) -> v1::Problem {
    v1::Problem { gravity: from.gravity.to_string(), what: from.what, todo: from.todo }
}

fn rolled_back_to((model, release): &(Name, Name)) -> v1::RolledBackTo {
    v1::RolledBackTo { model: model.to_string(), release: release.to_string() }
}

pub(crate) fn artifact((manifest, manifest_hash): (TableManifest, String)) -> TableArtifact {
    TableArtifact { schema: manifest.schema, manifest_hash }
}
