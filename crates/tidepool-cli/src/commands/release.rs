//! `tidepool release`: validate and write a release into the artifact store, take it into the cluster, give it
//! traffic, promote it, take it back.

mod check;
mod golden;
mod list;
mod show;
mod skew;
mod traffic;

pub(crate) use traffic::asked;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};
use tidepool_proto::v1;
use tidepool_store::{NewRelease, StoreError};
use tidepool_types::Name;

use super::{control, store};
use crate::{
    output::{Outcome, Output},
    remote::Remote,
};

pub(crate) use self::list::{percent, share};

/// Things a release waits for that people are shown.
const SHOWN: usize = 3;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Check a dense model against its contract and its tables, write the release, and have it loaded.
    Publish(Publish),
    /// Say everything that is wrong with the files and tables of a release, and publish nothing.
    Check(Check),
    /// Freeze what a model.toml makes of samples, as the golden vectors of a release.
    Golden(golden::Freeze),
    /// Replay a labelled sample against releases, with their own tables and with those of others: what a mismatch costs.
    Skew(skew::Skew),
    /// Give a release a share of its model's traffic, under guards that take it back when it does badly.
    Ramp(traffic::Ramp),
    /// Give several releases a share each, at once.
    Experiment(traffic::Experiment),
    /// Make a loaded release the one that is served.
    Promote(Promote),
    /// One step back: what is under a ramp loses its traffic; without any, the release before the current one answers.
    Rollback(traffic::Rollback),
    /// Have a release asked too, and its scores compared with those that are given.
    Shadow(traffic::Shadow),
    /// Show who is answered by which release, and what guards see.
    Status(traffic::Status),
    /// List the releases that the cluster knows, and those of a store that it does not.
    List(list::List),
    /// Let a release go that nobody is sent to.
    Retire(traffic::Retire),
    /// Keep a release loaded whatever is promoted, or no longer.
    Pin(traffic::Pin),
    /// Take releases that the cluster does not know from a store, and the tables that only they used.
    Gc(store::Gc),
}

#[derive(Args)]
#[command(group(ArgGroup::new("from").required(true).args(["model_toml", "model"])))]
pub(crate) struct Publish {
    /// Name of the release.
    release: Name,
    #[command(flatten)]
    files: check::Files,
    /// The model, when the release lies in the store already (its files are then not given).
    #[arg(long)]
    model: Option<Name>,
}

#[derive(Args)]
pub(crate) struct Check {
    /// A name for it, which must be free.
    #[arg(long)]
    release: Option<Name>,
    #[command(flatten)]
    files: check::Files,
}

#[derive(Args)]
pub(crate) struct Promote {
    /// The model.
    model: Name,
    /// The release of it.
    release: Name,
    /// How long to wait until every node and ranker has it.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait_seconds: u64,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<Outcome> {
    match command {
        Command::Publish(args) => {
            // Before anything is written: a release that nobody could be told of would only be in the way.
            let mut control = remote.control().await?;
            let model = match &args.model {
                Some(model) => model.clone(),
                None => write(&args).await?,
            };
            let status = control::publish(&mut control, &model, &args.release).await?;
            show_release(output, &status, "published");
        }
        Command::Promote(args) => {
            let mut control = remote.control().await?;
            if args.dry_run {
                let (model, release) = (args.model.to_string(), args.release.to_string());
                let request = v1::PromoteReleaseRequest { model, release, dry_run: true };
                let status = control.promote_release(request).await.map_err(|s| control::refusal(&s))?;
                show_release(output, &status.into_inner(), "nothing was done; it would be promoted");
                return Ok(Outcome::Done);
            }
            let wait = Duration::from_secs(args.wait_seconds);
            let status = control::promote(&mut control, &args.model, &args.release, wait).await?;
            show_release(output, &status, "promoted");
        }
        Command::Check(args) => {
            let checked = check::check(&args.files, args.release.as_ref()).await?;
            output.line(format!("a release of model {}: nothing is wrong with it", checked.model));
            output.line(format!("golden vectors: {}, all of them kept", checked.golden_cases));
            if !checked.not_golden.is_empty() {
                let inputs = checked.not_golden.join(", ");
                output.line(format!("no golden vector speaks of the transforms of: {inputs}"));
            }
            output.object(json!({
                "model": checked.model, "problems": [], "golden_vectors": checked.golden_cases,
                "inputs_without_golden_vectors": checked.not_golden,
            }));
        }
        Command::Golden(args) => golden::freeze(&args, output)?,
        Command::Skew(args) => return skew::skew(args, output).await,
        Command::Ramp(args) => traffic::ramp(args, remote, output).await?,
        Command::Experiment(args) => traffic::experiment(args, remote, output).await?,
        Command::Shadow(args) => traffic::shadow(args, remote, output).await?,
        Command::Rollback(args) => traffic::rollback(args, remote, output).await?,
        Command::Retire(args) => traffic::retire(args, remote, output).await?,
        Command::Pin(args) => traffic::pin(args, remote, output).await?,
        Command::Status(args) => traffic::status(args, remote, output).await?,
        Command::List(args) => list::list(args, remote, output).await?,
        Command::Gc(args) => store::gc(args, store::Collected::Releases, remote, output).await?,
    }
    Ok(Outcome::Done)
}

/// Validates the files against each other and writes the release into the store; returns its model.
async fn write(args: &Publish) -> Result<Name> {
    let checked = check::check(&args.files, Some(&args.release)).await?;
    let check::Checked { store, model, model_toml, onnx, golden, .. } = checked;
    let (release, tables) = (&args.release, args.files.tables.as_slice());
    let (model_toml, onnx, golden) = (model_toml.as_str(), onnx.as_slice(), golden.as_deref());
    let new = NewRelease { model: &model, release, tables, model_toml, onnx, golden };
    match store.write_release(new).await {
        Ok(()) => Ok(model),
        // Somebody else was faster.
        Err(error @ StoreError::AlreadyExists { .. }) => Err(error)
            .with_context(|| format!("to publish what is in the store, give --model {model} and no files")),
        Err(error) => Err(error.into()),
    }
}

/// The word of a release's state, as it comes in messages.
pub(crate) fn state_word(state: i32) -> String {
    let state = v1::ReleaseState::try_from(state).unwrap_or_default();
    match state {
        v1::ReleaseState::Unspecified => "unknown".into(),
        known => known.as_str_name().trim_start_matches("RELEASE_STATE_").to_lowercase(),
    }
}

fn state(status: &v1::ReleaseStatus) -> String {
    state_word(status.release.as_ref().map_or(0, |entry| entry.state))
}

fn fields(status: &v1::ReleaseStatus) -> Value {
    let entry = status.release.clone().unwrap_or_default();
    let tables: Vec<_> = entry.tables.iter().map(|t| format!("{}@{}", t.table, t.version)).collect();
    json!({
        "model": entry.model, "release": entry.release, "state": state(status), "tables": tables,
        "epoch": status.epoch, "waiting_for": status.waiting_for,
    })
}

fn sentence(status: &v1::ReleaseStatus) -> String {
    let entry = status.release.clone().unwrap_or_default();
    let mut text = format!("{} {}: {}", entry.model, entry.release, state(status));
    let (shown, more) = status.waiting_for.split_at(status.waiting_for.len().min(SHOWN));
    if !shown.is_empty() {
        text.push_str("; still missing: ");
        text.push_str(&shown.join("; "));
    }
    if !more.is_empty() {
        text.push_str(&format!("; and {} more, `release list --json` has them", more.len()));
    }
    text
}

fn show_release(output: Output, status: &v1::ReleaseStatus, done: &str) {
    output.line(format!("{done}: {} (epoch {})", sentence(status), status.epoch));
    output.object(fields(status));
}
