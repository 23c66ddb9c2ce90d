//! `tidepool release`: validate and write a release into the artifact store, take it into the cluster,
//! promote it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};
use tidepool_dense::DenseModel;
use tidepool_proto::v1;
use tidepool_store::{ArtifactStore, StoreError};
use tidepool_types::{ModelSpec, Name, TableVersion};

use super::control;
use crate::{
    output::{Outcome, Output},
    remote::Remote,
};

/// Things a release waits for that people are shown.
const SHOWN: usize = 3;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Check a dense model against its contract and its tables, write the release, and have it loaded.
    Publish(Publish),
    /// Make a loaded release the one that is served.
    Promote(Promote),
    /// List the releases that the cluster knows.
    List,
}

#[derive(Args)]
#[command(group(ArgGroup::new("from").required(true).args(["model_toml", "model"])))]
pub(crate) struct Publish {
    /// Name of the release.
    release: Name,
    /// The model.toml.
    #[arg(long, value_name = "FILE", requires = "onnx", requires = "store")]
    model_toml: Option<PathBuf>,
    /// The dense model.
    #[arg(long, value_name = "FILE", requires = "model_toml")]
    onnx: Option<PathBuf>,
    /// A table version that the model was trained with; once per table.
    #[arg(long = "table", value_name = "TABLE@VERSION", value_parser = control::table_version)]
    tables: Vec<TableVersion>,
    /// Folder of the artifact store.
    #[arg(long, value_name = "DIR", requires = "model_toml")]
    store: Option<PathBuf>,
    /// The model, when the release lies in the store already (its files are then not given).
    #[arg(long)]
    model: Option<Name>,
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
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<Outcome> {
    match command {
        Command::Publish(args) => {
            // Before anything is written: a release that nobody could be told of would only be in the way.
            let mut control = remote.control().await?;
            let model = match (&args.model_toml, &args.onnx, &args.store, &args.model) {
                (Some(model_toml), Some(onnx), Some(store), _) => {
                    write(store, model_toml, onnx, &args.tables, &args.release)?
                }
                (.., Some(model)) => model.clone(),
                _ => bail!(
                    "give --model-toml, --onnx and --store, or --model for a release that is in the store"
                ),
            };
            let status = control::publish(&mut control, &model, &args.release).await?;
            show(output, &status, "published");
        }
        Command::Promote(args) => {
            let mut control = remote.control().await?;
            let wait = Duration::from_secs(args.wait_seconds);
            let status = control::promote(&mut control, &args.model, &args.release, wait).await?;
            show(output, &status, "promoted");
        }
        Command::List => {
            let mut control = remote.control().await?;
            let cluster = control.get_cluster(v1::GetClusterRequest {}).await;
            let releases = cluster.map_err(|s| control::refusal(&s))?.into_inner().releases;
            if releases.is_empty() {
                output.line("no releases");
            }
            for status in &releases {
                output.line(sentence(status));
            }
            output.object(json!({ "releases": releases.iter().map(fields).collect::<Vec<_>>() }));
        }
    }
    Ok(Outcome::Done)
}

/// Validates the files against each other and writes the release into the store; returns its model.
fn write(
    store: &PathBuf,
    model_toml: &PathBuf,
    onnx: &PathBuf,
    tables: &[TableVersion],
    release: &Name,
) -> Result<Name> {
    let store = ArtifactStore::open(store)?;
    let text = fs::read_to_string(model_toml).with_context(|| format!("reading {}", model_toml.display()))?;
    let spec = ModelSpec::from_toml(&text)?;
    let pinned: Vec<_> = spec.tables().filter(|t| !tables.iter().any(|v| &v.table == *t)).collect();
    if !pinned.is_empty() {
        let missing: Vec<_> = pinned.iter().map(|t| format!("--table {t}@VERSION")).collect();
        bail!("model.toml pools from tables without a version here: add {}", missing.join(" "));
    }
    let mut dims = Vec::with_capacity(tables.len());
    for table_version in tables {
        let (manifest, _) = store.table_manifest(table_version)?;
        dims.push((table_version.table.clone(), manifest.schema.vector_dim()));
    }
    let dim_of = |table: &Name| dims.iter().find(|(t, _)| t == table).map(|(_, dim)| *dim);
    DenseModel::load(onnx, &spec, &dim_of)?;
    let bytes = fs::read(onnx).with_context(|| format!("reading {}", onnx.display()))?;
    match store.write_release(&spec.model, release, tables, &text, &bytes) {
        Ok(_) => Ok(spec.model),
        Err(error @ StoreError::AlreadyExists { .. }) => Err(error).with_context(|| {
            format!("to publish what is in the store, give --model {} and no files", spec.model)
        }),
        Err(error) => Err(error.into()),
    }
}

fn state(status: &v1::ReleaseStatus) -> &'static str {
    match status.release.as_ref().map(v1::ReleaseEntry::state) {
        Some(v1::ReleaseState::Loading) => "loading",
        Some(v1::ReleaseState::Ready) => "ready",
        Some(v1::ReleaseState::Current) => "current",
        Some(v1::ReleaseState::Previous) => "previous",
        Some(v1::ReleaseState::Unspecified) | None => "unknown",
    }
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

fn show(output: Output, status: &v1::ReleaseStatus, done: &str) {
    output.line(format!("{done}: {} (epoch {})", sentence(status), status.epoch));
    output.object(fields(status));
}
