//! Terms, backups, and states that are put back or made anew.

use std::fs;

use tidepool_cluster::{ClusterMap, ReleaseState};
use tidepool_controller::{
    Config, MetastoreConfig,
    maintenance::{MaintenanceError, backup, restore},
    metastore::MetastoreError,
};
use tidepool_proto::v1::{self, controllers_client::ControllersClient};
use tidepool_types::{Epoch, NodeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::*;

fn metastore(fixture: &Fixture) -> MetastoreConfig {
    Config::try_from(fixture.raw_config()).unwrap().metastore
}

/// Two nodes with all of release r1 loaded, and a ranker that says so; r1 is current. Gives the map.
async fn promoted(fixture: &Fixture) -> ClusterMap {
    let controller = fixture.start().await;
    let mut client = controller.client().await;
    let [mut a, mut b] = controller.two_nodes().await;
    client.publish_release(publish("r1")).await.unwrap();
    for node in [&mut a, &mut b] {
        let assignment = node.assigned(2).await;
        node.ready(&assignment).await;
    }
    controller.map(|map| map.release("m", "r1").is_some_and(|r| r.state == ReleaseState::Ready)).await;
    client.promote_release(promote("r1")).await.unwrap();
    let map = controller.map(|map| map.current_release("m").is_some()).await;
    controller.stop().await;
    map
}

#[tokio::test]
async fn every_start_is_a_later_term_and_assignments_carry_it() {
    let fixture = Fixture::new();
    let mut before = 0;
    for _ in 0..3 {
        let controller = fixture.start().await;
        let status = controller.running.status();
        assert_eq!(status["leading"], true);
        assert_eq!(status["leader"], controller.running.grpc_address.to_string());
        let mut node = Node::open(controller.client().await, Node::introduction("a-1")).await;
        let assignment = node.next().await.unwrap().unwrap();
        assert!(assignment.term > before, "{} after {before}", assignment.term);
        assert_eq!(status["term"], assignment.term);
        let address = format!("http://{}", controller.running.grpc_address);
        let mut controllers = ControllersClient::connect(address).await.unwrap();
        let standing = controllers.get_standing(v1::GetStandingRequest {}).await.unwrap().into_inner();
        assert!(standing.leading && standing.term == assignment.term && standing.problem.is_empty());
        before = assignment.term;
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_backup_is_put_back_at_a_newer_epoch_than_all_before() {
    let fixture = Fixture::new();
    let place = metastore(&fixture);
    let empty = backup(&place).await.unwrap_err();
    assert!(matches!(empty, MaintenanceError::Empty { .. }), "{empty}");
    let map = promoted(&fixture).await;
    let (bytes, contents) = backup(&place).await.unwrap();
    assert_eq!((contents.epoch, contents.nodes, contents.tables, contents.releases), (map.epoch, 2, 2, 1));

    // The cluster goes on; what it did since the backup will be lost.
    let controller = fixture.start().await;
    let mut client = controller.client().await;
    fixture.add_table(&table("extra", "v1"));
    client.serve_table(serve(&table("extra", "v1"), true)).await.unwrap();
    let later = controller.map(|map| map.layouts.len() == 3).await;
    assert!(later.epoch > map.epoch);
    assert!(backup(&place).await.unwrap().1.tables == 3, "also while a controller runs");
    let file = fixture.dir.path().join("backup");
    let refused = restore(&place, (&file, &bytes), None, false).await.unwrap_err();
    assert!(matches!(refused, MaintenanceError::Metastore(MetastoreError::InUse { .. })), "{refused}");
    controller.stop().await;

    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let refused = restore(&place, (&file, &damaged), None, false).await.unwrap_err();
    assert!(refused.to_string().contains(file.to_str().unwrap()), "{refused}");
    let planned = restore(&place, (&file, &bytes), None, true).await.unwrap();
    assert_eq!(planned.replaced.as_ref().unwrap().tables, 3);
    assert_eq!(backup(&place).await.unwrap().1.epoch, later.epoch, "a plan changes nothing");
    let restored = restore(&place, (&file, &bytes), None, false).await.unwrap();
    assert_eq!(restored.contents.epoch, planned.contents.epoch);
    assert_eq!(restored.contents.epoch.incarnation(), 1);

    let controller = fixture.start().await;
    let back = controller.map(|_| true).await;
    assert!(back.epoch > later.epoch, "nodes and rankers take it for newer");
    assert_eq!(ClusterMap { epoch: map.epoch, ..back }, map);
    controller.stop().await;

    // Again, over a state that cannot be read: the number must be given when it was larger than the backup's.
    fs::write(fixture.dir.path().join("controller/state"), "garbage").unwrap();
    assert!(matches!(
        restore(&place, (&file, &bytes), Some(0), false).await.unwrap_err(),
        MaintenanceError::Incarnation { asked: 0, least: 1, .. }
    ));
    let restored = restore(&place, (&file, &bytes), Some(7), false).await.unwrap();
    assert!(restored.damage.unwrap().contains("damaged"));
    assert_eq!(restored.contents.epoch, Epoch(Epoch::before(7).0 + 1));
    let controller = fixture.start().await;
    assert_eq!(controller.map(|_| true).await.epoch.incarnation(), 7);
    controller.stop().await;
}

#[tokio::test]
async fn a_lost_state_is_made_anew_from_reports_and_manifests() {
    let fixture = Fixture::new();
    let map = promoted(&fixture).await;
    fs::remove_file(fixture.dir.path().join("controller/state")).unwrap();

    let controller = fixture.start().await;
    assert!(controller.map(|_| true).await.layouts.is_empty());
    // They hold what they held, and say at which epoch.
    let mut nodes = Vec::new();
    for name in ["a-1", "b-1"] {
        let mut node = Node::open(controller.client().await, Node::introduction(name)).await;
        let id = NodeId(crate::fixture::name(name));
        node.ready(&map.assignment(&id)).await;
        nodes.push((id, node));
    }
    let (rankers, outgoing) = mpsc::channel(1);
    let release = v1::RankerRelease {
        model: "m".into(),
        release: "r1".into(),
        ready: true,
        state: v1::ReleaseState::Current.into(),
        ..v1::RankerRelease::default()
    };
    let gone = v1::RankerRelease {
        release: "r0".into(),
        state: v1::ReleaseState::Previous.into(),
        ..release.clone()
    };
    let report = v1::RankerReport {
        ranker: "r-1".into(),
        grpc_address: "r-1:7420".into(),
        epoch: map.epoch.0,
        releases: vec![gone, release],
        ..v1::RankerReport::default()
    };
    rankers.send(report).await.unwrap();
    let mut client = controller.client().await;
    let _session = client.ranker_session(ReceiverStream::new(outgoing)).await.unwrap();

    let address = format!("http://{}", controller.running.grpc_address);
    let mut controllers = ControllersClient::connect(address).await.unwrap();
    let planned = soon(async {
        loop {
            let planned = controllers
                .rebuild(v1::RebuildRequest { dry_run: true, ..v1::RebuildRequest::default() })
                .await
                .unwrap()
                .into_inner();
            let all = planned.tables.iter().map(|t| t.found).sum::<u32>();
            if all == 16 && !planned.releases.is_empty() {
                return planned;
            }
        }
    })
    .await;
    assert_eq!((planned.nodes, planned.tables.len()), (2, 2));
    assert!(planned.problems.iter().any(|p| p.contains("m@r0")), "{:?}", planned.problems);
    assert!(controller.map(|_| true).await.layouts.is_empty(), "a plan changes nothing");
    let done = controllers
        .rebuild(v1::RebuildRequest { force: true, ..v1::RebuildRequest::default() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(done.epoch, planned.epoch);
    let back = controller.map(|map| map.layouts.len() == 2).await;
    assert!(back.epoch.0 >= done.epoch && back.epoch > map.epoch);
    assert_eq!((&back.layouts, &back.releases, &back.nodes), (&map.layouts, &map.releases, &map.nodes));
    for (id, node) in &mut nodes {
        let assignment = node.assigned(2).await;
        assert_eq!(assignment.tables, map.assignment(id).tables, "nothing moves");
        assert!(!assignment.is_older_than(&map.assignment(id)));
    }
    controller.stop().await;
    assert_eq!(fixture.start().await.map(|_| true).await.releases, map.releases, "it was written down");
}
