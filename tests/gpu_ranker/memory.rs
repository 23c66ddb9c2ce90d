//! What a release keeps on the device: as much as `/status` says, the same for large tables as for small ones, and nothing
//! once it is let go.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::{
    models::{self, ALL, FEED},
    site::{INPUTS, Inputs, LIVE, Site, rank, write_lists},
};

/// The driver rounds each allocation, whose bytes are a multiple of 256, up to one of 512.
const ROUNDED_BY: u64 = 256;

/// Bytes that `/status` tells of a release: on the device, its resident rows included, and pinned.
fn told(release: &Value) -> (u64, u64) {
    let lines = release["device_memory"].as_array().unwrap();
    let bytes = |pinned: bool| {
        let of = lines.iter().filter(|line| line["pinned"] == pinned);
        of.map(|line| line["bytes"].as_u64().unwrap()).sum::<u64>()
    };
    (bytes(false) + release["resident"]["bytes"].as_u64().unwrap(), bytes(true))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_status_tells_of_releases_is_what_the_driver_counts() -> Result<()> {
    for inputs in INPUTS {
        let site = Site::start(inputs).await?;
        for model in ALL {
            let before = site.sim.counters(LIVE);
            let (of_model, release) = models::write(&site.sandbox.store, model, "r1")?;
            site.sandbox.promote(&of_model, &release).await?;
            let (bytes, pinned) = told(&site.release(model, "r1").await?);
            let now = site.sim.counters(LIVE);
            let (allocations, counted) = (now[0] - before[0], now[1] - before[1]);
            assert!(
                bytes > 0 && counted >= bytes && counted <= bytes + ROUNDED_BY * allocations,
                "{model}, {inputs:?}: the driver counts {counted} in {allocations} allocations, /status tells {bytes}"
            );
            assert_eq!(now[3] - before[3], pinned, "{model}, {inputs:?}: pinned");
        }
        // The device is looked at every second.
        let is_told = async {
            loop {
                let status = site.status().await?;
                let (free, total) = (&status["device"]["free_bytes"], &status["device"]["total_bytes"]);
                if total.as_u64().unwrap() - free.as_u64().unwrap() == site.sim.counter("bytes_live") {
                    return anyhow::Ok(());
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), is_told).await??;
        site.stop().await?;
    }
    Ok(())
}

/// The least that resident rows may have, and films enough that the hot ones among them take more.
const SMALL_BUDGET: u64 = 1 << 16;
const MANY_FILMS: u64 = 20 * models::FILMS;

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat_while_tables_grow_ten_times() -> Result<()> {
    for inputs in INPUTS {
        let mut kept = Vec::new();
        for films in [MANY_FILMS, 10 * MANY_FILMS] {
            let site = Site::start_with(inputs, |raw| {
                if inputs == Inputs::Residents {
                    raw.cuda.resident.bytes = SMALL_BUDGET;
                }
            })
            .await?;
            // The list grows with the table, and the budget cuts both.
            write_lists(films)?;
            let (model, release) = models::feed(&site.sandbox.store, "r1", films)?;
            site.sandbox.promote(&model, &release).await?;
            let loaded = site.sim.counters(LIVE);
            let mut gpu = site.gpu().await?;
            for number in 0..4 {
                rank(&mut gpu, &models::feed_request(number, 20, films)).await??;
            }
            assert_eq!(site.sim.counters(LIVE), loaded, "{films} films");
            assert!(loaded[1] > 0, "{loaded:?}");
            let release = site.release(FEED, "r1").await?;
            let resident = release["resident"]["bytes"].as_u64().unwrap();
            assert_eq!(resident > 0, inputs == Inputs::Residents, "{release:#}");
            assert!(resident <= SMALL_BUDGET, "{release:#}");
            let tables = release["resident"]["tables"].as_array().cloned().unwrap_or_default();
            let film =
                tables.iter().find(|line| line["table"]["table"] == "film").cloned().unwrap_or_default();
            if inputs == Inputs::Residents {
                assert_eq!(film["offered"], films / 2, "{film}");
                assert!(
                    film["kept"].as_u64().is_some_and(|kept| kept > 0 && kept < MANY_FILMS / 2),
                    "{film}"
                );
                assert_eq!(film["absent"], 0, "{film}");
            }
            kept.push((loaded, resident, film["kept"].clone(), release["device_memory"].clone()));
            site.stop().await?;
        }
        assert_eq!(kept[0], kept[1], "{inputs:?}");
    }
    Ok(())
}
