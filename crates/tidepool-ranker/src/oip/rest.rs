//! The protocol over HTTP, as JSON and with elements as bytes (`body.rs`). An error is `{"error": TEXT}`.

use std::time::Instant;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Path, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use serde::Deserialize;
use serde_json::{Value as JsonValue, json};
use tidepool_client::TraceParent;
use tidepool_proto::{REQUEST_ID_HEADER, pack::unpack, v1};
use tidepool_runtime::{auth::Caller, error::chain};

use super::{
    Infer, Inference,
    answer::Inferred,
    body::{self, Binary},
    contract::Described,
    inflate::{Encoding, inflate},
    metadata,
    parameters::Named,
    tensors::{Datatype, Tensor, told},
};
use crate::{RankError, json::short, service::Unanswered};

/// How many bytes of a body are its document; the rest are elements.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// A body of more bytes is read on the pool: where it arrives, it would hold up whoever shares the thread.
const MAX_INLINE_BYTES: usize = 64 << 10;

/// The rest of what begins like the protocol. It stands in no table of access: where doors are locked it is open to
/// nobody, and elsewhere it says that there is no such call, in a form that clients can read.
const NOT_SERVED: &str = "/v2/{*rest}";

#[derive(Clone)]
struct Served {
    inference: Inference,
    max_request_bytes: usize,
}

/// What answers for as long as the process does.
pub(super) fn health_routes(inference: Inference) -> Router {
    Router::new()
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .with_state(inference)
}

pub(super) fn routes(inference: Inference, max_request_bytes: usize) -> Router {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/models/{model}", get(model))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(model))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
        .route(NOT_SERVED, any(not_served))
        .layer(DefaultBodyLimit::max(max_request_bytes))
        .with_state(Served { inference, max_request_bytes })
}

/// A model, and where the path has one, a release of it.
#[derive(Debug, Deserialize)]
struct Which {
    model: String,
    #[serde(default)]
    version: String,
}

type Asked = Result<Path<Which>, PathRejection>;

fn which(asked: Asked) -> Result<Which, RankError> {
    asked.map(|Path(which)| which).map_err(|rejection| RankError::Invalid(rejection.body_text()))
}

fn refused(error: &RankError) -> Response {
    let status =
        StatusCode::from_u16(error.code().http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer_text(status, &chain(error))
}

fn answer_text(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

fn answered<T: IntoResponse>(result: Result<T, RankError>) -> Response {
    result.map_or_else(|error| refused(&error), IntoResponse::into_response)
}

async fn live(State(inference): State<Inference>) -> Response {
    verdict(inference.health.live())
}

async fn ready(State(inference): State<Inference>) -> Response {
    verdict(inference.health.readiness())
}

fn verdict(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => Json(json!({})).into_response(),
        Err(why) => answer_text(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

async fn server() -> Response {
    let (name, version, extensions) = (metadata::NAME, metadata::VERSION, metadata::EXTENSIONS);
    Json(json!({ "name": name, "version": version, "extensions": extensions })).into_response()
}

async fn model(State(served): State<Served>, asked: Asked) -> Response {
    let found = which(asked).and_then(|w| served.inference.metadata(&w.model, &w.version));
    answered(found.map(|found| {
        let tensors = |list: &[Described]| {
            let tensor =
                |t: &Described| json!({ "name": t.name, "datatype": t.datatype.as_str(), "shape": t.shape });
            list.iter().map(tensor).collect::<Vec<_>>()
        };
        Json(json!({
            "name": found.name,
            "versions": found.versions,
            "platform": metadata::PLATFORM,
            "inputs": tensors(&found.inputs),
            "outputs": tensors(&found.outputs),
        }))
    }))
}

async fn model_ready(State(served): State<Served>, asked: Asked) -> Response {
    let found = which(asked).and_then(|w| served.inference.model(&w.model, &w.version));
    answered(
        found
            .map(|release| Json(json!({ "name": release.model, "version": release.release, "ready": true }))),
    )
}

async fn infer(
    State(served): State<Served>,
    Extension(caller): Extension<Caller>,
    asked: Asked,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let arrived = Instant::now();
    let traceparents = headers.get_all(TraceParent::HEADER).iter();
    let traceparent = TraceParent::only(traceparents.map(HeaderValue::as_bytes));
    // A body that is too large has a status of its own, which proxies and clients know.
    let too_large = body.as_ref().err().map(BytesRejection::status);
    let read = match which(asked) {
        Ok(which) => {
            let known = v1::RankRequest {
                model: which.model.clone(),
                release: which.version.clone(),
                ..v1::RankRequest::default()
            };
            read(&served, which, &headers, body).await.map_err(|error| (error, Box::new(known)))
        }
        Err(error) => Err((error, Box::default())),
    };
    let (infer, binary) = match read {
        Ok((infer, binary)) => (Ok(infer), binary),
        Err(problem) => (Err(problem), Binary::default()),
    };
    match (served.inference.infer(&caller, infer, traceparent, arrived).await, too_large) {
        (Ok(inferred), _) => write(inferred, &binary),
        (Err(Unanswered { error, request_id }), too_large) => {
            let mut response = refused(&error);
            if let Some(status) = too_large {
                *response.status_mut() = status;
            }
            // One that a header cannot hold was the caller's own, who knows it.
            if request_id.is_ascii()
                && let Ok(request_id) = request_id.parse()
            {
                response.headers_mut().insert(REQUEST_ID_HEADER, request_id);
            }
            response
        }
    }
}

async fn read(
    served: &Served,
    Which { model, version }: Which,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(Infer, Binary), RankError> {
    let invalid = |problem: String| RankError::Invalid(problem);
    let body = body.map_err(|rejection| invalid(rejection.body_text()))?;
    let encoding = headers.get(header::CONTENT_ENCODING).map_or(&[][..], HeaderValue::as_bytes);
    let encoding = Encoding::of(encoding)?;
    let length = headers.get(HEADER_LENGTH).map(|length| {
        let length = length.to_str().ok().and_then(|length| length.parse().ok());
        length.ok_or_else(|| invalid("Inference-Header-Content-Length is no number of bytes".into()))
    });
    let length = length.transpose()?;
    if encoding.is_none() && body.len() <= MAX_INLINE_BYTES {
        return body::read(model, version, length, body);
    }
    let max_bytes = served.max_request_bytes;
    let work = move || {
        let body = match encoding {
            Some(encoding) => inflate(encoding, &body, max_bytes)?,
            None => body,
        };
        body::read(model, version, length, body)
    };
    // What computes, computes on the pool.
    served.inference.service.ranker.pool.run(work).await?
}

/// The answer: a document, and after it the elements of the outputs that are wanted as bytes.
fn write(inferred: Inferred, binary: &Binary) -> Response {
    let Inferred { model, version, id, parameters, outputs } = inferred;
    let mut tail = Vec::new();
    let mut is_binary = false;
    let mut shown = Vec::with_capacity(outputs.len());
    for Tensor { frame, raw } in outputs {
        let mut output = json!({
            "name": frame.name, "datatype": frame.datatype.as_str(), "shape": frame.shape,
        });
        if binary.is(&frame.name) {
            is_binary = true;
            output["parameters"] = json!({ "binary_data_size": raw.len() });
            tail.extend_from_slice(&raw);
        } else {
            output["data"] = data(frame.datatype, &raw);
        }
        shown.push(output);
    }
    let document = json!({
        "model_name": model, "model_version": version, "id": id, "parameters": parameters, "outputs": shown,
    });
    if !is_binary {
        return Json(document).into_response();
    }
    let mut body = document.to_string().into_bytes();
    let length = HeaderValue::from(body.len());
    body.append(&mut tail);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (HEADER_LENGTH, length),
    ];
    (headers, body).into_response()
}

/// Elements as JSON, in which there is no NaN: a ranking that makes one is not answered.
fn data(datatype: Datatype, raw: &[u8]) -> JsonValue {
    if datatype == Datatype::Uint32 {
        return unpack::<u32>(raw).into_iter().flatten().collect();
    }
    unpack::<f32>(raw).into_iter().flatten().map(short).collect()
}

/// What a request to the repository may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    ready: bool,
    #[serde(default)]
    parameters: Named,
}

/// The document of a request to the repository; without a body there is nothing to say.
fn wanted(body: Result<Bytes, BytesRejection>) -> Result<Wanted, RankError> {
    let body = body.map_err(|rejection| RankError::Invalid(rejection.body_text()))?;
    if body.is_empty() {
        return Ok(Wanted::default());
    }
    serde_json::from_slice(&body)
        .map_err(|error| RankError::Invalid(format!("the request does not parse: {error}")))
}

async fn index(State(served): State<Served>, body: Result<Bytes, BytesRejection>) -> Response {
    let found = wanted(body).and_then(|wanted| served.inference.index("", wanted.ready));
    answered(found.map(|entries| {
        let entry = |entry: &super::repository::Entry| {
            json!({ "name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason })
        };
        Json(JsonValue::from(entries.iter().map(entry).collect::<Vec<_>>()))
    }))
}

async fn load(
    State(served): State<Served>,
    Extension(caller): Extension<Caller>,
    asked: Asked,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let loaded = async {
        let (which, wanted) = (which(asked)?, wanted(body)?);
        let parameters: Vec<_> = wanted.parameters.into_keys().collect();
        served.inference.load(caller, "", &which.model, &parameters).await
    };
    answered(loaded.await.map(|()| StatusCode::OK))
}

async fn unload(State(served): State<Served>, asked: Asked) -> Response {
    refused(&which(asked).map_or_else(|error| error, |which| served.inference.unload("", &which.model)))
}

async fn not_served(uri: Uri) -> Response {
    let path = told(uri.path());
    let text =
        format!("there is no call {path:?} here; docs/inference-protocol.md lists those that are served");
    answer_text(StatusCode::NOT_FOUND, &text)
}
