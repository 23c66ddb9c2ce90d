//! A release is ramped whose model does not belong to its tables: the incident that everybody has had. Nobody is told;
//! its guards have to find it and take it back.

use std::time::{Duration, Instant};

use super::{
    Params, ReleaseDrill, Report,
    scene::{LOOK_AGAIN, Needs, Progress, Scene},
    truth::{MODEL, Release},
};
use crate::{BenchError, Spread};

/// What it may take from the ramp to 5 % until no ranker sends it anything any more.
const MOST_TO_TAKE_BACK: Duration = Duration::from_secs(10);
/// When a drill gives up waiting for guards.
const GUARDS_TIMEOUT: Duration = Duration::from_secs(30);
/// Of the traffic, the larger share.
const SHARE: f64 = 0.05;
/// How long it takes until the larger share has had as many requests as guards ask for, at least.
const SECONDS_TO_JUDGE: f64 = 2.5;
/// Guards are never asked to judge by fewer requests.
const LEAST_REQUESTS: f64 = 20.0;

pub(super) async fn run(params: &Params, progress: Progress<'_>) -> Result<Report, BenchError> {
    let needs = Needs { versions: 2, controller_config: toml::Table::new() };
    let mut scene = Scene::open(ReleaseDrill::RampBad, params, needs, progress).await?;
    // By default guards wait for 200 requests, which 5 % of so little traffic are not in ten seconds.
    let least = (params.rate * SHARE * SECONDS_TO_JUDGE).max(LEAST_REQUESTS).ceil();
    scene.report.figure("guards_min_requests", least);
    let (mut took, mut halted) = (Vec::new(), 0);
    for _ in 0..params.pairs {
        let release = scene.skewed_release()?;
        scene.publish(&release).await?;
        scene.loaded(&release).await?;
        let name = release.name.as_str();
        scene.before().await?;
        scene
            .begin(&format!("{name}, a model with tables that are not its own, is ramped to 1 %, then 5 %"))
            .await?;
        scene.load.expect(None);
        ramp(&scene, &release, "1%", least).await?;
        scene.load.until_sent(scene.window()).await?;
        let begun = Instant::now();
        ramp(&scene, &release, "5%", least).await?;
        let taken_back = until_halted(&mut scene, &release, begun).await?;
        scene.load.expect(Some(&scene.current.name));
        let asked_last = scene.load.last_sent(name).map(|last| last.saturating_duration_since(begun));
        took.extend(taken_back.max(asked_last).map(|took| took.as_secs_f64()));
        halted += u64::from(taken_back.is_some());
        scene.took_effect().await?;
        scene.operator.retire(&release).await?;
    }
    scene.report.promise(
        halted == params.pairs as u64,
        format!("{halted} of {} bad releases were halted by their guards", params.pairs),
    );
    let slowest = took.iter().copied().fold(0.0, f64::max);
    scene.report.figure("taken_back_seconds", Spread::of(took.iter().copied()).median);
    scene.report.figure("taken_back_seconds_most", slowest);
    scene.report.promise(
        slowest <= MOST_TO_TAKE_BACK.as_secs_f64(),
        format!("{slowest:.1} s from 5 % to no request at any ranker, of {MOST_TO_TAKE_BACK:?}"),
    );
    scene.close().await
}

async fn ramp(scene: &Scene<'_>, release: &Release, share: &str, least: f64) -> Result<(), BenchError> {
    let least = format!("{least:.0}");
    let args = ["release", "ramp", MODEL, &release.name, share, "--min-requests", &least];
    scene.operator.run(&args).await?;
    Ok(())
}

/// Waits until guards have halted the release and every ranker has heard; how long that took from `begun` on. Where
/// guards do nothing, an operator takes it back after a while, and it is `None`.
async fn until_halted(
    scene: &mut Scene<'_>,
    release: &Release,
    begun: Instant,
) -> Result<Option<Duration>, BenchError> {
    while begun.elapsed() < GUARDS_TIMEOUT {
        let traffic = scene.traffic().await?;
        let arm = traffic.arms.iter().find(|arm| arm.release == release.name.as_str());
        if let Some(arm) = arm.filter(|arm| !arm.halted.is_empty()) {
            let why = format!("halted: {}", arm.halted);
            scene.heard(traffic.epoch).await?;
            let took = begun.elapsed();
            scene.tell(&why);
            return Ok(Some(took));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let answer = scene.operator.run(&["release", "rollback", MODEL, "--release", &release.name]).await?;
    scene.heard(answer["epoch"].as_u64().unwrap_or_default()).await?;
    Ok(None)
}
