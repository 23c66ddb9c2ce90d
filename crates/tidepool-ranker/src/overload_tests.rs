//! What happens to a ranking when no thread is free for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tidepool_client::{Client, ClientConfig, ClusterMap};
use tidepool_proto::v1;
use tidepool_runtime::{config::Problems, pool::CpuPool};
use tidepool_store::ArtifactStore;
use tidepool_types::{ErrorCode, Name};
use tokio::sync::watch;

use crate::{
    RankError,
    audit_sample::AuditSample,
    batch::{self, BatchMetrics, Batchers, InPlaceOf, RawBatch},
    loaded::LoadedRelease,
    rank::{RankAnswer, Ranker},
    recent::{Noting, Recent},
    releases::Releases,
    request::Limits,
    request::{RankFeature, RankRequest},
    scenario::Scenarios,
    shadow::Shadows,
};

#[expect(dead_code, reason = "the integration tests use the rest of it")]
#[path = "../tests/it/onnx.rs"]
mod onnx;

/// A ranker of one model without tables, `score = 2 price`, with one thread and one place in the queue.
pub(crate) fn ranker() -> Ranker {
    ranker_with(None)
}

/// The same, with something in the place of its model.
pub(crate) fn ranker_with(in_place_of: Option<InPlaceOf>) -> Ranker {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let (model, release) = (Name::new("prices").unwrap(), Name::new("p1").unwrap());
    let contract = r#"
        schema_version = 1
        model = "prices"
        score = "score"
        inputs = [ { name = "price", side = "candidate", width = 1 } ]
        outputs = [ { name = "score" } ]
    "#;
    let graph = onnx::linear(&[("price", 1)], &[2.0]);
    store.write_release(&model, &release, &[], contract, &graph).unwrap();
    let entry = v1::ReleaseEntry {
        model: "prices".into(),
        release: "p1".into(),
        tables: Vec::new(),
        state: v1::ReleaseState::Current.into(),
        pinned: false,
    };
    let map = v1::ClusterMap { epoch: 1, releases: vec![entry], ..v1::ClusterMap::default() };
    let map = Arc::new(ClusterMap::try_from(map).unwrap());
    let (_, maps) = watch::channel(map.clone());
    let client = Client::with_map(ClientConfig::default(), maps).unwrap();
    let pool = CpuPool::new(1, 1).unwrap();
    let limits = Limits { max_candidates: 10, max_ids: 10 };
    let (mut problems, raw) = (Problems::default(), RawBatch::default());
    let (options, _) = batch::check(&mut problems, &raw, &BTreeMap::new(), (1, limits, false));
    let (source, metrics) = (Arc::new(client.clone()), BatchMetrics::new().unwrap());
    let batchers = Batchers::new(options, BTreeMap::new(), pool.clone(), source, metrics);
    let batchers = batchers.with_in_place_of(in_place_of);
    let loaded =
        LoadedRelease::load(&store, &map, &map.releases[0], &batchers, &crate::device::Engine::Cpu).unwrap();
    Ranker {
        releases: Releases::of(map, loaded),
        client,
        pool,
        limits,
        scenarios: Scenarios::default(),
        default_deadline: Duration::from_secs(30),
        max_deadline: Duration::from_secs(30),
        shadows: Shadows::of_pool(1),
        recent: Recent::new(0),
        audit_sample: AuditSample::off(),
    }
}

fn request() -> RankRequest {
    let price = RankFeature { name: "price".into(), values: vec![1.0, 3.0], ..RankFeature::default() };
    RankRequest { model: "prices".into(), candidates: 2, candidate: vec![price], ..RankRequest::default() }
}

async fn rank(ranker: &Ranker, request: RankRequest) -> Result<RankAnswer, RankError> {
    let chosen = ranker.choose(&request)?;
    ranker.rank(&chosen, request, Instant::now(), &mut Noting::off()).await
}

#[tokio::test]
async fn a_full_pool_is_overloaded_and_a_late_turn_is_no_turn() {
    let ranker = ranker();
    // The only thread is held, from the moment that `held` says so until `release` is dropped.
    let (holds, held) = mpsc::channel::<()>();
    let (release, released) = mpsc::channel::<()>();
    let holding = ranker.pool.run(move || {
        let _ = holds.send(());
        let _ = released.recv();
    });
    held.recv().unwrap();

    // A place in the queue is free, but no thread comes in time.
    let late = RankRequest { budget: Some(Duration::from_millis(20)), ..request() };
    let error = rank(&ranker, late).await.unwrap_err();
    assert!(matches!(error, RankError::DeadlineExceeded(_)), "{error:?}");

    // That request has left its place taken until the thread gets to it: the next is turned away at once.
    let error = rank(&ranker, request()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Overloaded, "{error:?}");
    assert!(crate::chain(&error).contains("the CPU pool is full"));

    drop(release);
    holding.await.unwrap();
    // The thread skips what nobody waits for, then there is room again.
    let deadline = Instant::now() + Duration::from_secs(30);
    while ranker.pool.depth() > 0 && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let answer = rank(&ranker, request()).await.unwrap();
    assert_eq!(answer.ranked, [(1, 6.0), (0, 2.0)]);
}
