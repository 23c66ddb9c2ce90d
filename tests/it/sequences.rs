//! Sequences through a cluster: a user's last three items in their order, with a mask, and two more per candidate without
//! one, on one node and on four, held against scores that are computed here; and computed once more offline, from what the
//! ranker wrote down.

use std::path::PathBuf;

use anyhow::Result;
use tidepool_dense::GraphWriter;
use tidepool_proto::{
    pack::{pack, unpack},
    v1,
};
use tidepool_skew::{Options, Plan, replay};
use tidepool_store::NewRelease;
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_tests::{Sandbox, Shape};
use tidepool_types::{Keying, PartitionCount, RowFormat, TableVersion};

use crate::{fixture::name, skew::written};

const MODEL_TOML: &str = r#"
    schema_version = 1
    model = "next"
    score = "p"
    outputs = [{ name = "p" }]
    [[inputs]]
    name = "history"
    side = "user"
    table = "item"
    sequence = 3
    mask = "seen"
    [[inputs]]
    name = "similar"
    side = "candidate"
    table = "item"
    sequence = 2
    [[inputs]]
    name = "item"
    side = "candidate"
    table = "item"
"#;

/// What the row of an item is; items from 100 on have none.
fn row(id: u64) -> [f64; 2] {
    if id >= 100 { DEFAULT } else { [id as f64 / 64.0, 1.0 - id as f64 / 32.0] }
}

const DEFAULT: [f64; 2] = [0.25, -0.5];

/// A weight for each number that the graph has: three vectors of the user, their mask, two vectors, and the item's. No two
/// of them are alike, so that nothing can stand in the place of another.
fn weights() -> Vec<f32> {
    (0u8..15).map(|n| (f32::from(n * 7 % 15) - 7.0) / 8.0).collect()
}

fn onnx() -> Vec<u8> {
    let mut graph = GraphWriter::new("next");
    graph.sequence_input("history", 3, 2);
    graph.input("seen", 3);
    graph.sequence_input("similar", 2, 2);
    graph.input("item", 2);
    graph.output("p", 1);
    graph.reshape("history", &[-1, 6], "of_user");
    graph.reshape("similar", &[-1, 4], "of_candidate");
    graph.concat(&["of_user", "seen", "of_candidate", "item"], "x");
    graph.constant("weights", &[15, 1], &weights());
    graph.constant("bias", &[1], &[0.125]);
    graph.node("Gemm", &["x", "weights", "bias"], "logit");
    graph.node("Sigmoid", &["logit"], "p");
    graph.into_file()
}

/// What a candidate gets, from nothing but the contract.
fn expected(history: &[u64], similar: &[u64], item: u64) -> f64 {
    let places = |ids: &[u64], len: usize| {
        let kept = &ids[ids.len().saturating_sub(len)..];
        let vectors = kept.iter().map(|id| row(*id)).chain(std::iter::repeat([0.0; 2])).take(len).flatten();
        (vectors.collect::<Vec<f64>>(), kept.len())
    };
    let (mut x, taken) = places(history, 3);
    x.extend((0..3).map(|place| f64::from(u8::from(place < taken))));
    x.extend(places(similar, 2).0);
    x.extend(row(item));
    let logit: f64 = x.iter().zip(weights()).map(|(x, weight)| x * f64::from(weight)).sum::<f64>() + 0.125;
    1.0 / (1.0 + (-logit).exp())
}

const HISTORIES: [&[u64]; 4] = [&[], &[7], &[9, 400, 3], &[1, 2, 3, 4, 5]];
const CANDIDATES: [(u64, &[u64]); 3] = [(10, &[]), (11, &[4, 5, 6]), (999, &[8])];

fn request(number: usize, history: &[u64]) -> v1::RankRequest {
    let bags = |name: &str, bags: &[&[u64]]| v1::Feature {
        name: name.into(),
        ids: pack(&bags.concat()),
        lengths: pack(&bags.iter().map(|bag| bag.len() as u32).collect::<Vec<_>>()),
        ..v1::Feature::default()
    };
    v1::RankRequest {
        request_id: format!("größe-{number}"),
        model: "next".into(),
        candidates: 3,
        user: vec![bags("history", &[history])],
        candidate: vec![
            bags(
                "item",
                &CANDIDATES.map(|(item, _)| item).iter().map(std::slice::from_ref).collect::<Vec<_>>(),
            ),
            bags("similar", &CANDIDATES.map(|(_, similar)| similar)),
        ],
        ..v1::RankRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_is_scored_in_its_order_whatever_the_number_of_nodes() -> Result<()> {
    for nodes_per_group in [1, 4] {
        let mut sandbox = Sandbox::start(Shape { groups: 1, nodes_per_group }).await?;
        let folder = tempfile::tempdir()?;
        let sample = folder.path().join("sample.jsonl");
        let path = sample.display().to_string();
        let ranker = sandbox
            .start_ranker_with(|raw| {
                raw.exact = true;
                (raw.audit_sample.percent, raw.audit_sample.path) = (100.0, path);
            })
            .await?;
        let table_version = TableVersion { table: name("item"), version: name("v1") };
        let mut builder = TableBuilder::new(TableSpec {
            table_version: table_version.clone(),
            dim: 2,
            format: RowFormat::F32,
            keying: Keying::Hashed,
            partitions: PartitionCount::new(4).unwrap(),
            default_row: DEFAULT.map(|value| value as f32).to_vec(),
            composite: None,
            full_keys: false,
            seed: 0,
        })?;
        for id in 0..100 {
            builder.push(id, &row(id).map(|value| value as f32))?;
        }
        builder.publish(&sandbox.store.table_dir(&table_version), &mut |_, _| ())?;
        let (model, release) = (name("next"), name("r1"));
        sandbox.store.write(NewRelease {
            model: &model,
            release: &release,
            tables: &[table_version],
            model_toml: MODEL_TOML,
            onnx: &onnx(),
            golden: None,
        })?;
        sandbox.promote(&model, &release).await?;
        let mut rankings = sandbox.ranker(ranker).await?;
        for (number, history) in HISTORIES.into_iter().enumerate() {
            let answer = rankings.rank(request(number, history)).await?.into_inner();
            let indexes: Vec<u32> = unpack(&answer.indexes).unwrap().collect();
            assert_eq!(indexes.len(), CANDIDATES.len());
            for (index, score) in indexes.into_iter().zip(unpack::<f32>(&answer.scores).unwrap()) {
                let (item, similar) = CANDIDATES[index as usize];
                let worth = expected(history, similar, item);
                let told = format!("{history:?} and {item}, {nodes_per_group} nodes");
                assert!((f64::from(score) - worth).abs() < 1e-6, "{told}: {score} is not {worth}");
            }
        }
        written(&sandbox, HISTORIES.len()).await?;
        let plan = Plan { model, releases: vec![release], tables_of: Vec::new(), each_table: false };
        let options = Options { threads: 2, score_bound: 0.0 };
        let samples = [PathBuf::from(&sample)];
        let report = replay(&sandbox.store, &plan, &samples, None, &options, &mut |_| ()).await?;
        let online = report.releases[0].online.as_ref().unwrap();
        assert_eq!((online.requests, online.values, online.beyond), (4, 12, 0), "the same bits: {online:?}");
        sandbox.stop().await?;
    }
    Ok(())
}
