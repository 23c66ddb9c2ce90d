//! `tidepool hot-ids`: which ids a ranker is asked for most, and rows touched before they are asked for.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use http_body_util::Full;
use hyper::{Request, body::Bytes, header};
use serde_json::json;
use tidepool_client::{Client, ClientConfig, HotIds};
use tidepool_types::{Name, TableVersion};

use super::{control, ranker_http};
use crate::{
    output::{Outcome, Output},
    remote::Remote,
};

const WAIT_FOR_MAP: Duration = Duration::from_secs(5);

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write the ids whose rows a ranker's cache holds to a file, those asked for most first.
    Export(Export),
    /// Look the ids of such a file up once in every replica group, so that their pages are in memory.
    Warm(Warm),
}

#[derive(clap::Args)]
pub(crate) struct Export {
    /// TABLE@VERSION.
    #[arg(value_parser = control::table_version)]
    table: TableVersion,
    /// The ranker's HTTP address; without it the controller is asked for one.
    #[arg(long, value_name = "HOST:PORT")]
    ranker: Option<String>,
    /// The file: a comment that names table and version, then one id a line.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Ids, at most; a ranker gives up to a million.
    #[arg(long, value_name = "IDS", default_value_t = 100_000)]
    limit: u32,
}

#[derive(clap::Args)]
pub(crate) struct Warm {
    /// The file that `export` wrote.
    file: PathBuf,
    /// TABLE@VERSION to look them up in, when it is not that of the file: the version that comes next.
    #[arg(long, value_parser = control::table_version)]
    table: Option<TableVersion>,
    /// This replica group only.
    #[arg(long)]
    group: Option<Name>,
    /// Give up after this, for each group.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout_s: u64,
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<Outcome> {
    match command {
        Command::Export(args) => export(args, remote, output).await,
        Command::Warm(args) => warm(args, remote, output).await,
    }
}

async fn export(args: Export, remote: &Remote, output: Output) -> Result<Outcome> {
    let address = ranker_http::address(args.ranker, remote).await?;
    let TableVersion { table, version } = &args.table;
    let path = format!("/v1/hot-ids?table={table}&version={version}&limit={}", args.limit);
    let request = Request::get(path).header(header::HOST, &address).body(Full::new(Bytes::new()))?;
    let response = ranker_http::send(remote, &address, request).await?;
    let body = ranker_http::collect(&address, response).await?;
    let text = String::from_utf8(body.to_vec()).context("the ranker's list is no text")?;
    let hot = HotIds::parse(&text).context("the ranker's list")?;
    fs::write(&args.out, &text).with_context(|| format!("writing {}", args.out.display()))?;
    output.line(format!("{} hot ids of {} in {}", hot.ids.len(), hot.table_version, args.out.display()));
    output.object(json!({ "table_version": hot.table_version, "ids": hot.ids.len(), "file": args.out }));
    Ok(Outcome::Done)
}

async fn warm(args: Warm, remote: &Remote, output: Output) -> Result<Outcome> {
    let text = fs::read_to_string(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    let hot = HotIds::parse(&text).with_context(|| args.file.display().to_string())?;
    let version = args.table.unwrap_or_else(|| hot.table_version.clone());
    let config = remote.client_config()?;
    let client = Client::start(config.clone()).await?;
    let map = client
        .wait_for_map(|map| map.epoch.0 > 0, WAIT_FOR_MAP)
        .await
        .with_context(|| format!("no cluster map from a controller at {}", remote.controller))?;
    let layout = map.layout(&version).with_context(|| format!("table {version} is not served"))?;
    let groups =
        layout.placement.groups.keys().filter(|group| args.group.as_ref().is_none_or(|g| g == *group));
    let groups: Vec<_> = groups.cloned().collect();
    ensure!(!groups.is_empty(), "table {version} is not served by such a group");
    let mut done = Vec::new();
    for group in groups {
        let config = ClientConfig { preferred_group: Some(group.clone()), ..config.clone() };
        let client = Client::start(config).await?;
        client.wait_for_map(|have| have.epoch >= map.epoch, WAIT_FOR_MAP).await?;
        let warmed = client.warm(&version, &hot.ids, Duration::from_secs(args.timeout_s)).await?;
        output.line(format!("group {group}: {} of {} ids looked up", warmed.ids, hot.ids.len()));
        done.push(json!({ "group": group, "ids": warmed.ids }));
    }
    output.object(json!({ "table_version": version, "ids": hot.ids.len(), "groups": done }));
    Ok(Outcome::Done)
}
