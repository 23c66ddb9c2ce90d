//! `POST /v1/rank`: the same ranking, as JSON.

use std::{sync::Arc, time::Instant};

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
use tidepool_cluster::{BUCKETS, bucket_of};
use tidepool_proto::v1;
use tidepool_runtime::{auth::Caller, error::chain};
use tidepool_types::ErrorCode;

use crate::{
    RankError,
    json::{self, JsonRequest},
    request::RankRequest,
    service::RankService,
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
        Err(error) => {
            let code = error.code();
            let status =
                StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            answer_error(status, code, &chain(&error))
        }
    }
}

async fn answer(
    service: &RankService,
    caller: &Caller,
    body: &[u8],
    traceparent: Option<TraceParent>,
    arrived: Instant,
) -> Result<Response, RankError> {
    let message = match JsonRequest::parse(body).map_err(invalid) {
        Ok(mut request) => convert(service, &mut request).map_err(|error| {
            let JsonRequest { request_id, tenant, model, release, .. } = request;
            let release = release.unwrap_or_default();
            (error, v1::RankRequest { request_id, tenant, model, release, ..Default::default() })
        }),
        Err(error) => Err((error, v1::RankRequest::default())),
    };
    let message = message.map_err(|(error, mut asked)| {
        let recent = &service.ranker.recent;
        let id_given = recent.identify(&mut asked.request_id);
        recent.begin(&asked, id_given, arrived).failed(&error);
        service.refused(&error, &asked.request_id, arrived);
        error
    })?;
    let response = service.answer(caller, message, traceparent, arrived).await?;
    Ok(Json(json::answer(&response)).into_response())
}

/// The message of a document. The contract says which numbers are ids, and which contract that is, the request's
/// key; where the ids of the user stand for one, they are first read by the contract of the current release.
fn convert(service: &RankService, request: &mut JsonRequest) -> Result<v1::RankRequest, RankError> {
    service.ranker.scenarios.resolve(&request.scenario, &mut request.model)?;
    request.scenario.clear();
    let (releases, model) = (&service.ranker.releases, request.model.as_str());
    let (named, key) = (request.release.as_deref(), request.routing_key.as_str());
    // No arm has the bucket after the last.
    let bucket = if key.is_empty() { BUCKETS } else { bucket_of(model, key) };
    let chosen = releases.choose(model, named, bucket)?;
    let message = request.to_message(&chosen.release.spec).map_err(invalid)?;
    if named.is_some() || !key.is_empty() || !releases.snapshot().map.traffic.contains_key(model) {
        return Ok(message);
    }
    let routing_key = RankRequest::try_from(message.clone())?.implied_key();
    let arm = releases.choose(model, None, bucket_of(model, &routing_key))?;
    let message = match Arc::ptr_eq(&arm.release, &chosen.release) {
        true => message,
        false => request.to_message(&arm.release.spec).map_err(invalid)?,
    };
    // By another contract the ids may be others: the key stays the one that the release was chosen by.
    Ok(v1::RankRequest { routing_key, ..message })
}

fn invalid(error: json::JsonError) -> RankError {
    RankError::Invalid(chain(&error))
}

/// An error as the JSON that every route gives.
pub(crate) fn answer_error(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    let body = json!({ "error": { "code": code.as_str(), "message": message } });
    (status, Json(body)).into_response()
}
