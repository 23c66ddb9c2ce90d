//! `tidepool cluster status`: what is wrong first, then the whole on one screen.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use futures::future::join_all;
use serde_json::{Value, json};
use tidepool_cluster::BUCKETS;
use tidepool_proto::v1::{self, controllers_client::ControllersClient};
use tidepool_types::{Epoch, Name};

use super::{
    super::release::{percent, share, state_word},
    tables,
    view::{self, View},
};
use crate::{
    columns::{self, Columns, harmless},
    output::{Outcome, Output},
    remote::Remote,
};

/// What a controller may take to say whether it leads, connecting included.
const STANDING_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Exit with 3 when something is not as it should be, also while it is being worked on.
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(args: Args, remote: &Remote, output: Output) -> Result<Outcome> {
    let (view, caller) = View::fetch(remote).await?;
    let (traffic, controllers) = tokio::join!(view::traffic(&caller), standings(remote));
    let traffic = traffic?;
    let problems = [view.problems.clone(), unreached(&controllers)].concat();
    show_problems(&problems, output);
    for (address, standing) in &controllers {
        output.line(format!("controller {address} {}", standing_words(standing)));
    }
    output.line(format!("cluster map epoch {}", view.map.epoch));
    show_groups(&view, output);
    show_tables(&view, output);
    show_releases(&view, &traffic, output);
    show_rankers(&view, output);
    output.object(json!({
        "ok": problems.is_empty(),
        "problems": problems.iter().map(view::problem).collect::<Vec<_>>(),
        "controllers": controllers.iter().map(controller).collect::<Vec<_>>(),
        "epoch": view.map.epoch,
        "groups": groups(&view).iter().map(|(group, sum)| group_object(group, sum)).collect::<Vec<_>>(),
        "tables": view.tables().iter().map(tables::object).collect::<Vec<_>>(),
        "releases": view.releases.iter().map(|status| release(status, &traffic)).collect::<Vec<_>>(),
        "rankers": view.rankers.iter().map(|report| ranker(report, &view)).collect::<Vec<_>>(),
    }));
    Ok(if args.check && !problems.is_empty() { Outcome::PromiseBroken } else { Outcome::Done })
}

/// What each controller that was named says of itself, or why it says nothing.
async fn standings(remote: &Remote) -> Vec<(String, Result<v1::Standing, String>)> {
    let ask = async |address: String| {
        let asking = async {
            let channel =
                remote.channel("controller", &address).await.map_err(|error| format!("{error:#}"))?;
            let standing = ControllersClient::new(channel).get_standing(v1::GetStandingRequest {}).await;
            standing.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
        };
        let standing = tokio::time::timeout(STANDING_TIMEOUT, asking).await;
        (address, standing.unwrap_or_else(|_| Err("it does not answer".into())))
    };
    join_all(remote.controllers().into_iter().map(ask)).await
}

/// Controllers that cannot take over.
fn unreached(controllers: &[(String, Result<v1::Standing, String>)]) -> Vec<v1::Problem> {
    let problem = |(address, standing): &(String, Result<v1::Standing, String>)| {
        let why = match standing {
            Ok(standing) if standing.problem.is_empty() => return None,
            Ok(standing) => &standing.problem,
            Err(why) => why,
        };
        Some(v1::Problem {
            gravity: tidepool_cluster::Gravity::Exposed.to_string(),
            what: format!("the controller at {address} could not take over: {why}"),
            todo: "start it, or leave it out of --controller if it is gone for good".into(),
        })
    };
    controllers.iter().filter_map(problem).collect()
}

fn show_problems(problems: &[v1::Problem], output: Output) {
    if problems.is_empty() {
        output.line("nothing is wrong");
    }
    for problem in problems {
        output.line(format!("{:<10} {}", problem.gravity, harmless(&problem.what)));
        output.line(format!("{:<10} to do: {}", "", harmless(&problem.todo)));
    }
}

fn standing_words(standing: &Result<v1::Standing, String>) -> String {
    match standing {
        Ok(standing) if standing.leading => format!("leads, term {}", standing.term),
        Ok(standing) if standing.leader.is_empty() => "knows nobody who leads".into(),
        Ok(standing) => format!("follows {}", harmless(&standing.leader)),
        Err(why) => harmless(why),
    }
}

fn controller((address, standing): &(String, Result<v1::Standing, String>)) -> Value {
    let told = standing.as_ref().ok();
    let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let problem = match standing {
        Ok(standing) => said(&standing.problem),
        Err(why) => Some(why.clone()),
    };
    json!({
        "address": address,
        "reached": told.is_some(),
        "leading": told.is_some_and(|s| s.leading),
        "leader": told.and_then(|s| said(&s.leader)),
        "term": told.filter(|s| s.leading).map(|s| s.term),
        "problem": problem,
    })
}

/// The nodes of a replica group, added up.
#[derive(Default)]
struct GroupSum {
    up: usize,
    down: usize,
    placed: usize,
    ready: usize,
    bytes: u64,
}

fn groups(view: &View) -> BTreeMap<Name, GroupSum> {
    let mut groups = BTreeMap::<Name, GroupSum>::new();
    for node in view.nodes() {
        let sum = groups.entry(node.group.clone()).or_default();
        *(if node.up { &mut sum.up } else { &mut sum.down }) += 1;
        sum.placed += node.placed;
        sum.ready += node.ready;
        sum.bytes += node.bytes.unwrap_or(0);
    }
    groups
}

fn group_object(group: &Name, sum: &GroupSum) -> Value {
    json!({
        "group": group, "nodes_up": sum.up, "nodes_down": sum.down, "partitions_placed": sum.placed,
        "partitions_ready": sum.ready, "file_bytes": sum.bytes,
    })
}

fn show_groups(view: &View, output: Output) {
    let mut columns = Columns::new(&["group", ">nodes up", ">down", ">placed", ">ready", ">bytes"]);
    for (group, sum) in groups(view) {
        let counts = [sum.up, sum.down, sum.placed, sum.ready].map(|count| count.to_string());
        let [up, down, placed, ready] = counts;
        columns.row([group.to_string(), up, down, placed, ready, columns::bytes(sum.bytes)]);
    }
    section(&columns, output);
}

fn show_tables(view: &View, output: Output) {
    let mut columns = Columns::new(&["table", ">rows", ">replicas placed", ">ready", ">bytes"]);
    for table in view.tables() {
        columns.row([
            table.layout.schema.table_version.to_string(),
            columns::grouped(table.layout.schema.rows),
            table.placed().to_string(),
            table.ready().to_string(),
            columns::bytes(table.bytes),
        ]);
    }
    section(&columns, output);
}

fn show_releases(view: &View, traffic: &[v1::TrafficStatus], output: Output) {
    let mut columns = Columns::new(&["release", "state", ">share", ">tables", "waits for"]);
    for status in &view.releases {
        let entry = status.release.clone().unwrap_or_default();
        let (buckets, halted) = share(status, traffic);
        columns.row([
            format!("{}@{}", entry.model, entry.release),
            format!("{}{}", state_word(entry.state), if halted.is_some() { ", halted" } else { "" }),
            percent(buckets),
            entry.tables.len().to_string(),
            match status.waiting_for.len() {
                0 => String::new(),
                1 => "1 thing".into(),
                more => format!("{more} things"),
            },
        ]);
    }
    section(&columns, output);
}

fn release(status: &v1::ReleaseStatus, traffic: &[v1::TrafficStatus]) -> Value {
    let entry = status.release.clone().unwrap_or_default();
    let (buckets, halted) = share(status, traffic);
    let tables: Vec<_> = entry.tables.iter().map(|t| format!("{}@{}", t.table, t.version)).collect();
    json!({
        "model": entry.model,
        "release": entry.release,
        "state": state_word(entry.state),
        "share": f64::from(buckets) / f64::from(BUCKETS),
        "halted": halted,
        "tables": tables,
        "waiting_for": status.waiting_for,
    })
}

fn show_rankers(view: &View, output: Output) {
    let mut columns =
        Columns::new(&["ranker", "http address", ">epochs behind", ">ready", "not ready", "rolled back"]);
    for report in &view.rankers {
        let (ready, others): (Vec<_>, Vec<_>) = report.releases.iter().partition(|release| release.ready);
        let others: Vec<_> = others.iter().map(|r| format!("{}@{}", r.model, r.release)).collect();
        columns.row([
            report.ranker.clone(),
            harmless(&report.http_address),
            view.lag_words(Some(Epoch(report.epoch))),
            ready.len().to_string(),
            others.join(", "),
            report.rolled_back.join(", "),
        ]);
    }
    section(&columns, output);
    if view.rankers.is_empty() {
        output.line("no ranker is connected");
    }
}

fn ranker(report: &v1::RankerReport, view: &View) -> Value {
    let release = |r: &v1::RankerRelease| {
        let problem = (!r.problem.is_empty()).then_some(&r.problem);
        json!({ "model": r.model, "release": r.release, "ready": r.ready, "problem": problem })
    };
    json!({
        "ranker": report.ranker,
        "grpc_address": report.grpc_address,
        "http_address": report.http_address,
        "epoch": report.epoch,
        "epochs_behind": view.lag(Epoch(report.epoch)),
        "releases": report.releases.iter().map(release).collect::<Vec<_>>(),
        "rolled_back": report.rolled_back,
    })
}

/// A table with a blank line before it, if it has rows.
fn section(columns: &Columns, output: Output) {
    let lines = columns.lines();
    if !lines.is_empty() {
        output.line("");
    }
    lines.iter().for_each(|line| output.line(line));
}
