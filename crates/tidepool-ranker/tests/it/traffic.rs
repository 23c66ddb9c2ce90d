//! Arms, shadows and local rollbacks: which release answers whom.

use std::time::Duration;

use tidepool_cluster::bucket_of;
use tidepool_proto::{code_of, pack::pack, v1};
use tidepool_types::ErrorCode;
use tokio::time::{sleep, timeout};

use crate::{
    FILMS, Site, films_onnx, films_request, onnx, releases,
    site::{DEADLINE, TestRanker, entry, map, raw_config},
    tables,
};

const HALF: [u32; 2] = [0, 5_000];

fn arm(release: &str, buckets: &[u32]) -> v1::Arm {
    v1::Arm { release: release.into(), buckets: pack(buckets) }
}

fn traffic(arms: Vec<v1::Arm>, shadows: Vec<v1::Shadow>) -> Vec<v1::ModelTraffic> {
    vec![v1::ModelTraffic { model: "films".into(), arms, shadows }]
}

fn keyed(key: &str) -> v1::RankRequest {
    v1::RankRequest { routing_key: key.into(), ..films_request() }
}

/// Two keys: the bucket of the first is in the first half, that of the second is not.
fn keys() -> [String; 2] {
    let key = |low: bool| {
        let mut keys = (0..).map(|n: u32| format!("user-{n}"));
        keys.find(|key| (bucket_of("films", key) < HALF[1]) == low).unwrap()
    };
    [key(true), key(false)]
}

impl Site {
    /// The ranker follows a map with this traffic, and says so.
    async fn traffic(&self, epoch: u64, traffic: Vec<v1::ModelTraffic>) -> v1::RankerReport {
        self.controller.send(v1::ClusterMap { traffic, ..map(epoch, self.node.address, releases()) });
        self.controller.report(|r| r.epoch == epoch).await
    }
}

fn serving(report: &v1::RankerReport, release: &str) -> Option<v1::Serving> {
    report.releases.iter().find(|r| r.model == "films" && r.release == release)?.serving.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_answered_by_the_release_that_has_its_bucket_and_told_why() {
    let mut site = Site::start().await;
    site.traffic(2, traffic(vec![arm("r2", &HALF)], vec![])).await;
    let mut of_arm = 0;
    for user in 0..100 {
        let key = format!("user-{user}");
        let answer = site.ranker.rank(keyed(&key)).await.unwrap();
        let bucket = bucket_of("films", &key);
        let (release, choice) = match bucket < HALF[1] {
            true => ("r2", v1::Choice::Arm),
            false => ("r1", v1::Choice::Current),
        };
        assert_eq!((answer.release.as_str(), answer.choice(), answer.bucket), (release, choice, bucket));
        let version = release.replace('r', "v");
        assert!(answer.table_versions.iter().all(|t| t.version == version), "{answer:?}");
        of_arm += u32::from(release == "r2");
        let again = site.ranker.rank(keyed(&key)).await.unwrap();
        assert_eq!(again.release, answer.release, "the same key, the same release");
    }
    assert!((35..=65).contains(&of_arm), "{of_arm} of 100");
    let [low, _] = keys();
    let named = v1::RankRequest { release: "r1".into(), ..keyed(&low) };
    let answer = site.ranker.rank(named).await.unwrap();
    assert_eq!((answer.release.as_str(), answer.choice()), ("r1", v1::Choice::Named));
    // JSON finds the same release, and says so.
    let text = format!(
        r#"{{"model": "films", "routing_key": "{low}", "user": {{"user": 4, "age": 0.5}},
            "candidates": {{"item": [10], "genres": [[1, 2]]}}}}"#
    );
    let (status, body) = site.ranker.http("POST", "/v1/rank", &text).await;
    assert!(
        status == 200 && body.contains(r#""release":"r2""#) && body.contains(r#""choice":"arm""#),
        "{body}"
    );
    // Without a key the user's ids are one, over JSON as over gRPC.
    let text = text.replace(&format!(r#""routing_key": "{low}", "#), "");
    let (_, body) = site.ranker.http("POST", "/v1/rank", &text).await;
    let answer = site.ranker.rank(films_request()).await.unwrap();
    assert!(body.contains(&format!(r#""bucket":{}"#, answer.bucket)), "{body} {answer:?}");
    // What was counted is reported: of those that named no release.
    let report =
        site.controller.report(|r| serving(r, "r2").is_some_and(|s| s.chosen.unwrap().requests > 2)).await;
    let chosen = serving(&report, "r2").unwrap().chosen.unwrap();
    assert!(chosen.ids > 0 && chosen.errors == 0 && chosen.scores.unwrap().counts.iter().sum::<u64>() > 0);
    let (_, metrics) = site.ranker.http("GET", "/metrics", "").await;
    assert!(
        metrics.contains("tidepool_ranker_release_requests_total{model=\"films\",release=\"r2\"}"),
        "{metrics}"
    );
    assert!(metrics.contains("tidepool_ranker_choices_total{choice=\"named\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_an_arm_is_not_loaded_the_current_release_answers() {
    let mut site = Site::start().await;
    let [low, _] = keys();
    let mut listed = releases();
    listed.push(entry("films", "late", &tables("v1"), v1::ReleaseState::Ready));
    let traffic = traffic(vec![arm("late", &HALF)], vec![]);
    let sent = v1::ClusterMap { traffic, ..map(2, site.node.address, listed) };
    site.controller.send(sent);
    site.controller.report(|r| r.epoch == 2).await;
    let answer = site.ranker.rank(keyed(&low)).await.unwrap();
    assert_eq!((answer.release.as_str(), answer.choice()), ("r1", v1::Choice::Fallback));
    site.store.release("films", "late", &tables("v1"), FILMS, &films_onnx());
    site.controller.report(|r| r.releases.iter().any(|r| r.release == "late" && r.ready)).await;
    let answer = site.ranker.rank(keyed(&low)).await.unwrap();
    assert_eq!((answer.release.as_str(), answer.choice()), ("late", v1::Choice::Arm));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_a_release_are_counted_as_its_own() {
    let mut site = Site::start().await;
    // Its contract wants a feature that callers do not send.
    let other = FILMS.replace("name = \"age\"", "name = \"mood\"");
    let graph = onnx::linear(
        &[("item", 2), ("user", 2), ("genres", 2), ("mood", 1)],
        &[3.0, 0.0, 2.0, 0.0, 5.0, 100.0, 7.0],
    );
    site.store.release("films", "moody", &tables("v1"), &other, &graph);
    let mut listed = releases();
    listed.push(entry("films", "moody", &tables("v1"), v1::ReleaseState::Ready));
    let traffic = traffic(vec![arm("moody", &HALF)], vec![]);
    site.controller.send(v1::ClusterMap { traffic, ..map(2, site.node.address, listed) });
    site.controller.report(|r| r.releases.iter().any(|r| r.release == "moody" && r.ready)).await;
    let [low, high] = keys();
    let refused = site.ranker.rank(keyed(&low)).await.unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::InvalidRequest);
    site.ranker.rank(keyed(&high)).await.unwrap();
    let report =
        site.controller.report(|r| serving(r, "moody").is_some_and(|s| s.chosen.unwrap().errors == 1));
    let report = report.await;
    assert_eq!(serving(&report, "moody").unwrap().chosen.unwrap().requests, 1);
    let of_r1 = serving(&report, "r1").unwrap().chosen.unwrap();
    assert_eq!((of_r1.requests, of_r1.errors), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_asked_after_the_answer_and_answers_nobody() {
    let mut site = Site::start().await;
    let shadow = v1::Shadow { release: "r2".into(), sample: 10_000 };
    site.traffic(2, traffic(vec![], vec![shadow])).await;
    let shadowed = async {
        loop {
            let answer = site.ranker.rank(keyed("a")).await.unwrap();
            assert_eq!((answer.release.as_str(), answer.choice()), ("r1", v1::Choice::Current));
            let found =
                |r: &v1::RankerReport| serving(r, "r2").is_some_and(|s| s.shadow.unwrap().compared > 0);
            if let Ok(report) = timeout(Duration::from_millis(200), site.controller.report(found)).await {
                return report;
            }
        }
    };
    let report = timeout(DEADLINE, shadowed).await.unwrap();
    let serving = serving(&report, "r2").unwrap();
    let (chosen, shadow) = (serving.chosen.unwrap(), serving.shadow.unwrap());
    assert_eq!((chosen.requests, shadow.failed), (0, 0), "it was chosen for nothing");
    let total = |scores: Option<v1::ScoreHistogram>| scores.unwrap().counts.iter().sum::<u64>();
    assert_eq!(total(shadow.differences.clone()), 3 * shadow.compared, "three candidates each");
    assert_eq!((total(shadow.scores), total(shadow.answered)), (3 * shadow.compared, 3 * shadow.compared));
    assert!(shadow.differences.unwrap().bins.iter().all(|bin| *bin > 0), "tables v2 have other rows");
    // Its lookups are nobody's.
    let tenants: Vec<_> = site.node.calls.lock().unwrap().iter().map(|call| call.tenant.clone()).collect();
    assert!(tenants.iter().any(|t| t == "ads") && tenants.iter().any(|t| t == "ranker-1"), "{tenants:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ranker_is_rolled_back_with_no_controller_until_a_map_has_another_say() {
    let mut site = Site::start().await;
    let flipped = || {
        vec![
            entry("films", "r1", &tables("v1"), v1::ReleaseState::Previous),
            entry("films", "r2", &tables("v2"), v1::ReleaseState::Current),
            entry("prices", "p1", &[], v1::ReleaseState::Current),
        ]
    };
    site.controller.send(map(2, site.node.address, flipped()));
    site.controller.report(|r| r.epoch == 2 && r.releases.iter().all(|r| r.ready)).await;
    assert_eq!(site.ranker.rank(films_request()).await.unwrap().release, "r2");

    let (status, body) = site.ranker.http("POST", "/v1/admin/rollback", r#"{"model": "films"}"#).await;
    assert!(status == 200 && body.contains(r#""answers":"r1""#), "{body}");
    let answer = site.ranker.rank(films_request()).await.unwrap();
    assert_eq!((answer.release.as_str(), answer.choice()), ("r1", v1::Choice::RolledBack));
    site.controller.report(|r| r.rolled_back == ["films"]).await;
    let (status, body) = site.ranker.http("POST", "/v1/admin/rollback", r#"{"model": "films"}"#).await;
    assert!(status == 409 && body.contains("rolled back here already, r1 answers"), "{status} {body}");
    let (status, body) = site.ranker.http("POST", "/v1/admin/rollback", r#"{"model": "prices"}"#).await;
    assert!(status == 409 && body.contains("no release was current before p1"), "{status} {body}");
    let (status, body) = site.ranker.http("POST", "/v1/admin/rollback", r#"{"modle": 1}"#).await;
    assert!(status == 400 && body.contains("modle"), "{status} {body}");
    // All of it is written down, before it was done and after.
    let audit = std::fs::read_to_string(site.data.path().join("ranker/audit.log")).unwrap();
    let told: Vec<_> = audit
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| {
            format!("{} {}", line["outcome"].as_str().unwrap(), line["what"]["model"].as_str().unwrap())
        })
        .collect();
    let expected =
        ["begun films", "ok films", "begun films", "conflict films", "begun prices", "conflict prices"];
    assert_eq!(told, expected);

    // A later map that says the same of the model ends nothing, and a restart forgets nothing.
    site.controller.send(map(3, site.node.address, flipped()));
    site.controller.report(|r| r.epoch == 3).await;
    assert_eq!(site.ranker.rank(films_request()).await.unwrap().release, "r1");
    site.ranker.stop().await;
    let raw = raw_config(&site.store, site.controller.address, site.data.path().join("ranker"));
    let mut again = TestRanker::start(raw).await;
    assert_eq!(again.rank(films_request()).await.unwrap().release, "r1");

    // Another say: r1 is current again by the map, and later something else may be.
    let mut back = flipped();
    back[0].state = v1::ReleaseState::Current.into();
    back[1].state = v1::ReleaseState::Ready.into();
    site.controller.send(map(4, site.node.address, back));
    site.controller.report(|r| r.epoch == 4 && r.rolled_back.is_empty()).await;
    let answer = timeout(DEADLINE, async {
        loop {
            let answer = again.rank(films_request()).await.unwrap();
            if answer.choice() == v1::Choice::Current {
                return answer;
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(answer.await.unwrap().release, "r1");
    again.stop().await;
}
