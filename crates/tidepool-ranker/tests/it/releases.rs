//! Releases come and go with the cluster map.

use tidepool_proto::{code_of, epoch_of, v1};
use tidepool_types::{Epoch, ErrorCode};

use crate::{
    FILMS, FILMS_SCORES, Site, films_onnx, films_request, ids, onnx, ranked, releases,
    site::{ROWS, TestRanker, entry, map, pair, raw_config, version},
    tables,
};

fn pinned(release: &str) -> v1::RankRequest {
    v1::RankRequest { release: release.into(), ..films_request() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_release_answers_with_its_own_tables() {
    let mut site = Site::start().await;
    let answer = site.ranker.rank(pinned("r2")).await.unwrap();
    // Tables v2 have ten times the values: 2*40 + 7*0.5, then 3*200 + 5*30 + 100.
    assert_eq!(ranked(&answer)[0], (1, 80.0 + 3.5 + 600.0 + 150.0 + 100.0));
    assert_eq!(answer.release, "r2");
    assert!(answer.table_versions.iter().all(|t| t.version == "v2"));
    assert_eq!(site.ranker.rank(pinned("r1")).await.unwrap().release, "r1");
}

#[tokio::test(flavor = "multi_thread")]
async fn promotion_and_withdrawal_follow_the_map() {
    let mut site = Site::start().await;
    let promoted = vec![
        entry("films", "r1", &tables("v1"), v1::ReleaseState::Previous),
        entry("films", "r2", &tables("v2"), v1::ReleaseState::Current),
    ];
    site.controller.send(map(2, site.node.address, promoted.clone()));
    site.controller.report(|r| r.epoch == 2).await;
    assert_eq!(site.ranker.rank(films_request()).await.unwrap().release, "r2");
    assert_eq!(site.ranker.rank(pinned("r1")).await.unwrap().release, "r1", "kept for rollback");

    site.controller.send(map(3, site.node.address, promoted[1..].to_vec()));
    let report = site.controller.report(|r| r.epoch == 3).await;
    assert_eq!(report.releases.len(), 1);
    let status = site.ranker.rank(pinned("r1")).await.unwrap_err();
    assert_eq!(code_of(&status), ErrorCode::NotFound);

    // An older map, as from a controller that lags, changes nothing; the next one does.
    site.controller.send(map(2, site.node.address, vec![]));
    site.controller.send(map(4, site.node.address, promoted));
    site.controller.report(|r| r.epoch == 4 && r.releases.iter().all(|r| r.ready)).await;
    assert_eq!(site.ranker.rank(pinned("r1")).await.unwrap().release, "r1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_does_not_fit_is_reported_and_the_others_serve_on() {
    let mut site = Site::start().await;
    // The graph wants 3 numbers of the user, whose table has dimension 2.
    let wide = onnx::linear(&[("item", 2), ("user", 3), ("genres", 2), ("age", 1)], &[1.0; 8]);
    site.store.release("films", "wide", &tables("v1"), FILMS, &wide);
    // The map pins other tables than the release does, and one is not in the store at all.
    site.store.release("films", "other", &tables("v1"), FILMS, &films_onnx());
    let mut listed = releases();
    listed.push(entry("films", "wide", &tables("v1"), v1::ReleaseState::Loading));
    listed.push(entry("films", "other", &tables("v2"), v1::ReleaseState::Loading));
    listed.push(entry("films", "late", &tables("v1"), v1::ReleaseState::Loading));
    site.controller.send(map(2, site.node.address, listed));
    let bad = ["wide", "other", "late"];
    let report = site
        .controller
        .report(|r| {
            bad.iter().all(|bad| r.releases.iter().any(|r| r.release == *bad && !r.problem.is_empty()))
        })
        .await;
    let problem = |release: &str| {
        let found = report.releases.iter().find(|r| r.release == release).unwrap();
        assert!(!found.ready);
        found.problem.clone()
    };
    assert!(problem("wide").contains("input \"user\": its width is 3 in the graph, 2 by"), "{report:?}");
    assert!(problem("other").contains("release.json pins genre@v1"), "{report:?}");
    assert!(problem("late").contains("there is no release"), "{report:?}");
    assert!(report.releases.iter().filter(|r| r.ready).count() == 3);

    let status = site.ranker.rank(pinned("wide")).await.unwrap_err();
    assert_eq!((code_of(&status), epoch_of(&status)), (ErrorCode::NotServed, Some(Epoch(2))));
    assert!(status.message().contains("its width is 3"), "{status:?}");
    assert_eq!(ranked(&site.ranker.rank(films_request()).await.unwrap())[0].1, FILMS_SCORES[1]);
    assert!(site.ranker.running.health.is_ready(), "the current releases are loaded");
    let (_, status) = site.ranker.http("GET", "/status", "").await;
    assert!(status.contains("its width is 3"), "{status}");

    // What was only late is loaded once it is there.
    site.store.release("films", "late", &tables("v1"), FILMS, &films_onnx());
    site.controller.report(|r| r.releases.iter().any(|r| r.release == "late" && r.ready)).await;
    assert_eq!(site.ranker.rank(pinned("late")).await.unwrap().release, "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_is_as_wide_as_the_vectors_of_a_composite_table() {
    const PAIRS: &str = r#"
        schema_version = 1
        model = "pairs"
        score = "score"
        inputs = [ { name = "pair", side = "candidate", table = "pair", pooling = "mean" } ]
        outputs = [ { name = "score" } ]
    "#;
    let mut site = Site::start().await;
    let pinned = [version("pair", "v1")];
    let mut listed = releases();
    for (release, width) in [("vectors", 4), ("rows", 2)] {
        let graph = onnx::linear(&[("pair", width)], &[1.0, 10.0, 2.0, 100.0][..width as usize]);
        site.store.release("pairs", release, &pinned, PAIRS, &graph);
        listed.push(entry("pairs", release, &pinned, v1::ReleaseState::Loading));
    }
    site.controller.send(map(2, site.node.address, listed));
    let of = |report: &v1::RankerReport, release| {
        report.releases.iter().find(|r| r.release == release).cloned().unwrap_or_default()
    };
    let settled = |r: &v1::RankerReport| of(r, "vectors").ready && !of(r, "rows").problem.is_empty();
    let report = site.controller.report(settled).await;
    assert!(of(&report, "rows").problem.contains("its width is 2 in the graph, 4 by"), "{report:?}");

    // One id, then the mean of two: the row of a hash is [row, 1].
    let (bag, far) = ([5, u64::MAX], 1 << 50);
    let request = v1::RankRequest {
        model: "pairs".into(),
        release: "vectors".into(),
        candidates: 2,
        candidate: vec![ids("pair", &[far, bag[0], bag[1]], &[1, 2])],
        ..v1::RankRequest::default()
    };
    let answer = site.ranker.rank(request).await.unwrap();
    let score = |id: u64| {
        let rows: Vec<f32> = pair().rows(id, ROWS).map(|row| row as f32).collect();
        rows[0] + 10.0 + 2.0 * rows[1] + 100.0
    };
    let mut scores = ranked(&answer);
    scores.sort_by_key(|(candidate, _)| *candidate);
    assert_eq!(scores, [(0, score(far)), (1, (score(bag[0]) + score(bag[1])) / 2.0)]);
    assert_eq!((answer.missing_ids, answer.defaulted_bags, answer.rows_looked_up), (0, 0, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_the_last_map_serves_on_also_after_a_restart() {
    let mut site = Site::start().await;
    site.controller.stop();
    assert_eq!(site.ranker.rank(films_request()).await.unwrap().release, "r1");
    site.ranker.stop().await;
    let raw = raw_config(&site.store, site.controller.address, site.data.path().join("ranker"));
    let mut again = TestRanker::start(raw).await;
    let answer = again.rank(films_request()).await.unwrap();
    assert_eq!((ranked(&answer)[0].1, answer.epoch), (FILMS_SCORES[1], 1));
    again.stop().await;
}
