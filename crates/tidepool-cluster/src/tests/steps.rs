//! Single steps.

use std::sync::Arc;

use tidepool_types::ErrorCode;

use super::*;
use crate::{Durable, Quota, Quotas};

/// Two groups of two nodes, settled.
pub(super) fn four_nodes() -> (Run, [(&'static str, SessionId); 4]) {
    let mut run = Run::new();
    let nodes = ["a-1", "a-2", "b-1", "b-2"].map(|node| (node, run.join(node)));
    run.pass(1);
    (run, nodes)
}

#[test]
fn a_release_goes_from_published_to_current_to_previous_and_away() {
    let (mut run, nodes) = four_nodes();
    let (v1, v2, v3) = (table("user", "v1"), table("user", "v2"), table("user", "v3"));
    for (at, version) in [&v1, &v2, &v3].into_iter().enumerate() {
        let release = format!("r{}", at + 1);
        run.publish("m", &release, std::slice::from_ref(version)).unwrap();
        assert_eq!(run.release("m", &release), Some(ReleaseState::Loading));
        let refused = run.promote("m", &release).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Conflict);
        assert!(refused.to_string().contains(&format!("node b-2 has 0 of 4 partitions of {version} ready")));
        for (node, session) in nodes {
            assert_eq!(run.release("m", &release), Some(ReleaseState::Loading));
            run.ready(node, session);
        }
        assert_eq!(run.release("m", &release), Some(ReleaseState::Ready));
        run.promote("m", &release).unwrap();
        assert_eq!(run.promote("m", &release), Ok(vec![]), "again is nothing");
    }
    assert_eq!(run.release("m", "r1"), Some(ReleaseState::Retiring));
    assert_eq!(run.release("m", "r2"), Some(ReleaseState::Previous));
    assert_eq!(run.release("m", "r3"), Some(ReleaseState::Current));
    assert!(run.state.map().layout(&v1).is_some(), "requests that began with it go on");
    assert_eq!(run.pass(5), [Effect::Persist, Effect::PublishMap]);
    assert_eq!(run.release("m", "r1"), None);
    assert!(run.state.map().layout(&v1).is_some(), "a request may have named it until now");
    assert_eq!(run.pass(5), [Effect::Persist, Effect::PublishMap]);
    assert!(run.state.map().layout(&v1).is_none(), "nobody pins it any more");
    // Rollback: the two change places.
    run.promote("m", "r2").unwrap();
    assert_eq!(run.release("m", "r2"), Some(ReleaseState::Current));
    assert_eq!(run.release("m", "r3"), Some(ReleaseState::Previous));
}

#[test]
fn first_placements_are_balanced_though_nodes_come_one_by_one() {
    let mut run = Run::new();
    run.join("a-1");
    run.step(Event::ServeTable { table: artifact(&table("user", "v1"), 4) }).unwrap();
    run.join("a-2");
    assert!(run.state.map().layouts[0].placement.groups.is_empty(), "the group has not settled");
    assert_eq!(run.state.next_deadline(), Some(Duration::from_secs(1)));
    assert_eq!(run.pass(1), [Effect::Persist, Effect::PublishMap]);
    assert_eq!(run.state.next_deadline(), None);
    for node in ["a-1", "a-2"] {
        assert_eq!(run.state.map().assignment(&node_id(node)).tables[0].partitions.len(), 8);
    }
    // A group that appears later gets a copy; a node that joins a placed group gets nothing of it.
    run.join("a-3");
    run.join("b-1");
    run.join("b-2");
    run.pass(1);
    assert!(run.state.map().assignment(&node_id("a-3")).tables.is_empty());
    assert_eq!(run.state.map().assignment(&node_id("b-2")).tables[0].partitions.len(), 8);
}

#[test]
fn a_down_node_keeps_its_partitions_and_is_waited_for_by_name() {
    let (mut run, nodes) = four_nodes();
    let users = table("user", "v1");
    run.publish("m", "r1", std::slice::from_ref(&users)).unwrap();
    let (down, session) = nodes[3];
    let held = run.state.map().assignment(&node_id(down)).tables;
    run.step(Event::NodeGone { node: node_id(down), session }).unwrap();
    assert!(!run.state.map().nodes[&node_id(down)].up);
    for (node, session) in &nodes[..3] {
        run.ready(node, *session);
    }
    assert_eq!(run.waiting_for("m", "r1"), ["node b-2 is down: 4 partitions of user@v1"]);
    assert_eq!(run.state.map().assignment(&node_id(down)).tables, held);
    let session = run.join(down);
    run.ready(down, session);
    assert_eq!(run.release("m", "r1"), Some(ReleaseState::Ready));
    // From now on one copy is enough to promote or to roll back; none is not.
    run.step(Event::NodeGone { node: node_id(down), session }).unwrap();
    assert_eq!(run.waiting_for("m", "r1"), Vec::<String>::new());
    for (node, session) in &nodes[..2] {
        run.step(Event::NodeGone { node: node_id(node), session: *session }).unwrap();
    }
    assert_eq!(run.waiting_for("m", "r1"), ["4 of 8 partitions of user@v1 are ready on no node"]);
    assert_eq!(run.promote("m", "r1").unwrap_err().code(), ErrorCode::Conflict);
}

#[test]
fn rankers_are_waited_for_and_late_ones_are_not() {
    let (mut run, nodes) = four_nodes();
    let early = run.session();
    run.step(Event::RankerReported { session: early, report: ranker_report("r", &[]) }).unwrap();
    run.publish("m", "r1", &[table("user", "v1")]).unwrap();
    for (node, session) in nodes {
        run.ready(node, session);
    }
    assert_eq!(run.waiting_for("m", "r1"), ["ranker r has not loaded m@r1 yet"]);
    let mut broken = ranker_report("r", &[("m", "r1")]);
    broken.releases[0].ready = false;
    broken.releases[0].problem = "no such input".into();
    run.step(Event::RankerReported { session: early, report: broken }).unwrap();
    assert_eq!(run.waiting_for("m", "r1"), ["ranker r cannot load m@r1: no such input"]);
    let effects = run
        .step(Event::RankerReported { session: early, report: ranker_report("r", &[("m", "r1")]) })
        .unwrap();
    assert_eq!(effects, [Effect::Persist, Effect::PublishMap]);
    let late = run.session();
    run.step(Event::RankerReported { session: late, report: ranker_report("late", &[]) }).unwrap();
    run.promote("m", "r1").unwrap();
}

#[test]
fn a_failed_partition_is_named_with_its_reason() {
    let (mut run, nodes) = four_nodes();
    run.publish("m", "r1", &[table("user", "v1")]).unwrap();
    let (node, session) = nodes[0];
    let assignment = run.state.map().assignment(&node_id(node));
    let bad = report(node, &assignment, |_| PartitionState::Failed("block 3 is corrupt".into()));
    run.step(Event::NodeReported { session, report: bad }).unwrap();
    let words = run.waiting_for("m", "r1").join("\n");
    assert!(words.contains("node a-1 has 0 of 4 partitions of user@v1 ready (partition "), "{words}");
    assert!(words.contains("failed: block 3 is corrupt") && words.contains("and 1 more"), "{words}");
}

#[test]
fn names_stand_for_one_content() {
    let (mut run, _) = four_nodes();
    let users = table("user", "v1");
    run.publish("m", "r1", std::slice::from_ref(&users)).unwrap();
    assert_eq!(run.publish("m", "r1", std::slice::from_ref(&users)), Ok(vec![]), "again is nothing");
    let mut other = manifest("m", "r1", std::slice::from_ref(&users));
    other.model_onnx_hash = "another".into();
    let event =
        Event::PublishRelease { manifest: other, tables: vec![artifact(&users, 3)], by: String::new() };
    let what = |what: &str| Err(StepError::AnotherContent { what: what.into() });
    assert_eq!(run.step(event), what("release m@r1"));
    let mut table_again = artifact(&users, 3);
    table_again.manifest_hash = "another".into();
    assert_eq!(run.step(Event::ServeTable { table: table_again.clone() }), what("table user@v1"));
    assert_eq!(run.step(Event::ServeTable { table: artifact(&users, 2) }), what("table user@v1"));
    let event = Event::PublishRelease {
        manifest: manifest("m", "r2", std::slice::from_ref(&users)),
        tables: vec![table_again],
        by: String::new(),
    };
    assert!(matches!(run.step(event), Err(StepError::OtherTable { table, .. }) if table == users));
}

#[test]
fn tables_are_served_on_their_own_account_or_because_a_release_pins_them() {
    let (mut run, _) = four_nodes();
    let (users, items) = (table("user", "v1"), table("item", "v1"));
    let stop = |table: &TableVersion| Event::StopTable { table_version: table.clone() };
    assert!(matches!(run.step(stop(&users)), Err(StepError::NotFound { what }) if what == "table user@v1"));
    for table in [&users, &items] {
        run.step(Event::ServeTable { table: artifact(table, 3) }).unwrap();
    }
    assert_eq!(run.step(Event::ServeTable { table: artifact(&users, 3) }), Ok(vec![]), "again is nothing");
    run.publish("m", "r1", std::slice::from_ref(&users)).unwrap();
    assert_eq!(run.step(stop(&items)), Ok(vec![Effect::Persist]));
    assert_eq!(run.step(stop(&items)), Ok(vec![]), "it is leaving already");
    assert_eq!(run.step(stop(&users)), Ok(vec![Effect::Persist]), "the release keeps it");
    assert_eq!(run.pass(4), []);
    assert_eq!(run.pass(1), [Effect::Persist, Effect::PublishMap]);
    let refused = run.step(stop(&users)).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Conflict);
    assert!(refused.to_string().contains("release m@r1"));
    assert!(run.state.map().layout(&users).is_some() && run.state.map().layout(&items).is_none());
}

#[test]
fn a_name_belongs_to_one_process_at_a_time() {
    let mut run = Run::new();
    let first = run.join("a-1");
    let again = run.join("a-1");
    run.step(Event::NodeGone { node: node_id("a-1"), session: first }).unwrap();
    assert!(run.state.map().nodes[&node_id("a-1")].up, "the newer session has taken over");
    let empty = |node| report(node, &Assignment::default(), |_| PartitionState::Ready);
    let stale = run.step(Event::NodeReported { session: first, report: empty("a-1") });
    assert_eq!(stale, Err(StepError::Superseded { name: name("a-1") }));
    let mut elsewhere = empty("a-1");
    elsewhere.grpc_address = "other:1".into();
    let session = run.session();
    let event = Event::NodeReported { session, report: elsewhere };
    let refused = run.step(event.clone()).unwrap_err().to_string();
    assert!(refused.contains("a-1:7410") && refused.contains("other:1"), "{refused}");
    run.step(Event::NodeGone { node: node_id("a-1"), session: again }).unwrap();
    run.step(event).unwrap();
    assert_eq!(run.state.map().nodes[&node_id("a-1")].grpc_address, "other:1");
}

#[test]
fn a_node_with_partitions_cannot_change_its_group() {
    let mut run = Run::new();
    let session = run.join("a-1");
    let mut moved = report("a-1", &Assignment::default(), |_| PartitionState::Ready);
    moved.group = name("b");
    run.step(Event::NodeReported { session, report: moved.clone() }).unwrap();
    run.step(Event::ServeTable { table: artifact(&table("user", "v1"), 0) }).unwrap();
    run.pass(1);
    moved.group = name("a");
    let refused = run.step(Event::NodeReported { session, report: moved }).unwrap_err();
    assert!(matches!(refused, StepError::GroupChanged { group, .. } if group == name("b")));
}

#[test]
fn after_a_restart_nodes_have_a_grace_to_come_back() {
    let (mut run, nodes) = four_nodes();
    run.publish("m", "r1", &[table("user", "v1")]).unwrap();
    run.restart();
    assert_eq!(run.promote("m", "r1").unwrap_err().code(), ErrorCode::Conflict);
    for (node, _) in &nodes[..3] {
        let session = run.session();
        run.ready(node, session);
    }
    assert_eq!(run.state.next_deadline(), Some(run.now + SETTINGS.reconnect_grace));
    assert_eq!(run.pass(9), []);
    assert!(run.state.map().nodes.values().all(|n| n.up));
    assert_eq!(run.pass(1), [Effect::Persist, Effect::PublishMap]);
    assert!(!run.state.map().nodes[&node_id("b-2")].up);
    let session = run.session();
    run.ready("b-2", session);
    assert_eq!(run.release("m", "r1"), Some(ReleaseState::Ready));
}

#[test]
fn quotas_are_kept_and_sent_out_and_the_map_stays() {
    let (mut run, _) = four_nodes();
    let map = run.state.map().clone();
    let rows = |rows| Quota { rows_per_second: Some(rows), bytes_per_second: None };
    let set = |tenant: Option<&str>, quota| Event::SetQuota { tenant: tenant.map(name), quota };
    let remove = |tenant: Option<&str>| Event::RemoveQuota { tenant: tenant.map(name) };
    let published = [Effect::Persist, Effect::PublishQuotas];
    assert_eq!(run.step(set(Some("ads"), rows(10))).unwrap(), published);
    assert_eq!(run.step(set(Some("ads"), rows(10))), Ok(vec![]), "again is nothing");
    assert_eq!(run.step(set(Some("ads"), rows(20))).unwrap(), published);
    assert_eq!(run.step(set(None, rows(5))).unwrap(), published);
    let quotas = &run.state.durable.quotas;
    assert_eq!(quotas.rule(Some(&name("ads"))), Some(rows(20)));
    assert_eq!((quotas.rule(Some(&name("feed"))), quotas.rule(None)), (None, Some(rows(5))));
    for quota in [Quota::default(), rows(0)] {
        assert_eq!(run.step(set(Some("ads"), quota)).unwrap_err().code(), ErrorCode::InvalidRequest);
    }
    let error = run.step(remove(Some("feed"))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(error.to_string().contains("quota of tenant feed"), "{error}");
    assert_eq!(run.step(remove(Some("ads"))).unwrap(), published);
    assert_eq!(run.step(remove(None)).unwrap(), published);
    assert_eq!(run.step(remove(None)).unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(run.state.durable.quotas, Quotas::default());
    assert_eq!(run.state.map(), &map, "clients need not hear of it");
}

#[test]
fn quotas_are_bounded_in_number() {
    let mut run = Run::new();
    let quota = Quota { rows_per_second: Some(1), bytes_per_second: None };
    let tenants = (0..Quotas::MAX_TENANTS).map(|n| (name(&format!("t{n}")), quota)).collect();
    run.state.durable =
        Arc::new(Durable { quotas: Quotas { default: None, tenants }, ..Durable::clone(&run.state.durable) });
    let set = |tenant| Event::SetQuota { tenant: Some(name(tenant)), quota };
    assert_eq!(run.step(set("one-more")), Err(StepError::TooManyQuotas));
    assert!(run.step(set("t7")).is_ok());
}
