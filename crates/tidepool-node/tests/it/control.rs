//! A controller that hands out what the test tells it to, and remembers the last report.

use std::{net::SocketAddr, pin::Pin, time::Duration};

use futures::{Stream, StreamExt};
use tidepool_cluster::{Assignment, PartitionState, PartitionStatus};
use tidepool_proto::v1::{
    self,
    control_server::{Control, ControlServer},
};
use tidepool_runtime::net::bind_tcp;
use tokio::{sync::watch, time::timeout};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

/// Longest wait for anything that should happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A running controller; it stops when dropped.
pub(crate) struct FakeController {
    pub(crate) address: SocketAddr,
    assignments: watch::Sender<v1::Assignment>,
    reports: watch::Receiver<v1::NodeReport>,
    _stop: DropGuard,
}

struct Service {
    assignments: watch::Receiver<v1::Assignment>,
    reports: watch::Sender<v1::NodeReport>,
    stop: CancellationToken,
}

impl FakeController {
    pub(crate) async fn start(first: &Assignment) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), first).await
    }

    pub(crate) async fn start_at(address: SocketAddr, first: &Assignment) -> Self {
        let listener = bind_tcp(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (assignments, newest) = watch::channel(first.into());
        let (sender, reports) = watch::channel(v1::NodeReport::default());
        let stop = CancellationToken::new();
        let service = Service { assignments: newest, reports: sender, stop: stop.clone() };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder()
            .add_service(ControlServer::new(service))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tokio::spawn(server);
        Self { address, assignments, reports, _stop: stop.drop_guard() }
    }

    pub(crate) fn assign(&self, assignment: &Assignment) {
        self.assignments.send_replace(assignment.into());
    }

    /// The first report, from now on, that is as it should be.
    pub(crate) async fn report(&mut self, good: impl Fn(&v1::NodeReport) -> bool) -> v1::NodeReport {
        let waited = timeout(DEADLINE, self.reports.wait_for(|report| good(report))).await;
        let waited = waited.map(|report| report.unwrap().clone());
        waited
            .unwrap_or_else(|_| panic!("no such report came; the last one is {:#?}", *self.reports.borrow()))
    }

    /// Waits until so many more reports have come: what was assigned before them has been received.
    pub(crate) async fn beats(&mut self, reports: usize) {
        self.reports.mark_unchanged();
        for _ in 0..reports {
            timeout(DEADLINE, self.reports.changed()).await.unwrap().unwrap();
        }
    }

    /// The partitions of the report in which none of `epoch` is loading any more.
    pub(crate) async fn settled(&mut self, epoch: u64) -> Vec<PartitionStatus> {
        let loading = |p: &v1::PartitionStatus| p.state() == v1::PartitionState::Loading;
        let report = self.report(|r| r.epoch == epoch && !r.partitions.iter().any(loading)).await;
        report.partitions.into_iter().map(|p| p.try_into().unwrap()).collect()
    }

    /// The same, when every one of them should be ready.
    pub(crate) async fn ready(&mut self, epoch: u64) -> Vec<PartitionStatus> {
        let partitions = self.settled(epoch).await;
        assert!(partitions.iter().all(|p| p.state == PartitionState::Ready), "{partitions:#?}");
        partitions
    }
}

fn other<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a node does not ask this"))
}

#[tonic::async_trait]
impl Control for Service {
    type NodeSessionStream = Answers<v1::Assignment>;
    type RankerSessionStream = Answers<v1::ClusterMap>;
    type WatchMapStream = Answers<v1::ClusterMap>;

    async fn node_session(
        &self,
        request: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Self::NodeSessionStream>, Status> {
        let (mut incoming, reports) = (request.into_inner(), self.reports.clone());
        tokio::spawn(async move {
            while let Ok(Some(report)) = incoming.message().await {
                reports.send_replace(report);
            }
        });
        let assignments = WatchStream::new(self.assignments.clone()).map(Ok);
        Ok(Response::new(Box::pin(assignments.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn ranker_session(
        &self,
        _: Request<Streaming<v1::RankerReport>>,
    ) -> Result<Response<Self::RankerSessionStream>, Status> {
        other()
    }

    async fn watch_map(
        &self,
        _: Request<v1::WatchMapRequest>,
    ) -> Result<Response<Self::WatchMapStream>, Status> {
        other()
    }

    async fn publish_release(
        &self,
        _: Request<v1::PublishReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        other()
    }

    async fn promote_release(
        &self,
        _: Request<v1::PromoteReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        other()
    }

    async fn get_release(
        &self,
        _: Request<v1::GetReleaseRequest>,
    ) -> Result<Response<v1::ReleaseStatus>, Status> {
        other()
    }

    async fn serve_table(
        &self,
        _: Request<v1::ServeTableRequest>,
    ) -> Result<Response<v1::ServeTableResponse>, Status> {
        other()
    }

    async fn drain_node(
        &self,
        _: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainStatus>, Status> {
        other()
    }
    async fn set_quota(&self, _: Request<v1::QuotaRule>) -> Result<Response<v1::Quotas>, Status> {
        other()
    }

    async fn remove_quota(&self, _: Request<v1::RemoveQuotaRequest>) -> Result<Response<v1::Quotas>, Status> {
        other()
    }

    async fn list_quotas(&self, _: Request<v1::ListQuotasRequest>) -> Result<Response<v1::Quotas>, Status> {
        other()
    }

    async fn get_cluster(
        &self,
        _: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::ClusterReport>, Status> {
        other()
    }
}
