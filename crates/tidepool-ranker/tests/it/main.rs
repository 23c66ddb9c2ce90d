//! A ranker between a fake controller and a fake embedding node, over real sockets.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod bad_input;
mod batch;
mod contracts;
mod hot_ids;
mod http;
mod inference;
mod inference_http;
mod onnx;
mod rank;
mod releases;
mod requests;
mod site;
mod trace;
mod traffic;
mod way_back;

use site::{FakeController, FakeNode, Store, TestRanker, entry, map, raw_config, version};
use tempfile::TempDir;
use tidepool_proto::{
    pack::{pack, unpack},
    v1,
};
use tidepool_ranker::RawConfig;
use tidepool_types::TableVersion;

/// The contract of model `films`: `score = 2 user[0] + 3 item[0] + 5 genres[0] + 100 genres[1] + 7 age`.
const FILMS: &str = r#"
    schema_version = 1
    model = "films"
    score = "score"
    inputs = [
        { name = "user", side = "user", table = "user" },
        { name = "age", side = "user", width = 1 },
        { name = "item", side = "candidate", table = "item" },
        { name = "genres", side = "candidate", table = "genre", pooling = "mean" },
    ]
    outputs = [ { name = "score" } ]
"#;

/// The graph has its inputs in another order than the contract.
fn films_onnx() -> Vec<u8> {
    onnx::linear(
        &[("item", 2), ("user", 2), ("genres", 2), ("age", 1)],
        &[3.0, 0.0, 2.0, 0.0, 5.0, 100.0, 7.0],
    )
}

/// The contract of model `prices`: `score = log(price)`, without any table.
const PRICES: &str = r#"
    schema_version = 1
    model = "prices"
    score = "score"
    inputs = [ { name = "price", side = "candidate", width = 1 } ]
    outputs = [ { name = "score" } ]
"#;

fn tables(v: &str) -> Vec<TableVersion> {
    ["user", "item", "genre"].iter().map(|table| version(table, v)).collect()
}

/// A ranker with `films` r1 (tables v1, current), r2 (tables v2) and `prices` p1 (current).
struct Site {
    store: Store,
    node: FakeNode,
    controller: FakeController,
    ranker: TestRanker,
    data: TempDir,
}

fn releases() -> Vec<v1::ReleaseEntry> {
    vec![
        entry("films", "r1", &tables("v1"), v1::ReleaseState::Current),
        entry("films", "r2", &tables("v2"), v1::ReleaseState::Ready),
        entry("prices", "p1", &[], v1::ReleaseState::Current),
    ]
}

impl Site {
    async fn start() -> Self {
        Self::with_node(FakeNode::start(true).await).await
    }

    async fn with_node(node: FakeNode) -> Self {
        Self::with(node, |_| {}).await
    }

    async fn with(node: FakeNode, change: impl FnOnce(&mut RawConfig)) -> Self {
        let store = Store::new();
        store.release("films", "r1", &tables("v1"), FILMS, &films_onnx());
        store.release("films", "r2", &tables("v2"), FILMS, &films_onnx());
        store.release("prices", "p1", &[], PRICES, &onnx::log_of_price());
        let controller = FakeController::start(map(1, node.address, releases())).await;
        let data = tempfile::tempdir().unwrap();
        let mut raw = raw_config(&store, controller.address, data.path().join("ranker"));
        change(&mut raw);
        let ranker = TestRanker::start(raw).await;
        Self { store, node, controller, ranker, data }
    }
}

fn ids(name: &str, ids: &[u64], lengths: &[u32]) -> v1::Feature {
    v1::Feature { name: name.into(), ids: pack(ids), lengths: pack(lengths), ..v1::Feature::default() }
}

fn values(name: &str, values: &[f32]) -> v1::Feature {
    v1::Feature { name: name.into(), values: pack(values), ..v1::Feature::default() }
}

/// Three candidates. With tables v1: 2*4 + 7*0.5 = 11.5 for the user, then
/// 3*10 + 5*2 + 100 = 140, 3*20 + 5*3 + 100 = 175, and 3*5 + nothing for the empty bag = 15.
fn films_request() -> v1::RankRequest {
    v1::RankRequest {
        request_id: "request-1".into(),
        tenant: "ads".into(),
        model: "films".into(),
        candidates: 3,
        user: vec![ids("user", &[4], &[]), values("age", &[0.5])],
        candidate: vec![ids("genres", &[1, 2, 3, 3], &[3, 1, 0]), ids("item", &[10, 20, 5], &[])],
        ..v1::RankRequest::default()
    }
}

const FILMS_SCORES: [f32; 3] = [151.5, 186.5, 26.5];

fn ranked(response: &v1::RankResponse) -> Vec<(u32, f32)> {
    let indexes = unpack::<u32>(&response.indexes).unwrap();
    let scores = unpack::<f32>(&response.scores).unwrap();
    assert_eq!(indexes.len(), scores.len());
    indexes.zip(scores).collect()
}
