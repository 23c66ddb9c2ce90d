//! The Embedding service: messages in, messages out. Small lookups run where they arrive, large ones on
//! the CPU pool.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tidepool_proto::v1::{self, embedding_server::Embedding};
use tidepool_runtime::{
    auth::{Caller, Standing},
    pool::{CpuPool, PoolError},
};
use tidepool_table::PartitionRows;
use tidepool_types::NodeId;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    admission::{Admission, Admitted},
    cut::Piece,
    decode::rows_asked,
    error::LookupError,
    guard::{Guard, Held},
    lookup::{Answer, Deadline, Limits, Prepared, prepare},
    metrics::{Metrics, Stages},
    part::Done,
    partitions::Snapshot,
    quota::TenantQuotas,
    stream::Answers,
};

/// Letters of a tenant's name that a refusal repeats.
const MAX_TOLD_CHARS: usize = 64;

/// What lookups are answered with.
pub(crate) struct EmbeddingService<P> {
    pub(crate) node: Arc<NodeId>,
    pub(crate) snapshot: Arc<ArcSwap<Snapshot<P>>>,
    pub(crate) pool: CpuPool,
    pub(crate) limits: Limits,
    pub(crate) quotas: TenantQuotas,
    pub(crate) admission: Admission,
    /// Rows of work up to which a lookup runs inline.
    pub(crate) inline_max_rows: u64,
    /// Rows of the pieces that larger ones are cut into.
    pub(crate) piece_rows: u64,
    pub(crate) metrics: Metrics,
    pub(crate) guard: Guard,
    /// Cancelled when no new lookup should be taken: streams end then.
    pub(crate) draining: CancellationToken,
}

/// The service as gRPC has it.
pub(crate) struct Grpc<P>(pub(crate) Arc<EmbeddingService<P>>);

impl<P: PartitionRows> EmbeddingService<P> {
    /// [`respond`](Self::respond), if `caller` may ask in the name of the lookup's tenant.
    pub(crate) async fn respond_to(
        &self,
        caller: &Caller,
        request: v1::LookupRequest,
        received: Instant,
    ) -> Result<v1::LookupResponse, LookupError> {
        if caller.may_ask_for(&request.tenant) {
            return self.respond(request, received).await;
        }
        let tenant = request.tenant.chars().take(MAX_TOLD_CHARS).collect();
        let refused = Err(LookupError::OtherTenant { caller: caller.name.to_string(), tenant });
        self.metrics.count(&refused, received.elapsed());
        refused.map(|(answer, _)| answer.response)
    }

    /// Answers a lookup and counts it.
    pub(crate) async fn respond(
        &self,
        mut request: v1::LookupRequest,
        received: Instant,
    ) -> Result<v1::LookupResponse, LookupError> {
        let traceparent = std::mem::take(&mut request.traceparent);
        let outcome = self.answer(request, received).await;
        self.metrics.count(&outcome, received.elapsed());
        if let Err(error) = &outcome {
            tracing::debug!(%error, traceparent, "lookup refused");
        }
        outcome.map(|(answer, _)| {
            let took_us = u64::try_from(received.elapsed().as_micros()).unwrap_or(u64::MAX);
            v1::LookupResponse { took_us, ..answer.response }
        })
    }

    async fn answer(
        &self,
        request: v1::LookupRequest,
        received: Instant,
    ) -> Result<(Answer, Stages), LookupError> {
        let rows = rows_asked(&request);
        // First of all, so that a tenant over its quota takes nothing of what all share.
        let charged = self.quotas.charge(&request.tenant, rows)?;
        let admitted = match self.admission.admit(rows, request.lot) {
            Ok(admitted) => admitted,
            Err(error) => {
                charged.put_back();
                return Err(error);
            }
        };
        let answered = self.answer_admitted(request, rows, received, admitted).await;
        match &answered {
            Ok((answer, _)) => self.quotas.answered(&charged, answer.gather_bytes + answer.pool_bytes),
            // What the node turns away is not the tenant's fault.
            Err(
                LookupError::QueueFull { .. }
                | LookupError::ShuttingDown
                | LookupError::TooMuchHeld { .. }
                | LookupError::NotServed { .. },
            ) => charged.put_back(),
            Err(_) => {}
        }
        answered
    }

    async fn answer_admitted(
        &self,
        request: v1::LookupRequest,
        rows: u64,
        received: Instant,
        admitted: Admitted,
    ) -> Result<(Answer, Stages), LookupError> {
        let deadline = Deadline::new(received, request.deadline_us);
        if rows > self.inline_max_rows {
            return self.answer_on_pool(request, rows, deadline, admitted).await;
        }
        let begun = Instant::now();
        let prepared = prepare(request, &self.snapshot.load(), self.limits, deadline)?;
        let decoded = Instant::now();
        let held = self.guard.hold(prepared.answer_bytes)?;
        let answer = held.until_taken(prepared.answer(&self.node)?);
        let stages = Stages { queue: None, decode: decoded - begun, lookup: decoded.elapsed() };
        Ok((answer, stages))
    }

    /// The same on the CPU pool, in pieces if it is large. What is dropped meanwhile is not worked on.
    async fn answer_on_pool(
        &self,
        request: v1::LookupRequest,
        rows: u64,
        deadline: Deadline,
        admitted: Admitted,
    ) -> Result<(Answer, Stages), LookupError> {
        let (snapshot, limits, pool) = (self.snapshot.load_full(), self.limits, self.pool.clone());
        let (node, piece_rows, queued) = (self.node.clone(), self.piece_rows, Instant::now());
        // Its rows are in flight as long as any of its work waits: also when its caller has left, and not longer
        // when its caller does not take the answer.
        let (guard, waiting) = (self.guard.clone(), Arc::new(admitted));
        let begun = self.pool.run_at_cost(rows, move || {
            let begun = Instant::now();
            let prepared = prepare(request, &snapshot, limits, deadline)?;
            let decoded = Instant::now();
            let stages =
                Stages { queue: Some(begun - queued), decode: decoded - begun, lookup: Duration::ZERO };
            let held = guard.hold(prepared.answer_bytes)?;
            let mut pieces = prepared.pieces(piece_rows);
            if pieces.len() <= 1 {
                let parts = pieces.pop().map(|piece| prepared.piece(piece, deadline)).transpose()?;
                let answer = held.until_taken(prepared.put_together(parts.into_iter().flatten(), &node));
                return Ok(Begun::Done(answer, Stages { lookup: decoded.elapsed(), ..stages }));
            }
            let prepared = Arc::new(prepared);
            let work = |piece: Piece| {
                let (rows, prepared, waiting) = (piece.rows, prepared.clone(), waiting.clone());
                let job = move || {
                    let _waiting = waiting;
                    prepared.piece(piece, deadline)
                };
                (rows, job)
            };
            let rest = Box::pin(pool.split(pieces.into_iter().map(work).collect()));
            Ok(Begun::Split { prepared, held, rest, stages, decoded })
        });
        match begun.await.map_err(of_pool)?? {
            Begun::Done(answer, stages) => Ok((answer, stages)),
            Begun::Split { prepared, held, rest, stages, decoded } => {
                let done = rest.await.map_err(of_pool)??;
                let answer = prepared.put_together(done.into_iter().flatten(), &self.node);
                Ok((held.until_taken(answer), Stages { lookup: decoded.elapsed(), ..stages }))
            }
        }
    }
}

/// What a thread of the pool has made of a lookup when it is done with the first piece of work.
enum Begun<P> {
    Done(Answer, Stages),
    Split { prepared: Arc<Prepared<P>>, held: Held, rest: Rest, stages: Stages, decoded: Instant },
}

/// The answers to the pieces, in order.
type Rest = Pin<Box<dyn Future<Output = Result<Result<Vec<Vec<Done>>, LookupError>, PoolError>> + Send>>;

fn of_pool(error: PoolError) -> LookupError {
    match error {
        PoolError::Full { queue_len } => LookupError::QueueFull { queued: queue_len },
        PoolError::Gone => LookupError::ShuttingDown,
        PoolError::Panicked(text) => {
            tracing::error!(%text, "a lookup panicked");
            LookupError::Internal(text)
        }
    }
}

#[tonic::async_trait]
impl<P: PartitionRows> Embedding for Grpc<P> {
    type LookupStreamStream = Answers<P>;

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let answered = self.0.respond_to(&Caller::of(&extensions), request, Instant::now()).await;
        answered.map(Response::new).map_err(|error| error.status())
    }

    async fn lookup_stream(
        &self,
        request: Request<Streaming<v1::LookupRequest>>,
    ) -> Result<Response<Answers<P>>, Status> {
        let (_, extensions, requests) = request.into_parts();
        let standing = Standing::new(Caller::of(&extensions));
        Ok(Response::new(Answers::new(self.0.clone(), standing, requests)))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, mpsc},
        time::Duration,
    };

    use prometheus::{IntCounterVec, IntGauge, Registry};
    use tidepool_types::{ErrorCode, Keying, Name};

    use super::*;
    use crate::lookup::tests::{Plain, feature, snapshot};

    fn service(queue_len: usize) -> EmbeddingService<Plain> {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        EmbeddingService {
            node: Arc::new(NodeId(Name::new("n").unwrap())),
            snapshot: Arc::default(),
            pool: CpuPool::new(1, queue_len).unwrap(),
            limits: Limits { ids_per_request: 1000, response_bytes: 1000 },
            quotas: TenantQuotas::new(),
            admission: Admission::new(100, None),
            inline_max_rows: 3,
            piece_rows: 10,
            guard: metrics.guard(1 << 20, Duration::from_secs(1)),
            metrics,
            draining: CancellationToken::new(),
        }
    }

    fn request(ids: usize) -> v1::LookupRequest {
        let feature = v1::FeatureRequest { ids: vec![0; 8 * ids].into(), ..v1::FeatureRequest::default() };
        v1::LookupRequest { features: vec![feature], ..v1::LookupRequest::default() }
    }

    #[tokio::test]
    async fn rows_in_flight_are_refused_over_the_bound_and_come_back() {
        let service = service(10);
        let (started, wait_started) = mpsc::channel();
        let (release, wait_release) = mpsc::channel::<()>();
        let busy = service.pool.run(move || {
            started.send(()).unwrap();
            wait_release.recv().unwrap();
        });
        wait_started.recv().unwrap();
        // 90 ids and their feature wait for the thread; 9 rows are left.
        let mut waiting = Box::pin(service.respond(request(90), Instant::now()));
        assert!(futures::poll!(&mut waiting).is_pending());
        let code = async |ids| service.respond(request(ids), Instant::now()).await.unwrap_err().code();
        assert_eq!(code(9).await, ErrorCode::Overloaded);
        assert_eq!(code(100).await, ErrorCode::InvalidRequest, "it would never fit");
        // The feature names no table: that this is found shows that the lookup was worked on.
        assert_eq!(code(2).await, ErrorCode::InvalidRequest);
        // The request of who leaves waits on, and its rows with it, until the thread comes to it.
        drop(waiting);
        assert_eq!(code(9).await, ErrorCode::Overloaded);
        release.send(()).unwrap();
        busy.await.unwrap();
        let all_is_given_back = async {
            while code(99).await != ErrorCode::InvalidRequest {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all_is_given_back).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_in_pieces_has_its_room_before_the_pieces_are_begun() {
        let held_bytes = IntGauge::new("held_bytes", "x").unwrap();
        let lookups = IntCounterVec::new(prometheus::Opts::new("lookups", "x"), &["code"]).unwrap();
        let service = EmbeddingService {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot(Keying::Dense, 1, 100, None))),
            limits: Limits { ids_per_request: 1000, response_bytes: 10_000 },
            guard: Guard::new(1000, Duration::from_secs(1), held_bytes.clone(), lookups),
            ..service(10)
        };
        let ask = |ids: u64| {
            let features = vec![feature(1, &(0..ids).collect::<Vec<_>>())];
            service.respond(v1::LookupRequest { features, ..Default::default() }, Instant::now())
        };
        // The thread is busy before the lookup comes, and again between its decoding and its pieces.
        let (reached, wait_reached) = mpsc::channel();
        let (release, wait_release) = mpsc::channel::<()>();
        let wait_release = Arc::new(Mutex::new(wait_release));
        let block = || {
            let (reached, wait_release) = (reached.clone(), wait_release.clone());
            service.pool.run(move || {
                reached.send(()).unwrap();
                wait_release.lock().unwrap().recv().unwrap();
            })
        };
        let first = block();
        wait_reached.recv().unwrap();
        let mut lookup = Box::pin(ask(40));
        assert!(futures::poll!(&mut lookup).is_pending());
        let second = block();
        assert_eq!(held_bytes.get(), 0);
        release.send(()).unwrap();
        wait_reached.recv().unwrap();
        let row_bytes = 16;
        assert_eq!(held_bytes.get(), 40 * row_bytes, "before a piece is begun");
        release.send(()).unwrap();
        let answer = lookup.await.unwrap();
        assert_eq!(answer.features[0].rows.len() as i64, 40 * row_bytes);
        assert_eq!(ask(40).await.unwrap_err().code(), ErrorCode::Overloaded, "the first is not taken yet");
        drop(answer);
        assert_eq!(held_bytes.get(), 0);
        assert_eq!(ask(80).await.unwrap_err().code(), ErrorCode::Overloaded);
        first.await.unwrap();
        second.await.unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_says_overloaded_at_once_and_small_lookups_go_on() {
        let service = service(1);
        let ask = async |ids| service.respond(request(ids), Instant::now()).await.unwrap_err().code();
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
