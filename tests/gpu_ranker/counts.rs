//! What a request asks of the device: one copy in, one launch of a graph and one copy back, as the driver counts them.

use anyhow::{Context, Result};
use futures::future::try_join_all;
use tidepool_ranker::RawConfig;

use crate::{
    models::{self, ALL},
    site::{INPUTS, LARGEST, LIVE, Site, rank},
};

/// What is counted of requests.
pub(crate) const ASKED: [&str; 8] = [
    "copies_in",
    "graph_launches",
    "copies_out",
    "launches",
    "matmuls",
    "fills",
    "allocations",
    "pinned_allocations",
];

/// So many batches, each with one copy in, one launch of a graph and one copy back, and nothing else.
pub(crate) const fn one_each(batches: u64) -> [u64; 8] {
    [batches, batches, batches, 0, 0, 0, 0, 0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_copy_in_one_graph_and_one_copy_back() -> Result<()> {
    const REQUESTS: u64 = 6;
    for inputs in INPUTS {
        // Batches of the batcher's fit the largest bucket: none is cut on its way to the device.
        let fits = |raw: &mut RawConfig| (raw.batch.max_rows, raw.batch.max_requests) = (LARGEST as u32, 8);
        let site = Site::start_with(inputs, fits).await?;
        let mut gpu = site.gpu().await?;
        for model in ALL {
            let (of_model, release) = models::write(&site.sandbox.store, model, "r1")?;
            site.sandbox.promote(&of_model, &release).await?;
            let wanted = models::requests(&site.sandbox.store, model, "r1", REQUESTS as usize)?;
            let live = site.sim.counters(LIVE);
            site.sim.reset();
            for message in &wanted {
                rank(&mut gpu, message).await??;
            }
            let counted = site.sim.counters(ASKED);
            assert_eq!(counted, one_each(REQUESTS), "{model}, {inputs:?}");

            // Those that share a batch share these, too.
            site.sim.reset();
            let before = batches(&site, model).await?;
            try_join_all(wanted.iter().map(|message| {
                let mut gpu = gpu.clone();
                async move { rank(&mut gpu, message).await?.map_err(anyhow::Error::from) }
            }))
            .await?;
            let batches = batches(&site, model).await? - before;
            assert!((1..=REQUESTS).contains(&batches), "{batches} batches");
            let counted = site.sim.counters(ASKED);
            assert_eq!(counted, one_each(batches), "{model}, {inputs:?}");
            assert_eq!(site.sim.counters(LIVE), live, "requests leave nothing on the device");
        }
        site.stop().await?;
    }
    Ok(())
}

/// Batches of a model so far, as the ranker counts them.
async fn batches(site: &Site, model: &str) -> Result<u64> {
    let (_, metrics) = site.http("/metrics").await?;
    let name = format!("tidepool_ranker_batch_requests_count{{model=\"{model}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name)).context("no such metric")?;
    Ok(line.parse::<f64>()? as u64)
}
