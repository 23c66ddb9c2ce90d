//! `tidepool release list`: the releases of the cluster, and what lies in a store beside them.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tidepool_cluster::BUCKETS;
use tidepool_proto::v1::{self, control_client::ControlClient, releases_client::ReleasesClient};
use tidepool_store::{Artifact, Found, Store, StoreLocation};
use tidepool_types::Name;

use super::{
    super::{control::refusal, store::age_words},
    fields, state,
};
use crate::{
    columns::{self, Columns, harmless},
    leader,
    output::Output,
    remote::Remote,
};

#[derive(Args)]
pub(crate) struct List {
    /// The model; without it, all of them.
    model: Option<Name>,
    /// An artifact store: what lies there and is not in the cluster is listed too.
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    store: Option<StoreLocation>,
}

pub(super) async fn list(args: List, remote: &Remote, output: Output) -> Result<()> {
    let List { model, store } = args;
    let caller = leader::channel(remote).await?;
    let cluster = ControlClient::new(caller.clone()).get_cluster(v1::GetClusterRequest {}).await;
    let all = cluster.map_err(|status| refusal(&status))?.into_inner().releases;
    let request = v1::GetTrafficRequest { model: String::new() };
    let traffic = ReleasesClient::new(caller).get_traffic(request).await;
    let traffic = traffic.map_err(|status| refusal(&status))?.into_inner().models;

    let known: BTreeSet<(String, String)> = all.iter().filter_map(names).collect();
    let of_model = |name: &str| model.as_ref().is_none_or(|model| model.as_str() == name);
    let releases: Vec<_> =
        all.into_iter().filter(|status| names(status).is_some_and(|(model, _)| of_model(&model))).collect();
    let mut others = Vec::new();
    if let Some(location) = &store {
        others = Store::open_existing(location)?.inventory().await?;
        others.retain(|found| match &found.artifact {
            Artifact::Release { model, release } => {
                of_model(model) && !known.contains(&(model.to_string(), release.to_string()))
            }
            Artifact::Table(_) | Artifact::Leftover(_) => false,
        });
    }
    show(&releases, &traffic, output);
    if store.is_some() {
        show_others(&others, output);
    }
    let release = |status: &v1::ReleaseStatus| {
        let (buckets, halted) = share(status, &traffic);
        let mut object = fields(status);
        object["share"] = json!(f64::from(buckets) / f64::from(BUCKETS));
        object["halted"] = json!(halted);
        object
    };
    let only = store.is_some().then(|| others.iter().map(other).collect::<Vec<_>>());
    output.object(json!({
        "releases": releases.iter().map(release).collect::<Vec<_>>(),
        "only_in_store": only,
    }));
    Ok(())
}

fn names(status: &v1::ReleaseStatus) -> Option<(String, String)> {
    status.release.as_ref().map(|entry| (entry.model.clone(), entry.release.clone()))
}

/// The buckets that a release has, and why it was halted, if it was.
pub(crate) fn share(status: &v1::ReleaseStatus, traffic: &[v1::TrafficStatus]) -> (u32, Option<String>) {
    let Some((model, release)) = names(status) else { return (0, None) };
    let Some(of_model) = traffic.iter().find(|status| status.model == model) else { return (0, None) };
    let arm = of_model.arms.iter().find(|arm| arm.release == release);
    let halted = arm.map(|arm| arm.halted.clone()).filter(|why| !why.is_empty());
    let current = if of_model.current == release { of_model.current_buckets } else { 0 };
    (arm.map_or(current, |arm| arm.buckets), halted)
}

/// A share for people.
pub(crate) fn percent(buckets: u32) -> String {
    format!("{} %", f64::from(buckets) * 100.0 / f64::from(BUCKETS))
}

fn show(releases: &[v1::ReleaseStatus], traffic: &[v1::TrafficStatus], output: Output) {
    if releases.is_empty() {
        output.line("no releases");
    }
    let mut columns = Columns::new(&["model", "release", "state", ">share", "tables"]);
    for status in releases {
        let entry = status.release.clone().unwrap_or_default();
        let (buckets, halted) = share(status, traffic);
        let tables: Vec<_> = entry.tables.iter().map(|t| format!("{}@{}", t.table, t.version)).collect();
        columns.row([
            entry.model,
            entry.release,
            format!("{}{}", state(status), if halted.is_some() { ", halted" } else { "" }),
            percent(buckets),
            tables.join(" "),
        ]);
    }
    columns.print("", output);
    for status in releases.iter().filter(|status| !status.waiting_for.is_empty()) {
        output.line(harmless(&super::sentence(status)));
    }
}

fn show_others(others: &[Found], output: Output) {
    if others.is_empty() {
        output.line("the cluster knows every release in the store");
        return;
    }
    let mut columns = Columns::new(&["only in the store", ">bytes", ">age", "tables"]);
    for found in others {
        columns.row([
            found.artifact.to_string(),
            columns::bytes(found.bytes),
            age_words(found.age),
            pins(found).map_or_else(|| "its manifest cannot be read".into(), |pins| pins.join(" ")),
        ]);
    }
    columns.print("", output);
}

fn pins(found: &Found) -> Option<Vec<String>> {
    found.pins.as_ref().map(|pins| pins.iter().map(ToString::to_string).collect())
}

fn other(found: &Found) -> Value {
    let (model, release) = match &found.artifact {
        Artifact::Release { model, release } => (Some(model), Some(release)),
        Artifact::Table(_) | Artifact::Leftover(_) => (None, None),
    };
    let age: Duration = found.age;
    json!({
        "model": model, "release": release, "bytes": found.bytes, "age_seconds": age.as_secs(), "tables": pins(found),
    })
}
