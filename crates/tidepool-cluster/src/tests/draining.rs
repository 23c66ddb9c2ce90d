//! Traffic leaves nodes, and what waits for them.

use tidepool_types::ErrorCode;

use super::{steps::four_nodes, *};
use crate::EventKind;

/// Model `m` with r1 current, on two groups of two nodes.
fn served() -> (Run, [(&'static str, SessionId); 4]) {
    let (mut run, nodes) = four_nodes();
    run.publish("m", "r1", &[table("user", "r1")]).unwrap();
    nodes.iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    run.promote("m", "r1").unwrap();
    (run, nodes)
}

#[test]
fn a_group_drains_while_the_other_has_everything() {
    let (mut run, nodes) = served();
    let placed = run.state.map().layouts.clone();
    assert_eq!(run.drain(&["a-1", "a-2"], true, false), Ok(vec![Effect::Persist, Effect::PublishMap]));
    assert_eq!(run.drain(&["a-1", "a-2"], true, false), Ok(vec![]), "again is nothing");
    assert_eq!(run.state.map().layouts, placed, "they keep what they have");
    // A report changes nothing about it, nor does a restart.
    run.ready("a-1", nodes[0].1);
    run.restart();
    assert!(run.state.map().nodes[&node_id("a-1")].draining);
    let sessions = ["a-1", "a-2", "b-1", "b-2"].map(|node| (node, run.join(node)));
    sessions.iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    run.pass(10);
    let refused = run.drain(&["b-1"], true, false).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Conflict);
    let said = refused.to_string();
    assert!(
        said.contains("b-1: nobody else that is up and not draining has 4 of the 4 partitions of user@r1"),
        "{said}"
    );
    run.drain(&["b-1"], true, true).unwrap();
    assert!(!run.state.only_on(&[node_id("b-1")].into()).is_empty());
    run.drain(&["a-1", "a-2", "b-1"], false, false).unwrap();
    assert!(run.state.map().nodes.values().all(|node| !node.draining));
    assert!(matches!(run.drain(&["c-1"], true, false), Err(StepError::NotFound { .. })));
    let events: Vec<_> = run.state.durable.events.after(0).collect();
    let drained = events.iter().filter(|event| event.kind == EventKind::Drained);
    assert!(
        drained.clone().any(|event| event.why.starts_with("though nobody else has 4 of the 4")),
        "{events:?}"
    );
    assert_eq!((drained.count(), events.iter().filter(|e| e.kind == EventKind::Undrained).count()), (3, 3));
}

#[test]
fn a_node_that_is_down_elsewhere_keeps_one_from_draining() {
    let (mut run, nodes) = served();
    run.step(Event::NodeGone { node: node_id("b-1"), session: nodes[2].1 }).unwrap();
    assert!(matches!(run.drain(&["a-1", "a-2"], true, false), Err(StepError::OnlyThere { .. })));
    // One that is down serves nothing that could be missed.
    run.drain(&["b-1"], true, false).unwrap();
}

#[test]
fn a_draining_node_gets_nothing_new_and_nobody_waits_for_it() {
    let (mut run, nodes) = served();
    run.drain(&["a-1", "a-2", "b-1"], true, true).unwrap();
    run.publish("m", "r2", &[table("user", "r2")]).unwrap();
    for (node, parts) in [("a-1", 0), ("a-2", 0), ("b-1", 0), ("b-2", 8)] {
        let tables = run.state.map().assignment(&node_id(node)).tables;
        let of_r2 = tables.iter().filter(|t| t.schema.table_version == table("user", "r2"));
        assert_eq!(of_r2.map(|t| t.partitions.len()).sum::<usize>(), parts, "{node}");
    }
    assert_eq!(run.waiting_for("m", "r2"), ["node b-2 has 0 of 8 partitions of user@r2 ready"]);
    run.ready("b-2", nodes[3].1);
    assert_eq!(run.release("m", "r2"), Some(ReleaseState::Ready));
    // It gets its copy when it is back.
    run.drain(&["a-1", "a-2", "b-1"], false, false).unwrap();
    assert_eq!(run.state.map().assignment(&node_id("a-1")).tables.len(), 2);
}

#[test]
fn a_draining_node_that_goes_down_is_no_news() {
    let (mut run, nodes) = four_nodes();
    run.publish("m", "r1", &[table("user", "r1")]).unwrap();
    nodes[1..].iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    assert_eq!(run.waiting_for("m", "r1"), ["node a-1 has 0 of 4 partitions of user@r1 ready"]);
    // It has nothing ready, so that nobody would miss it.
    run.drain(&["a-1"], true, false).unwrap();
    assert_eq!(run.release("m", "r1"), Some(ReleaseState::Ready));
    run.step(Event::NodeGone { node: node_id("a-1"), session: nodes[0].1 }).unwrap();
    assert_eq!(run.waiting_for("m", "r1"), Vec::<String>::new());
    run.promote("m", "r1").unwrap();
}
