//! Bad input through the whole cluster: each gets a typed error that names the thing, and everybody lives on.

use std::fs;

use anyhow::Result;
use tidepool_client::{FeatureLookup, LookupRequest};
use tidepool_proto::{code_of, pack::pack, v1};
use tidepool_tests::{Sandbox, Shape};
use tidepool_types::{ErrorCode, PartitionIndex, Pooling, TableVersion};
use tonic::Status;

use crate::fixture::{self, MODEL, name};

const SMALL: Shape = Shape { groups: 2, nodes_per_group: 1 };

/// A release that serves, and a ranker for it.
async fn serving() -> Result<(Sandbox, usize)> {
    let mut sandbox = Sandbox::start(SMALL).await?;
    let ranker = sandbox.start_ranker(false).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    sandbox.promote(&name(MODEL), &release.release).await?;
    Ok((sandbox, ranker))
}

fn assert_refused(answer: Result<impl Sized, Status>, code: ErrorCode, names: &str) {
    let Err(status) = answer else { panic!("accepted; {code} was expected") };
    assert_eq!(code_of(&status), code, "{status:?}");
    assert!(status.message().contains(names), "{:?} does not name {names:?}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_rank_requests_are_refused_and_the_next_one_is_answered() -> Result<()> {
    let (sandbox, ranker) = serving().await?;
    let mut client = sandbox.ranker(ranker).await?;
    let good = fixture::message(&fixture::requests()[0]);
    let broken = |change: fn(&mut v1::RankRequest)| {
        let mut message = good.clone();
        change(&mut message);
        message
    };
    type Case = (fn(&mut v1::RankRequest), ErrorCode, &'static str);
    let cases: [Case; 10] = [
        (|m| m.model = "nobody".into(), ErrorCode::NotFound, "nobody"),
        (|m| m.release = "r99".into(), ErrorCode::NotFound, "r99"),
        (|m| drop(m.user.pop()), ErrorCode::InvalidRequest, "gender"),
        (|m| m.user[0].name = "wrong".into(), ErrorCode::InvalidRequest, "wrong"),
        (|m| m.candidate[0].ids = pack(&[1u64]), ErrorCode::InvalidRequest, "item"),
        (|m| m.candidate[0].ids = vec![0u8; 7].into(), ErrorCode::InvalidRequest, "item"),
        (|m| m.candidate[1].lengths = pack(&[u32::MAX; 3]), ErrorCode::InvalidRequest, "genres"),
        (|m| m.candidate[0].weights = pack(&[f32::NAN]), ErrorCode::InvalidRequest, "item"),
        (|m| m.candidates = u32::MAX, ErrorCode::InvalidRequest, "candidates"),
        (|m| m.candidates += 1, ErrorCode::InvalidRequest, "item"),
    ];
    for (change, code, names) in cases {
        assert_refused(client.rank(broken(change)).await, code, names);
        client.rank(good.clone()).await?;
    }
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_lookups_are_refused_by_the_client_before_they_travel() -> Result<()> {
    let (sandbox, _) = serving().await?;
    let client = sandbox.client().await?;
    let user = TableVersion { table: name("user"), version: name("r1") };
    let feature = |table_version: &TableVersion| FeatureLookup {
        table_version: table_version.clone(),
        pooling: Pooling::Sum,
        ids: vec![1, 2, 3],
        lengths: Some(vec![1, 2]),
        weights: None,
    };
    let unknown = TableVersion { table: name("nobody"), version: name("v1") };
    let cases = [
        (feature(&unknown), ErrorCode::NotFound, "nobody"),
        (FeatureLookup { lengths: Some(vec![4]), ..feature(&user) }, ErrorCode::InvalidRequest, "user"),
        (FeatureLookup { weights: Some(vec![1.0]), ..feature(&user) }, ErrorCode::InvalidRequest, "user"),
        (
            FeatureLookup { weights: Some(vec![f32::INFINITY; 3]), ..feature(&user) },
            ErrorCode::InvalidRequest,
            "user",
        ),
    ];
    for (feature, code, names) in cases {
        let request = LookupRequest { request_id: "bad".into(), features: vec![feature] };
        let error = client.lookup(&request, &client.default_options()).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(names), "{error}");
    }
    let good = LookupRequest { request_id: "good".into(), features: vec![feature(&user)] };
    client.lookup(&good, &client.default_options()).await?;
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_partition_keeps_its_release_from_promotion_and_the_old_one_serves() -> Result<()> {
    let (sandbox, ranker) = serving().await?;
    let release = fixture::export(&sandbox.store, "r2", 4);
    let item = release.version_of("item").unwrap();
    let partitions = sandbox.store.table_manifest(item)?.0.schema.partitions;
    let damaged = sandbox.store.partition_path(item, partitions, PartitionIndex(2));
    let mut bytes = fs::read(&damaged)?;
    bytes[4096 + 7] ^= 1;
    fs::write(&damaged, &bytes)?;

    let mut control = sandbox.control().await?;
    let request = v1::PublishReleaseRequest { model: MODEL.into(), release: "r2".into() };
    control.publish_release(request).await?;
    sandbox
        .wait_for("the damage to be reported", async |cluster| {
            let waiting = cluster.releases.iter().flat_map(|r| &r.waiting_for);
            Ok(waiting.into_iter().any(|w| w.contains("part-00002") || w.contains("block")))
        })
        .await?;
    let promotion = control.promote_release(v1::PromoteReleaseRequest {
        model: MODEL.into(),
        release: "r2".into(),
        dry_run: false,
    });
    assert_refused(promotion.await, ErrorCode::Conflict, "item");
    let answer = sandbox.ranker(ranker).await?.rank(fixture::message(&fixture::requests()[0])).await?;
    assert_eq!(answer.into_inner().release, "r1");
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_store_cannot_be_published_or_served() -> Result<()> {
    let sandbox = Sandbox::start(SMALL).await?;
    let mut control = sandbox.control().await?;
    let nothing = v1::PublishReleaseRequest { model: MODEL.into(), release: "r1".into() };
    assert_refused(control.publish_release(nothing).await, ErrorCode::NotFound, "r1");
    let version = v1::TableVersion { table: "nobody".into(), version: "v1".into() };
    let serve = v1::ServeTableRequest { table_version: Some(version), serve: true };
    assert_refused(control.serve_table(serve).await, ErrorCode::NotFound, "nobody");
    let climbing = v1::PublishReleaseRequest { model: "../..".into(), release: "r1".into() };
    assert_refused(control.publish_release(climbing).await, ErrorCode::InvalidRequest, "model");
    sandbox.stop().await
}
