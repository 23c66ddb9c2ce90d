//! What releases depend on goes away and comes back: the metastore, and the artifact store. Until then nothing can be
//! changed, whoever tries is told why, and what answers goes on answering.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tidepool_proto::{code_of, v1};
use tidepool_store::ArtifactStore;
use tidepool_types::{Name, PartitionIndex, TableVersion};
use tokio::time::timeout;

use super::{
    Params, ReleaseDrill, Report,
    etcd::Etcd,
    operator::Answer,
    scene::{Needs, Progress, Scene, short_grace},
    truth::{MODEL, Release, Table, model_toml},
};
use crate::BenchError;

/// What a controller may take to say that it cannot.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long etcd is away: longer than the lease of the controller that leads.
const OUTAGE: Duration = Duration::from_secs(6);
/// Of a refusal, letters that are shown.
const SHOWN: usize = 300;

/// etcd is killed in one pair, and stopped where it stands in the next.
pub(super) async fn metastore(params: &Params, progress: Progress<'_>) -> Result<Report, BenchError> {
    let dir = tempfile::tempdir().map_err(BenchError::io("making a folder for etcd"))?;
    let mut etcd = Etcd::start(&params.etcd, dir.path()).await?;
    let mut controller_config = short_grace();
    controller_config.insert("metastore".to_owned(), "etcd".into());
    controller_config.insert("etcd_endpoints".to_owned(), vec![etcd.endpoint()].into());
    let needs = Needs { versions: 2, controller_config };
    let mut scene = Scene::open(ReleaseDrill::MetastoreOutage, params, needs, progress).await?;
    let mut refused = 0;
    for pair in 0..params.pairs {
        let release = scene.next_release()?;
        scene.publish(&release).await?;
        scene.loaded(&release).await?;
        scene.before().await?;
        let killed = pair % 2 == 0;
        scene.begin(if killed { "SIGKILL to etcd" } else { "SIGSTOP to etcd" }).await?;
        if killed {
            etcd.kill().await?
        } else {
            etcd.pause()?
        }
        let began = Instant::now();
        match promotion(&scene, &release).await {
            Ok(()) => scene.tell("a promotion was not refused"),
            Err(why) => {
                refused += 1;
                scene.tell(&format!("a promotion was refused: {why}"));
            }
        }
        tokio::time::sleep(OUTAGE.saturating_sub(began.elapsed())).await;
        scene.tell("etcd is back");
        if killed {
            etcd.run().await?
        } else {
            etcd.resume()?
        }
        // It is not known to whoever was refused whether it was written down: he repeats himself.
        let former = scene.promote_again(release).await?;
        scene.took_effect().await?;
        scene.until_done(&["release", "retire", MODEL, &former.name, "--yes"]).await?;
    }
    let pairs = params.pairs;
    scene
        .report
        .promise(refused == pairs, format!("{refused} of {pairs} promotions during the outage were refused"));
    scene.close().await
}

/// Tries to promote, at the controller itself; what it said against it.
async fn promotion(scene: &Scene<'_>, release: &Release) -> Result<(), String> {
    let request = v1::PromoteReleaseRequest {
        model: MODEL.to_owned(),
        release: release.name.to_string(),
        dry_run: false,
    };
    let asked = async {
        let mut control = scene.cluster.control().await.map_err(|error| error.to_string())?;
        let answer = control.promote_release(request).await;
        answer.map_err(|status| format!("{}: {}", code_of(&status), status.message()))
    };
    match timeout(REFUSAL_TIMEOUT, asked).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => Err(format!("no answer within {REFUSAL_TIMEOUT:?}")),
    }
}

/// The store is gone while a release is to be published; then it is there without the partitions of a table, as one
/// is that stops midway; then it is whole.
pub(super) async fn store(params: &Params, progress: Progress<'_>) -> Result<Report, BenchError> {
    let needs = Needs { versions: params.pairs as u64 + 1, controller_config: toml::Table::new() };
    let mut scene = Scene::open(ReleaseDrill::StoreOutage, params, needs, progress).await?;
    let root = scene.operator.store.clone();
    let (mut told_of_store, mut told_of_partitions) = (0, 0);
    for _ in 0..params.pairs {
        let release = scene.next_release()?;
        write(&scene, &root, &release)?;
        let publish = ["release", "publish", &release.name, "--model", MODEL];
        let promote = ["release", "promote", MODEL, &release.name, "--wait-seconds", "1"];
        scene.before().await?;

        scene.begin("the store is gone").await?;
        let away = move_away(&root)?;
        told_of_store += u64::from(is_told(&mut scene, &publish, &root).await?);
        move_back(&away, &root)?;

        scene.tell("the store is back, but for the partitions of a table");
        let items = Table::Items as usize;
        let layout = layout_dir(&root, &release.tables()?[items])?;
        let away = move_away(&layout)?;
        scene.operator.run(&publish).await?;
        told_of_partitions += u64::from(is_told(&mut scene, &promote, &layout).await?);
        move_back(&away, &layout)?;

        scene.tell("the store is whole");
        let former = scene.promote(release).await?;
        scene.operator.retire(&former).await?;
        scene.gone(&former).await?;
        scene.took_effect().await?;
    }
    let pairs = params.pairs as u64;
    scene.report.promise(
        told_of_store == pairs,
        format!("{told_of_store} of {pairs} publications without a store were refused, and its folder named"),
    );
    scene.report.promise(
        told_of_partitions == pairs,
        format!("{told_of_partitions} of {pairs} promotions without partitions were refused, and their folder named"),
    );
    scene.close().await
}

/// Puts a release into the store, of which nobody is told.
fn write(scene: &Scene<'_>, root: &Path, release: &Release) -> Result<(), BenchError> {
    let store = ArtifactStore::open_existing(root)?;
    let tables = scene.published_tables(release)?;
    store.write_release(&Name::new(MODEL)?, &release.name, &tables, &model_toml()?, &release.dense.onnx())?;
    Ok(())
}

/// Runs a command that has to be refused; whether it was, and in words in which this folder stands.
async fn is_told(scene: &mut Scene<'_>, args: &[&str], of: &Path) -> Result<bool, BenchError> {
    match scene.operator.ask(args).await? {
        Answer::Refused(why) => {
            let shown: String = why.chars().map(|c| if c == '\n' { ' ' } else { c }).take(SHOWN).collect();
            scene.tell(&format!("refused: {shown}"));
            Ok(why.contains(&of.display().to_string()))
        }
        Answer::Done(_) => {
            scene.tell("that was not refused");
            Ok(false)
        }
    }
}

/// The one folder of partition files of a table version.
fn layout_dir(root: &Path, table_version: &TableVersion) -> Result<PathBuf, BenchError> {
    let store = ArtifactStore::open_existing(root)?;
    let (manifest, _) = store.table_manifest(table_version)?;
    let file = store.partition_path(table_version, manifest.schema.partitions, PartitionIndex(0));
    file.parent().map(Path::to_owned).ok_or(BenchError::Parameters("partitions are in a folder"))
}

/// Gives a folder another name, under which nobody looks for it.
fn move_away(folder: &Path) -> Result<PathBuf, BenchError> {
    let away = folder.with_extension("away");
    move_back(folder, &away)?;
    Ok(away)
}

fn move_back(from: &Path, to: &Path) -> Result<(), BenchError> {
    fs::rename(from, to).map_err(BenchError::io(format!("renaming {}", from.display())))
}
