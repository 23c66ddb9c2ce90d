//! `tidepool train`: makes a release of the demo's model, or of a reference model, from ratings: trains it, measures it,
//! and writes its tables, its graph and its `model.toml` into a store, from where `release publish` takes it.

use std::{
    fs::Permissions,
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tidepool_store::ArtifactStore;
use tidepool_train::{
    Architecture, Dataset, ExportOptions, ModelSize, OUTPUT_CTR, OUTPUT_CVR, OUTPUT_PROBABILITY, Quality,
    ReferenceOptions, ReferenceReport, TrainOptions, TrainedModel, export_release, train, train_reference,
    untrained_reference, write_test_sample,
};
use tidepool_types::{Name, ReleaseManifest, TableVersion};

use crate::{
    demo::data,
    output::{Outcome, Output, training_bars},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is trained.
    #[arg(long, value_enum)]
    model: Model,
    /// movielens, synthetic, or a folder of RecBole atomic files; without it MovieLens if it can be had.
    #[arg(long, value_name = "movielens|synthetic|PATH")]
    data: Option<data::Choice>,
    /// The artifact store that the release is written into.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// What the release is called.
    #[arg(long, value_name = "NAME")]
    release: Name,
    /// What the model is called; without it as `--model` is.
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// The version of the tables; without it the model's name, a dash, and the release's.
    #[arg(long, value_name = "NAME")]
    table_version: Option<Name>,
    /// How large a reference model is. Large ones are for measuring speed.
    #[arg(long, value_enum, default_value_t)]
    size: Size,
    /// Random numbers instead of training, for measuring speed: the scores of a reference model mean nothing then.
    #[arg(long)]
    untrained: bool,
    /// Give a reference model's graph the user's features once per request, with the input `request_index`.
    #[arg(long)]
    per_request: bool,
    /// Write the held-out ratings here as a labelled sample, for `release skew`. It must not be there yet.
    #[arg(long, value_name = "FILE")]
    test_sample: Option<PathBuf>,
    /// Seed of training, and of the synthetic data set.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Model {
    /// DCN-v2 experts, mixed for two heads: click and conversion.
    DcnMmoe,
    /// The dot product of a user's and an item's vector; the items' are a table.
    TwoTower,
    /// Dot products of all pairs of features.
    Dlrm,
    /// The demo's small DCN-v2.
    Ranker,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Size {
    #[default]
    Small,
    Large,
}

impl Model {
    const fn as_str(self) -> &'static str {
        match self {
            Self::DcnMmoe => Architecture::DcnMmoe.as_str(),
            Self::TwoTower => Architecture::TwoTower.as_str(),
            Self::Dlrm => Architecture::Dlrm.as_str(),
            Self::Ranker => "ranker",
        }
    }

    /// None for the demo's model.
    const fn architecture(self) -> Option<Architecture> {
        match self {
            Self::DcnMmoe => Some(Architecture::DcnMmoe),
            Self::TwoTower => Some(Architecture::TwoTower),
            Self::Dlrm => Some(Architecture::Dlrm),
            Self::Ranker => None,
        }
    }
}

pub(crate) async fn run(args: Args, output: Output) -> Result<Outcome> {
    let of_reference = args.untrained || args.per_request || args.size == Size::Large;
    if args.model == Model::Ranker && of_reference {
        bail!("--size, --untrained and --per-request are of the reference models: dcn-mmoe, two-tower, dlrm");
    }
    let model = match &args.name {
        Some(name) => name.clone(),
        None => Name::new(args.model.as_str())?,
    };
    let version = match &args.table_version {
        Some(version) => version.clone(),
        None => Name::new(format!("{model}-{}", args.release))
            .context("the tables' version would be called so; give a --table-version")?,
    };
    let export = ExportOptions::new(model, args.release.clone(), version);
    let store = ArtifactStore::open(&args.store)?;
    refuse_taken(&store, &args, &export)?;
    let sample = match &args.test_sample {
        Some(path) => Some(draft_beside(path).with_context(|| format!("creating {}", path.display()))?),
        None => None,
    };
    let dataset = data::load(args.data.as_ref(), args.seed, output).await?;
    let (made, fields) = tokio::task::spawn_blocking(move || {
        if let Some((draft, _)) = &sample {
            write_sample(&args, &dataset, &export, draft).context("writing the sample")?;
        }
        let made = make(&args, &dataset, &store, &export, output)?;
        if let Some((draft, path)) = sample {
            draft.persist_noclobber(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        anyhow::Ok(made)
    })
    .await??;
    output.line(format!(
        "release {} {} with {}",
        made.model,
        made.release,
        made.tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    ));
    output.object(json!({
        "model": made.model,
        "release": made.release,
        "tables": made.tables.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "report": fields,
    }));
    Ok(Outcome::Done)
}

/// A file beside `path`, which takes its name once all is done: what fails before that can be tried again.
fn draft_beside(path: &Path) -> io::Result<(NamedTempFile, PathBuf)> {
    if path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Readable as any other file is: the umask decides.
    let draft = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    Ok((draft, path.to_owned()))
}

/// Writes the held-out ratings with labels of every output.
fn write_sample(
    args: &Args,
    dataset: &Dataset,
    export: &ExportOptions,
    draft: &NamedTempFile,
) -> io::Result<()> {
    let outputs: &[&str] = match args.model.architecture() {
        None => &[OUTPUT_PROBABILITY],
        Some(Architecture::DcnMmoe) => &[OUTPUT_CTR, OUTPUT_CVR],
        Some(Architecture::TwoTower | Architecture::Dlrm) => &[OUTPUT_CTR],
    };
    let mut out = BufWriter::new(draft.as_file());
    write_test_sample(dataset, &export.model, outputs, &mut out)?;
    out.flush()
}

/// Training takes its time: that a name is taken is said before it, not when all is to be written.
fn refuse_taken(store: &ArtifactStore, args: &Args, export: &ExportOptions) -> Result<()> {
    let at = args.store.display();
    if store.release_dir(&export.model, &export.release).symlink_metadata().is_ok() {
        bail!("release {} {} is in {at} already", export.model, export.release);
    }
    let tables = args.model.architecture().map_or(TrainedModel::TABLES, Architecture::tables);
    for table in tables {
        let table = TableVersion { table: Name::new(*table)?, version: export.version.clone() };
        if store.table_dir(&table).symlink_metadata().is_ok() {
            bail!("table {table} is in {at} already; give a --table-version");
        }
    }
    Ok(())
}

/// Trains and exports; gives the release and the report of the training.
fn make(
    args: &Args,
    dataset: &Dataset,
    store: &ArtifactStore,
    export: &ExportOptions,
    output: Output,
) -> Result<(ReleaseManifest, Value)> {
    let Some(architecture) = args.model.architecture() else {
        let options = TrainOptions { seed: args.seed, ..TrainOptions::default() };
        let outcome = train(dataset, &options, &mut training_bars())?;
        let offline = &outcome.report.offline;
        output.line(quality("probability", "liked", offline.f32, offline.int4));
        let made = export_release(store, &outcome.model, export)?;
        return Ok((made, serde_json::to_value(&outcome.report)?));
    };
    let size = match args.size {
        Size::Small => ModelSize::Small,
        Size::Large => ModelSize::Large,
    };
    let options = ReferenceOptions::new(architecture, size, args.seed);
    let outcome = if args.untrained {
        untrained_reference(dataset, &options)?
    } else {
        train_reference(dataset, &options, &mut training_bars())?
    };
    tell(&outcome.report, output);
    let model = if args.per_request { outcome.model.per_request() } else { outcome.model };
    let made = model.export(store, export)?;
    Ok((made, serde_json::to_value(&outcome.report)?))
}

fn tell(report: &ReferenceReport, output: Output) {
    let (what, size) = (report.architecture.as_str(), report.size.as_str());
    output.line(format!("{what}, {size}: {} parameters, {:.1} s", report.parameters, report.seconds));
    if !report.trained {
        output.line("its numbers are random: its scores mean nothing");
        return;
    }
    for head in &report.heads {
        output.line(quality(&head.output, &head.label, head.f32, head.int4));
    }
}

fn quality(output: &str, label: &str, f32: Quality, int4: Quality) -> String {
    format!(
        "{output} ({label}): AUC {:.4}, log loss {:.4}; with INT4 rows {:.4}, {:.4}",
        f32.auc, f32.log_loss, int4.auc, int4.log_loss
    )
}
