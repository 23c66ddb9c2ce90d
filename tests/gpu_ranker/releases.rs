//! Releases come and go while requests run on the device: none fails, and the memory of those that are let go is given back.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use tidepool_proto::v1;

use crate::{
    models::{self, FEED},
    site::{INPUTS, LIVE, Site, rank},
};

#[tokio::test(flavor = "multi_thread")]
async fn promotions_and_rollbacks_fail_nobody_and_give_memory_back() -> Result<()> {
    for inputs in INPUTS {
        let site = Site::start(inputs).await?;
        let store = &site.sandbox.store;
        let (model, r1) = models::write(store, FEED, "r1")?;
        let nothing = site.sim.counters(LIVE);
        site.sandbox.promote(&model, &r1).await?;
        let one = site.sim.counters(LIVE);
        let grown = |times: u64| std::array::from_fn(|at| nothing[at] + times * (one[at] - nothing[at]));

        let stop = Arc::new(AtomicBool::new(false));
        let load: Vec<_> = (0..2)
            .map(|number| {
                let (stop, gpu) = (stop.clone(), site.gpu());
                async move {
                    let mut gpu = gpu.await?;
                    Ok::<_, anyhow::Error>(tokio::spawn(async move {
                        let mut seen = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            let message = models::feed_request(number, 20, models::FILMS);
                            let answer = rank(&mut gpu, &message).await?.context("a request failed")?;
                            if seen.last() != Some(&answer.release) {
                                seen.push(answer.release);
                            }
                        }
                        Ok::<_, anyhow::Error>(seen)
                    }))
                }
            })
            .collect();
        let mut running = Vec::new();
        for load in load {
            running.push(load.await?);
        }
        // The one before stays loaded, the one before that is let go.
        let (_, r2) = models::write(store, FEED, "r2")?;
        site.sandbox.promote(&model, &r2).await?;
        site.until_live(grown(2)).await?;
        let (_, r3) = models::write(store, FEED, "r3")?;
        site.sandbox.promote(&model, &r3).await?;
        site.until_release(FEED, "r1", |release| release.is_null()).await?;
        site.until_live(grown(2)).await?;
        // Back by the cluster, then at this ranker alone: both are loaded, so nothing changes on the device.
        let back = v1::PromoteReleaseRequest { model: FEED.into(), release: "r2".into(), dry_run: false };
        site.sandbox.control().await?.promote_release(back).await?;
        site.until_release(FEED, "r2", |release| release["current"] == true).await?;
        let (status, body) = site.post("/v1/admin/rollback", r#"{"model": "feed"}"#).await?;
        assert_eq!(status, 200, "{body}");
        let mut gpu = site.gpu().await?;
        let answer = rank(&mut gpu, &models::feed_request(1, 20, models::FILMS)).await??;
        assert_eq!((answer.release.as_str(), answer.choice()), ("r3", v1::Choice::RolledBack));
        site.until_live(grown(2)).await?;

        stop.store(true, Ordering::Relaxed);
        for running in running {
            let seen = running.await??;
            assert!(["r1", "r2", "r3"].iter().all(|r| seen.iter().any(|s| s == r)), "{seen:?}");
        }
        assert_eq!(site.sim.fault(), "");
        site.stop().await?;
    }
    Ok(())
}
