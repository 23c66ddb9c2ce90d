//! Going back at a ranker: what ends it and what does not, and what answers where the current release is not to be had.

use std::time::Duration;

use tidepool_proto::{code_of, pack::pack, v1};
use tidepool_types::ErrorCode;
use tokio::time::{sleep, timeout};

use crate::{
    Site, films_request, releases,
    site::{DEADLINE, TestRanker, entry, map, raw_config},
    tables,
};

/// r1 previous, r2 current.
fn flipped() -> Vec<v1::ReleaseEntry> {
    vec![
        entry("films", "r1", &tables("v1"), v1::ReleaseState::Previous),
        entry("films", "r2", &tables("v2"), v1::ReleaseState::Current),
        entry("prices", "p1", &[], v1::ReleaseState::Current),
    ]
}

fn arm(release: &str, end: u32) -> Vec<v1::ModelTraffic> {
    let arms = vec![v1::Arm { release: release.into(), buckets: pack(&[0u32, end]) }];
    vec![v1::ModelTraffic { model: "films".into(), arms, shadows: Vec::new() }]
}

const ROLLBACK: &str = "/v1/admin/rollback";

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_undone_and_the_map_is_gone_by_again() {
    let mut site = Site::start().await;
    site.controller.send(map(2, site.node.address, flipped()));
    site.controller.report(|r| r.epoch == 2 && r.releases.iter().all(|r| r.ready)).await;
    let undo = r#"{"model": "films", "undo": true}"#;
    let (status, body) = site.ranker.http("POST", ROLLBACK, undo).await;
    assert!(status == 409 && body.contains("films is not rolled back here"), "{status} {body}");
    let (status, body) = site.ranker.http("POST", ROLLBACK, r#"{"model": "films", "release": "r2"}"#).await;
    assert!(status == 200 && body.contains(r#""answers":"r1""#), "{body}");
    let to = site.controller.report(|r| !r.rolled_back_to.is_empty()).await.rolled_back_to;
    assert_eq!((to[0].model.as_str(), to[0].release.as_str()), ("films", "r1"));
    let named = r#"{"model": "films", "release": "r1", "undo": true}"#;
    assert_eq!(site.ranker.http("POST", ROLLBACK, named).await.0, 400);
    let (status, body) = site.ranker.http("POST", ROLLBACK, undo).await;
    assert!(status == 200 && body.contains(r#""answers":"r2""#), "{body}");
    let answer = site.ranker.rank(films_request()).await.unwrap();
    assert_eq!((answer.release.as_str(), answer.choice()), ("r2", v1::Choice::Current));
    site.controller.report(|r| r.rolled_back.is_empty() && r.rolled_back_to.is_empty()).await;
    // It is undone for good.
    site.ranker.stop().await;
    let raw = raw_config(&site.store, site.controller.address, site.data.path().join("ranker"));
    let mut again = TestRanker::start(raw).await;
    assert_eq!(again.rank(films_request()).await.unwrap().release, "r2");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arm_that_vanishes_brings_nothing_back_and_one_that_is_ramped_does() {
    let mut site = Site::start().await;
    let mut listed = flipped();
    site.store.release("films", "r3", &tables("v1"), crate::FILMS, &crate::films_onnx());
    listed.push(entry("films", "r3", &tables("v1"), v1::ReleaseState::Ready));
    let send = |epoch, traffic| {
        site.controller.send(v1::ClusterMap { traffic, ..map(epoch, site.node.address, listed.clone()) });
    };
    send(2, arm("r3", 500));
    site.controller.report(|r| r.epoch == 2 && r.releases.iter().all(|r| r.ready)).await;
    let back = r#"{"model": "films"}"#;
    assert_eq!(site.ranker.http("POST", ROLLBACK, back).await.0, 200);
    let (_, body) = site.ranker.http("POST", ROLLBACK, back).await;
    assert!(body.contains(r#""answers":"r1""#), "{body}");
    // Guards halt r3: r2 was rolled back here and stays so.
    send(3, Vec::new());
    site.controller.report(|r| r.epoch == 3).await;
    assert_eq!(site.ranker.rank(films_request()).await.unwrap().choice(), v1::Choice::RolledBack);
    // An operator ramps it again.
    send(4, arm("r3", 500));
    site.controller.report(|r| r.epoch == 4 && r.rolled_back.is_empty()).await;
    assert_eq!(site.ranker.rank(films_request()).await.unwrap().release, "r2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_before_stands_in_where_the_current_one_is_not_to_be_had() {
    let mut site = Site::start().await;
    site.controller.report(|r| r.epoch == 1 && r.releases.iter().all(|r| r.ready)).await;
    let mut listed = vec![entry("films", "r9", &tables("v2"), v1::ReleaseState::Current)];
    listed.extend(releases());
    listed[1].state = v1::ReleaseState::Previous.into();
    site.controller.send(map(2, site.node.address, listed));
    site.controller.report(|r| r.epoch == 2 && r.releases.iter().any(|r| !r.problem.is_empty())).await;
    let answer = site.ranker.rank(films_request()).await.unwrap();
    assert_eq!((answer.release.as_str(), answer.choice()), ("r1", v1::Choice::Fallback));
    assert!(site.ranker.running.health.is_ready(), "it serves on");
    let (_, metrics) = site.ranker.http("GET", "/metrics", "").await;
    assert!(metrics.contains(r#"tidepool_ranker_choices_total{choice="fallback"} 1"#), "{metrics}");
    // One that begins is not ready, and says why.
    let mut raw = raw_config(&site.store, site.controller.address, site.data.path().join("another"));
    raw.ranker = "ranker-2".into();
    let token = tokio_util::sync::CancellationToken::new();
    let other = tidepool_ranker::start(raw.try_into().unwrap(), token.clone()).await.unwrap();
    let why = timeout(DEADLINE, async {
        loop {
            match other.health.readiness() {
                Err(why) if why.contains("r9 of model films is not loaded") => return why,
                _ => sleep(Duration::from_millis(5)).await,
            }
        }
    });
    assert!(why.await.unwrap().contains("there is no release"));
    token.cancel();
    timeout(DEADLINE, other.wait()).await.unwrap().unwrap();
    // Who names a release is answered by it or not at all.
    let named = v1::RankRequest { release: "r9".into(), ..films_request() };
    assert_eq!(code_of(&site.ranker.rank(named).await.unwrap_err()), ErrorCode::NotServed);
}
