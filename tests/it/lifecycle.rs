//! A cluster through its days: releases flip as one, processes come and go, and what answered keeps answering.

use anyhow::Result;
use tidepool_proto::v1;
use tidepool_tests::{DEADLINE, Sandbox, Shape};
use tidepool_types::ReleaseManifest;

use crate::fixture::{self, MODEL, name};

const SMALL: Shape = Shape { groups: 2, nodes_per_group: 1 };

/// The versions of an answer are those that the release pins: never others, never a mix.
fn assert_of(answer: &v1::RankResponse, release: &ReleaseManifest) {
    assert_eq!(answer.release, release.release.as_str());
    for version in &answer.table_versions {
        let pinned = release.version_of(&version.table).unwrap();
        assert_eq!(version.version, pinned.version.as_str());
    }
    assert_eq!(answer.table_versions.len(), release.tables.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_changes_model_and_tables_at_once_under_load() -> Result<()> {
    let mut sandbox = Sandbox::start(SMALL).await?;
    let ranker = sandbox.start_ranker(false).await?;
    let releases = ["r1", "r2"].map(|r| fixture::export(&sandbox.store, r, 4));
    sandbox.promote(&name(MODEL), &releases[0].release).await?;

    let mut client = sandbox.ranker(ranker).await?;
    let message = fixture::message(&fixture::requests()[0]);
    let load = {
        let (mut client, message, releases) = (client.clone(), message.clone(), releases.clone());
        tokio::spawn(async move {
            let mut seen = [0u32; 2];
            while seen[1] < 20 {
                let answer = client.rank(message.clone()).await?.into_inner();
                let of = releases.iter().position(|r| r.release.as_str() == answer.release).unwrap();
                assert_of(&answer, &releases[of]);
                assert!(of == 1 || seen[1] == 0, "the old release answered after the new one");
                seen[of] += 1;
            }
            Ok::<_, tonic::Status>(seen)
        })
    };
    sandbox.promote(&name(MODEL), &releases[1].release).await?;
    let seen = tokio::time::timeout(DEADLINE, load).await???;
    assert!(seen[0] > 0 && seen[1] > 0, "answers of both releases were seen: {seen:?}");

    // The former release stays loaded, for those who pin it.
    let pinned = v1::RankRequest { release: "r1".into(), ..message };
    assert_of(&client.rank(pinned).await?.into_inner(), &releases[0]);
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ranking_goes_on_without_a_controller_and_it_comes_back_where_it_was() -> Result<()> {
    let mut sandbox = Sandbox::start(SMALL).await?;
    let ranker = sandbox.start_ranker(true).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    sandbox.promote(&name(MODEL), &release.release).await?;
    let mut client = sandbox.ranker(ranker).await?;
    let message = fixture::message(&fixture::requests()[0]);
    let before = client.rank(message.clone()).await?.into_inner();

    sandbox.stop_controller().await?;
    let during = client.rank(message.clone()).await?.into_inner();
    assert_eq!(fixture::scores(&during), fixture::scores(&before));

    sandbox.restart_controller().await?;
    sandbox
        .wait_for("everyone to come back", async |cluster| {
            let map = cluster.map.clone().unwrap_or_default();
            assert!(map.epoch >= before.epoch, "the epoch went back to {}", map.epoch);
            let current = map.releases.iter().any(|r| r.state() == v1::ReleaseState::Current);
            Ok(cluster.nodes.len() == 2 && cluster.rankers.len() == 1 && current)
        })
        .await?;
    let after = client.rank(message).await?.into_inner();
    assert_eq!(fixture::scores(&after), fixture::scores(&before));
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_serves_its_assignment_without_a_controller() -> Result<()> {
    let mut sandbox = Sandbox::start(Shape { groups: 1, nodes_per_group: 1 }).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    let user = release.version_of("user").unwrap().clone();
    sandbox.serve(&user).await?;
    sandbox.stop_controller().await?;
    sandbox.stop_node(0).await?;
    sandbox.start_node(0).await?;
    sandbox
        .wait_for_node_status(0, |status| {
            let partitions = status["partitions"].as_array().unwrap();
            partitions.len() == 4 && partitions.iter().all(|p| p["state"] == "ready" && p["table"] == "user")
        })
        .await?;
    sandbox.stop().await
}
