//! Asking a ranker over HTTP: which one, the call itself, and its refusals in words.

use anyhow::{Context, Result, anyhow};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{AUTHORIZATION, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tidepool_proto::v1;

use super::control;
use crate::{columns::harmless, remote::Remote};

/// `address`, or the HTTP address of a ranker that the controller knows.
pub(crate) async fn address(address: Option<String>, remote: &Remote) -> Result<String> {
    if let Some(address) = address {
        return Ok(address);
    }
    let mut control = remote.control().await?;
    let cluster = control.get_cluster(v1::GetClusterRequest {}).await.map_err(|s| control::refusal(&s))?;
    let ranker = cluster.into_inner().rankers.into_iter().next();
    Ok(ranker.context("the controller knows no ranker; start one, or name it with --ranker")?.http_address)
}

/// Sends one request and gives the answer, or the ranker's refusal as an error.
pub(crate) async fn send(
    remote: &Remote,
    address: &str,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>> {
    if let Some(authorization) = remote.authorization() {
        let mut value = HeaderValue::try_from(authorization)?;
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    let stream = remote.http(address).await.with_context(|| format!("no ranker answers at {address}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer; what it has to say of the connection, the call says too.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.with_context(|| asking(address))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = collect(address, response).await?;
    let answer: Value = serde_json::from_slice(&body).with_context(|| format!("{status} from {address}"))?;
    let word = |key: &str| answer["error"][key].as_str().unwrap_or_default().to_owned();
    let known = match word("request_id").as_str() {
        "" => String::new(),
        id => format!(" (request {}: `tidepool why` with it tells more)", harmless(id)),
    };
    Err(anyhow!("{}: {}{known}", word("code"), word("message")))
}

/// The whole body of an answer.
pub(crate) async fn collect(address: &str, response: Response<Incoming>) -> Result<Bytes> {
    Ok(response.into_body().collect().await.with_context(|| asking(address))?.to_bytes())
}

fn asking(address: &str) -> String {
    format!("asking {address}, a ranker's HTTP address")
}
