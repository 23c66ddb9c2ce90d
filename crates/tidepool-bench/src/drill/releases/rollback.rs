//! A release is promoted, answers for a while, and the one before answers again: by the controller in one pair, and in
//! the next at each ranker, while the controller is dead.

use super::{
    Params, ReleaseDrill, Report,
    scene::{Needs, Progress, Scene},
    truth::MODEL,
};
use crate::BenchError;

pub(super) async fn run(params: &Params, progress: Progress<'_>) -> Result<Report, BenchError> {
    let needs = Needs { versions: 2, controller_config: toml::Table::new() };
    let mut scene = Scene::open(ReleaseDrill::Rollback, params, needs, progress).await?;
    for pair in 0..params.pairs {
        let release = scene.next_release()?;
        scene.publish(&release).await?;
        scene.loaded(&release).await?;
        scene.before().await?;
        scene.begin(&format!("{} is promoted", release.name)).await?;
        let former = scene.promote(release).await?;
        scene.load.until_sent(scene.window()).await?;
        if pair % 2 == 0 {
            scene.tell("rolled back by the controller");
            scene.load.expect(None);
            by_controller(&scene).await?;
            scene.load.expect(Some(&former.name));
        } else {
            scene.tell("SIGKILL to the controller, and rolled back at each ranker");
            scene.load.expect(None);
            scene.cluster.controller_mut().kill().await?;
            at_rankers(&scene).await?;
            scene.load.expect(Some(&former.name));
            scene.tell("the controller is started again, and told as well");
            scene.cluster.controller_mut().start_again().await?;
            by_controller(&scene).await?;
        }
        scene.took_effect().await?;
        let taken_back = std::mem::replace(&mut scene.current, former);
        scene.operator.retire(&taken_back).await?;
    }
    scene.close().await
}

/// As an operator does it, until every ranker has heard.
async fn by_controller(scene: &Scene<'_>) -> Result<(), BenchError> {
    let answer = scene.until_done(&["release", "rollback", MODEL]).await?;
    scene.heard(answer["epoch"].as_u64().unwrap_or_default()).await
}

/// As an operator does it who has no controller.
async fn at_rankers(scene: &Scene<'_>) -> Result<(), BenchError> {
    let addresses = scene.ranker_addresses();
    let mut args = vec!["release", "rollback", MODEL];
    for address in &addresses {
        args.extend(["--ranker", address]);
    }
    scene.operator.run(&args).await?;
    Ok(())
}
