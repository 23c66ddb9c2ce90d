//! Faults of the device beneath a ranker that serves.

use anyhow::{Context, Result};
use futures::future::join_all;
use tidepool_proto::{code_of, v1};
use tidepool_tests::DEADLINE;
use tidepool_types::ErrorCode;

use crate::{
    answers::{same, tolerance_of},
    models::{self, FEED},
    site::{INPUTS, LIVE, Site, rank, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_release_for_which_there_is_no_memory_leaves_the_others_alone() -> Result<()> {
    for inputs in INPUTS {
        let site = Site::start(inputs).await?;
        let store = &site.sandbox.store;
        let (model, release) = models::write(store, FEED, "r1")?;
        site.sandbox.promote(&model, &release).await?;
        let live = site.sim.counters(LIVE);
        // Whatever the second model needs, this is less.
        site.sim.set("memory_bytes", live[1] + 4096);
        models::write(store, "two-tower", "r1")?;
        let publish = v1::PublishReleaseRequest { model: "two-tower".into(), release: "r1".into() };
        site.sandbox.control().await?.publish_release(publish).await?;
        let failed = site.until_release("two-tower", "r1", |release| release["state"] == "failed").await?;
        let problem = failed["problem"].as_str().unwrap().to_owned();
        assert!(problem.contains("bytes of GPU memory for") && problem.contains("are free"), "{problem}");
        site.sandbox
            .wait_for("the controller to be told", async |cluster| {
                let told = |release: &v1::ReleaseStatus| {
                    release.waiting_for.join("; ").contains("bytes of GPU memory")
                };
                Ok(cluster.releases.iter().any(told))
            })
            .await?;
        let (mut cpu, mut gpu) = (site.cpu().await?, site.gpu().await?);
        for number in 0..4 {
            let message = models::feed_request(number, 20, models::FILMS);
            same(
                "beside it",
                &rank(&mut gpu, &message).await??,
                &rank(&mut cpu, &message).await??,
                tolerance_of(FEED),
            );
        }
        assert_eq!(site.http("/readyz").await?.0, 200);
        // What the failed loads had taken is given back; then there is room, and it is loaded without anybody's doing.
        site.sim.set("memory_bytes", 16 << 30);
        site.until_release("two-tower", "r1", |release| release["state"] == "ready").await?;
        site.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_traps_sends_callers_elsewhere_and_hangs_nobody() -> Result<()> {
    for inputs in INPUTS {
        let site = Site::start(inputs).await?;
        let (model, release) = models::write(&site.sandbox.store, FEED, "r1")?;
        site.sandbox.promote(&model, &release).await?;
        let (mut cpu, mut gpu) = (site.cpu().await?, site.gpu().await?);
        let message = models::feed_request(3, 20, models::FILMS);
        rank(&mut gpu, &message).await??;
        site.sim.set("fail_launch", 2);
        // The one that meets it, and those behind it.
        for _ in 0..2 {
            let refused = rank(&mut gpu, &message).await?.unwrap_err();
            assert_eq!(code_of(&refused), ErrorCode::Unavailable, "{refused}");
            assert!(refused.message().contains("lost"), "{refused}");
        }
        let many = join_all((0..20).map(|number| {
            let (mut gpu, message) = (gpu.clone(), models::feed_request(number, 30, models::FILMS));
            async move { rank(&mut gpu, &message).await }
        }));
        for refused in tokio::time::timeout(DEADLINE, many).await.context("requests hang")? {
            assert_eq!(code_of(&refused?.unwrap_err()), ErrorCode::Unavailable);
        }
        // Whoever asks whether to send requests here is told no, and why.
        let (_, said) = until("the ranker to be not ready", async || {
            let ready = site.http("/readyz").await?;
            Ok(if ready.0 == 503 { Ok(ready) } else { Err(ready) })
        })
        .await?;
        assert!(said.contains("cuda:0 is lost") && said.contains("CUDA_ERROR_LAUNCH_FAILED"), "{said}");
        let status = site.status().await?;
        assert!(status["device"]["lost_because"].is_string() && status["ready"] == false, "{status:#}");
        // And whoever asks elsewhere is answered.
        assert_eq!(rank(&mut cpu, &message).await??.release, "r1");
        site.stop().await?;
    }
    Ok(())
}
