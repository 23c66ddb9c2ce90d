//! A release is published, loaded everywhere and promoted, and the one before is let go: with other tables each time,
//! so that nodes verify and map them while they answer.

use super::{
    Params, ReleaseDrill, Report,
    scene::{Needs, Progress, Scene},
};
use crate::BenchError;

pub(super) async fn run(params: &Params, progress: Progress<'_>) -> Result<Report, BenchError> {
    // None is met twice: what a node has verified once, it need not verify again.
    let needs = Needs { versions: params.pairs as u64 + 1, controller_config: toml::Table::new() };
    let mut scene = Scene::open(ReleaseDrill::Promote, params, needs, progress).await?;
    for _ in 0..params.pairs {
        scene.before().await?;
        let release = scene.next_release()?;
        scene.begin(&format!("{} is published, promoted, and the one before retired", release.name)).await?;
        scene.publish(&release).await?;
        let former = scene.promote(release).await?;
        scene.operator.retire(&former).await?;
        scene.gone(&former).await?;
        scene.took_effect().await?;
    }
    scene.close().await
}
