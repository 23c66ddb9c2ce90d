//! Requests that share batches, at a whole ranker: each gets what it would have got alone, and of its own release.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::Value;
use tidepool_proto::{pack::unpack, v1};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    Site, films_onnx, films_request, ids, ranked, releases,
    site::{DEADLINE, FakeController, FakeNode, Store, map, raw_config},
    tables, values,
};

/// The request of a user for so many candidates, and its scores: of r1, whose rows are `[id, 1]`, and of r2, whose rows
/// are `[10 id, 1]`.
fn request(user: u64, candidates: u64) -> (v1::RankRequest, [Vec<f32>; 2]) {
    let items: Vec<u64> = (0..candidates).map(|at| (user * 7 + at) % 1_000).collect();
    let lengths: Vec<u32> = (0..candidates).map(|at| u32::from(at % 3 > 0)).collect();
    let genres: Vec<u64> = (0..candidates).filter(|at| at % 3 > 0).map(|at| at % 20).collect();
    let score = |factor: f32, at: usize| {
        let genre = if at.is_multiple_of(3) { 0.0 } else { 5.0 * factor * (at % 20) as f32 + 100.0 };
        2.0 * factor * user as f32 + 3.0 * factor * items[at] as f32 + genre + 3.5
    };
    let scores = [1.0, 10.0].map(|factor| (0..items.len()).map(|at| score(factor, at)).collect());
    let request = v1::RankRequest {
        request_id: format!("user-{user}"),
        candidates: candidates as u32,
        user: vec![ids("user", &[user], &[]), values("age", &[0.5])],
        candidate: vec![ids("genres", &genres, &lengths), ids("item", &items, &[])],
        ..films_request()
    };
    (request, scores)
}

/// Scores in the order of the request.
fn scores(response: &v1::RankResponse) -> Vec<f32> {
    let mut scores = vec![f32::NAN; ranked(response).len()];
    ranked(response).into_iter().for_each(|(at, score)| scores[at as usize] = score);
    scores
}

/// One batch at a time, of small size, so that requests share them and large ones are cut.
async fn busy() -> Site {
    Site::with(FakeNode::start(true).await, |raw| {
        (raw.exact, raw.max_candidates, raw.max_request_bytes) = (true, 100_000, 16 << 20);
        (raw.batch.max_concurrent_batches, raw.batch.max_rows, raw.batch.max_requests) = (1, 64, 8);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_all_sizes_get_together_what_they_get_alone() {
    let mut site = busy().await;
    let sizes = [1u64, 3, 64, 65, 200, 17, 1_000, 2, 40, 5];
    let mut alone = Vec::new();
    for (user, size) in (1..).zip(sizes) {
        let (request, [expected, _]) = request(user, size);
        let answer = site.ranker.rank(request).await.unwrap();
        assert_eq!((scores(&answer), answer.batch_requests), (expected, 1), "{size} candidates");
        alone.push(answer);
    }
    let mut together = JoinSet::new();
    for round in 0..20 {
        for (user, size) in (1..).zip(sizes) {
            let mut client = site.ranker.client.clone();
            together.spawn(async move {
                let answer = client.rank(request(user, size).0).await.unwrap().into_inner();
                (round, user, answer)
            });
        }
    }
    let mut shared = 0;
    while let Some(done) = together.join_next().await {
        let (round, user, answer) = done.unwrap();
        let before = &alone[user as usize - 1];
        assert_eq!((&answer.indexes, &answer.scores), (&before.indexes, &before.scores), "{round}: {user}");
        let own = |answer: &v1::RankResponse| (answer.missing_ids, answer.defaulted_bags);
        assert_eq!(own(&answer), own(before), "{round}: {user}");
        shared += u32::from(answer.batch_requests > 1);
    }
    assert!(shared > 20, "{shared} of 200 requests shared a batch");
    let (_, text) = site.ranker.http("GET", "/metrics", "").await;
    for line in [
        "tidepool_ranker_batch_waiting_rows{model=\"films\"} 0",
        "tidepool_ranker_batch_dropped_requests_total{model=\"films\",reason=\"refused\"} 0",
    ] {
        assert!(text.contains(line), "{line}");
    }
    let (_, told) = site.ranker.http("GET", "/v1/requests?id=user-7", "").await;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["requests"][0]["batches"], 16, "1,000 candidates are 16 pieces of 64");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_releases_flip_under_load_every_answer_is_of_one_release() {
    let mut site = busy().await;
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for task in 0..12u64 {
        let (mut client, stop) = (site.ranker.client.clone(), stop.clone());
        load.spawn(async move {
            let (mut seen, mut shared) = ([0u32; 2], 0u32);
            let mut user = task;
            while !stop.load(Ordering::Relaxed) {
                user = (user + 13) % 900;
                let (request, expected) = request(user, 1 + user % 90);
                let answer = client.rank(request).await.unwrap().into_inner();
                let release = usize::from(answer.release == "r2");
                assert_eq!(scores(&answer), expected[release], "{} of user {user}", answer.release);
                let version = if release == 0 { "v1" } else { "v2" };
                assert!(answer.table_versions.iter().all(|table| table.version == version));
                seen[release] += 1;
                shared += u32::from(answer.batch_requests > 1);
            }
            (seen, shared)
        });
    }
    let mut current = releases();
    for flip in 0..20u64 {
        current.iter_mut().filter(|entry| entry.model == "films").for_each(|entry| {
            let is_current = (entry.release == "r2") == flip.is_multiple_of(2);
            let state = if is_current { v1::ReleaseState::Current } else { v1::ReleaseState::Previous };
            entry.state = state.into();
        });
        site.controller.send(map(flip + 2, site.node.address, current.clone()));
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let now = if flip.is_multiple_of(2) { "r2" } else { "r1" };
        while site.ranker.rank(request(1, 3).0).await.unwrap().release != now {
            assert!(tokio::time::Instant::now() < deadline, "{now} never came");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (mut seen, mut shared) = ([0, 0], 0);
    while let Some(done) = load.join_next().await {
        let (of_task, shared_of_task) = done.unwrap();
        seen = [seen[0] + of_task[0], seen[1] + of_task[1]];
        shared += shared_of_task;
    }
    assert!(
        seen.iter().all(|answers| *answers > 0) && shared > 0,
        "{seen:?}, {shared} in a batch with others"
    );
}

/// Ids that the node was asked for, and the bytes of what it was asked.
fn asked(node: &FakeNode) -> (usize, usize) {
    let calls = std::mem::take(&mut *node.calls.lock().unwrap());
    let features = calls.iter().flat_map(|call| &call.features);
    let bytes = |f: &v1::FeatureRequest| f.ids.len() + f.members.len() + f.bag_lengths.len();
    let ids = |f: &v1::FeatureRequest| unpack::<u64>(&f.ids).unwrap().len();
    (features.clone().map(ids).sum(), features.map(bytes).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_many_ids_is_sent_and_looked_up_once_for_all_candidates() {
    let mut site = Site::with(FakeNode::start(true).await, |raw| {
        (raw.exact, raw.max_candidates, raw.max_request_bytes) = (true, 1_000, 1 << 20);
        raw.batch.max_rows = 128;
    })
    .await;
    const HISTORY: u64 = 500;
    let history: Vec<u64> = (0..HISTORY).collect();
    for candidates in [1u64, 100, 1_000] {
        let (mut request, _) = request(1, candidates);
        request.user[0] = ids("user", &history, &[HISTORY as u32]);
        let items = unpack::<u64>(&request.candidate[1].ids).unwrap().len() as u64;
        let genres: std::collections::BTreeSet<u64> = unpack(&request.candidate[0].ids).unwrap().collect();
        site.node.calls.lock().unwrap().clear();
        let answer = site.ranker.rank(request).await.unwrap();
        let (rows, bytes) = asked(&site.node);
        assert_eq!(rows as u32, answer.rows_looked_up);
        // Genres of a piece are distinct, those of other pieces may be the same.
        let pieces = candidates.div_ceil(128);
        let (least, most) = (HISTORY + items + genres.len() as u64, HISTORY + items + pieces * 20);
        assert!((least..=most).contains(&(rows as u64)), "{rows} rows for {candidates} candidates");
        // Without it each candidate would bring the user's ids along.
        let each = candidates * HISTORY + items + genres.len() as u64;
        let factor = each as f64 / rows as f64;
        let expected = candidates as f64 * HISTORY as f64 / (HISTORY + candidates + pieces * 20) as f64;
        assert!(factor >= expected * 0.99, "{factor} of {expected} for {candidates} candidates");
        assert!(bytes as u64 <= most * 8 + 1_000, "{bytes} bytes for {candidates} candidates");
    }
}

/// A user of 500 ids, and of these candidates an item and three of 59 genres each.
fn request_of(candidates: std::ops::Range<u64>) -> v1::RankRequest {
    let count = candidates.end - candidates.start;
    let history: Vec<u64> = (0..500).collect();
    let items: Vec<u64> = candidates.clone().collect();
    // A mean of three is no whole number: an answer that came by another way would differ in its last bits.
    let genres: Vec<u64> = candidates.flat_map(|at| [at % 20, at * 7 % 20 + 20, at * 3 % 19 + 40]).collect();
    v1::RankRequest {
        candidates: count as u32,
        user: vec![ids("user", &history, &[500]), values("age", &[0.1])],
        candidate: vec![ids("genres", &genres, &vec![3; count as usize]), ids("item", &items, &[])],
        ..films_request()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_double_is_looked_up_once_and_no_answer_differs_in_a_bit() {
    let mut site = Site::with(FakeNode::start(true).await, |raw| {
        (raw.exact, raw.max_candidates, raw.max_request_bytes) = (true, 1_000, 1 << 20);
        raw.batch.max_requests = 1;
    })
    .await;
    // A request for each candidate has nothing that is double: the user comes along every time.
    let mut each = Vec::new();
    let mut sums = Vec::new();
    let (mut rows, mut bytes) = (0, 0);
    for candidate in 0..1_000 {
        let answer = site.ranker.rank(request_of(candidate..candidate + 1)).await.unwrap();
        each.push(scores(&answer)[0].to_bits());
        let (more_rows, more_bytes) = asked(&site.node);
        (rows, bytes) = (rows + more_rows, bytes + more_bytes);
        sums.push((rows, bytes));
    }
    // docs/batching.md has these figures: ids asked and the bytes of asking, with and without.
    for (candidates, with, without) in [
        (1, (504, 4_032), (504, 4_032)),
        (100, (659, 5_272), (50_400, 403_200)),
        (1_000, (1_559, 12_472), (504_000, 4_032_000)),
    ] {
        let answer = site.ranker.rank(request_of(0..candidates)).await.unwrap();
        let together: Vec<u32> = scores(&answer).iter().map(|score| score.to_bits()).collect();
        assert_eq!(together, each[..candidates as usize], "{candidates} candidates");
        assert_eq!(asked(&site.node), with, "{candidates} candidates");
        assert_eq!(sums[candidates as usize - 1], without, "{candidates} candidates, each alone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_request_is_answered_whole() {
    let mut site = busy().await;
    let (request, [expected, _]) = request(3, 20_000);
    let answer = site.ranker.rank(request.clone()).await.unwrap();
    assert_eq!((ranked(&answer).len(), scores(&answer)), (20_000, expected.clone()));
    let best = site.ranker.rank(v1::RankRequest { top_k: 10, ..request }).await.unwrap();
    assert_eq!(ranked(&best), ranked(&answer)[..10], "the best of all, and not of a piece");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_name_a_scenario() {
    let site = Site::with(FakeNode::start(true).await, |raw| {
        raw.scenarios = [("homefeed".to_owned(), "films".to_owned())].into();
    });
    let mut site = site.await;
    let of = |scenario: &str, model: &str| v1::RankRequest {
        scenario: scenario.into(),
        model: model.into(),
        ..films_request()
    };
    let answer = site.ranker.rank(of("homefeed", "")).await.unwrap();
    assert_eq!((answer.model.as_str(), answer.release.as_str()), ("films", "r1"));
    let unknown = site.ranker.rank(of("feed", "")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(unknown.message(), "there is no scenario \"feed\", there are homefeed");
    let both = site.ranker.rank(of("homefeed", "films")).await.unwrap_err();
    assert_eq!(both.code(), Code::InvalidArgument);

    let body = r#"{"scenario": "homefeed", "user": {"user": 4, "age": 0.5},
        "candidates": {"item": [10, 20], "genres": [[1], [2]]}}"#;
    let (status, text) = site.ranker.http("POST", "/v1/rank", body).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &answer["model"], &answer["batch_requests"]), (200, &"films".into(), &1.into()));
    let (status, text) = site.ranker.http("POST", "/v1/rank", &body.replace("homefeed", "feed")).await;
    assert!(status == 404 && text.contains("there are homefeed"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_gets_no_more_memory_than_it_may_have() {
    let store = Store::new();
    store.release("films", "r1", &tables("v1"), crate::FILMS, &films_onnx());
    let node = FakeNode::start(true).await;
    let controller = FakeController::start(map(1, node.address, releases()[..1].to_vec())).await;
    let data = tempfile::tempdir().unwrap();
    let mut raw = raw_config(&store, controller.address, data.path().join("ranker"));
    let limits = tidepool_ranker::batch::RawModel {
        max_memory_bytes: Some(1_000),
        max_concurrent_batches: Some(3),
        ..Default::default()
    };
    raw.models = [("films".to_owned(), limits)].into();
    let token = CancellationToken::new();
    let running = tidepool_ranker::start(raw.try_into().unwrap(), token.clone()).await.unwrap();
    // 7 numbers a row, 3 of them the user's, which has a row of its own in each request besides.
    let batches = 3 * 4 * (2_048 * 7 + 64 * 3);
    let before =
        "model films may have 1000 bytes of memory (models.films.max_memory_bytes): this release takes ";
    let behind = format!(", those that are loaded take 0, and its batches up to {batches}");
    // Its weights, and what its runs work in: at least a block of rows for each.
    let takes = |why: &str| {
        let (_, rest) = why.split_once(before)?;
        rest.split_once(&behind)?.0.parse::<usize>().ok()
    };
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let why = running.health.readiness().unwrap_err();
        if let Some(bytes) = takes(&why) {
            assert!((films_onnx().len() + 10_000..10_000_000).contains(&bytes), "{why}");
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{why}, not {before}... {behind}");
        tokio::task::yield_now().await;
    }
    token.cancel();
    tokio::time::timeout(Duration::from_secs(30), running.wait()).await.unwrap().unwrap();
}
