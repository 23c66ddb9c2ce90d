//! `POST /v1/rank`: the same ranking, as JSON.

use std::time::Instant;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;
use tidepool_client::TraceParent;
use tidepool_proto::v1;
use tidepool_runtime::{auth::Caller, error::chain};
use tidepool_types::{ErrorCode, ModelSpec};

use crate::{
    RankError,
    by_contract::by_contract,
    json::{self, JsonRequest},
    releases::Chosen,
    service::{RankService, Unanswered},
};

/// The routes that a ranker adds to its admin server.
pub(crate) fn routes(service: RankService, max_request_bytes: usize) -> Router {
    Router::new()
        .route("/v1/rank", post(rank))
        .layer(DefaultBodyLimit::max(max_request_bytes))
        .with_state(service)
}

async fn rank(
    State(service): State<RankService>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let arrived = Instant::now();
    let traceparents = headers.get_all(TraceParent::HEADER).iter();
    let traceparent = TraceParent::only(traceparents.map(HeaderValue::as_bytes));
    let body = match body {
        Ok(body) => body,
        Err(rejection) => {
            let error = RankError::Invalid(rejection.body_text());
            service.refused(&error, "", arrived);
            // A body that is too large has a status of its own, which proxies and clients know.
            return answer_error(rejection.status(), ErrorCode::InvalidRequest, &chain(&error));
        }
    };
    match answer(&service, &caller, &body, traceparent, arrived).await {
        Ok(response) => response,
        Err(Unanswered { error, request_id }) => {
            let code = error.code();
            let status =
                StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let (code, message) = (code.as_str(), chain(&error));
            let body = json!({ "error": { "code": code, "message": message, "request_id": request_id } });
            (status, Json(body)).into_response()
        }
    }
}

async fn answer(
    service: &RankService,
    caller: &Caller,
    body: &[u8],
    traceparent: Option<TraceParent>,
    arrived: Instant,
) -> Result<Response, Unanswered> {
    let made = match JsonRequest::parse(body).map_err(invalid) {
        Ok(mut request) => convert(service, &mut request).map_err(|error| {
            let JsonRequest { request_id, tenant, model, release, .. } = request;
            let release = release.unwrap_or_default();
            (error, v1::RankRequest { request_id, tenant, model, release, ..Default::default() })
        }),
        Err(error) => Err((error, v1::RankRequest::default())),
    };
    let (chosen, message) = made.map_err(|(error, asked)| service.not_read(error, asked, arrived))?;
    let response = service.answer(caller, Some(chosen), message, traceparent, arrived).await?;
    Ok(Json(json::answer(&response)).into_response())
}

/// The message of a document, and the release that answers it: its contract says which numbers are ids.
fn convert(service: &RankService, request: &mut JsonRequest) -> Result<(Chosen, v1::RankRequest), RankError> {
    service.ranker.scenarios.resolve(&request.scenario, &mut request.model)?;
    request.scenario.clear();
    let request = &*request;
    let (named, key) = (request.release.as_deref(), request.routing_key.as_str());
    let releases = &service.ranker.releases;
    let read = |spec: &ModelSpec| Ok((request.to_message(spec).map_err(invalid)?, ()));
    let (chosen, message, ()) = by_contract(releases, &request.model, named, key, read)?;
    Ok((chosen, message))
}

fn invalid(error: json::JsonError) -> RankError {
    RankError::Invalid(chain(&error))
}

/// An error as the JSON that every route gives.
pub(crate) fn answer_error(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    let body = json!({ "error": { "code": code.as_str(), "message": message } });
    (status, Json(body)).into_response()
}
