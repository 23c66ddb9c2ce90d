//! `tidepool store`: what lies in the artifact store, taking it from one store to another, and taking away what
//! nobody refers to.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidepool_cluster::ClusterMap;
use tidepool_proto::v1::{self, controllers_client::ControllersClient};
use tidepool_runtime::error::chain;
use tidepool_store::{
    Artifact, ArtifactStore, Fetcher, Found, References, RemoteStore, Report, Store, StoreLocation, Uploaded,
};
use tidepool_table::verify_version;
use tidepool_types::{Name, TableVersion};

use super::{control, metastore::Sure};
use crate::{
    leader,
    output::{Outcome, Output, bar},
    remote::Remote,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Releases, table versions and leftovers in a store, and which of them the cluster refers to.
    List(List),
    /// Upload table versions and releases from a directory to an object store: whole or not at all.
    Push(Push),
    /// Fetch table versions from an object store into a directory, for what works on files in place.
    Pull(Pull),
    /// Take away what neither the cluster nor a release that stays refers to.
    Gc(Gc),
}

#[derive(Args)]
pub(crate) struct List {
    /// The artifact store.
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    store: StoreLocation,
    /// Do not ask the controller what is referred to.
    #[arg(long)]
    offline: bool,
}

#[derive(Args)]
pub(crate) struct Push {
    /// The directory that they lie in.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The object store.
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    store: StoreLocation,
    /// A table version; may be given several times.
    #[arg(long = "table", value_name = "TABLE@VERSION", value_parser = control::table_version)]
    tables: Vec<TableVersion>,
    /// A release, with the table versions that it pins; may be given several times.
    #[arg(long = "release", value_name = "MODEL@RELEASE", value_parser = model_release)]
    releases: Vec<(Name, Name)>,
}

#[derive(Args)]
pub(crate) struct Pull {
    /// The object store.
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    store: StoreLocation,
    /// The directory.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// A table version; may be given several times.
    #[arg(long = "table", value_name = "TABLE@VERSION", required = true, value_parser = control::table_version)]
    tables: Vec<TableVersion>,
    /// Bytes per second at most.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    bytes_per_second: Option<u64>,
}

/// What is collected, and from where.
#[derive(Args)]
pub(crate) struct Gc {
    /// The artifact store.
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    store: StoreLocation,
    /// What is younger stays, for it may be about to be published.
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    grace_hours: u64,
    #[command(flatten)]
    sure: Sure,
}

/// Reads `MODEL@RELEASE`.
fn model_release(text: &str) -> Result<(Name, Name), String> {
    let (model, release) =
        text.split_once('@').ok_or_else(|| format!("{text:?} is not MODEL@RELEASE, as in ads@r7"))?;
    let name = |part: &str| Name::new(part).map_err(|e| e.to_string());
    Ok((name(model)?, name(release)?))
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<Outcome> {
    match command {
        Command::List(args) => list(args, remote, output).await?,
        Command::Push(args) => push(args, output).await?,
        Command::Pull(args) => pull(args, output).await?,
        Command::Gc(args) => gc(args, Collected::All, remote, output).await?,
    }
    Ok(Outcome::Done)
}

/// What the cluster refers to, by its controller.
async fn references(remote: &Remote) -> Result<References> {
    let cluster = remote.control().await?.get_cluster(v1::GetClusterRequest {}).await;
    let cluster = cluster.map_err(|status| control::refusal(&status))?.into_inner();
    let map: ClusterMap =
        cluster.map.unwrap_or_default().try_into().context("the controller's cluster map")?;
    let mut references = References::default();
    references.tables.extend(map.layouts.into_iter().map(|layout| layout.schema.table_version));
    for release in map.releases {
        references.tables.extend(release.tables);
        references.releases.insert((release.model, release.release));
    }
    // What a node still holds is on its way out, and is not to be had again if it goes from the store now.
    for node in cluster.nodes {
        for partition in node.partitions {
            if let Some(table) = partition.table_version {
                references.tables.insert(table.try_into().context("a node's report")?);
            }
        }
    }
    Ok(references)
}

async fn list(args: List, remote: &Remote, output: Output) -> Result<()> {
    let store = Store::open_existing(&args.store)?;
    let references = if args.offline { None } else { Some(references(remote).await?) };
    let found = store.inventory().await?;
    if found.is_empty() {
        output.line(format!("{} is empty", args.store));
    } else {
        output.line(format!("{:<40} {:>16} {:>10}  {}", "artifact", "bytes", "age", "referred to"));
    }
    let is_referred = |found: &Found| {
        let references = references.as_ref()?;
        Some(match &found.artifact {
            Artifact::Table(table) => references.tables.contains(table),
            Artifact::Release { model, release } => {
                references.releases.contains(&(model.clone(), release.clone()))
            }
            Artifact::Leftover(_) => false,
        })
    };
    let mut objects = Vec::new();
    for found in &found {
        let referred = is_referred(found);
        let word = referred.map_or("?", |yes| if yes { "yes" } else { "no" });
        output.line(format!(
            "{:<40} {:>16} {:>10}  {word}",
            found.artifact.to_string(),
            found.bytes,
            age_words(found.age)
        ));
        let mut object = object_of(&found.artifact, found.bytes, found.age.as_secs());
        object["referenced"] = json!(referred);
        object["pins"] = json!(found.pins);
        objects.push(object);
    }
    let bytes: u64 = found.iter().map(|found| found.bytes).sum();
    output.object(json!({ "store": args.store.to_string(), "bytes": bytes, "artifacts": objects }));
    Ok(())
}

fn object_of(artifact: &Artifact, bytes: u64, age_seconds: u64) -> Value {
    let kind = match artifact {
        Artifact::Release { .. } => "release",
        Artifact::Table(_) => "table",
        Artifact::Leftover(_) => "leftover",
    };
    let name = match artifact {
        Artifact::Release { model, release } => format!("{model}@{release}"),
        Artifact::Table(table) => table.to_string(),
        Artifact::Leftover(path) => path.clone(),
    };
    json!({ "kind": kind, "name": name, "bytes": bytes, "age_seconds": age_seconds })
}

/// A time in the unit that people would use.
pub(crate) fn age_words(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// The object store that a location names.
fn object_store(location: &StoreLocation) -> Result<RemoteStore> {
    match location {
        StoreLocation::S3 { bucket, prefix } => Ok(RemoteStore::s3(bucket, prefix)?),
        StoreLocation::Directory(path) => {
            bail!(
                "{} is a directory, and an object store is wanted here, as in s3://BUCKET/PREFIX",
                path.display()
            )
        }
    }
}

async fn push(args: Push, output: Output) -> Result<()> {
    ensure!(
        !args.tables.is_empty() || !args.releases.is_empty(),
        "say what to push: --table, --release or both"
    );
    let (from, remote) = (ArtifactStore::open_existing(&args.from)?, object_store(&args.store)?);
    let mut tables = args.tables;
    for (model, release) in &args.releases {
        tables.extend(from.release(model, release)?.manifest.tables);
    }
    tables.sort_unstable();
    tables.dedup();
    let mut objects = Vec::new();
    for table in &tables {
        verify(&from, table)?;
        let (manifest, _) = from.table_manifest(table)?;
        let (bytes, done) = (manifest.file_bytes(), AtomicU64::new(0));
        let sending = bar("uploading", Some(bytes));
        let progress = |more| {
            let before = done.fetch_add(more, Ordering::Relaxed);
            sending.set_position(before + more);
        };
        let uploaded = remote.push_table(&from, table, &progress).await?;
        sending.finish_and_clear();
        say(output, &Artifact::Table(table.clone()), uploaded, &args.store);
        objects.push(
            json!({ "kind": "table", "name": table.to_string(), "bytes": bytes, "uploaded": uploaded == Uploaded::Now }),
        );
    }
    for (model, release) in &args.releases {
        let uploaded = remote.push_release(&from, model, release).await?;
        say(
            output,
            &Artifact::Release { model: model.clone(), release: release.clone() },
            uploaded,
            &args.store,
        );
        let name = format!("{model}@{release}");
        objects.push(json!({ "kind": "release", "name": name, "uploaded": uploaded == Uploaded::Now }));
    }
    output.object(json!({ "store": args.store.to_string(), "pushed": objects }));
    Ok(())
}

/// Every byte of a table version: what is damaged here must not become what others fetch.
fn verify(store: &ArtifactStore, table: &TableVersion) -> Result<()> {
    store.table_manifest(table)?;
    if let Some(bad) = first_bad(&store.table_dir(table))? {
        let root = store.root().display();
        bail!(
            "{bad} of {table} is damaged, so nothing was uploaded; `tidepool table verify {table} --store {root}` says more"
        );
    }
    Ok(())
}

/// The name of the first file of a version that is not as it was written.
fn first_bad(version_dir: &Path) -> Result<Option<String>> {
    let reading = bar("verifying", None);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let verified = verify_version(version_dir, threads, &mut |done, total| {
        reading.set_length(total);
        reading.set_position(done);
    })?;
    reading.finish_and_clear();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(verified.bad.first().map(|(path, _)| name(path)))
}

fn say(output: Output, artifact: &Artifact, uploaded: Uploaded, store: &StoreLocation) {
    output.line(match uploaded {
        Uploaded::Now => format!("{artifact} is in {store}"),
        Uploaded::Before => format!("{artifact} was in {store} already, the same"),
    });
}

async fn pull(args: Pull, output: Output) -> Result<()> {
    let remote = object_store(&args.store)?;
    let to = ArtifactStore::open(&args.to)?;
    let fetcher = Fetcher::new(4, args.bytes_per_second);
    let mut objects = Vec::new();
    for table in &args.tables {
        let pulled = remote.pull_table(&to, table, &fetcher).await?;
        let bytes = pulled.bytes();
        if let Some(bad) = first_bad(pulled.path())? {
            pulled.discard()?;
            bail!("{bad} of {table} in {} is not what was published, so it was not kept", args.store);
        }
        pulled.keep()?;
        output.line(format!("{table} is in {}", args.to.display()));
        objects.push(json!({ "kind": "table", "name": table.to_string(), "bytes": bytes }));
    }
    output.object(json!({ "to": args.to.to_string_lossy(), "pulled": objects }));
    Ok(())
}

/// Names in a note; the rest is counted.
const NOTED_NAMES: usize = 1000;

/// Has the controller write down what goes from the store, or has gone.
async fn note(
    remote: &Remote,
    store: &StoreLocation,
    report: &Report,
    done: bool,
    problem: String,
) -> Result<()> {
    let names = report.collected.iter().map(|gone| gone.artifact.to_string());
    let request = v1::NoteCollectionRequest {
        store: store.to_string(),
        artifacts: names.take(NOTED_NAMES).collect(),
        count: report.collected.len() as u64,
        bytes: report.bytes,
        done,
        problem,
    };
    let noted = ControllersClient::new(leader::channel(remote).await?).note_collection(request).await;
    noted.map(drop).map_err(|status| control::refusal(&status))
}

/// What is to be collected of that which nobody refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collected {
    /// Everything.
    All,
    /// Releases, and the tables that only they used.
    Releases,
}

/// Takes away what nobody refers to.
pub(crate) async fn gc(args: Gc, what: Collected, remote: &Remote, output: Output) -> Result<()> {
    let store = Store::open_existing(&args.store)?;
    let references = references(remote).await?;
    let grace = Duration::from_secs(args.grace_hours * 3600);
    let collect = async |dry_run| match what {
        Collected::All => store.collect(&references, grace, dry_run).await,
        Collected::Releases => store.collect_releases(&references, grace, dry_run).await,
    };
    let would = collect(true).await?;
    for gone in &would.collected {
        let age = age_words(Duration::from_secs(gone.age_seconds));
        output.line(format!("{:<40} {:>16} {age:>10}", gone.artifact.to_string(), gone.bytes));
    }
    let summary = format!(
        "{} artifacts of {} bytes that nobody refers to; {} are referred to, {} are younger than {} hours",
        would.collected.len(),
        would.bytes,
        would.referenced,
        would.young,
        args.grace_hours
    );
    output.line(summary);
    let report = if args.sure.dry_run || would.collected.is_empty() {
        would
    } else {
        args.sure.confirm(&format!("{} bytes of {} will be gone for good", would.bytes, args.store))?;
        // The controller writes it down, before and after: what it cannot write down stays.
        note(remote, &args.store, &would, false, String::new()).await?;
        let collected = collect(false).await;
        match &collected {
            Ok(report) => note(remote, &args.store, report, true, String::new()).await?,
            // How much of it has gone is not known.
            Err(error) => note(remote, &args.store, &would, true, chain(error)).await?,
        }
        collected?
    };
    let collected: Vec<_> =
        report.collected.iter().map(|gone| object_of(&gone.artifact, gone.bytes, gone.age_seconds)).collect();
    output.object(json!({
        "store": args.store.to_string(), "dry_run": report.dry_run || args.sure.dry_run, "collected": collected,
        "bytes": report.bytes, "referenced": report.referenced, "young": report.young,
    }));
    Ok(())
}
