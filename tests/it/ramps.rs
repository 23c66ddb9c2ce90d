//! Releases under traffic, with a real controller, real nodes and a real ranker: a ramp, a bad release, the way back.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use tidepool_proto::v1::{self, ranker_client::RankerClient, releases_client::ReleasesClient};
use tidepool_store::ArtifactStore;
use tidepool_tests::{DEADLINE, Sandbox, Shape};
use tidepool_train::{ExportOptions, SyntheticSize, TrainOptions, export_release, synthetic, train};
use tidepool_types::ReleaseManifest;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::fixture::{self, MODEL, name};

const SMALL: Shape = Shape { groups: 1, nodes_per_group: 2 };

/// A cluster with r1 current and another release loaded.
struct Scene {
    sandbox: Sandbox,
    ranker: RankerClient<Channel>,
    releases: ReleasesClient<Channel>,
    manifests: Vec<ReleaseManifest>,
    requests: Vec<v1::RankRequest>,
}

impl Scene {
    /// `write` puts two releases into the store.
    async fn start(write: impl FnOnce(&ArtifactStore) -> [ReleaseManifest; 2]) -> Result<Self> {
        let mut sandbox = Sandbox::start(SMALL).await?;
        let ranker = sandbox.start_ranker(false).await?;
        let [first, second] = write(&sandbox.store);
        sandbox.promote(&name(MODEL), &first.release).await?;
        let mut control = sandbox.control().await?;
        let (model, release) = (MODEL.to_owned(), second.release.to_string());
        control.publish_release(v1::PublishReleaseRequest { model, release }).await?;
        let ready = async |cluster: &v1::ClusterReport| {
            Ok(cluster.releases.len() == 2 && cluster.releases.iter().all(|s| s.waiting_for.is_empty()))
        };
        sandbox.wait_for("the second release to be loaded", ready).await?;
        let ranker = sandbox.ranker(ranker).await?;
        let releases = ReleasesClient::connect(format!("http://{}", sandbox.controller_address())).await?;
        let requests = fixture::requests().iter().map(fixture::message).collect();
        Ok(Self { sandbox, ranker, releases, manifests: vec![first, second], requests })
    }

    /// Gives the second release so many buckets, and waits until the ranker knows.
    async fn ramp(&mut self, buckets: u32) -> Result<v1::TrafficStatus> {
        let release = self.manifests[1].release.to_string();
        let status = self.set_shares(vec![v1::Share { release, buckets }]).await?;
        let epoch = status.epoch;
        let heard = async |c: &v1::ClusterReport| Ok(c.rankers.iter().all(|r| r.epoch >= epoch));
        self.sandbox.wait_for("the ranker to hear of it", heard).await?;
        Ok(status)
    }

    async fn set_shares(&mut self, shares: Vec<v1::Share>) -> Result<v1::TrafficStatus> {
        let request = v1::SetSharesRequest { model: MODEL.into(), shares, ..Default::default() };
        Ok(self.releases.set_shares(request).await?.into_inner())
    }

    async fn rank(&mut self, user: usize) -> Result<v1::RankResponse> {
        let request = self.requests[user % self.requests.len()].clone();
        let request = v1::RankRequest { routing_key: format!("user-{user}"), ..request };
        let answer = self.ranker.rank(request).await?.into_inner();
        ensure!(!mixes_versions(&answer, &self.manifests), "versions are mixed in {answer:?}");
        Ok(answer)
    }
}

/// Whether an answer has another version of a table than its release pins, or not all of them.
fn mixes_versions(answer: &v1::RankResponse, releases: &[ReleaseManifest]) -> bool {
    let Some(release) = releases.iter().find(|r| r.release.as_str() == answer.release) else { return true };
    let pinned = |version: &v1::TableVersion| {
        release
            .tables
            .iter()
            .any(|t| t.table.as_str() == version.table && t.version.as_str() == version.version)
    };
    answer.table_versions.len() != release.tables.len() || !answer.table_versions.iter().all(pinned)
}

fn the_same_twice(store: &ArtifactStore) -> [ReleaseManifest; 2] {
    ["r1", "r2"].map(|release| fixture::export(store, release, 4))
}

/// A model that has learnt something, and it with the tables of a model that was trained on other data: each by itself
/// is sound.
fn one_with_the_tables_of_another(store: &ArtifactStore) -> [ReleaseManifest; 2] {
    let learnt = |seed| {
        let data = synthetic(seed, SyntheticSize { users: 60, items: 200, events: 3_000 });
        let options = TrainOptions { resamples: 2, ..TrainOptions::default() };
        train(&data, &options, &mut |_| {}).unwrap().model
    };
    // The requests of the fixture are of the data of its seed.
    let sound = ExportOptions::new(name(MODEL), name("r1"), name("r1"));
    let sound = export_release(store, &learnt(7), &sound).unwrap();
    let other = ExportOptions::new(name("elsewhere"), name("x"), name("skewed"));
    let tables = export_release(store, &learnt(8), &other).unwrap().tables;
    let dir = store.release_dir(&sound.model, &sound.release);
    let toml = std::fs::read_to_string(dir.join("model.toml")).unwrap();
    let onnx = std::fs::read(dir.join("model.onnx")).unwrap();
    let skewed = store.write_release(&sound.model, &name("skewed"), &tables, &toml, &onnx).unwrap();
    [sound, skewed]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ramp_has_its_share_and_keeps_its_users() -> Result<()> {
    let mut scene = Scene::start(the_same_twice).await?;
    scene.ramp(500).await?;
    let mut at_five = Vec::new();
    for user in 0..1_000 {
        let answer = scene.rank(user).await?;
        if answer.choice() == v1::Choice::Arm {
            assert_eq!(answer.release, "r2");
            at_five.push(user);
        } else {
            assert_eq!((answer.release.as_str(), answer.choice()), ("r1", v1::Choice::Current));
        }
    }
    assert!((25..=80).contains(&at_five.len()), "{} of 1000 at 5 %", at_five.len());
    scene.ramp(5_000).await?;
    for user in at_five {
        assert_eq!(scene.rank(user).await?.release, "r2", "user {user} saw it at 5 %");
    }
    // The same model is not halted, however long it is looked at.
    let deadline = Instant::now() + DEADLINE;
    let mut user = 0;
    loop {
        let status = scene.status().await?;
        assert_eq!(status.arms[0].halted, "");
        if status.arms[0].candidate.as_ref().is_some_and(|t| t.requests >= 300) {
            break;
        }
        ensure!(Instant::now() < deadline, "nothing is counted: {status:?}");
        for _ in 0..100 {
            scene.rank(user).await?;
            user += 1;
        }
    }
    let (code, text) = refused(scene.set_shares(vec![v1::Share { release: "r1".into(), buckets: 5 }]).await);
    assert!(code == tonic::Code::FailedPrecondition && text.contains("is the current one"), "{text}");
    // Promoted, and back.
    let mut control = scene.sandbox.control().await?;
    let promote = |dry_run| v1::PromoteReleaseRequest { model: MODEL.into(), release: "r2".into(), dry_run };
    let tried = control.promote_release(promote(true)).await?.into_inner();
    assert_eq!(tried.release.unwrap().state(), v1::ReleaseState::Current);
    assert_eq!(scene.status().await?.current, "r1", "it was only tried");
    control.promote_release(promote(false)).await?;
    let rollback = v1::RollbackRequest { model: MODEL.into(), ..Default::default() };
    let status = scene.releases.rollback(rollback).await?.into_inner();
    assert_eq!((status.current.as_str(), status.current_buckets, status.arms.len()), ("r1", 10_000, 0));
    let events = scene.releases.get_events(v1::GetEventsRequest { after: 0 }).await?.into_inner().events;
    let of_r2: Vec<_> = events.iter().filter(|e| e.release == "r2").map(|e| e.kind.as_str()).collect();
    assert_eq!(of_r2, ["published", "ready", "ramped", "ramped", "promoted", "rolled_back"]);
    assert!(events.iter().all(|e| e.unix_seconds > 1_700_000_000 && !e.by.is_empty()), "{events:?}");
    let retire = v1::RetireReleaseRequest { model: MODEL.into(), release: "r2".into(), dry_run: false };
    scene.releases.retire_release(retire).await?;
    let gone = async |c: &v1::ClusterReport| Ok(c.releases.len() == 1 && c.rankers[0].releases.len() == 1);
    scene.sandbox.wait_for("r2 to be let go", gone).await?;
    scene.sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_the_tables_of_another_is_halted() -> Result<()> {
    let mut scene = Scene::start(one_with_the_tables_of_another).await?;
    scene.ramp(2_000).await?;
    let deadline = Instant::now() + DEADLINE;
    let (mut user, mut served) = (0, BTreeMap::<String, u32>::new());
    let halted = loop {
        for _ in 0..50 {
            *served.entry(scene.rank(user).await?.release).or_default() += 1;
            user += 1;
        }
        let status = scene.status().await?;
        if !status.arms[0].halted.is_empty() {
            break status;
        }
        ensure!(Instant::now() < deadline, "it is not halted: {status:?}, {served:?}");
    };
    let arm = &halted.arms[0];
    assert_eq!((arm.buckets, halted.current_buckets), (0, 10_000));
    assert!(arm.halted.contains("at 20 % of the traffic: its scores over"), "{}", arm.halted);
    // The ranker hears of it at once; from then on nobody is answered by it.
    let epoch = halted.epoch;
    let heard = async |c: &v1::ClusterReport| Ok(c.rankers.iter().all(|r| r.epoch >= epoch));
    scene.sandbox.wait_for("the ranker to hear of it", heard).await?;
    for user in 0..200 {
        assert_eq!(scene.rank(user).await?.release, "r1");
    }
    let request = v1::PromoteReleaseRequest { model: MODEL.into(), release: "skewed".into(), dry_run: false };
    let refused = scene.sandbox.control().await?.promote_release(request).await.unwrap_err();
    assert!(refused.message().contains("was halted"), "{refused:?}");
    // Nobody has asked for it, and it is written down like what people ask for.
    let lines = loop {
        let lines = scene.sandbox.audit_log()?;
        let by_guards: Vec<_> = lines.into_iter().filter(|line| line["who"] == "guards").collect();
        if !by_guards.is_empty() {
            break by_guards;
        }
        ensure!(Instant::now() < deadline, "it is not in the audit log");
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["action"], &lines[0]["known_by"]), (&"halted".into(), &"process".into()));
    assert_eq!(lines[0]["what"]["release"], "skewed");
    assert_eq!(lines[0]["problem"], arm.halted);
    scene.sandbox.stop().await
}

/// The check that the other tests rely on sees what it is there for.
#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_answer_is_seen() -> Result<()> {
    let mut scene = Scene::start(the_same_twice).await?;
    let sound = scene.rank(1).await?;
    let releases = scene.manifests.clone();
    let changed = |change: fn(&mut v1::RankResponse)| {
        let mut answer = sound.clone();
        change(&mut answer);
        mixes_versions(&answer, &releases)
    };
    assert!(!changed(|_| {}));
    assert!(changed(|a| a.release = "r2".into()), "the model of one, the tables of the other");
    assert!(changed(|a| a.table_versions[0].version = "r2".into()));
    assert!(changed(|a| drop(a.table_versions.pop())));
    assert!(changed(|a| a.release = "r3".into()));
    scene.sandbox.stop().await
}

impl Scene {
    async fn status(&mut self) -> Result<v1::TrafficStatus> {
        let request = v1::GetTrafficRequest { model: MODEL.into() };
        let models = self.releases.get_traffic(request).await?.into_inner().models;
        // Rankers report every second; asking more often would only make the test noisy.
        sleep(Duration::from_millis(20)).await;
        models.into_iter().next().context("the model is unknown")
    }
}

fn refused<T>(result: Result<T>) -> (tonic::Code, String) {
    let error = result.err().unwrap();
    let status = error.downcast::<tonic::Status>().unwrap();
    (status.code(), status.message().to_owned())
}
