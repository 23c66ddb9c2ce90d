//! `POST /v1/admin/rollback`: takes a release back at this ranker alone, with no controller to ask.
//!
//! ```json
//! {"model": "movielens", "release": "r2"}
//! ```
//! Without `release` it is one step back: every arm, or else the current release. Who is not known by a token or a
//! certificate may ask from this machine only.

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde::Deserialize;
use serde_json::json;
use tidepool_runtime::{
    auth::{Caller, KnownBy},
    error::chain,
};
use tidepool_types::{ErrorCode, Name};
use tokio::sync::{mpsc, oneshot};

use crate::{RankError, http::answer_error, rollback::Rollback};

/// Rollbacks that may wait for each other.
const QUEUED: usize = 8;

/// A rollback that is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) model: Name,
    pub(crate) release: Option<Name>,
    /// Who asks, for the log.
    pub(crate) by: String,
    pub(crate) done: oneshot::Sender<Result<Rollback, RankError>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    model: Name,
    #[serde(default)]
    release: Option<Name>,
}

/// The route, and where its requests come out.
pub(crate) fn routes() -> (Router, mpsc::Receiver<Asked>) {
    let (sender, asked) = mpsc::channel(QUEUED);
    (Router::new().route("/v1/admin/rollback", post(rollback)).with_state(sender), asked)
}

async fn rollback(
    State(sender): State<mpsc::Sender<Asked>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Response {
    let elsewhere = caller.from.is_some_and(|from| !from.ip().to_canonical().is_loopback());
    if caller.by == KnownBy::Nothing && elsewhere {
        let message =
            "a rollback by nobody known is taken from this machine only: ask on it, or with a token";
        return answer_error(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message);
    }
    let body: Body = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(error) => return refused(&RankError::Invalid(format!("the body does not parse: {error}"))),
    };
    let (done, answer) = oneshot::channel();
    let (model, by) = (body.model.clone(), caller.name.to_string());
    let asked = Asked { model: body.model, release: body.release, by, done };
    if sender.send(asked).await.is_err() {
        return refused(&RankError::NoMap);
    }
    match answer.await.unwrap_or(Err(RankError::NoMap)) {
        Ok(rollback) => {
            Json(json!({ "model": model, "answers": rollback.to, "off": rollback.off })).into_response()
        }
        Err(error) => refused(&error),
    }
}

fn refused(error: &RankError) -> Response {
    let code = error.code();
    let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer_error(status, code, &chain(error))
}
