//! A ranker on the device answers as one on the CPU does.
//!
//! Both are given the same bits, since lookups are exact, and differ by the order of sums in products alone (docs/gpu.md,
//! "Numerics"). Products of these models have 101 terms at most, of size 1/10 each (weights are of size `1 / sqrt(k)`, inputs
//! of size 1), and seven of them stand one behind the other: a logit is off by `7 * 2 * 101 * 2^-24 * 10` = 8.4e-4 in the
//! worst case, a probability by a quarter of that, 2.1e-4. **2e-5 is a choice**, a tenth of it, since errors have either sign; of
//! formulas twice as much, by which they multiply it at most. The batch that a ranker makes cannot be had here, so neither can the
//! bound that `CudaModel::bounds` derives from a batch: tests of the engine and of `Placed` models ask for that one.

use std::collections::BTreeMap;

use anyhow::Result;
use futures::future::try_join_all;
use tidepool_proto::{pack::unpack, v1};

use crate::{
    models::{self, ALL, FEED},
    site::{INPUTS, Site, rank},
};

const TOLERANCE: f32 = 2e-5;
const OF_FORMULAS: f32 = 2.0 * TOLERANCE;

/// Scores, and values of the outputs, by candidate; and candidates in their order.
struct Ranked {
    order: Vec<u32>,
    values: BTreeMap<u32, Vec<f32>>,
}

impl Ranked {
    fn of(answer: &v1::RankResponse) -> Self {
        let order: Vec<u32> = unpack(&answer.indexes).unwrap().collect();
        let columns = answer.outputs.iter().map(|output| &output.values);
        let columns: Vec<Vec<f32>> = std::iter::once(&answer.scores)
            .chain(columns)
            .map(|bytes| unpack(bytes).unwrap().collect())
            .collect();
        assert!(columns.iter().all(|column| column.len() == order.len()), "{columns:?}");
        let row = |at: usize| columns.iter().map(|column: &Vec<f32>| column[at]).collect();
        let values = order.iter().enumerate().map(|(at, candidate)| (*candidate, row(at))).collect();
        Self { order, values }
    }
}

/// `found`, by the device, of some or all candidates, must be what `expected`, by the CPU and of all, says.
pub(crate) fn same(what: &str, found: &v1::RankResponse, expected: &v1::RankResponse, tolerance: f32) {
    let facts = |a: &v1::RankResponse| {
        let names: Vec<String> = a.outputs.iter().map(|output| output.name.clone()).collect();
        (a.model.clone(), a.release.clone(), a.table_versions.clone(), a.missing_ids, a.defaulted_bags, names)
    };
    assert_eq!(facts(found), facts(expected), "{what}");
    let (found, expected) = (Ranked::of(found), Ranked::of(expected));
    assert_eq!(found.values.len(), found.order.len(), "{what}: a candidate came twice");
    for (candidate, values) in &found.values {
        for (value, worth) in values.iter().zip(&expected.values[candidate]) {
            assert!(
                (value - worth).abs() <= tolerance,
                "{what}, candidate {candidate}: {value}, the CPU says {worth}"
            );
        }
    }
    // Whoever stands before another is not worse by more than the two may be off, nor is any who was left out better.
    let worth = |candidate: &u32| expected.values[candidate][0];
    for pair in found.order.windows(2) {
        assert!(
            worth(&pair[0]) >= worth(&pair[1]) - 2.0 * tolerance,
            "{what}: {pair:?} are in the wrong order"
        );
    }
    if let Some(last) = found.order.last() {
        let left_out = expected.order.iter().filter(|candidate| !found.values.contains_key(candidate));
        for candidate in left_out {
            assert!(worth(candidate) <= worth(last) + 2.0 * tolerance, "{what}: {candidate} was left out");
        }
    }
}

pub(crate) fn tolerance_of(model: &str) -> f32 {
    if model == FEED { OF_FORMULAS } else { TOLERANCE }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_model_is_ranked_as_on_the_cpu() -> Result<()> {
    for inputs in INPUTS {
        let site = Site::start(inputs).await?;
        let (mut cpu, gpu) = (site.cpu().await?, site.gpu().await?);
        for model in ALL {
            let (of_model, release) = models::write(&site.sandbox.store, model, "r1")?;
            site.sandbox.promote(&of_model, &release).await?;
            let mut wanted = models::requests(&site.sandbox.store, model, "r1", 6)?;
            // The best alone, no output, and what the contract says.
            let few = [(3, 1), (1, 0), (0, 0)].into_iter().zip(wanted.clone()).map(
                |((top_k, outputs), mut message)| {
                    message.top_k = top_k;
                    message.outputs.truncate(outputs);
                    message
                },
            );
            wanted.extend(few.collect::<Vec<_>>());
            let mut expected = Vec::new();
            for message in &wanted {
                let all = v1::RankRequest { top_k: u32::MAX, ..message.clone() };
                expected.push(rank(&mut cpu, &all).await??);
            }
            let scores =
                |answer: &v1::RankResponse| unpack::<f32>(&answer.scores).unwrap().collect::<Vec<_>>();
            let all: Vec<f32> = expected.iter().flat_map(scores).collect();
            let spread =
                all.iter().copied().fold(f32::MIN, f32::max) - all.iter().copied().fold(f32::MAX, f32::min);
            assert!(spread > 100.0 * TOLERANCE, "{model}: scores that are all alike show nothing: {spread}");
            // One after the other, then all at once, so that they share batches.
            for at_once in [1, wanted.len()] {
                for (chunk, expected) in wanted.chunks(at_once).zip(expected.chunks(at_once)) {
                    let answers = chunk.iter().map(|message| {
                        let mut gpu = gpu.clone();
                        async move { rank(&mut gpu, message).await?.map_err(anyhow::Error::from) }
                    });
                    for ((found, expected), message) in
                        try_join_all(answers).await?.iter().zip(expected).zip(chunk)
                    {
                        let what = format!("{model}, {}, {inputs:?}", message.request_id);
                        same(&what, found, expected, tolerance_of(model));
                        let most = if message.top_k == 0 && model == FEED { 7 } else { message.top_k };
                        let most = if most == 0 { message.candidates } else { most.min(message.candidates) };
                        assert_eq!(found.indexes.len(), 4 * most as usize, "{what}");
                    }
                }
            }
        }
        assert_eq!(site.sim.fault(), "");
        site.stop().await?;
    }
    Ok(())
}

/// A request with more candidates than the largest batch has rows is cut, and answered as one.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_cut_is_answered_as_one() -> Result<()> {
    for inputs in INPUTS {
        let site = Site::start(inputs).await?;
        let (model, release) = models::write(&site.sandbox.store, FEED, "r1")?;
        site.sandbox.promote(&model, &release).await?;
        let (mut cpu, mut gpu) = (site.cpu().await?, site.gpu().await?);
        for top_k in [u32::MAX, 5] {
            let all = models::feed_request(4, 150, models::FILMS);
            let message = v1::RankRequest { top_k, ..all.clone() };
            let (found, expected) = (rank(&mut gpu, &message).await??, rank(&mut cpu, &all).await??);
            same(&format!("150 candidates, {inputs:?}"), &found, &expected, OF_FORMULAS);
            assert_eq!(found.indexes.len(), 4 * top_k.min(150) as usize);
        }
        site.stop().await?;
    }
    Ok(())
}
