//! Lookups over gRPC, checked against the oracle.

use std::time::Instant;

use tidepool_proto::{
    code_of, epoch_of,
    pack::{pack, unpack},
    v1,
};
use tidepool_types::{Epoch, ErrorCode, Keying, RowFormat, TableSchema};

use crate::{
    control::FakeController,
    oracle,
    site::{Site, TestNode, all, assignment, gather, request, version},
};

/// A store with a hashed and a dense table, and a node that serves both.
async fn serving(inline_max_rows: u64) -> (Site, FakeController, TestNode, TableSchema, TableSchema) {
    let site = Site::new();
    let pins = site.table(
        version("pin", "v1"),
        (RowFormat::Int4, 32),
        Keying::Hashed,
        4,
        (0..3000).map(|i| i * 7 + 3),
    );
    let users = site.table(version("user", "v1"), (RowFormat::F16, 6), Keying::Dense, 2, 0..500);
    let mut controller =
        FakeController::start(&assignment(3, &[(&pins, &all(&pins)), (&users, &all(&users))])).await;
    let mut raw = site.following(&controller);
    (raw.inline_max_rows, raw.piece_rows) = (inline_max_rows, 100);
    let node = TestNode::start(raw).await;
    controller.ready(3).await;
    (site, controller, node, pins, users)
}

fn has(schema: &TableSchema, id: u64) -> bool {
    match schema.keying {
        Keying::Dense => id < 500,
        Keying::Hashed => id % 7 == 3 && id < 21_000,
    }
}

/// The stored rows of an answer, decoded, `None` where the bitmap says missing.
fn rows(schema: &TableSchema, ids: &[u64], answer: &v1::FeatureResponse) -> Vec<Option<Vec<f64>>> {
    let missing = |at: usize| answer.missing.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
    let stored = answer.rows.chunks_exact(schema.row_bytes());
    assert_eq!(stored.len(), ids.len());
    stored
        .enumerate()
        .map(|(at, row)| {
            if missing(at) {
                assert!(row.iter().all(|byte| *byte == 0), "a missing row is zeros");
                return None;
            }
            Some(oracle::decode(schema.format, schema.dim, row))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn gather_brings_the_stored_rows_of_every_feature() {
    let (_site, _controller, node, pins, users) = serving(2048).await;
    let pin_ids: Vec<u64> = (0..1200).map(|i| i * 13 % 9000).collect();
    let user_ids = [499, 0, 7, 7, 500, u64::MAX];
    let features = vec![gather(&pins, &pin_ids), gather(&users, &user_ids), gather(&users, &[1])];
    let mut client = node.client().await;
    let asked = Instant::now();
    let answer = client.lookup(request(features)).await.unwrap().into_inner();
    let waited = asked.elapsed().as_micros();
    assert!((1..=waited).contains(&u128::from(answer.took_us)), "it says {} of {waited} us", answer.took_us);
    assert_eq!((answer.epoch, answer.node.as_str(), answer.features.len()), (3, "n1", 3));
    assert!(answer.features[2].missing.is_empty(), "nothing is missing there");

    for (schema, ids, feature) in
        [(&pins, &pin_ids[..], &answer.features[0]), (&users, &user_ids, &answer.features[1])]
    {
        assert_eq!(feature.table_version, Some((&schema.table_version).into()));
        let decoded = rows(schema, ids, feature);
        let absent = ids.iter().filter(|id| !has(schema, **id)).count();
        assert_eq!(feature.missing_ids as usize, absent);
        for (id, row) in ids.iter().zip(decoded) {
            assert_eq!(row.is_some(), has(schema, *id), "id {id}");
            // Int4 has 16 steps over a range of at most 4; f16 has 11 bits.
            let bound = if schema.format == RowFormat::Int4 { 0.15 } else { 0.001 };
            for (column, value) in (0..).zip(row.into_iter().flatten()) {
                let error = (value - f64::from(oracle::value(*id, column))).abs();
                assert!(error <= bound, "id {id} column {column}: off by {error}");
            }
        }
    }
}

/// Bags over the positions of `ids`, with repetition, empty ones, and one longer than a kernel's block.
fn bags(ids: usize) -> Vec<Vec<u32>> {
    let ids = ids as u32;
    let mut bags: Vec<Vec<u32>> =
        (0..40).map(|b| (0..b % 9).map(|m| (b * 31 + m * m) % ids).collect()).collect();
    bags.push((0..700).map(|m| m * 17 % ids).collect());
    bags.push(vec![0; 3]);
    bags
}

fn pooled(schema: &TableSchema, ids: &[u64], bags: &[Vec<u32>], weights: &[f32]) -> v1::FeatureRequest {
    let lengths: Vec<u32> = bags.iter().map(|b| b.len() as u32).collect();
    v1::FeatureRequest {
        wire_form: v1::WireForm::Pool.into(),
        members: pack(&bags.concat()),
        bag_lengths: pack(&lengths),
        weights: pack(weights),
        ..gather(schema, ids)
    }
}

fn close(got: f64, expected: f64, magnitude: f64, what: &str) {
    let bound = 1e-5 * magnitude;
    assert!((got - expected).abs() <= bound, "{what}: {got} instead of {expected}, bound {bound}");
}

/// Checks a pooled answer against rows that were gathered and decoded, in f64.
fn check_pool(
    schema: &TableSchema,
    rows: &[Option<Vec<f64>>],
    bags: &[Vec<u32>],
    weights: &[f32],
    answer: &v1::FeatureResponse,
) {
    let dim = schema.dim as usize;
    let sums: Vec<f32> = unpack(&answer.sums).unwrap().collect();
    let counts: Vec<u32> = unpack(&answer.counts).unwrap().collect();
    let weight_sums: Vec<f32> = unpack(&answer.weight_sums).unwrap().collect();
    assert_eq!((sums.len(), counts.len()), (bags.len() * dim, bags.len()));
    assert_eq!(weight_sums.len(), if weights.is_empty() { 0 } else { bags.len() });
    let mut member = 0;
    for (at, bag) in bags.iter().enumerate() {
        let (mut sum, mut magnitude) = (vec![0.0; dim], vec![0.0f64; dim]);
        let (mut count, mut weight_sum, mut weight_magnitude) = (0, 0.0, 0.0);
        for position in bag {
            let weight = weights.get(member).map_or(1.0, |w| f64::from(*w));
            member += 1;
            let Some(row) = &rows[*position as usize] else { continue };
            for (column, value) in row.iter().enumerate() {
                sum[column] += weight * value;
                magnitude[column] += (weight * value).abs();
            }
            count += 1;
            weight_sum += weight;
            weight_magnitude += weight.abs();
        }
        assert_eq!(counts[at], count, "bag {at}");
        for column in 0..dim {
            let got = f64::from(sums[at * dim + column]);
            close(got, sum[column], magnitude[column], &format!("bag {at} column {column}"));
        }
        if let Some(got) = weight_sums.get(at) {
            close(f64::from(*got), weight_sum, weight_magnitude, &format!("weights of bag {at}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_adds_up_what_gather_brings_inline_and_on_the_pool_alike() {
    let mut answers = Vec::new();
    for inline_max_rows in [1_000_000, 0] {
        let (_site, _controller, node, pins, users) = serving(inline_max_rows).await;
        let pin_ids: Vec<u64> = (0..300).map(|i| i * 5 + i % 2).collect();
        let user_ids: Vec<u64> = (0..90).map(|i| i * 6).collect();
        let (pin_bags, user_bags) = (bags(pin_ids.len()), bags(user_ids.len()));
        let members = user_bags.concat().len();
        let weights: Vec<f32> = (0..members).map(|m| (m % 11) as f32 * 0.3 - 1.0).collect();
        let features = vec![
            gather(&pins, &pin_ids),
            gather(&users, &user_ids),
            pooled(&pins, &pin_ids, &pin_bags, &[]),
            pooled(&users, &user_ids, &user_bags, &weights),
            pooled(&users, &[], &[vec![], vec![]], &[]),
        ];
        let mut answer = node.client().await.lookup(request(features)).await.unwrap().into_inner();
        answer.took_us = 0;
        let [gathered_pins, gathered_users, pins_answer, users_answer, empty] = &answer.features[..] else {
            panic!("{} features", answer.features.len());
        };
        check_pool(&pins, &rows(&pins, &pin_ids, gathered_pins), &pin_bags, &[], pins_answer);
        check_pool(&users, &rows(&users, &user_ids, gathered_users), &user_bags, &weights, users_answer);
        assert_eq!(pins_answer.missing, gathered_pins.missing);
        assert!(pins_answer.missing_ids > 0 && pins_answer.rows.is_empty());
        assert_eq!(empty.sums, pack(&[0.0f32; 12]));
        answers.push(answer);
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_here_is_not_served_and_the_epoch_says_how_old_the_map_is() {
    let site = Site::new();
    let schema = site.table(version("user", "v1"), (RowFormat::Int4, 8), Keying::Dense, 4, 0..100);
    let mut controller = FakeController::start(&assignment(11, &[(&schema, &[0, 1, 3])])).await;
    let node = TestNode::start(site.following(&controller)).await;
    controller.ready(11).await;
    let mut client = node.client().await;

    let mut other_version = gather(&schema, &[1]);
    other_version.table_version = Some((&version("user", "v2")).into());
    let mut other_table = gather(&schema, &[1]);
    other_table.table_version = Some((&version("pin", "v1")).into());
    let mut other_layout = gather(&schema, &[1]);
    other_layout.partitions = 2;
    let cases = [
        (other_version, "user@v2"),
        (other_table, "pin@v1"),
        (other_layout, "in 4 partitions, not in 2"),
        (gather(&schema, &[0, 1, 2]), "partition 2"),
    ];
    for (feature, names) in cases {
        let status = client.lookup(request(vec![feature])).await.unwrap_err();
        assert_eq!(code_of(&status), ErrorCode::NotServed);
        assert_eq!(epoch_of(&status), Some(Epoch(11)));
        assert!(status.message().contains(names), "{status}");
    }
    let held = client.lookup(request(vec![gather(&schema, &[0, 1, 3, 4])])).await.unwrap().into_inner();
    assert_eq!(held.features[0].missing_ids, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_readiness_and_metrics_tell_what_is_served() {
    let (_site, _controller, node, pins, users) = serving(2048).await;
    let lookup = request(vec![gather(&pins, &[3, 4]), pooled(&users, &[1], &[vec![0]], &[])]);
    node.client().await.lookup(lookup).await.unwrap();
    node.client().await.lookup(request(vec![gather(&users, &[1]); 2])).await.unwrap();
    let mut unknown = gather(&users, &[1]);
    unknown.partitions = 8;
    node.client().await.lookup(request(vec![unknown])).await.unwrap_err();

    node.ready().await;
    assert_eq!(node.get("/readyz").await.0, "HTTP/1.1 200 OK");
    let (_, status) = node.get("/status").await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["node"], &status["group"]), (&"n1".into(), &"a".into()));
    assert_eq!((status["epoch"].as_u64(), status["ready"].as_bool()), (Some(3), Some(true)));
    assert_eq!(status["table_versions"].as_array().unwrap().len(), 2);
    let partitions = status["partitions"].as_array().unwrap();
    assert!(partitions.iter().all(|p| p["state"] == "ready"));
    let rows: u64 = partitions.iter().map(|p| p["rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 3500);
    let bytes: u64 = partitions.iter().map(|p| p["file_bytes"].as_u64().unwrap()).sum();
    assert_eq!(status["mapped_bytes"].as_u64(), Some(bytes));

    let (_, metrics) = node.get("/metrics").await;
    for line in [
        "tidepool_node_lookups_total{code=\"ok\"} 2",
        "tidepool_node_lookups_total{code=\"not_served\"} 1",
        "tidepool_node_lookup_seconds_count 2",
        "tidepool_node_rows_total 5",
        "tidepool_node_table_rows_total{table=\"pin\"} 2",
        "tidepool_node_table_rows_total{table=\"user\"} 3",
        "tidepool_node_table_missing_ids_total{table=\"pin\"} 1",
        "tidepool_node_table_seconds_count{table=\"user\"} 3",
        "tidepool_node_stage_seconds_count{stage=\"lookup\"} 2",
        "tidepool_node_stage_seconds_count{stage=\"queue\"} 0",
        "tidepool_node_missing_ids_total 1",
        // Two rows of 20 bytes, then two of 12; a sum of six f32 and its count.
        "tidepool_node_response_bytes_total{wire_form=\"gather\"} 64",
        "tidepool_node_response_bytes_total{wire_form=\"pool\"} 28",
        "tidepool_node_partitions{state=\"ready\"} 6",
        "tidepool_node_partitions{state=\"failed\"} 0",
        &format!("tidepool_node_mapped_bytes {bytes}"),
        "tidepool_node_epoch 3",
        "tidepool_node_cpu_pool_waiting_jobs 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "no {line} in\n{metrics}");
    }
    node.stop().await;
}
