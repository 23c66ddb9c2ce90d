//! Talking to the controller: errors in words, and waiting until a thing is loaded.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use tidepool_proto::{code_of, v1};
use tidepool_runtime::error::chain;
use tidepool_types::{ErrorCode, Name, TableVersion};
use tonic::{Code, Status};

use crate::remote::Control;

/// How often a wait asks again.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A peer's refusal in words: its error code, then its message.
pub(crate) fn refusal(status: &Status) -> anyhow::Error {
    // Neither another role nor an HTTP port knows the call; both say so without naming what was asked.
    let another = status.code() == Code::Unimplemented || status.message().starts_with("grpc-status header");
    if another {
        return anyhow!("what answers there does not know this call: is it the gRPC port of the right role?");
    }
    // Only what is made on this side has a source: nobody there has said anything.
    let code = code_of(status);
    if let Some(cause) = status.source()
        && matches!(code, ErrorCode::Unavailable | ErrorCode::Internal)
    {
        let problem = chain(cause);
        return anyhow!("{code}: {problem}; where TLS is spoken, plaintext ends like this: see --tls-ca");
    }
    anyhow!("{code}: {}", status.message())
}

/// Publishes a release that lies in the artifact store.
pub(crate) async fn publish(
    control: &mut Control,
    model: &Name,
    release: &Name,
) -> Result<v1::ReleaseStatus> {
    let request = v1::PublishReleaseRequest { model: model.to_string(), release: release.to_string() };
    Ok(control.publish_release(request).await.map_err(|s| refusal(&s))?.into_inner())
}

/// Waits until nothing is missing before `release` can be promoted, promotes it, and waits until every
/// ranker has heard of it: then the next request is answered by it.
pub(crate) async fn promote(
    control: &mut Control,
    model: &Name,
    release: &Name,
    wait: Duration,
) -> Result<v1::ReleaseStatus> {
    let ask = || v1::GetReleaseRequest { model: model.to_string(), release: release.to_string() };
    let deadline = Instant::now() + wait;
    loop {
        let status = control.get_release(ask()).await.map_err(|s| refusal(&s))?.into_inner();
        let leaves = status.release.as_ref().is_some_and(|r| r.state() == v1::ReleaseState::Retiring);
        // What is being let go comes no nearer by waiting: the controller says what to do.
        if status.waiting_for.is_empty() || leaves {
            break;
        }
        if Instant::now() >= deadline {
            bail!("{model} {release} is not ready: {}", status.waiting_for.join("; "));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let request =
        v1::PromoteReleaseRequest { model: model.to_string(), release: release.to_string(), dry_run: false };
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
async fn rankers_before(control: &mut Control, epoch: u64) -> Result<Vec<String>> {
    let cluster = control.get_cluster(v1::GetClusterRequest {}).await.map_err(|s| refusal(&s))?.into_inner();
    Ok(cluster.rankers.into_iter().filter(|r| r.epoch < epoch).map(|r| r.ranker).collect())
}

/// Has a table version served (or no longer served), and waits until every partition is ready.
pub(crate) async fn serve_table(
    control: &mut Control,
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
