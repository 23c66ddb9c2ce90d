//! The gRPC service: tonic in, domain out. tonic's types stop here.

use std::{sync::Arc, time::Instant};

use tidepool_client::TraceParent;
use tidepool_proto::{
    status_of,
    v1::{self, ranker_server::Ranker as RankerRpc},
    with_request_id,
};
use tidepool_runtime::{auth::Caller, error::chain};
use tidepool_types::ErrorCode;
use tonic::{Request, Response, Status, metadata::MetadataValue};
use tracing::{debug, error};

use crate::{
    RankError,
    audit_sample::Drawn,
    metrics::Metrics,
    rank::{RankAnswer, Ranker},
    recent::{Noting, cut_id},
    releases::Chosen,
    request::RankRequest,
    shadow::Shadowed,
};

/// Letters of a tenant's name that a refusal repeats.
const MAX_TOLD_CHARS: usize = 64;

/// What gRPC and HTTP share: one way in, counted once.
#[derive(Clone, Debug)]
pub(crate) struct RankService {
    pub(crate) ranker: Arc<Ranker>,
    pub(crate) metrics: Metrics,
}

/// Why a request has no answer, and the id that its record has: its own, or the one it was given.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) error: RankError,
    pub(crate) request_id: String,
}

impl Unanswered {
    pub(crate) fn new(error: RankError, request_id: &str) -> Self {
        Self { error, request_id: cut_id(request_id).to_owned() }
    }
}

impl From<Unanswered> for Status {
    fn from(Unanswered { error, request_id }: Unanswered) -> Self {
        with_request_id(status_of(error.code(), chain(&error), error.epoch()), &request_id)
    }
}

impl RankService {
    /// Answers `message` of `caller`, which arrived at `arrived` with `traceparent` beside it. One that was made by the
    /// contract of a release comes with what was `chosen` for it; for another the release is chosen here.
    pub(crate) async fn answer(
        &self,
        caller: &Caller,
        chosen: Option<Chosen>,
        mut message: v1::RankRequest,
        traceparent: Option<TraceParent>,
        arrived: Instant,
    ) -> Result<v1::RankResponse, Unanswered> {
        let named = self.ranker.scenarios.resolve(&message.scenario, &mut message.model);
        let id_given = self.ranker.recent.identify(&mut message.request_id);
        let mut noting = self.ranker.recent.begin(&message, id_given, arrived);
        let request_id = message.request_id.clone();
        let allowed = named.and_then(|()| check_tenant(caller, &message.tenant));
        let result = match allowed.and_then(|()| message.try_into()) {
            Ok(request) => {
                self.rank(chosen, RankRequest { traceparent, ..request }, arrived, &mut noting).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok((answer, shadowed, drawn)) => {
                self.metrics.answered(&answer, arrived.elapsed());
                noting.answered();
                if let Some(drawn) = drawn {
                    self.ranker.audit_sample.answered(drawn, &answer);
                }
                if let Some(shadowed) = shadowed {
                    self.ranker.shadow(shadowed, &answer);
                }
                Ok(v1::RankResponse { request_id, ..answer.into() })
            }
            Err(error) => {
                noting.failed(&error);
                self.refused(&error, &request_id, arrived);
                Err(Unanswered::new(error, &request_id))
            }
        }
    }

    async fn rank(
        &self,
        chosen: Option<Chosen>,
        request: RankRequest,
        arrived: Instant,
        noting: &mut Noting,
    ) -> Result<(RankAnswer, Option<Shadowed>, Option<Drawn>), RankError> {
        let chosen = chosen.map_or_else(|| self.ranker.choose(&request), Ok)?;
        self.metrics.chosen(chosen.choice);
        let shadowed = self.ranker.shadowed(&request);
        noting.note(|record| record.shadows = shadowed.as_ref().map_or(0, Shadowed::count));
        let drawn = self.ranker.audit_sample.draw(&request);
        let _answering = self.ranker.shadows.answering();
        Ok((self.ranker.rank(&chosen, request, arrived, noting).await?, shadowed, drawn))
    }

    /// Records, counts and logs a request that could not be read; `asked` is what is known of it.
    pub(crate) fn not_read(
        &self,
        error: RankError,
        mut asked: v1::RankRequest,
        arrived: Instant,
    ) -> Unanswered {
        let id_given = self.ranker.recent.identify(&mut asked.request_id);
        self.ranker.recent.begin(&asked, id_given, arrived).failed(&error);
        self.refused(&error, &asked.request_id, arrived);
        Unanswered::new(error, &asked.request_id)
    }

    /// Counts and logs a request that is not answered.
    pub(crate) fn refused(&self, error: &RankError, request_id: &str, arrived: Instant) {
        let code = error.code();
        self.metrics.refused(code, arrived.elapsed());
        let (problem, request_id) = (chain(error), cut_id(request_id));
        match code {
            ErrorCode::Internal | ErrorCode::Corrupt => {
                error!(%code, request_id, %problem, "a ranking failed")
            }
            _ => debug!(%code, request_id, %problem, "a ranking was refused"),
        }
    }
}

/// Nodes are asked by this ranker, which may name any tenant: whose name a caller may use is decided here.
fn check_tenant(caller: &Caller, tenant: &str) -> Result<(), RankError> {
    if caller.may_ask_for(tenant) {
        return Ok(());
    }
    let tenant = tenant.chars().take(MAX_TOLD_CHARS).collect();
    Err(RankError::OtherTenant { caller: caller.name.to_string(), tenant })
}

#[tonic::async_trait]
impl RankerRpc for RankService {
    async fn rank(&self, request: Request<v1::RankRequest>) -> Result<Response<v1::RankResponse>, Status> {
        let arrived = Instant::now();
        let traceparents = request.metadata().get_all(TraceParent::HEADER).iter();
        let traceparent = TraceParent::only(traceparents.map(MetadataValue::as_bytes));
        let (_, extensions, message) = request.into_parts();
        let answered = self.answer(&Caller::of(&extensions), None, message, traceparent, arrived).await;
        Ok(Response::new(answered?))
    }
}
