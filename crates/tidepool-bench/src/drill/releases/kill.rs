//! Processes are killed (SIGKILL) and started again: the controller in the middle of a promotion, a node, every node
//! of a group.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{
    Params, ReleaseDrill, Report,
    operator::Answer,
    scene::{NODES_PER_GROUP, Needs, Progress, Scene, short_grace},
    truth::MODEL,
};
use crate::{BenchError, draw::Random, drill::site::traffic_returns};

/// Some time within this after a publication is asked for, the controller is killed.
const PUBLICATION: Duration = Duration::from_millis(300);
/// Every other time, some time within this after the publication was answered: long before all is loaded that a
/// promotion waits for.
const PUBLISHED: Duration = Duration::from_millis(50);

/// The controller is killed while a release is published and promoted, and stays dead for a third of the window.
pub(super) async fn controller(params: &Params, progress: Progress<'_>) -> Result<Report, BenchError> {
    let needs = Needs { versions: params.pairs as u64 + 1, controller_config: short_grace() };
    let mut scene = Scene::open(ReleaseDrill::KillController, params, needs, progress).await?;
    let mut random = Random::new(params.seed ^ 0x6b69_6c6c);
    let (mut interrupted, mut between) = (0u32, 0u32);
    for pair in 0..params.pairs {
        scene.before().await?;
        let release = scene.next_release()?;
        scene
            .begin(&format!("{} is published and promoted, and SIGKILL to the controller", release.name))
            .await?;
        scene.load.expect(None);
        let publish = scene.operator.files_of(&release, &scene.published_tables(&release)?)?;
        let publish: Vec<&str> = publish.iter().map(String::as_str).collect();
        let promote = ["release", "promote", MODEL, &release.name];
        let unit = random.unit();
        let operator = scene.operator.clone();
        let (answered, published) = oneshot::channel();
        let killed = async {
            if pair % 2 == 0 {
                // Refused is answered as well.
                let _ = published.await;
                tokio::time::sleep(PUBLISHED.mul_f64(unit)).await;
            } else {
                tokio::time::sleep(PUBLICATION.mul_f64(unit)).await;
            }
            scene.cluster.controller_mut().kill().await
        };
        let asked = async {
            let Answer::Done(_) = operator.ask(&publish).await? else { return Ok((false, true)) };
            let _ = answered.send(());
            Ok::<_, BenchError>((true, matches!(operator.ask(&promote).await?, Answer::Refused(_))))
        };
        let (killed, asked) = tokio::join!(killed, asked);
        killed?;
        let (was_published, refused) = asked?;
        interrupted += u32::from(refused);
        between += u32::from(was_published && refused);
        scene.load.until_sent(scene.window() / 3).await?;
        scene.tell("the controller is started again, and the operator repeats himself");
        scene.cluster.controller_mut().start_again().await?;
        // What was published may be known already, and what lies in the store is not written again.
        let again = ["release", "publish", &release.name, "--model", MODEL];
        let lies_there =
            scene.operator.store.join("releases").join(MODEL).join(release.name.as_str()).exists();
        scene.until_done(if lies_there { &again } else { &publish }).await?;
        let former = scene.promote_again(release).await?;
        scene.operator.retire(&former).await?;
        scene.gone(&former).await?;
        scene.took_effect().await?;
    }
    scene.report.figure("commands_interrupted", f64::from(interrupted));
    scene.report.promise(
        between > 0,
        format!(
            "the controller was killed between a publication and the promotion in {between} of {} pairs",
            params.pairs
        ),
    );
    scene.close().await
}

/// One node, or all of the first group, are killed, stay dead for a window of requests, and are started again.
pub(super) async fn nodes(
    drill: ReleaseDrill,
    params: &Params,
    progress: Progress<'_>,
) -> Result<Report, BenchError> {
    let victims = if drill == ReleaseDrill::KillGroup { NODES_PER_GROUP } else { 1 };
    let needs = Needs { versions: 1, controller_config: toml::Table::new() };
    let mut scene = Scene::open(drill, params, needs, progress).await?;
    let (mut returned, mut slowest) = (0, Duration::ZERO);
    for _ in 0..params.pairs {
        scene.settle().await?;
        scene.before().await?;
        scene.begin(&format!("SIGKILL to {victims} of the nodes")).await?;
        for node in &mut scene.cluster.nodes_mut()[..victims] {
            node.kill().await?;
        }
        scene.load.until_sent(scene.window()).await?;
        scene.tell("started again");
        let began = Instant::now();
        for node in &mut scene.cluster.nodes_mut()[..victims] {
            node.start_again().await?;
        }
        for node in &scene.cluster.nodes()[..victims] {
            returned += u64::from(traffic_returns(node, 0.0).await?.is_some());
        }
        slowest = slowest.max(began.elapsed());
        scene.took_effect().await?;
    }
    let expected = (victims * params.pairs) as u64;
    scene.report.figure("return_seconds_most", slowest.as_secs_f64());
    scene.report.promise(
        returned == expected,
        format!("{returned} of {expected} nodes were asked again, without anybody's help"),
    );
    scene.close().await
}
