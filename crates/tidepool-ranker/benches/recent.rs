//! What it costs to remember what became of requests: the same rankings of two rankers in this process, one with a ring
//! and one without, over loopback and from the same fake node. The rounds take turns; every figure is a ratio within
//! its turn, beside the ratio of the one without to itself, which is what noise looks like.
//!
//! `cargo bench -p tidepool-ranker --bench recent`; in test mode one short round is tried.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on says where")]
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

#[expect(dead_code, reason = "the integration tests use the rest of it")]
#[path = "../tests/it/onnx.rs"]
mod onnx;
#[expect(dead_code, reason = "the integration tests use the rest of it")]
#[path = "../tests/it/site.rs"]
mod site;

use std::time::Instant;

use site::{FakeController, FakeNode, Store, TestRanker, entry, map, raw_config, version};
use tidepool_proto::{pack::pack, v1};

/// Score = 2 user[0] + 3 item[0].
const CONTRACT: &str = r#"
    schema_version = 1
    model = "films"
    score = "score"
    inputs = [
        { name = "user", side = "user", table = "user" },
        { name = "item", side = "candidate", table = "item" },
    ]
    outputs = [ { name = "score" } ]
"#;
/// Few, so that what is remembered weighs as much as it ever does.
const CANDIDATES: u32 = 20;
const ROUNDS: usize = 31;
const REQUESTS: usize = 500;

fn main() {
    // `cargo test` and `cargo bench` tell a bench without a harness apart by this alone.
    let once = !std::env::args().any(|arg| arg == "--bench");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(compare(if once { (1, 5) } else { (ROUNDS, REQUESTS) }));
}

async fn compare((rounds, requests): (usize, usize)) {
    let store = Store::new();
    let tables = ["user", "item"].map(|table| version(table, "v1"));
    let graph = onnx::linear(&[("user", 2), ("item", 2)], &[2.0, 0.0, 3.0, 0.0]);
    store.release("films", "r1", &tables, CONTRACT, &graph);
    let node = FakeNode::start(true).await;
    let release = entry("films", "r1", &tables, v1::ReleaseState::Current);
    let controller = FakeController::start(map(1, node.address, vec![release])).await;
    let data = tempfile::tempdir().unwrap();
    let start = async |name: &str, recent_requests| {
        let mut raw = raw_config(&store, controller.address, data.path().join(name));
        (raw.ranker, raw.recent_requests) = (name.into(), recent_requests);
        TestRanker::start(raw).await
    };
    let (mut with, mut without) = (start("with", 4096).await, start("without", 0).await);
    for missing in [false, true] {
        let mut figures: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            // The fake node keeps what it was asked.
            node.calls.lock().unwrap().clear();
            let before = round(&mut without, requests, missing).await;
            let kept = round(&mut with, requests, missing).await;
            let after = round(&mut without, requests, missing).await;
            figures[0].push(f64::midpoint(before, after));
            figures[1].push(kept / f64::midpoint(before, after));
            figures[2].push(after / before);
        }
        let [us, ratio, noise] = figures.each_mut().map(|list| quartiles(list));
        let ids = if missing { "half of the items missing" } else { "every id found" };
        println!("{ids}: {:.1} us a request without a ring", us[1]);
        println!("  with / without: median {:.4} (quartiles {:.4} to {:.4})", ratio[1], ratio[0], ratio[2]);
        println!(
            "  without / without: median {:.4} (quartiles {:.4} to {:.4})",
            noise[1], noise[0], noise[2]
        );
    }
    with.stop().await;
    without.stop().await;
}

/// Microseconds a request, one after the other.
async fn round(ranker: &mut TestRanker, requests: usize, missing: bool) -> f64 {
    let feature =
        |name: &str, ids: &[u64]| v1::Feature { name: name.into(), ids: pack(ids), ..v1::Feature::default() };
    let begun = Instant::now();
    for number in 0..requests as u64 {
        // Ids from 1,000 on are in no table.
        let item =
            |at: u64| if missing && at.is_multiple_of(2) { 1_000_000 + at } else { (number + at) % 1_000 };
        let items: Vec<u64> = (0..u64::from(CANDIDATES)).map(item).collect();
        let request = v1::RankRequest {
            request_id: format!("request-{number}"),
            tenant: "ads".into(),
            model: "films".into(),
            candidates: CANDIDATES,
            user: vec![feature("user", &[number % 1_000])],
            candidate: vec![feature("item", &items)],
            ..v1::RankRequest::default()
        };
        ranker.rank(request).await.unwrap();
    }
    begun.elapsed().as_secs_f64() * 1e6 / requests as f64
}

fn quartiles(list: &mut [f64]) -> [f64; 3] {
    list.sort_by(f64::total_cmp);
    [list.len() / 4, list.len() / 2, list.len() * 3 / 4].map(|at| list[at])
}
