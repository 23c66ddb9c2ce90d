//! The Controllers service: who leads, and the rebuilding of a lost state.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use tidepool_cluster::{ClusterState, Event, Rebuilt, Remains, rebuild};
use tidepool_proto::v1;
use tidepool_runtime::error::chain;
use tidepool_store::Artifacts;
use tidepool_types::TableVersion;
use tonic::{Request, Response, Status};

use crate::{convert::artifact, error::RequestError, lead::Lead};

/// The service. It holds no state of its own.
pub(crate) struct ControllersService {
    pub(crate) lead: Lead,
    pub(crate) store: Arc<Artifacts>,
}

impl ControllersService {
    async fn rebuild(&self, request: v1::RebuildRequest) -> Result<v1::RebuildReport, RequestError> {
        let v1::RebuildRequest { dry_run, force, expect_nodes: expected } = request;
        let handle = self.lead.handle()?;
        let standing = self.lead.standing();
        let term = standing.led().ok_or_else(RequestError::deposed)?;
        let left = term.grace_ends.saturating_duration_since(Instant::now());
        let (nodes, missing_nodes) = come(&handle.state());
        if !dry_run {
            if u32::try_from(nodes).is_ok_and(|nodes| nodes < expected) {
                return Err(RequestError::TooFew { nodes, expected });
            }
            if !left.is_zero() && !force {
                return Err(RequestError::TooEarly { left, nodes });
            }
        }
        let (remains, mut problems) = remains(&self.store, &handle.state()).await;
        let Rebuilt { durable, tables, problems: lost } = rebuild(&handle.state(), &remains);
        problems.extend(lost);
        // The state machine numbers the map.
        let epoch = durable.map.epoch.0 + 1;
        if !dry_run {
            handle.request(Event::Rebuild { remains }).await?;
            tracing::warn!(epoch, "the durable state was made anew from what nodes hold");
        }
        let table = |(table, placed, found): (TableVersion, u32, u32)| v1::RebuiltTable {
            table_version: Some((&table).into()),
            placed,
            found,
        };
        Ok(v1::RebuildReport {
            epoch,
            nodes: u32::try_from(durable.map.nodes.len()).unwrap_or(u32::MAX),
            tables: tables.into_iter().map(table).collect(),
            releases: durable.map.releases.iter().map(Into::into).collect(),
            problems,
            missing_nodes,
            grace_left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

/// How many nodes have a session, and those of the map that have none.
fn come(state: &ClusterState) -> (usize, Vec<String>) {
    let here: BTreeSet<_> = state.node_reports().map(|report| &report.node).collect();
    let missing = state.map().nodes.keys().filter(|node| !here.contains(node));
    (here.len(), missing.map(ToString::to_string).collect())
}

/// The manifests of what nodes and rankers report, and which of them are not to be had.
async fn remains(store: &Artifacts, state: &ClusterState) -> (Remains, Vec<String>) {
    let (mut remains, mut problems) = (Remains::default(), Vec::new());
    let releases: BTreeSet<_> = state
        .ranker_reports()
        .flat_map(|report| report.releases.iter().map(|r| (r.model.clone(), r.release.clone())))
        .collect();
    let mut tables: BTreeSet<_> = state
        .node_reports()
        .flat_map(|report| report.partitions.iter().map(|status| status.table_version.clone()))
        .collect();
    for (model, release) in releases {
        match store.release(&model, &release).await {
            Ok(files) => {
                tables.extend(files.manifest.tables.iter().cloned());
                remains.manifests.push(files.manifest);
            }
            Err(error) => problems.push(format!("release {model}@{release}: {}", chain(&error))),
        }
    }
    for table in tables {
        match store.table_manifest(&table).await {
            Ok(manifest) => remains.tables.push(artifact(manifest)),
            Err(error) => problems.push(format!("table {table}: {}", chain(&error))),
        }
    }
    (remains, problems)
}

#[tonic::async_trait]
impl v1::controllers_server::Controllers for ControllersService {
    async fn get_standing(
        &self,
        _: Request<v1::GetStandingRequest>,
    ) -> Result<Response<v1::Standing>, Status> {
        let standing = self.lead.standing();
        let term = standing.led().map(|term| term.number);
        Ok(Response::new(v1::Standing {
            leading: term.is_some(),
            term: term.unwrap_or(0),
            leader: standing.leader.unwrap_or_default(),
            problem: standing.problem,
        }))
    }

    async fn rebuild(
        &self,
        request: Request<v1::RebuildRequest>,
    ) -> Result<Response<v1::RebuildReport>, Status> {
        Ok(Response::new(Self::rebuild(self, request.into_inner()).await?))
    }

    async fn note_collection(
        &self,
        _: Request<v1::NoteCollectionRequest>,
    ) -> Result<Response<v1::NoteCollectionResponse>, Status> {
        // It is written down by what stands before all services: that is all there is to it.
        Ok(Response::new(v1::NoteCollectionResponse {}))
    }
}
