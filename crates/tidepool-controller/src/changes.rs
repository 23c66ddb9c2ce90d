//! Changes are written down: what was asked, by whom, from where, and what became of it.
//!
//! This stands before all services, behind the gate. A change is begun when it is on the disk that it was asked for. It
//! goes on, and its outcome is written down, when its caller does not wait for the answer.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Either},
};
use http_body_util::{BodyExt, Full, Limited};
use prometheus::IntCounter;
use prost::Message;
use serde::Serialize;
use serde_json::{Value, json};
use tidepool_proto::{code_of, refusal, status_of, v1};
use tidepool_runtime::{
    audit::{AuditError, AuditLog, Begun, Change, Outcome},
    auth::{Caller, Refused},
    error::chain,
    shutdown::Shutdown,
};
use tidepool_types::ErrorCode;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tower::{Layer, Service};

use crate::lead::Lead;

/// The longest request for a change.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// What comes before a gRPC message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Reads what a request for a change says.
type Read = fn(&[u8]) -> Value;

/// Every call that changes something: its name in the audit log, and how its request is read.
const CHANGES: &[(&str, &str, Read)] = &[
    ("/tidepool.v1.Control/PublishRelease", "publish_release", read::<v1::PublishReleaseRequest>),
    ("/tidepool.v1.Control/PromoteRelease", "promote_release", read::<v1::PromoteReleaseRequest>),
    ("/tidepool.v1.Control/ServeTable", "serve_table", read::<v1::ServeTableRequest>),
    ("/tidepool.v1.Control/DrainNode", "drain_node", read::<v1::DrainNodeRequest>),
    ("/tidepool.v1.Control/SetQuota", "set_quota", read::<v1::QuotaRule>),
    ("/tidepool.v1.Control/RemoveQuota", "remove_quota", read::<v1::RemoveQuotaRequest>),
    ("/tidepool.v1.Controllers/Rebuild", "rebuild", read::<v1::RebuildRequest>),
    ("/tidepool.v1.Controllers/NoteCollection", "collect", read::<v1::NoteCollectionRequest>),
    ("/tidepool.v1.Releases/SetShares", "set_shares", read::<v1::SetSharesRequest>),
    ("/tidepool.v1.Releases/ShadowRelease", "shadow_release", read::<v1::ShadowReleaseRequest>),
    ("/tidepool.v1.Releases/Rollback", "rollback", read::<v1::RollbackRequest>),
    ("/tidepool.v1.Releases/RetireRelease", "retire_release", read::<v1::RetireReleaseRequest>),
    ("/tidepool.v1.Releases/PinRelease", "pin_release", read::<v1::PinReleaseRequest>),
];

fn read<M: Message + Default + Serialize>(message: &[u8]) -> Value {
    let read = M::decode(message).map_err(|error| error.to_string());
    match read.and_then(|message| serde_json::to_value(message).map_err(|error| error.to_string())) {
        Ok(value) => value,
        Err(problem) => json!({ "unreadable": problem }),
    }
}

fn change(call: &str) -> Option<(&'static str, Read)> {
    CHANGES.iter().find(|(path, ..)| *path == call).map(|(_, action, read)| (*action, *read))
}

/// Writes changes down. Clones share the log.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    pub(crate) audit: AuditLog,
    pub(crate) lead: Lead,
    pub(crate) lifecycle: Shutdown,
    /// Changes that could not be written down.
    pub(crate) failures: IntCounter,
}

impl Changes {
    fn epoch(&self) -> u64 {
        self.lead.state().map_or(0, |state| state.map().epoch.0)
    }

    /// Writes down that a change is about to be made; otherwise the answer of a change that is not made.
    async fn begin(&self, caller: Caller, action: &'static str, what: Value) -> Result<Begun, Status> {
        let change = Change { caller, action: action.to_owned(), what, epoch: self.epoch() };
        self.audit.begin(change).await.map_err(|error| {
            self.failures.inc();
            let code = match error {
                AuditError::Busy => ErrorCode::Overloaded,
                AuditError::File { .. } | AuditError::Closed => ErrorCode::Unavailable,
            };
            let why = chain(&error);
            tracing::error!(problem = why, action, "a change was not made, for it could not be written down");
            status_of(code, format!("nothing was changed, for it could not be written down: {why}"), None)
        })
    }

    /// Writes down what became of it. A refusal has no message, and its status in the place of one.
    async fn end(&self, begun: Begun, action: &'static str, refused: Option<Status>) {
        let outcome = Outcome {
            word: refused.as_ref().map_or("ok", |status| code_of(status).as_str()),
            problem: refused.as_ref().map(Status::message),
            epoch: self.epoch(),
        };
        if let Err(error) = begun.end(outcome).await {
            self.failures.inc();
            let problem = chain(&error);
            tracing::error!(problem, action, "what became of a change is not in the audit log yet");
        }
    }

    /// The answer to a call that its caller may not make. One of somebody who is known, and that would have changed
    /// something, is counted in the audit log.
    pub(crate) fn refuse(&self, refused: &Refused) -> Response<Body> {
        let Refused { call, refusal: why, .. } = refused;
        if why.known && change(call).is_some() {
            self.audit.refused(refused);
        }
        refusal(why.known, why.message.clone()).into_http()
    }
}

impl<S> Layer<S> for Changes {
    type Service = Written<S>;

    fn layer(&self, inner: S) -> Written<S> {
        Written { changes: self.clone(), inner }
    }
}

/// Services whose changes are written down.
#[derive(Clone, Debug)]
pub(crate) struct Written<S> {
    changes: Changes,
    inner: S,
}

impl<S> Service<Request<Body>> for Written<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some((action, read)) = change(request.uri().path()) else {
            return Either::Left(self.inner.call(request));
        };
        // The one that has said it is ready is the one to be called.
        let other = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, other);
        let changes = self.changes.clone();
        let making = self.changes.lifecycle.spawn(async move {
            let (parts, body) = request.into_parts();
            let body = match Limited::new(body, MAX_REQUEST_BYTES).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => {
                    let problem = format!("the request did not come whole: {error}");
                    return status_of(ErrorCode::InvalidRequest, problem, None).into_http();
                }
            };
            let caller = Caller::of(&parts.extensions);
            let what = read(body.get(PREFIX_BYTES..).unwrap_or_default());
            let begun = match changes.begin(caller, action, what).await {
                Ok(begun) => begun,
                Err(status) => return status.into_http(),
            };
            let Ok(response) = inner.call(Request::from_parts(parts, Body::new(Full::new(body)))).await;
            changes.end(begun, action, Status::from_header_map(response.headers())).await;
            response
        });
        let made = making.map(|made| {
            let failed = |error: tokio::task::JoinError| {
                status_of(ErrorCode::Internal, format!("the change failed: {error}"), None).into_http()
            };
            Ok(made.unwrap_or_else(failed))
        });
        Either::Right(made.boxed())
    }
}

#[cfg(test)]
mod tests {
    use tidepool_runtime::auth::Role;

    use super::*;
    use crate::access::CALLS;

    #[test]
    fn every_call_that_needs_more_than_reading_is_written_down() {
        let changing =
            CALLS.iter().filter(|(_, needs)| needs.iter().any(|n| [Role::Write, Role::Admin].contains(n)));
        let changing: std::collections::BTreeSet<_> = changing.map(|(path, _)| *path).collect();
        assert_eq!(
            CHANGES.iter().map(|(path, ..)| *path).collect::<std::collections::BTreeSet<_>>(),
            changing
        );
    }

    #[test]
    fn what_was_asked_is_read_from_the_message() {
        let (action, read) = change("/tidepool.v1.Control/SetQuota").unwrap();
        let quota = Some(v1::Quota { rows_per_second: 7, bytes_per_second: 0 });
        let message = v1::QuotaRule { tenant: "ads".into(), quota }.encode_to_vec();
        let expected = json!({ "tenant": "ads", "quota": { "rows_per_second": 7, "bytes_per_second": 0 } });
        assert_eq!((action, read(&message)), ("set_quota", expected));
        assert!(read(&[0xff; 9])["unreadable"].is_string());
        assert!(change("/tidepool.v1.Control/GetCluster").is_none());
    }
}
