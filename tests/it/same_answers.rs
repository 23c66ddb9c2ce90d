//! The same scores whatever the shape of the cluster: 1, 2 and 4 nodes, 1, 4 and 16 partitions, and a node
//! that has died. To the bit where `exact` is asked for, within 1e-5 otherwise.

use anyhow::Result;
use tidepool_proto::v1::ranker_client::RankerClient;
use tidepool_tests::{Sandbox, Shape};
use tonic::transport::Channel;

use crate::fixture::{self, MODEL, name};

const PARTITIONS: [u32; 3] = [1, 4, 16];
const TOLERANCE: f32 = 1e-5;

/// The scores of every request by one release.
async fn all_scores(ranker: &mut RankerClient<Channel>, release: &str) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for request in fixture::requests() {
        let mut message = fixture::message(&request);
        message.release = release.to_owned();
        let answer = ranker.rank(message).await?.into_inner();
        assert_eq!(answer.release, release);
        assert!(answer.missing_ids > 0, "one id of each request is in no table");
        all.extend(fixture::scores(&answer));
    }
    Ok(all)
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (at, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= TOLERANCE, "{what}: score {at} is {f}, expected {e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_do_not_depend_on_the_shape_of_the_cluster() -> Result<()> {
    let mut reference: Option<Vec<f32>> = None;
    for nodes_per_group in [1, 2, 4] {
        let mut sandbox = Sandbox::start(Shape { groups: 2, nodes_per_group }).await?;
        let (exact, default) = (sandbox.start_ranker(true).await?, sandbox.start_ranker(false).await?);
        for partitions in PARTITIONS {
            let release = format!("p{partitions}");
            fixture::export(&sandbox.store, &release, partitions);
            sandbox.promote(&name(MODEL), &name(&release)).await?;
            let what = format!("{nodes_per_group} nodes a group, {partitions} partitions");
            let (mut exact, mut default) = (sandbox.ranker(exact).await?, sandbox.ranker(default).await?);

            let to_the_bit = all_scores(&mut exact, &release).await?;
            let expected = reference.get_or_insert_with(|| to_the_bit.clone());
            assert!(expected.iter().any(|s| *s != expected[0]), "the scores differ from each other");
            assert!(bits(&to_the_bit).eq(bits(expected)), "{what}: exact scores differ");
            assert_near(&all_scores(&mut default, &release).await?, expected, &what);

            // The first node of the first group dies; the other group stands in. Then it comes back.
            sandbox.stop_node(0).await?;
            let with_a_dead_node = all_scores(&mut exact, &release).await?;
            assert!(bits(&with_a_dead_node).eq(bits(expected)), "{what}, a node dead: exact scores differ");
            assert_near(
                &all_scores(&mut default, &release).await?,
                expected,
                &format!("{what}, a node dead"),
            );
            sandbox.start_node(0).await?;
            sandbox
                .wait_for("the node to be up", async |c| {
                    Ok(c.map.as_ref().is_some_and(|m| m.nodes.iter().all(|n| n.up)))
                })
                .await?;
        }
        sandbox.stop().await?;
    }
    Ok(())
}

fn bits(scores: &[f32]) -> impl Iterator<Item = u32> {
    scores.iter().map(|s| s.to_bits())
}
