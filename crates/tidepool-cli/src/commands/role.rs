//! `tidepool controller|node|ranker`: run one role until it is told to end.

use std::{fmt::Debug, future::Future, io, net::SocketAddr, path::PathBuf, pin::pin};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::json;
use tidepool_runtime::{
    config::{InvalidConfig, load_valid},
    logs::{self, LogOptions},
    shutdown,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::config::Role;
use crate::output::{Outcome, Output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The configuration; see the commented samples in config/.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, over file and environment.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// End when stdin closes, so that a parent process cannot leave this one behind.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

#[derive(clap::Args)]
pub(crate) struct RankerArgs {
    #[command(flatten)]
    role: Args,
    /// Write so many percent of the answered requests down with their scores, for `release skew`: `audit_sample.percent`.
    #[arg(long, value_name = "PERCENT")]
    audit_sample: Option<String>,
}

impl RankerArgs {
    /// Flags that stand for a key set it, over the others.
    pub(crate) fn into_role(self) -> Args {
        let Self { mut role, audit_sample } = self;
        role.set.extend(audit_sample.map(|percent| ("audit_sample.percent".to_owned(), percent)));
        role
    }
}

pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) async fn controller(args: Args, output: Output) -> Result<Outcome> {
    let config: tidepool_controller::Config = configure::<tidepool_controller::RawConfig, _>(
        &args,
        Role::Controller,
        |c: &tidepool_controller::Config| &c.log,
    )?;
    let token = CancellationToken::new();
    let running = tidepool_controller::start(config, token.clone()).await?;
    announce(output, "controller", running.grpc_address, running.http_address);
    until_told(&args, token, running.wait()).await
}

/// What a node is started with, and how many threads it needs.
pub(crate) fn node_config(args: &Args) -> Result<tidepool_node::Config> {
    configure::<tidepool_node::RawConfig, _>(args, Role::Node, |c: &tidepool_node::Config| &c.log)
}

pub(crate) async fn node(args: Args, config: tidepool_node::Config, output: Output) -> Result<Outcome> {
    let token = CancellationToken::new();
    let running = tidepool_node::start(config, token.clone()).await?;
    announce(output, "node", running.grpc_address, running.http_address);
    until_told(&args, token, running.wait()).await
}

/// What a ranker is started with, and how many threads it needs.
pub(crate) fn ranker_config(args: &Args) -> Result<tidepool_ranker::Config> {
    configure::<tidepool_ranker::RawConfig, _>(args, Role::Ranker, |c: &tidepool_ranker::Config| &c.log)
}

pub(crate) async fn ranker(args: Args, config: tidepool_ranker::Config, output: Output) -> Result<Outcome> {
    let token = CancellationToken::new();
    let running = tidepool_ranker::start(config, token.clone()).await?;
    announce(output, "ranker", running.grpc_address, running.http_address);
    until_told(&args, token, running.wait()).await
}

/// Reads the configuration and sets the logs up by it.
fn configure<Raw, Config>(args: &Args, role: Role, log: impl FnOnce(&Config) -> &LogOptions) -> Result<Config>
where
    Raw: DeserializeOwned,
    Config: TryFrom<Raw, Error = InvalidConfig> + Debug,
{
    let config = load_valid::<Raw, Config>(args.config.as_deref(), role.prefix(), &args.set)?;
    logs::init(log(&config))?;
    Ok(config)
}

/// Says where the role listens, once it does: to people in the log, to a parent process as JSON.
fn announce(output: Output, role: &str, grpc_address: SocketAddr, http_address: SocketAddr) {
    info!(role, %grpc_address, %http_address, "listening");
    output.object(json!({ "role": role, "grpc_address": grpc_address, "http_address": http_address }));
}

/// Runs until a signal, or the parent's end, or the role's own; the first two drain it.
async fn until_told<E>(
    args: &Args,
    token: CancellationToken,
    ended: impl Future<Output = Result<(), E>>,
) -> Result<Outcome>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let signal = shutdown::signal()?;
    let parent_ended = parent_ended(args.until_stdin_closes);
    let mut ended = pin!(ended);
    tokio::select! {
        signal = signal => info!(%signal, "draining"),
        () = parent_ended => info!("stdin closed, draining"),
        result = &mut ended => return result.map(|()| Outcome::Done).context("the role ended by itself"),
    }
    token.cancel();
    ended.await.context("draining")?;
    Ok(Outcome::Done)
}

/// Resolves when stdin closes, if that is to be watched. A thread of its own reads it: one of the runtime's
/// would hold up the end of the process until somebody typed something.
pub(crate) async fn parent_ended(watch: bool) {
    if !watch {
        return std::future::pending().await;
    }
    // A process that is stopped could not notice that its stdin closes.
    if let Err(error) = shutdown::continue_when_the_parent_ends() {
        tracing::warn!(%error, "a stopped process would outlive its parent");
    }
    let (sender, closed) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(sender);
    });
    let _ = closed.await;
}
