//! The Embedding service: messages in, messages out. Small lookups run where they arrive, large ones on
//! the CPU pool.

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use tidepool_proto::v1::{self, embedding_server::Embedding};
use tidepool_runtime::pool::{CpuPool, PoolError};
use tidepool_table::PartitionRows;
use tidepool_types::NodeId;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    admission::Admission,
    decode::rows_asked,
    error::LookupError,
    lookup::{Answer, Deadline, Limits, answer},
    metrics::Metrics,
    partitions::Snapshot,
    stream::Answers,
};

/// What lookups are answered with.
pub(crate) struct EmbeddingService<P> {
    pub(crate) node: Arc<NodeId>,
    pub(crate) snapshot: Arc<ArcSwap<Snapshot<P>>>,
    pub(crate) pool: CpuPool,
    pub(crate) limits: Limits,
    pub(crate) admission: Admission,
    /// Ids, members, bags and features up to which a lookup runs inline.
    pub(crate) inline_max_rows: u64,
    pub(crate) metrics: Metrics,
    /// Cancelled when no new lookup should be taken: streams end then.
    pub(crate) draining: CancellationToken,
}

/// The service as gRPC has it.
pub(crate) struct Grpc<P>(pub(crate) Arc<EmbeddingService<P>>);

impl<P: PartitionRows> EmbeddingService<P> {
    /// Answers a lookup and counts it.
    pub(crate) async fn respond(
        &self,
        request: v1::LookupRequest,
        received: Instant,
    ) -> Result<v1::LookupResponse, LookupError> {
        let outcome = self.answer(request, received).await;
        self.metrics.count(&outcome, received.elapsed().as_secs_f64());
        if let Err(error) = &outcome {
            tracing::debug!(%error, "lookup refused");
        }
        outcome.map(|answer| answer.response)
    }

    async fn answer(&self, request: v1::LookupRequest, received: Instant) -> Result<Answer, LookupError> {
        let deadline = Deadline::new(received, request.deadline_us);
        let rows = rows_asked(&request);
        let _admitted = self.admission.admit(rows)?;
        if rows <= self.inline_max_rows {
            return answer(request, &self.snapshot.load(), &self.node, self.limits, deadline);
        }
        let (snapshot, node, limits) = (self.snapshot.load_full(), self.node.clone(), self.limits);
        let work = self.pool.run_at_cost(rows, move || answer(request, &snapshot, &node, limits, deadline));
        work.await.unwrap_or_else(|error| {
            Err(match error {
                PoolError::Full { queue_len } => LookupError::QueueFull { queued: queue_len },
                PoolError::Gone => LookupError::ShuttingDown,
                PoolError::Panicked(text) => {
                    tracing::error!(%text, "a lookup panicked");
                    LookupError::Internal(text)
                }
            })
        })
    }
}

#[tonic::async_trait]
impl<P: PartitionRows> Embedding for Grpc<P> {
    type LookupStreamStream = Answers<P>;

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let answered = self.0.respond(request.into_inner(), Instant::now()).await;
        answered.map(Response::new).map_err(|error| error.status())
    }

    async fn lookup_stream(
        &self,
        request: Request<Streaming<v1::LookupRequest>>,
    ) -> Result<Response<Answers<P>>, Status> {
        Ok(Response::new(Answers::new(self.0.clone(), request.into_inner())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use prometheus::Registry;
    use tidepool_table::PartitionFile;
    use tidepool_types::{ErrorCode, Name};

    use super::*;

    #[tokio::test]
    async fn a_full_queue_says_overloaded_at_once_and_small_lookups_go_on() {
        let service = EmbeddingService::<PartitionFile> {
            node: Arc::new(NodeId(Name::new("n").unwrap())),
            snapshot: Arc::default(),
            pool: CpuPool::new(1, 1).unwrap(),
            limits: Limits { ids_per_request: 1000, response_bytes: 1000 },
            admission: Admission::new(100, None),
            inline_max_rows: 3,
            metrics: Metrics::new(&Registry::new()).unwrap(),
            draining: CancellationToken::new(),
        };
        let ask = async |ids: usize| {
            let feature =
                v1::FeatureRequest { ids: vec![0; 8 * ids].into(), ..v1::FeatureRequest::default() };
            let request = v1::LookupRequest { features: vec![feature], ..v1::LookupRequest::default() };
            service.respond(request, Instant::now()).await.unwrap_err().code()
        };
        let (started, wait_started) = mpsc::channel();
        let (release, wait_release) = mpsc::channel::<()>();
        let busy = service.pool.run(move || {
            started.send(()).unwrap();
            wait_release.recv().unwrap();
        });
        wait_started.recv().unwrap();
        let waiting = service.pool.run(|| ());
        assert_eq!(ask(3).await, ErrorCode::Overloaded);
        // The feature names no table: that this is found shows that the lookup was worked on.
        assert_eq!(ask(2).await, ErrorCode::InvalidRequest);
        release.send(()).unwrap();
        busy.await.unwrap();
        waiting.await.unwrap();
        assert_eq!(ask(3).await, ErrorCode::InvalidRequest);
        service.pool.close();
        assert_eq!(ask(3).await, ErrorCode::Unavailable);
    }
}
