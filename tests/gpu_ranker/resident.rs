//! Rows that are resident on the device are asked of no node, and change no bit of any answer.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;
use tidepool_proto::{pack::unpack, v1};

use crate::{
    counts::{ASKED, one_each},
    models::{self, FEED, PLACES},
    site::{Inputs, LIVE, Site, on_the_device, rank},
};

const REQUESTS: u64 = 12;

/// Films that a request wants: those that its candidates are, and as many of its history as there are places for.
fn wanted(message: &v1::RankRequest) -> BTreeSet<u64> {
    let ids = |feature: &v1::Feature| unpack::<u64>(&feature.ids).unwrap().collect::<Vec<_>>();
    let history = ids(&message.user[0]);
    let last = &history[history.len().saturating_sub(PLACES)..];
    ids(&message.candidate[0]).into_iter().chain(last.iter().copied()).collect()
}

/// Rows of a table that the nodes were asked for so far.
fn asked(site: &Site, table: &str) -> u64 {
    let families: Vec<_> = site.sandbox.registries().iter().flat_map(|registry| registry.gather()).collect();
    let rows = families.iter().filter(|family| family.name() == "tidepool_node_table_rows_total");
    let metrics = rows.flat_map(|family| family.get_metric());
    let of_table = metrics.filter(|metric| metric.get_label().iter().any(|label| label.value() == table));
    of_table.map(|metric| metric.get_counter().get_value()).sum::<f64>() as u64
}

/// What must be the same to the bit.
fn bits(answer: &v1::RankResponse) -> (Vec<u8>, Vec<u8>, Vec<v1::NamedValues>, [u32; 2]) {
    let counts = [answer.missing_ids, answer.defaulted_bags];
    (answer.indexes.to_vec(), answer.scores.to_vec(), answer.outputs.clone(), counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_resident_is_not_asked_for_and_changes_no_bit() -> Result<()> {
    let mut site = Site::start(Inputs::Residents).await?;
    let without = site.sandbox.start_ranker_with(|raw| on_the_device(raw, Inputs::Rows)).await?;
    let (model, release) = models::write(&site.sandbox.store, FEED, "r1")?;
    site.sandbox.promote(&model, &release).await?;
    let (mut with, mut without) = (site.gpu().await?, site.sandbox.ranker(without).await?);
    let messages = models::requests(&site.sandbox.store, FEED, "r1", REQUESTS as usize)?;

    let before = ["film", "tag"].map(|table| asked(&site, table));
    let mut expected = Vec::new();
    for message in &messages {
        expected.push(bits(&rank(&mut without, message).await??));
    }
    let between = ["film", "tag"].map(|table| asked(&site, table));
    let live = site.sim.counters(LIVE);
    site.sim.reset();
    for (message, expected) in messages.iter().zip(&expected) {
        assert_eq!(&bits(&rank(&mut with, message).await??), expected, "{}", message.request_id);
    }
    assert_eq!(
        site.sim.counters(ASKED),
        one_each(REQUESTS),
        "a request is still one copy, one launch and one copy"
    );
    assert_eq!(site.sim.counters(LIVE), live);
    let after = ["film", "tag"].map(|table| asked(&site, table));

    let all: usize = messages.iter().map(|message| wanted(message).len()).sum();
    let cold =
        |message: &v1::RankRequest| wanted(message).into_iter().filter(|film| !models::is_hot(*film)).count();
    let cold: usize = messages.iter().map(cold).sum();
    assert!(cold * 3 < all * 2 && cold * 3 > all, "about half of {all} films are hot, {cold} are not");
    assert_eq!([between[0] - before[0], after[0] - between[0]], [all, cold].map(|rows| rows as u64), "films");
    // The table of tags is small, so it is there whole.
    assert!(between[1] > before[1], "tags are asked for where nothing is resident");
    assert_eq!(after[1], between[1], "and of nobody where they are");
    let resident = site.release(FEED, "r1").await?["resident"].clone();
    let of = |table: &str| {
        let tables = resident["tables"].as_array().unwrap();
        tables.iter().find(|line| line["table"]["table"] == table).unwrap().clone()
    };
    let (film, tag) = (of("film"), of("tag"));
    assert_eq!((&film["asked"], &film["resident"]), (&all.into(), &(all - cold).into()), "{resident:#}");
    assert!((film["hit_rate"].as_f64().unwrap() - (1.0 - cold as f64 / all as f64)).abs() < 1e-9, "{film}");
    assert_eq!((&film["whole"], &tag["whole"]), (&false.into(), &true.into()), "{resident:#}");
    assert_eq!(
        (&tag["hit_rate"], &resident["problems"]),
        (&1.0.into(), &Value::Array(vec![])),
        "{resident:#}"
    );
    site.stop().await
}
