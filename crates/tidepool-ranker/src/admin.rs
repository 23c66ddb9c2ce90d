//! `POST /v1/admin/rollback`: takes a release back at this ranker alone, with no controller to ask.
//!
//! ```json
//! {"model": "movielens", "release": "r2"}
//! ```
//! Without `release` it is one step back: every arm, or else the current release. With `"undo": true` and no release the
//! rollback that holds here ends, and the cluster map is gone by again. Who is not known by a token or a
//! certificate may ask from this machine only.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use prometheus::IntCounter;
use serde::Deserialize;
use serde_json::{Value, json};
use tidepool_runtime::{
    audit::{AuditLog, Change, Outcome},
    auth::{Caller, KnownBy},
    error::chain,
    shutdown::Shutdown,
};
use tidepool_types::{ErrorCode, Name};
use tokio::sync::{mpsc, oneshot};

use crate::{RankError, http::answer_error, metrics::Metrics, releases::Releases};

/// Rollbacks that may wait for each other.
const QUEUED: usize = 8;

/// A rollback that is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) model: Name,
    pub(crate) release: Option<Name>,
    /// Ends the rollback that holds.
    pub(crate) undo: bool,
    /// Who asks, for the log.
    pub(crate) by: String,
    pub(crate) done: oneshot::Sender<Result<Stands, RankError>>,
}

/// How the model stands here afterwards.
#[derive(Debug)]
pub(crate) struct Stands {
    /// The release that answers in place of the current one, or that one.
    pub(crate) answers: Name,
    /// Releases that answer nobody who does not name them.
    pub(crate) off: Vec<Name>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    model: Name,
    #[serde(default)]
    release: Option<Name>,
    #[serde(default)]
    undo: bool,
}

/// What a change of this ranker needs beside whoever makes it.
#[derive(Clone)]
pub(crate) struct Desk {
    audit: AuditLog,
    releases: Releases,
    shutdown: Shutdown,
    /// Lines that are not in the audit log.
    failures: IntCounter,
}

type Asking = (Arc<Desk>, mpsc::Sender<Asked>);

/// The route, and where its requests come out.
pub(crate) fn routes(desk: Desk) -> (Router, mpsc::Receiver<Asked>) {
    let (sender, asked) = mpsc::channel(QUEUED);
    let state: Asking = (Arc::new(desk), sender);
    (Router::new().route("/v1/admin/rollback", post(rollback)).with_state(state), asked)
}

async fn rollback(
    State((desk, sender)): State<Asking>,
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
    if body.undo && body.release.is_some() {
        let problem = "a rollback is undone as a whole: name no release with \"undo\"";
        return refused(&RankError::Invalid(problem.into()));
    }
    let model = body.model.clone();
    // It is made, and written down, also when its caller does not wait.
    let lifecycle = desk.shutdown.clone();
    let made = lifecycle.spawn(async move { desk.make(&sender, caller, body).await });
    match made.await.unwrap_or(Err(RankError::NoMap)) {
        Ok(stands) => {
            Json(json!({ "model": model, "answers": stands.answers, "off": stands.off })).into_response()
        }
        Err(error) => refused(&error),
    }
}

impl Desk {
    pub(crate) fn new(audit: &AuditLog, releases: &Releases, shutdown: &Shutdown, metrics: &Metrics) -> Self {
        let failures = metrics.audit_failures.clone();
        Self { audit: audit.clone(), releases: releases.clone(), shutdown: shutdown.clone(), failures }
    }

    fn epoch(&self) -> u64 {
        self.releases.snapshot().map.epoch.0
    }

    /// Writes a rollback down, has it made, and writes down what became of it.
    async fn make(
        &self,
        sender: &mpsc::Sender<Asked>,
        caller: Caller,
        Body { model, release, undo }: Body,
    ) -> Result<Stands, RankError> {
        let (done, answer) = oneshot::channel();
        let by = caller.name.to_string();
        let what = json!({ "model": model, "release": release, "undo": undo });
        let asked = Asked { model, release, undo, by, done };
        let change = async {
            match sender.send(asked).await {
                Ok(()) => answer.await.unwrap_or(Err(RankError::NoMap)),
                Err(_) => Err(RankError::NoMap),
            }
        };
        self.write_down(caller, "rollback_here", what, change).await
    }

    /// Has a change made between the two lines that tell of it, also when its caller does not wait.
    pub(crate) async fn written_down<T: Send + 'static>(
        &self,
        caller: Caller,
        action: &'static str,
        what: Value,
        change: impl Future<Output = Result<T, RankError>> + Send + 'static,
    ) -> Result<T, RankError> {
        let desk = self.clone();
        let made = self.shutdown.spawn(async move { desk.write_down(caller, action, what, change).await });
        made.await.unwrap_or(Err(RankError::Ending))
    }

    async fn write_down<T>(
        &self,
        caller: Caller,
        action: &str,
        what: Value,
        change: impl Future<Output = Result<T, RankError>>,
    ) -> Result<T, RankError> {
        let line = Change { caller, action: action.into(), what, epoch: self.epoch() };
        let begun = self.audit.begin(line).await.map_err(|error| {
            self.failures.inc();
            RankError::NotWrittenDown(error)
        })?;
        let made = change.await;
        let problem = made.as_ref().err().map(|error| chain(error));
        let outcome = Outcome {
            word: made.as_ref().map_or_else(|error| error.code().as_str(), |_| "ok"),
            problem: problem.as_deref(),
            epoch: self.epoch(),
        };
        if let Err(error) = begun.end(outcome).await {
            self.failures.inc();
            tracing::error!(
                problem = chain(&error),
                action,
                "what became of a change is not in the audit log yet"
            );
        }
        made
    }
}

fn refused(error: &RankError) -> Response {
    let code = error.code();
    let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer_error(status, code, &chain(error))
}
