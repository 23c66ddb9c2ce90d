//! The gRPC service: tonic in, domain out. tonic's types stop here.

use std::{sync::Arc, time::Instant};

use tidepool_client::TraceParent;
use tidepool_proto::{
    status_of,
    v1::{self, ranker_server::Ranker as RankerRpc},
};
use tidepool_runtime::error::chain;
use tidepool_types::ErrorCode;
use tonic::{Request, Response, Status, metadata::MetadataValue};
use tracing::{debug, error};

use crate::{RankError, metrics::Metrics, rank::Ranker, request::RankRequest};

/// What gRPC and HTTP share: one way in, counted once.
#[derive(Clone, Debug)]
pub(crate) struct RankService {
    pub(crate) ranker: Arc<Ranker>,
    pub(crate) metrics: Metrics,
}

impl RankService {
    /// Answers `message`, which arrived at `arrived` with `traceparent` beside it.
    pub(crate) async fn answer(
        &self,
        message: v1::RankRequest,
        traceparent: Option<TraceParent>,
        arrived: Instant,
    ) -> Result<v1::RankResponse, RankError> {
        let request_id = message.request_id.clone();
        let result = match RankRequest::try_from(message) {
            Ok(request) => self.ranker.rank(RankRequest { traceparent, ..request }, arrived).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(answer) => {
                self.metrics.answered(&answer, arrived.elapsed());
                Ok(answer.into())
            }
            Err(error) => {
                self.refused(&error, &request_id, arrived);
                Err(error)
            }
        }
    }

    /// Counts and logs a request that is not answered.
    pub(crate) fn refused(&self, error: &RankError, request_id: &str, arrived: Instant) {
        let code = error.code();
        self.metrics.refused(code, arrived.elapsed());
        let problem = chain(error);
        match code {
            ErrorCode::Internal | ErrorCode::Corrupt => {
                error!(%code, request_id, %problem, "a ranking failed")
            }
            _ => debug!(%code, request_id, %problem, "a ranking was refused"),
        }
    }
}

#[tonic::async_trait]
impl RankerRpc for RankService {
    async fn rank(&self, request: Request<v1::RankRequest>) -> Result<Response<v1::RankResponse>, Status> {
        let arrived = Instant::now();
        let traceparents = request.metadata().get_all(TraceParent::HEADER).iter();
        let traceparent = TraceParent::only(traceparents.map(MetadataValue::as_bytes));
        let answered = self.answer(request.into_inner(), traceparent, arrived).await;
        answered.map(Response::new).map_err(|e| status_of(e.code(), chain(&e), e.epoch()))
    }
}
