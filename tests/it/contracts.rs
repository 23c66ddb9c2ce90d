//! A whole contract in a cluster: ids that training made of texts and numbers, a calibration, bids and a utility, on
//! one node and on four, held against scores that are computed here.

use anyhow::Result;
use tidepool_dense::GraphWriter;
use tidepool_proto::{
    pack::{pack, unpack},
    v1,
};
use tidepool_store::NewRelease;
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_tests::{Sandbox, Shape};
use tidepool_types::{Keying, PartitionCount, RowFormat, TableVersion};

use crate::fixture::name;

/// Ads by the hash of their text: XXH3 with seed 7, as Python's xxhash gives it.
const SKUS: [(&str, u64, f32); 2] =
    [("sku-1", 2_486_670_271_788_658_016, 1.0), ("sku-2", 5_913_646_502_499_624_634, 0.5)];

const MODEL_TOML: &str = r#"
    schema_version = 1
    model = "ads"
    score = "utility"
    utility = "ctr * bid"
    utility_inputs = [{ name = "bid", side = "candidate" }]
    outputs = [{ name = "ctr" }]
    [[inputs]]
    name = "item"
    feature = "sku"
    side = "candidate"
    table = "item"
    transform = [{ op = "hash", seed = 7 }]
    [[inputs]]
    name = "age"
    side = "user"
    table = "age"
    transform = [{ op = "bucketize", boundaries = [18, 30] }]
    [[calibrations]]
    output = "ctr"
    surface = "home"
    kind = "platt"
    a = 1.1
    b = -0.2
"#;

const GOLDEN: &str =
    r#"{"schema_version": 1, "inputs": {"item": [{"raw": ["sku-1"], "ids": [2486670271788658016]}]}}"#;

fn build(
    sandbox: &Sandbox,
    table: &str,
    keying: Keying,
    rows: impl Iterator<Item = (u64, f32)>,
) -> Result<TableVersion> {
    let table_version = TableVersion { table: name(table), version: name("v1") };
    let spec = TableSpec {
        table_version: table_version.clone(),
        dim: 2,
        format: RowFormat::F32,
        keying,
        partitions: PartitionCount::new(4).unwrap(),
        default_row: Vec::new(),
        composite: None,
        full_keys: false,
        seed: 0,
    };
    let mut builder = TableBuilder::new(spec)?;
    for (id, value) in rows {
        builder.push(id, &[value, 0.0])?;
    }
    builder.publish(&sandbox.store.table_dir(&table_version), &mut |_, _| ())?;
    Ok(table_version)
}

/// `ctr = sigmoid(2 item[0] + age[0] / 2 - 1)`.
fn onnx() -> Vec<u8> {
    let mut graph = GraphWriter::new("ads");
    graph.input("item", 2);
    graph.input("age", 2);
    graph.output("ctr", 1);
    graph.concat(&["item", "age"], "x");
    graph.constant("weights", &[4, 1], &[2.0, 0.0, 0.5, 0.0]);
    graph.constant("bias", &[1], &[-1.0]);
    graph.node("Gemm", &["x", "weights", "bias"], "logit");
    graph.node("Sigmoid", &["logit"], "ctr");
    graph.into_file()
}

/// Three ads, the last of which no table knows, for somebody of 20: the second bucket.
fn request() -> v1::RankRequest {
    let skus = ["sku-1", "sku-2", "sku-9"].map(str::to_owned).to_vec();
    let numbers = |name: &str, values: &[f32]| v1::Feature {
        name: name.into(),
        values: pack(values),
        ..v1::Feature::default()
    };
    v1::RankRequest {
        model: "ads".into(),
        candidates: 3,
        surface: "home".into(),
        outputs: vec!["ctr".into()],
        user: vec![numbers("age", &[20.0])],
        candidate: vec![
            v1::Feature { name: "sku".into(), texts: skus, ..v1::Feature::default() },
            numbers("bid", &[1.0, 2.5, 1.5]),
        ],
        ..v1::RankRequest::default()
    }
}

/// What the candidates are worth: of a row's value and a bid.
fn expected(value: f64, bid: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let logit = 2.0 * value + 0.5 - 1.0;
    sigmoid(1.1 * logit - 0.2) * bid
}

#[tokio::test(flavor = "multi_thread")]
async fn a_utility_ranks_the_same_whatever_the_number_of_nodes() -> Result<()> {
    let mut answers = Vec::new();
    for shape in [Shape { groups: 1, nodes_per_group: 1 }, Shape { groups: 1, nodes_per_group: 4 }] {
        let mut sandbox = Sandbox::start(shape).await?;
        sandbox.start_ranker(true).await?;
        let of_skus = SKUS.into_iter().map(|(_, id, value)| (id, value));
        let buckets = [(0, 0.0), (1, 1.0), (2, 2.0)].into_iter();
        let tables = [
            build(&sandbox, "item", Keying::Hashed, of_skus)?,
            build(&sandbox, "age", Keying::Dense, buckets)?,
        ];
        let (model, release) = (name("ads"), name("r1"));
        sandbox.store.write(NewRelease {
            model: &model,
            release: &release,
            tables: &tables,
            model_toml: MODEL_TOML,
            onnx: &onnx(),
            golden: Some(GOLDEN),
        })?;
        sandbox.promote(&model, &release).await?;
        let answer = sandbox.ranker(0).await?.rank(request()).await?.into_inner();
        let worth = [expected(1.0, 1.0), expected(0.5, 2.5), expected(0.0, 1.5)];
        let indexes: Vec<u32> = unpack(&answer.indexes).unwrap().collect();
        assert_eq!((indexes.as_slice(), answer.missing_ids), (&[1, 0, 2][..], 1), "{worth:?}");
        let scores = unpack::<f32>(&answer.scores).unwrap();
        let ctrs = unpack::<f32>(&answer.outputs[0].values).unwrap();
        for ((index, score), ctr) in indexes.iter().zip(scores).zip(ctrs) {
            let (worth, bid) = (worth[*index as usize], [1.0, 2.5, 1.5][*index as usize]);
            assert!((f64::from(score) - worth).abs() < 1e-6, "{score} is not {worth}");
            assert!((f64::from(ctr) * bid - worth).abs() < 1e-6, "{ctr} times {bid} is not {worth}");
        }
        answers.push((answer.indexes, answer.scores, answer.outputs));
        sandbox.stop().await?;
    }
    assert_eq!(answers[0], answers[1]);
    Ok(())
}
