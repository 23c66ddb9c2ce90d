//! The release that the demo serves: trained now, or reused when the same data, seed and options made it before.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tidepool_store::{ArtifactStore, content_hash};
use tidepool_train::{Dataset, ExportOptions, TrainOptions, TrainingReport, export_release, train};
use tidepool_types::{Name, ReleaseManifest, RowFormat};

use super::{Args, folder::Hold};
use crate::output::{Output, training_bars};

/// Marks a folder as the demo's own, which `--fresh` may empty, and holds what training measured.
const TRAINING_FILE: &str = "training.json";
const STORE_DIR: &str = "store";

/// A release in its store, with what training said of it.
pub(crate) struct Prepared {
    pub(crate) dataset: Dataset,
    pub(crate) store: ArtifactStore,
    pub(crate) manifest: ReleaseManifest,
    pub(crate) report: TrainingReport,
    /// It was there already.
    pub(crate) reused: bool,
    /// Keeps other demos from replacing what this one serves.
    _hold: Hold,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Training {
    /// Hash of data, options and program version: another one is another release.
    made_from: String,
    report: TrainingReport,
}

/// Trains and exports, or finds that done in `dir` already.
pub(crate) async fn prepare(dir: &Path, dataset: Dataset, args: &Args, output: Output) -> Result<Prepared> {
    let options = TrainOptions { seed: args.seed, ..TrainOptions::default() };
    let text = format!("{} {options:?} {dataset:?}", env!("CARGO_PKG_VERSION"));
    let made_from = content_hash(text.as_bytes());
    let model = Name::new(dataset.name.as_str())?;
    let release = Name::new(format!("demo-{}", &made_from[..8]))?;
    let taken = dir.to_owned();
    let mut hold = tokio::task::spawn_blocking(move || Hold::take(&taken, output)).await??;
    let fresh = args.fresh || args.f32_store.is_some();
    if !fresh && let Some((store, manifest, report)) = find(dir, &made_from, &model, &release) {
        output.line(format!("release {model} {release}: reused (train again with --fresh)"));
        hold.share()?;
        return Ok(Prepared { dataset, store, manifest, report, reused: true, _hold: hold });
    }
    ensure!(
        hold.alone(),
        "another demo uses the release in {}: end it first, or name another --dir",
        dir.display()
    );
    clear(dir)?;
    let (dir, f32_store) = (dir.to_owned(), args.f32_store.clone());
    let began = Instant::now();
    let prepared = tokio::task::spawn_blocking(move || -> Result<Prepared> {
        let report_progress = &mut training_bars();
        let outcome = train(&dataset, &options, report_progress)?;
        let store = ArtifactStore::open(dir.join(STORE_DIR))?;
        let export = ExportOptions::new(model, release.clone(), release);
        let manifest = export_release(&store, &outcome.model, &export)?;
        if let Some(f32_store) = f32_store {
            let export = ExportOptions { format: RowFormat::F32, ..export };
            export_release(&ArtifactStore::open(f32_store)?, &outcome.model, &export)?;
        }
        let training = Training { made_from, report: outcome.report };
        let file = dir.join(TRAINING_FILE);
        fs::write(&file, serde_json::to_vec_pretty(&training)?)
            .with_context(|| format!("writing {}", file.display()))?;
        hold.share()?;
        Ok(Prepared { dataset, store, manifest, report: training.report, reused: false, _hold: hold })
    })
    .await??;
    output.line(format!("trained and exported in {:.1} s", began.elapsed().as_secs_f64()));
    Ok(prepared)
}

/// The release of an earlier run, if it is whole and was made from the same things.
fn find(
    dir: &Path,
    made_from: &str,
    model: &Name,
    release: &Name,
) -> Option<(ArtifactStore, ReleaseManifest, TrainingReport)> {
    let text = fs::read(dir.join(TRAINING_FILE)).ok()?;
    let training: Training = serde_json::from_slice(&text).ok()?;
    let store = ArtifactStore::open_existing(dir.join(STORE_DIR)).ok()?;
    let files = store.release(model, release).ok()?;
    // A table that lost a file, or a part of one, is trained anew and not waited for until nodes have given up.
    for table_version in &files.manifest.tables {
        let (manifest, _) = store.table_manifest(table_version).ok()?;
        for partition in manifest.schema.partitions.indexes() {
            store.partition_file(&manifest, partition).ok()?;
        }
    }
    (training.made_from == made_from).then_some((store, files.manifest, training.report))
}

/// Empties what an earlier run left; a folder that the demo did not make is left alone.
fn clear(dir: &Path) -> Result<()> {
    let store = dir.join(STORE_DIR);
    if store.exists() && dir.join(TRAINING_FILE).exists() {
        fs::remove_dir_all(&store).with_context(|| format!("removing {}", store.display()))?;
        fs::remove_file(dir.join(TRAINING_FILE)).context("removing the old training.json")?;
    } else if store.exists() {
        // Training was cut off before its last step: no training.json was written, but these are its tables.
        let only_ours = fs::read_dir(&store)?
            .filter_map(Result::ok)
            .all(|e| e.file_name().to_str().is_some_and(|n| matches!(n, "tables" | "releases")));
        ensure!(only_ours, "{} is not a store of the demo; name another --dir", store.display());
        fs::remove_dir_all(&store).with_context(|| format!("removing {}", store.display()))?;
    }
    Ok(())
}
