//! States made anew.

use super::*;
use crate::{Remains, rebuild};

/// What the store has of a run's tables and releases.
fn remains(tables: &[TableVersion], manifests: Vec<ReleaseManifest>) -> Remains {
    Remains { tables: tables.iter().map(|t| artifact(t, 2)).collect(), manifests }
}

#[test]
fn what_is_reported_stays_where_it_is_and_the_rest_gets_a_place() {
    let users = table("user", "v1");
    let mut run = Run::new();
    let holds = |node: &str, partitions: &[u32]| {
        let schema = artifact(&users, 2).schema;
        let tables = vec![crate::TableAssignment {
            schema,
            partitions: partitions.iter().map(|p| tidepool_types::PartitionIndex(*p)).collect(),
        }];
        let assignment = Assignment { epoch: Epoch(41), tables, ..Assignment::default() };
        report(node, &assignment, |_| PartitionState::Ready)
    };
    for (node, partitions) in [("a-1", &[0, 2][..]), ("a-2", &[1]), ("b-1", &[])] {
        let session = run.session();
        run.step(Event::NodeReported { session, report: holds(node, partitions) }).unwrap();
    }
    let made = rebuild(&run.state, &remains(std::slice::from_ref(&users), Vec::new()));
    assert_eq!(made.tables, [(users.clone(), 4, 3)]);
    let placement = &made.durable.map.layout(&users).unwrap().placement;
    let nodes: Vec<_> = placement.groups["a"].iter().map(ToString::to_string).collect();
    assert_eq!(
        nodes,
        ["a-1", "a-2", "a-1", "a-2"],
        "the one that nobody reports goes to the node with fewer"
    );
    assert!(!placement.groups.contains_key("b"), "a group with nothing of it is placed as a new one is");
    assert!(made.durable.served.contains(&users), "no release pins it");
    assert_eq!(made.durable.map.epoch.incarnation(), 1, "nodes hold epoch 41 of incarnation 0");
    made.durable.map.validate().unwrap();

    let (next, effects) = step(
        &run.state,
        Event::Rebuild { remains: remains(std::slice::from_ref(&users), Vec::new()) },
        run.now,
    )
    .unwrap();
    assert!(effects.contains(&Effect::Persist) && effects.contains(&Effect::PublishMap));
    assert!(next.map().epoch > Epoch(41) && next.map().epoch.incarnation() == 1);
    let (again, _) = step(&next, Event::Rebuild { remains: remains(&[users], Vec::new()) }, run.now).unwrap();
    assert_eq!(again.map().epoch.incarnation(), 2, "each is newer than the one before");
}

#[test]
fn releases_come_back_as_most_rankers_know_them_and_at_most_one_is_current() {
    let users = table("user", "v1");
    let mut run = Run::new();
    let said = |ranker: &str, states: [ReleaseState; 2]| {
        let mut report = ranker_report(ranker, &[("m", "r1"), ("m", "r2")]);
        for (release, state) in report.releases.iter_mut().zip(states) {
            release.state = Some(state);
        }
        report
    };
    use ReleaseState::{Current, Previous, Ready};
    for (ranker, states) in [("x", [Current, Ready]), ("y", [Previous, Current]), ("z", [Previous, Current])]
    {
        let session = run.session();
        run.step(Event::RankerReported { session, report: said(ranker, states) }).unwrap();
    }
    let manifests = || ["r1", "r2"].map(|r| manifest("m", r, std::slice::from_ref(&users))).to_vec();
    let made = rebuild(&run.state, &remains(std::slice::from_ref(&users), manifests()));
    let states: Vec<_> = made.durable.map.releases.iter().map(|r| r.state).collect();
    assert_eq!(states, [Previous, Current]);
    assert!(made.durable.served.is_empty(), "releases pin it");
    // Two that are both known as current, by one vote each.
    let session = run.session();
    run.step(Event::RankerReported { session, report: said("y", [Current, Current]) }).unwrap();
    let made = rebuild(&run.state, &remains(std::slice::from_ref(&users), manifests()));
    let current = made.durable.map.releases.iter().filter(|r| r.state == Current).count();
    assert_eq!(current, 1);
    assert!(made.problems.iter().any(|p| p.contains("two current releases")), "{:?}", made.problems);
    // A release whose table is gone cannot come back.
    let made = rebuild(&run.state, &remains(&[], manifests()));
    assert!(made.durable.map.releases.is_empty());
    assert_eq!(made.problems.iter().filter(|p| p.contains("not all tables")).count(), 2);
}

#[test]
fn an_older_assignment_is_told_by_incarnation_term_and_epoch() {
    let of = |epoch: Epoch, term| Assignment { epoch, term, ..Assignment::default() };
    let epoch = |incarnation, count: u64| Epoch(Epoch::before(incarnation).0 + count);
    let ascending = [of(epoch(0, 9), 3), of(epoch(0, 9), 4), of(epoch(0, 10), 4), of(epoch(1, 1), 1)];
    for (at, held) in ascending.iter().enumerate() {
        for (before, assignment) in ascending.iter().enumerate() {
            assert_eq!(assignment.is_older_than(held), before < at, "{assignment:?} after {held:?}");
        }
    }
    // A state that was lost begins with a first epoch, and has a large term once its controller was started often.
    assert!(of(epoch(0, 3), 9).is_older_than(&of(epoch(0, 500), 2)));
}
