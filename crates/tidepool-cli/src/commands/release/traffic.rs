//! `tidepool release ramp|experiment|shadow|rollback|retire|pin|status`: who is answered by which release.

use anyhow::{Result, bail};
use clap::Args;
use http_body_util::Full;
use hyper::{Request, body::Bytes, header};
use serde_json::{Value, json};
use tidepool_cluster::{BUCKETS, Guards};
use tidepool_proto::v1::{self, releases_client::ReleasesClient};
use tidepool_types::Name;

use super::{
    super::{control::refusal, metastore::Sure, ranker_http},
    show,
};
use crate::{
    leader,
    output::Output,
    remote::{Caller, Remote},
};

/// Says who asks, for the list of events.
const BY_HEADER: &str = "tidepool-by";

#[derive(Args)]
pub(crate) struct Ramp {
    /// The model.
    model: Name,
    /// The release of it.
    release: Name,
    /// How much of the model's traffic it should have: 5%, 0.25%; 0% takes it off.
    #[arg(value_name = "SHARE", value_parser = share)]
    share: u32,
    #[command(flatten)]
    guards: GuardArgs,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(crate) struct Experiment {
    /// The model.
    model: Name,
    /// Releases and how much of the traffic each should have: r2=10% r3=10%. What is not named stays as it is.
    #[arg(required = true, value_name = "RELEASE=SHARE", value_parser = weighted)]
    arms: Vec<(Name, u32)>,
    #[command(flatten)]
    guards: GuardArgs,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// What a release must keep to while it has a share, beside the current release over the same time.
#[derive(Args)]
struct GuardArgs {
    /// How much larger its share of failed requests may be, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = Guards::default().max_error_rate_increase)]
    max_error_rate_increase: f64,
    /// How much larger its share of ids that no table has may be, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = Guards::default().max_missing_rate_increase)]
    max_missing_rate_increase: f64,
    /// How far its scores may be from the current release's: the Kolmogorov-Smirnov distance. 1: anywhere.
    #[arg(long, value_name = "DISTANCE", default_value_t = Guards::default().max_score_shift)]
    max_score_shift: f64,
    /// Requests that either must have answered before it is judged.
    #[arg(long, value_name = "REQUESTS", default_value_t = Guards::default().min_requests)]
    min_requests: u64,
}

#[derive(Args)]
pub(crate) struct Shadow {
    /// The model.
    model: Name,
    /// The release of it.
    release: Name,
    /// Of how much of the traffic it should be asked too: 1%; 0% ends it. Its answers are given to nobody.
    #[arg(value_name = "SAMPLE", value_parser = share)]
    sample: u32,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(crate) struct Rollback {
    /// The model.
    model: Name,
    /// What to take back. Without it: every release under a ramp, or else the current release.
    #[arg(long)]
    release: Option<Name>,
    /// A ranker's HTTP address: it is told itself, and no controller. Once per ranker. It holds there until a cluster
    /// map has another say on the model.
    #[arg(long = "ranker", value_name = "HOST:PORT", conflicts_with = "dry_run")]
    rankers: Vec<String>,
    /// Ends the rollback at those rankers: they go by the cluster map again.
    #[arg(long, requires = "rankers", conflicts_with = "release")]
    undo: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(crate) struct Retire {
    /// The model.
    model: Name,
    /// The release of it.
    release: Name,
    #[command(flatten)]
    sure: Sure,
}

#[derive(Args)]
pub(crate) struct Pin {
    /// The model.
    model: Name,
    /// The release of it.
    release: Name,
    /// It may go again.
    #[arg(long)]
    undo: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(crate) struct Status {
    /// The model; without it, all of them.
    model: Option<Name>,
}

impl From<&GuardArgs> for v1::Guards {
    fn from(args: &GuardArgs) -> Self {
        Self {
            max_error_rate_increase: args.max_error_rate_increase,
            max_missing_rate_increase: args.max_missing_rate_increase,
            max_score_shift: args.max_score_shift,
            min_requests: args.min_requests,
        }
    }
}

async fn connect(remote: &Remote) -> Result<ReleasesClient<Caller>> {
    Ok(ReleasesClient::new(leader::channel(remote).await?))
}

/// A request that says who asks.
pub(crate) fn asked<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    if let Some(by) = user.and_then(|user| user.parse().ok()) {
        request.metadata_mut().insert(BY_HEADER, by);
    }
    request
}

pub(crate) async fn ramp(args: Ramp, remote: &Remote, output: Output) -> Result<()> {
    let Ramp { model, release, share, guards, dry_run } = args;
    set_shares(&model, vec![(release, share)], &guards, dry_run, remote, output).await
}

pub(crate) async fn experiment(args: Experiment, remote: &Remote, output: Output) -> Result<()> {
    let Experiment { model, arms, guards, dry_run } = args;
    set_shares(&model, arms, &guards, dry_run, remote, output).await
}

async fn set_shares(
    model: &Name,
    shares: Vec<(Name, u32)>,
    guards: &GuardArgs,
    dry_run: bool,
    remote: &Remote,
    output: Output,
) -> Result<()> {
    let shares =
        shares.into_iter().map(|(release, buckets)| v1::Share { release: release.to_string(), buckets });
    let request = v1::SetSharesRequest {
        model: model.to_string(),
        shares: shares.collect(),
        guards: Some(guards.into()),
        dry_run,
    };
    let status = connect(remote).await?.set_shares(asked(request)).await.map_err(|s| refusal(&s))?;
    show::changed(&status.into_inner(), dry_run, output);
    Ok(())
}

pub(crate) async fn shadow(args: Shadow, remote: &Remote, output: Output) -> Result<()> {
    let Shadow { model, release, sample, dry_run } = args;
    let (model, release) = (model.to_string(), release.to_string());
    let request = v1::ShadowReleaseRequest { model, release, sample, dry_run };
    let status = connect(remote).await?.shadow_release(asked(request)).await.map_err(|s| refusal(&s))?;
    show::changed(&status.into_inner(), dry_run, output);
    Ok(())
}

/// It asks nothing back: it is for the emergency.
pub(crate) async fn rollback(args: Rollback, remote: &Remote, output: Output) -> Result<()> {
    let Rollback { model, release, rankers, undo, dry_run } = args;
    if !rankers.is_empty() {
        return rollback_at(&model, release.as_ref(), (rankers, undo), remote, output).await;
    }
    let release = release.map(|release| release.to_string()).unwrap_or_default();
    let request = v1::RollbackRequest { model: model.to_string(), release, dry_run };
    let status = connect(remote).await?.rollback(asked(request)).await.map_err(|s| refusal(&s))?;
    show::changed(&status.into_inner(), dry_run, output);
    Ok(())
}

/// Tells rankers, each by itself; one that cannot be told does not keep the others from it.
async fn rollback_at(
    model: &Name,
    release: Option<&Name>,
    (rankers, undo): (Vec<String>, bool),
    remote: &Remote,
    output: Output,
) -> Result<()> {
    let body = json!({ "model": model, "release": release, "undo": undo }).to_string();
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for ranker in rankers {
        let told = async {
            let request = Request::post("/v1/admin/rollback")
                .header(header::HOST, &ranker)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body.clone())))?;
            let response = ranker_http::send(remote, &ranker, request).await?;
            let answer: Value = serde_json::from_slice(&ranker_http::collect(&ranker, response).await?)?;
            anyhow::Ok(answer)
        };
        match told.await {
            Ok(answer) => {
                let answers = answer["answers"].as_str().unwrap_or_default();
                output.line(format!("{ranker}: {answers} answers the requests of {model} there now"));
                done.push(json!({ "ranker": ranker, "answers": answers, "off": answer["off"] }));
            }
            Err(error) => {
                output.line(format!("{ranker}: {error:#}"));
                failed.push(ranker);
            }
        }
    }
    output.object(json!({ "model": model, "rankers": done, "failed": failed }));
    if !failed.is_empty() {
        let what = if undo { "the rollback was not undone" } else { "it was not rolled back" };
        bail!("model {model}: {what} at {}", failed.join(", "));
    }
    Ok(())
}

pub(crate) async fn retire(args: Retire, remote: &Remote, output: Output) -> Result<()> {
    let Retire { model, release, sure } = args;
    let mut releases = connect(remote).await?;
    let request = |dry_run| v1::RetireReleaseRequest {
        model: model.to_string(),
        release: release.to_string(),
        dry_run,
    };
    // What cannot be done is said before anybody is asked.
    let tried = releases.retire_release(asked(request(true))).await.map_err(|s| refusal(&s))?.into_inner();
    if sure.dry_run {
        show::changed(&tried, true, output);
        return Ok(());
    }
    sure.confirm(&format!(
        "{model}@{release} will be let go by every node and ranker, and nobody can go back to it"
    ))?;
    let status = releases.retire_release(asked(request(false))).await.map_err(|s| refusal(&s))?;
    show::changed(&status.into_inner(), false, output);
    Ok(())
}

pub(crate) async fn pin(args: Pin, remote: &Remote, output: Output) -> Result<()> {
    let Pin { model, release, undo, dry_run } = args;
    let (model, release) = (model.to_string(), release.to_string());
    let request = v1::PinReleaseRequest { model, release, pinned: !undo, dry_run };
    let status = connect(remote).await?.pin_release(asked(request)).await.map_err(|s| refusal(&s))?;
    show::changed(&status.into_inner(), dry_run, output);
    Ok(())
}

pub(crate) async fn status(args: Status, remote: &Remote, output: Output) -> Result<()> {
    let model = args.model.map(|model| model.to_string()).unwrap_or_default();
    let request = v1::GetTrafficRequest { model };
    let answer = connect(remote).await?.get_traffic(request).await.map_err(|s| refusal(&s))?;
    let models = answer.into_inner().models;
    if models.is_empty() {
        output.line("no releases");
    }
    models.iter().for_each(|status| show::traffic(status, output));
    output.object(json!({ "models": models.iter().map(show::object).collect::<Vec<_>>() }));
    Ok(())
}

/// Reads `5%`, in buckets.
fn share(text: &str) -> Result<u32, String> {
    let percent = text.strip_suffix('%').ok_or("a share ends with %: 5%, 0.25%")?;
    let percent: f64 = percent.parse().map_err(|_| format!("{percent:?} is no number"))?;
    let buckets = percent * f64::from(BUCKETS) / 100.0;
    if !(0.0..=f64::from(BUCKETS)).contains(&buckets) {
        return Err("a share is from 0% to 100%".into());
    }
    if (buckets - buckets.round()).abs() > 1e-6 {
        return Err("shares are multiples of 0.01%".into());
    }
    Ok(buckets.round() as u32)
}

/// Reads `r2=10%`.
fn weighted(text: &str) -> Result<(Name, u32), String> {
    let (release, part) = text.split_once('=').ok_or("RELEASE=SHARE is expected, as in r2=10%")?;
    Ok((Name::new(release).map_err(|e| e.to_string())?, share(part)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_in_hundredths_of_a_percent() {
        assert_eq!(
            (share("5%"), share("0.25%"), share("100%"), share("0%")),
            (Ok(500), Ok(25), Ok(10_000), Ok(0))
        );
        for bad in ["5", "101%", "-1%", "0.001%", "x%", "NaN%", "%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        assert_eq!(weighted("r2=10%"), Ok((Name::new("r2").unwrap(), 1_000)));
        assert!(weighted("r2").is_err() && weighted("a/b=1%").is_err());
    }
}
