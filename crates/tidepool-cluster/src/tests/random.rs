//! Random runs: whatever happens in whatever order, [`check_step`](super::check_step) holds.
//!
//! A failure prints its events and leaves its seed in `proptest-regressions`, from which it replays.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NODES: [&str; 5] = ["a-1", "a-2", "a-3", "b-1", "b-2"];
const TABLES: [&str; 3] = ["user", "item", "genre"];

#[derive(Clone, Debug)]
enum Action {
    /// A node opens a session.
    Join(usize),
    /// A node's session ends; the older one of two is told too late.
    Leave {
        node: usize,
        late: bool,
    },
    /// A node reports; of what it should hold, the partitions whose bit is set are ready.
    Report {
        node: usize,
        ready: u8,
    },
    /// A ranker reports, all releases of the map ready or none.
    Rank {
        ranker: usize,
        ready: bool,
    },
    RankerLeaves(usize),
    Publish {
        model: usize,
        release: usize,
        tables: u8,
        version: usize,
    },
    Promote {
        model: usize,
        release: usize,
    },
    Serve {
        table: usize,
        version: usize,
        serve: bool,
    },
    Pass {
        milliseconds: u64,
    },
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0..NODES.len()).prop_map(Action::Join),
        1 => (0..NODES.len(), any::<bool>()).prop_map(|(node, late)| Action::Leave { node, late }),
        8 => (0..NODES.len(), prop_oneof![4 => Just(0xff), 1 => any::<u8>()])
            .prop_map(|(node, ready)| Action::Report { node, ready }),
        2 => (0..2usize, any::<bool>()).prop_map(|(ranker, ready)| Action::Rank { ranker, ready }),
        1 => (0..2usize).prop_map(Action::RankerLeaves),
        3 => (0..2usize, 0..4usize, 0u8..8, 0..2usize)
            .prop_map(|(model, release, tables, version)| Action::Publish { model, release, tables, version }),
        3 => (0..2usize, 0..4usize).prop_map(|(model, release)| Action::Promote { model, release }),
        1 => (0..TABLES.len(), 0..2usize, any::<bool>())
            .prop_map(|(table, version, serve)| Action::Serve { table, version, serve }),
        2 => (0u64..3000).prop_map(|milliseconds| Action::Pass { milliseconds }),
        1 => Just(Action::Restart),
    ]
}

/// The processes around the controller.
#[derive(Default)]
struct World {
    nodes: BTreeMap<&'static str, SessionId>,
    rankers: BTreeMap<String, SessionId>,
}

impl World {
    fn act(&mut self, run: &mut Run, action: Action) {
        match action {
            Action::Join(node) => {
                let session = run.join(NODES[node]);
                self.nodes.insert(NODES[node], session);
            }
            Action::Leave { node, late } => {
                let Some(session) = self.nodes.get(NODES[node]).copied() else { return };
                if late {
                    let again = run.join(NODES[node]);
                    self.nodes.insert(NODES[node], again);
                } else {
                    self.nodes.remove(NODES[node]);
                }
                run.step(Event::NodeGone { node: node_id(NODES[node]), session }).unwrap();
                assert_eq!(run.state.map().nodes[&node_id(NODES[node])].up, late);
            }
            Action::Report { node, ready } => {
                let Some(session) = self.nodes.get(NODES[node]).copied() else { return };
                let assignment = run.state.map().assignment(&node_id(NODES[node]));
                let report = report(NODES[node], &assignment, |p| match ready >> (p % 8) & 1 {
                    1 => PartitionState::Ready,
                    _ => PartitionState::Loading,
                });
                run.step(Event::NodeReported { session, report }).unwrap();
            }
            Action::Rank { ranker, ready } => {
                let name = format!("ranker-{ranker}");
                let session = *self.rankers.entry(name.clone()).or_insert_with(|| run.session());
                let map = run.state.map().clone();
                let all = map.releases.iter().map(|r| (r.model.as_str(), r.release.as_str()));
                let ready: Vec<_> = all.filter(|_| ready).collect();
                let report = ranker_report(&name, &ready);
                run.step(Event::RankerReported { session, report }).unwrap();
            }
            Action::RankerLeaves(ranker) => {
                let text = format!("ranker-{ranker}");
                if let Some(session) = self.rankers.remove(&text) {
                    run.step(Event::RankerGone { ranker: name(&text), session }).unwrap();
                }
            }
            Action::Publish { model, release, tables, version } => {
                let pinned = (0..TABLES.len()).filter(|at| tables >> at & 1 == 1);
                let tables: Vec<_> = pinned.map(|at| table(TABLES[at], &format!("v{version}"))).collect();
                let known = run.state.durable.manifest(&model_name(model), &release_name(release)).cloned();
                let published = run.publish(&model_name(model), &release_name(release), &tables);
                match known {
                    Some(known) if known.tables == tables => assert_eq!(published, Ok(vec![])),
                    Some(_) => assert!(matches!(published, Err(StepError::AnotherContent { .. }))),
                    None => assert!(published.is_ok()),
                }
            }
            Action::Promote { model, release } => {
                let (model, release) = (model_name(model), release_name(release));
                let before = run.release(&model, &release);
                match run.promote(&model, &release) {
                    Ok(_) => {
                        assert!(before.is_some_and(|b| b != ReleaseState::Loading));
                        assert_eq!(run.release(&model, &release), Some(ReleaseState::Current));
                    }
                    Err(StepError::NotFound { .. }) => assert_eq!(before, None),
                    Err(StepError::NotReady { waiting_for, .. }) => assert!(!waiting_for.is_empty()),
                    Err(other) => panic!("{other}"),
                }
            }
            Action::Serve { table: at, version, serve } => {
                let table = table(TABLES[at], &format!("v{version}"));
                if serve {
                    run.step(Event::ServeTable { table: artifact(&table, 3) }).unwrap();
                    assert!(run.state.map().layout(&table).is_some());
                } else {
                    let served = run.state.durable.served.contains(&table);
                    let stopped = run.step(Event::StopTable { table_version: table.clone() });
                    assert_eq!(stopped.is_ok(), served);
                    assert!(!run.state.durable.served.contains(&table));
                }
            }
            Action::Pass { milliseconds } => {
                run.now += Duration::from_millis(milliseconds);
                run.step(Event::Tick).unwrap();
                assert!(run.state.next_deadline().is_none_or(|at| at > run.now), "a tick does what is due");
            }
            Action::Restart => {
                run.restart();
                *self = Self::default();
            }
        }
        assert_eq!(run.step(Event::Tick), Ok(vec![]), "nothing is left to do at once");
    }
}

fn model_name(at: usize) -> String {
    format!("model-{at}")
}

fn release_name(at: usize) -> String {
    format!("r{at}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_in_any_run(actions in prop::collection::vec(action(), 1..120)) {
        let (mut run, mut world) = (Run::new(), World::default());
        for action in actions {
            world.act(&mut run, action);
        }
        // Whatever happened: when every node is back and has loaded, and no ranker is in the way, every
        // release that is left can be promoted.
        run.restart();
        for node in NODES {
            run.join(node);
        }
        run.pass(20);
        for node in NODES {
            let session = run.session();
            run.ready(node, session);
        }
        for release in run.state.map().releases.clone() {
            prop_assert_eq!(run.state.waiting_for(&release), Vec::<String>::new());
            prop_assert_ne!(release.state, ReleaseState::Loading);
        }
    }
}
