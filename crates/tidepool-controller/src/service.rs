//! The Control service: wire in, events out, and the answers back.

use std::{pin::Pin, sync::Arc};

use futures::{FutureExt, Stream, StreamExt, stream};
use tidepool_cluster::{ClusterState, Event, ReleaseEntry};
use tidepool_proto::{WireError, quota_rules, quota_tenant, v1};
use tidepool_runtime::{
    auth::{Caller, Standing},
    shutdown::Shutdown,
};
use tidepool_store::{ArtifactStore, Artifacts};
use tidepool_types::{Name, TableVersion};
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    convert::{artifact, name, node_report_to_wire, problem_to_wire, ranker_report_to_wire},
    drain,
    error::RequestError,
    lead::Lead,
    releases,
    session::{self, NodeRole, RankerRole, Role},
};

/// Answers that may wait for a slow peer: one map, and the reason of the end.
const QUEUED_ANSWERS: usize = 2;

/// The service. It holds no state of its own.
pub(crate) struct ControlService {
    pub(crate) lead: Lead,
    pub(crate) store: Arc<Artifacts>,
    pub(crate) lifecycle: Shutdown,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ControlService {
    fn open_session<R: Role>(
        &self,
        request: Request<Streaming<R::Report>>,
    ) -> Result<Response<Answers<R::Answer>>, Status> {
        let standing = Standing::new(Caller::of(request.extensions()));
        let reports = request.into_inner();
        let (answers, outgoing) = mpsc::channel(QUEUED_ANSWERS);
        let (handle, shutdown) = (self.lead.handle()?, self.lifecycle.token());
        self.lifecycle.spawn(session::run::<R>(handle, standing, reports, answers, shutdown));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    /// Reads the store, on a thread that may wait for a disk.
    async fn read_store<T, F>(&self, read: F) -> Result<T, RequestError>
    where
        T: Send + 'static,
        F: FnOnce(&ArtifactStore) -> Result<T, tidepool_store::StoreError> + Send + 'static,
    {
        let store = self.store.clone();
        let read = spawn_blocking(move || read(store.files())).await;
        Ok(read.map_err(|e| RequestError::Internal(e.to_string()))??)
    }

    async fn publish(
        &self,
        model: Name,
        release: Name,
        by: String,
    ) -> Result<v1::ReleaseStatus, RequestError> {
        let state = self.lead.handle()?.state();
        let known = state.map().releases.iter().map(|entry| (entry.model.clone(), entry.release.clone()));
        self.store.forget_releases_but(known.chain([(model.clone(), release.clone())]).collect());
        self.store.bring_release(&model, &release).await?;
        let (of, named) = (model.clone(), release.clone());
        let event = self.read_store(move |store| {
            let manifest = store.release(&of, &named)?.manifest;
            let tables = manifest.tables.iter().map(|t| store.table_manifest(t).map(artifact));
            let tables = tables.collect::<Result<_, _>>()?;
            Ok(Event::PublishRelease { manifest, tables, by })
        });
        self.lead.handle()?.request(event.await?).await?;
        self.release_status(&model, &release)
    }

    async fn promote(
        &self,
        request: v1::PromoteReleaseRequest,
        by: String,
    ) -> Result<v1::ReleaseStatus, RequestError> {
        let (model, release) = release_name(request.model, request.release)?;
        let event = Event::PromoteRelease { model: model.clone(), release: release.clone(), by };
        let state = releases::apply(&self.lead, event, request.dry_run).await?;
        status_in(&state, &model, &release)
    }

    fn release_status(&self, model: &Name, release: &Name) -> Result<v1::ReleaseStatus, RequestError> {
        status_in(&self.lead.handle()?.state(), model, release)
    }

    async fn serve_table(
        &self,
        request: v1::ServeTableRequest,
    ) -> Result<v1::ServeTableResponse, RequestError> {
        let table = request.table_version.ok_or(WireError::Missing("table_version"))?;
        let table_version: TableVersion = table.try_into()?;
        if !request.serve {
            self.lead.handle()?.request(Event::StopTable { table_version }).await?;
            let epoch = self.lead.handle()?.state().map().epoch.0;
            return Ok(v1::ServeTableResponse { epoch, waiting_for: Vec::new() });
        }
        let table = self.store.table_manifest(&table_version).await?;
        self.lead.handle()?.request(Event::ServeTable { table: artifact(table) }).await?;
        let state = self.lead.handle()?.state();
        let waiting_for = state.table_waiting_for(&table_version);
        Ok(v1::ServeTableResponse { epoch: state.map().epoch.0, waiting_for })
    }

    async fn change_quotas(&self, event: Event) -> Result<v1::Quotas, RequestError> {
        self.lead.handle()?.request(event).await?;
        self.quotas()
    }

    fn quotas(&self) -> Result<v1::Quotas, RequestError> {
        Ok(v1::Quotas { rules: quota_rules(&self.lead.handle()?.state().durable.quotas) })
    }
}

fn status_in(state: &ClusterState, model: &Name, release: &Name) -> Result<v1::ReleaseStatus, RequestError> {
    let entry = state.map().release(model, release);
    let entry = entry.ok_or_else(|| RequestError::NotFound { what: format!("release {model}@{release}") })?;
    Ok(status_of_release(state, entry))
}

fn status_of_release(state: &ClusterState, entry: &ReleaseEntry) -> v1::ReleaseStatus {
    v1::ReleaseStatus {
        release: Some(entry.into()),
        epoch: state.map().epoch.0,
        waiting_for: state.waiting_for(entry),
    }
}

fn release_name(model: String, release: String) -> Result<(Name, Name), RequestError> {
    Ok((name("model", model)?, name("release", release)?))
}

#[tonic::async_trait]
impl v1::control_server::Control for ControlService {
    type NodeSessionStream = Answers<v1::Assignment>;
    type RankerSessionStream = Answers<v1::ClusterMap>;
    type WatchMapStream = Answers<v1::ClusterMap>;

    async fn node_session(
        &self,
        request: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Self::NodeSessionStream>, Status> {
        self.open_session::<NodeRole>(request)
    }

    async fn ranker_session(
        &self,
        request: Request<Streaming<v1::RankerReport>>,
    ) -> Result<Response<Self::RankerSessionStream>, Status> {
        self.open_session::<RankerRole>(request)
    }

    async fn watch_map(
        &self,
        request: Request<v1::WatchMapRequest>,
    ) -> Result<Response<Self::WatchMapStream>, Status> {
        let mut standing = Standing::new(Caller::of(request.extensions()));
        let have = request.into_inner().have_epoch;
        let handle = self.lead.handle()?;
        let (maps, draining) = (handle.maps(), self.lifecycle.draining());
        let over = async move {
            tokio::select! {
                () = draining => None,
                () = handle.ended() => None,
                refusal = standing.lost() => Some(Status::from(RequestError::Lost(refusal.message))),
            }
        };
        let over = over.boxed().shared();
        // Another epoch is sent even when it is smaller: it is the map of another cluster, then, or of one
        // that was begun anew, and this controller's word.
        let maps = WatchStream::new(maps)
            .filter(move |map| std::future::ready(map.epoch.0 != have))
            .map(|map| Ok((&*map).into()))
            .take_until(over.clone())
            .chain(stream::once(over).filter_map(|refusal| std::future::ready(refusal.map(Err))));
        Ok(Response::new(Box::pin(maps)))
    }

    async fn publish_release(
        &self,
        request: Request<v1::PublishReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        let by = releases::asked_by(&request);
        let request = request.into_inner();
        let (model, release) = release_name(request.model, request.release)?;
        Ok(Response::new(self.publish(model, release, by).await?))
    }

    async fn promote_release(
        &self,
        request: Request<v1::PromoteReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        let by = releases::asked_by(&request);
        Ok(Response::new(self.promote(request.into_inner(), by).await?))
    }

    async fn get_release(
        &self,
        request: Request<v1::GetReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        let request = request.into_inner();
        let (model, release) = release_name(request.model, request.release)?;
        Ok(Response::new(self.release_status(&model, &release)?))
    }

    async fn serve_table(
        &self,
        request: Request<v1::ServeTableRequest>,
    ) -> Result<Response<v1::ServeTableResponse>, Status> {
        Ok(Response::new(Self::serve_table(self, request.into_inner()).await?))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainStatus>, Status> {
        let by = releases::asked_by(&request);
        Ok(Response::new(drain::drain(&self.lead, request.into_inner(), by).await?))
    }

    async fn set_quota(&self, request: Request<v1::QuotaRule>) -> Result<Response<v1::Quotas>, Status> {
        let v1::QuotaRule { tenant, quota } = request.into_inner();
        let tenant = quota_tenant(tenant).map_err(RequestError::from)?;
        let quota = quota.unwrap_or_default().into();
        Ok(Response::new(self.change_quotas(Event::SetQuota { tenant, quota }).await?))
    }

    async fn remove_quota(
        &self,
        request: Request<v1::RemoveQuotaRequest>,
    ) -> Result<Response<v1::Quotas>, Status> {
        let tenant = quota_tenant(request.into_inner().tenant).map_err(RequestError::from)?;
        Ok(Response::new(self.change_quotas(Event::RemoveQuota { tenant }).await?))
    }

    async fn list_quotas(&self, _: Request<v1::ListQuotasRequest>) -> Result<Response<v1::Quotas>, Status> {
        Ok(Response::new(self.quotas()?))
    }

    async fn get_cluster(
        &self,
        _: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::ClusterReport>, Status> {
        let state = self.lead.handle()?.state();
        let releases = state.map().releases.iter();
        Ok(Response::new(v1::ClusterReport {
            map: Some(state.map().into()),
            nodes: state.node_reports().map(node_report_to_wire).collect(),
            rankers: state.ranker_reports().map(ranker_report_to_wire).collect(),
            releases: releases.map(|entry| status_of_release(&state, entry)).collect(),
            served: state.durable.served.iter().map(Into::into).collect(),
            problems: state.problems().into_iter().map(problem_to_wire).collect(),
        }))
    }
}
