//! `POST /v1/rank`: the same ranking, as JSON.

use std::time::Instant;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;
use tidepool_client::TraceParent;
use tidepool_runtime::error::chain;
use tidepool_types::ErrorCode;

use crate::{
    RankError,
    json::{self, JsonRequest},
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
    match answer(&service, &body, traceparent, arrived).await {
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
    body: &[u8],
    traceparent: Option<TraceParent>,
    arrived: Instant,
) -> Result<Response, RankError> {
    let converted = (|| {
        let invalid = |error: json::JsonError| RankError::Invalid(chain(&error));
        let request = JsonRequest::parse(body).map_err(invalid)?;
        // The contract says which numbers are ids.
        let (release, _) = service.ranker.releases.pin(&request.model, request.release.as_deref())?;
        request.to_message(&release.spec).map_err(invalid)
    })();
    let message = converted.inspect_err(|error| service.refused(error, "", arrived))?;
    let response = service.answer(message, traceparent, arrived).await?;
    Ok(Json(json::answer(&response)).into_response())
}

/// An error as the JSON that every route gives.
pub(crate) fn answer_error(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    let body = json!({ "error": { "code": code.as_str(), "message": message } });
    (status, Json(body)).into_response()
}
