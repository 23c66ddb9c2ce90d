//! What is not as it should be is told: what, how bad it is, and what to do.

use super::{steps::four_nodes, *};
use crate::{Gravity, ScoreHistogram, Serving, ShadowTally, Tally};

fn told(run: &Run) -> Vec<(Gravity, String)> {
    let problems = run.state.problems();
    assert!(problems.iter().all(|p| !p.todo.is_empty()), "{problems:?}");
    assert!(problems.is_sorted_by_key(|p| p.gravity), "the worst first: {problems:?}");
    problems.into_iter().map(|p| (p.gravity, p.what)).collect()
}

#[test]
fn a_cluster_as_it_should_be_has_none_and_what_is_on_its_way_is_waited_for() {
    let (mut run, nodes) = four_nodes();
    assert_eq!(told(&run), []);
    run.publish("m", "r1", &[table("user", "r1")]).unwrap();
    let waiting = told(&run);
    assert!(waiting.iter().any(|(g, what)| *g == Gravity::Waiting && what.contains("m@r1 is not loaded")));
    assert!(waiting.iter().all(|(gravity, _)| *gravity >= Gravity::Undecided), "{waiting:?}");
    nodes.iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    let ready = told(&run);
    assert_eq!(ready.len(), 1, "{ready:?}");
    assert!(ready[0].0 == Gravity::Undecided && ready[0].1.contains("no release of model m is current"));
    run.promote("m", "r1").unwrap();
    assert_eq!(told(&run), []);
}

#[test]
fn a_node_that_is_down_is_a_copy_less_and_both_are_a_gap() {
    let (mut run, nodes) = four_nodes();
    run.publish("m", "r1", &[table("user", "r1")]).unwrap();
    nodes.iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    run.promote("m", "r1").unwrap();
    let gone = |run: &mut Run, (node, session): (&str, SessionId)| {
        run.step(Event::NodeGone { node: node_id(node), session }).unwrap();
    };
    gone(&mut run, nodes[0]);
    let one = told(&run);
    assert_eq!((one.len(), one[0].0), (1, Gravity::Exposed), "{one:?}");
    assert!(one[0].1.contains(nodes[0].0) && one[0].1.contains("a copy less"), "{one:?}");
    nodes[1..].iter().for_each(|node| gone(&mut run, *node));
    let all = told(&run);
    assert!(all[0].0 == Gravity::Failing && all[0].1.contains("are ready on no node"), "{all:?}");
    assert_eq!(all.len(), 5, "{all:?}");
}

#[test]
fn a_partition_that_failed_is_told_with_its_reason() {
    let (mut run, nodes) = four_nodes();
    run.publish("m", "r1", &[table("user", "r1")]).unwrap();
    nodes.iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    run.promote("m", "r1").unwrap();
    let (node, session) = nodes[2];
    let held = run.state.map().assignment(&node_id(node));
    let report = report(node, &held, |_| PartitionState::Failed("disk full".into()));
    run.step(Event::NodeReported { session, report }).unwrap();
    let problems = told(&run);
    assert_eq!((problems.len(), problems[0].0), (1, Gravity::Exposed), "{problems:?}");
    assert!(problems[0].1.contains(node) && problems[0].1.contains("disk full"), "{problems:?}");
}

#[test]
fn halted_ramps_and_rankers_that_went_back_by_themselves_want_a_decision() {
    let (mut run, nodes) = four_nodes();
    for release in ["r1", "r2"] {
        run.publish("m", release, &[table("user", release)]).unwrap();
        nodes.iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    }
    run.promote("m", "r1").unwrap();
    run.ramp("m", &[("r2", 500)]).unwrap();
    let session = run.session();
    let tally =
        |errors| Tally { requests: 5_000, errors, scores: ScoreHistogram::default(), ..Tally::default() };
    let mut counted = ranker_report("r", &[("m", "r1"), ("m", "r2")]);
    let serving = |chosen| Some(Serving { since: 1, chosen, shadow: ShadowTally::default() });
    for (release, chosen) in counted.releases.iter_mut().zip([Tally::default(), Tally::default()]) {
        release.serving = serving(chosen);
    }
    run.step(Event::RankerReported { session, report: counted.clone() }).unwrap();
    counted.releases[0].serving = serving(tally(0));
    counted.releases[1].serving = serving(tally(4_000));
    counted.rolled_back = vec![name("m")];
    run.step(Event::RankerReported { session, report: counted.clone() }).unwrap();
    let problems = told(&run);
    assert!(problems.iter().all(|(gravity, _)| *gravity == Gravity::Undecided), "{problems:?}");
    assert!(problems.iter().any(|(_, what)| what.contains("m@r2 was halted by its guards")), "{problems:?}");
    assert!(problems.iter().any(|(_, what)| what.contains("ranker r was rolled back by itself")));
    counted.releases[0] =
        RankerRelease { ready: false, problem: "no memory".into(), ..counted.releases[0].clone() };
    run.step(Event::RankerReported { session, report: counted }).unwrap();
    let problems = told(&run);
    assert!(problems[0].0 == Gravity::Failing && problems[0].1.contains("no memory"), "{problems:?}");
}
