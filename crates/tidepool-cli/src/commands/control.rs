//! Talking to the controller: connection, errors in words, and waiting until a thing is loaded.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tidepool_proto::{
    code_of,
    v1::{self, control_client::ControlClient},
};
use tidepool_types::{Name, TableVersion};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a wait asks again.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Opens a channel to `host:port`.
pub(crate) async fn channel(what: &str, address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("{address:?} is no host:port"))?
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CALL_TIMEOUT);
    endpoint.connect().await.with_context(|| format!("no {what} answers at {address}"))
}

/// Connects to the controller.
pub(crate) async fn connect(controller: &str) -> Result<ControlClient<Channel>> {
    let channel = channel("controller", controller).await.map_err(|error| {
        error.context(format!(
            "the controller at {controller} cannot be reached: start it with `tidepool controller`, or name \
             yours with --controller HOST:PORT"
        ))
    })?;
    Ok(ControlClient::new(channel))
}

/// A peer's refusal in words: its error code, then its message.
pub(crate) fn refusal(status: &Status) -> anyhow::Error {
    // Neither another role nor an HTTP port knows the call; both say so without naming what was asked.
    let another = status.code() == Code::Unimplemented || status.message().starts_with("grpc-status header");
    if another {
        return anyhow!("what answers there does not know this call: is it the gRPC port of the right role?");
    }
    anyhow!("{}: {}", code_of(status), status.message())
}

/// Publishes a release that lies in the artifact store.
pub(crate) async fn publish(
    control: &mut ControlClient<Channel>,
    model: &Name,
    release: &Name,
) -> Result<v1::ReleaseStatus> {
    let request = v1::PublishReleaseRequest { model: model.to_string(), release: release.to_string() };
    Ok(control.publish_release(request).await.map_err(|s| refusal(&s))?.into_inner())
}

/// Waits until nothing is missing before `release` can be promoted, promotes it, and waits until every
/// ranker has heard of it: then the next request is answered by it.
pub(crate) async fn promote(
    control: &mut ControlClient<Channel>,
    model: &Name,
    release: &Name,
    wait: Duration,
) -> Result<v1::ReleaseStatus> {
    let ask = || v1::GetReleaseRequest { model: model.to_string(), release: release.to_string() };
    let deadline = Instant::now() + wait;
    loop {
        let status = control.get_release(ask()).await.map_err(|s| refusal(&s))?.into_inner();
        if status.waiting_for.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            bail!("{model} {release} is not ready: {}", status.waiting_for.join("; "));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let request = v1::PromoteReleaseRequest { model: model.to_string(), release: release.to_string() };
    let status = control.promote_release(request).await.map_err(|s| refusal(&s))?.into_inner();
    loop {
        let late = rankers_before(control, status.epoch).await?;
        if late.is_empty() {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            bail!(
                "{model} {release} is promoted, but these rankers have not heard of it: {}",
                late.join(", ")
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The connected rankers that do not follow the cluster map of `epoch` yet.
async fn rankers_before(control: &mut ControlClient<Channel>, epoch: u64) -> Result<Vec<String>> {
    let cluster = control.get_cluster(v1::GetClusterRequest {}).await.map_err(|s| refusal(&s))?.into_inner();
    Ok(cluster.rankers.into_iter().filter(|r| r.epoch < epoch).map(|r| r.ranker).collect())
}

/// Has a table version served (or no longer served), and waits until every partition is ready.
pub(crate) async fn serve_table(
    control: &mut ControlClient<Channel>,
    table_version: &TableVersion,
    serve: bool,
    wait: Duration,
) -> Result<u64> {
    let request = || v1::ServeTableRequest { table_version: Some(table_version.into()), serve };
    let deadline = Instant::now() + wait;
    loop {
        let answer = control.serve_table(request()).await.map_err(|s| refusal(&s))?.into_inner();
        if !serve || answer.waiting_for.is_empty() {
            return Ok(answer.epoch);
        }
        if Instant::now() >= deadline {
            bail!("{table_version} is not ready: {}", answer.waiting_for.join("; "));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Reads `TABLE@VERSION`.
pub(crate) fn table_version(text: &str) -> Result<TableVersion, String> {
    let (table, version) =
        text.split_once('@').ok_or_else(|| format!("{text:?} is not TABLE@VERSION, as in user@v1"))?;
    let name = |part: &str| Name::new(part).map_err(|e| e.to_string());
    Ok(TableVersion { table: name(table)?, version: name(version)? })
}
