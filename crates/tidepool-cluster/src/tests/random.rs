//! Random runs: whatever happens in whatever order, [`check_step`](super::check_step) holds.
//!
//! A failure prints its events and leaves its seed in `proptest-regressions`, from which it replays.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidepool_types::ErrorCode;

use super::*;
use crate::{Serving, Tally};

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
    /// A ranker reports, all releases of the map ready or none; it works by a map that is so many epochs old, if it
    /// has not told of a newer one.
    Rank {
        ranker: usize,
        ready: bool,
        behind: u64,
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
    /// A release gets a share, or loses it.
    Ramp {
        model: usize,
        release: usize,
        share: u32,
    },
    Shadow {
        model: usize,
        release: usize,
        sample: u32,
    },
    Rollback {
        model: usize,
        release: Option<usize>,
    },
    Retire {
        model: usize,
        release: usize,
    },
    Pin {
        model: usize,
        release: usize,
        pinned: bool,
    },
    Drain {
        node: usize,
        draining: bool,
        force: bool,
    },
    /// A ranker reports that all requests of a release have failed, or all were answered.
    Count {
        model: usize,
        release: usize,
        failed: bool,
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
        3 => (0..2usize, any::<bool>(), prop_oneof![3 => Just(0u64), 1 => 0u64..8])
            .prop_map(|(ranker, ready, behind)| Action::Rank { ranker, ready, behind }),
        1 => (0..2usize).prop_map(Action::RankerLeaves),
        3 => (0..2usize, 0..4usize, 0u8..8, 0..2usize)
            .prop_map(|(model, release, tables, version)| Action::Publish { model, release, tables, version }),
        3 => (0..2usize, 0..4usize).prop_map(|(model, release)| Action::Promote { model, release }),
        4 => (0..2usize, 0..4usize, prop_oneof![1 => Just(0), 3 => 1..=BUCKETS])
            .prop_map(|(model, release, share)| Action::Ramp { model, release, share }),
        1 => (0..2usize, 0..4usize, prop_oneof![Just(0), 1..=BUCKETS])
            .prop_map(|(model, release, sample)| Action::Shadow { model, release, sample }),
        1 => (0..2usize, prop::option::of(0..4usize))
            .prop_map(|(model, release)| Action::Rollback { model, release }),
        1 => (0..2usize, 0..4usize).prop_map(|(model, release)| Action::Retire { model, release }),
        1 => (0..2usize, 0..4usize, any::<bool>())
            .prop_map(|(model, release, pinned)| Action::Pin { model, release, pinned }),
        1 => (0..NODES.len(), any::<bool>(), any::<bool>())
            .prop_map(|(node, draining, force)| Action::Drain { node, draining, force }),
        3 => (0..2usize, 0..4usize, any::<bool>())
            .prop_map(|(model, release, failed)| Action::Count { model, release, failed }),
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
    /// The map that each ranker works by.
    epochs: BTreeMap<String, Epoch>,
    /// What the first ranker has counted, by release.
    counted: BTreeMap<(String, String), Tally>,
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
            Action::Rank { ranker, ready, behind } => {
                let name = format!("ranker-{ranker}");
                let session = *self.rankers.entry(name.clone()).or_insert_with(|| run.session());
                let map = run.state.map().clone();
                let all = map.releases.iter().map(|r| (r.model.as_str(), r.release.as_str()));
                let ready: Vec<_> = all.filter(|_| ready).collect();
                let mut report = ranker_report(&name, &ready);
                let epoch = self.epochs.entry(name).or_default();
                *epoch = (*epoch).max(Epoch(map.epoch.0.saturating_sub(behind)));
                report.epoch = *epoch;
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
                let state = run.release(&model_name(model), &release_name(release));
                let published = run.publish(&model_name(model), &release_name(release), &tables);
                match known {
                    _ if state == Some(ReleaseState::Retiring) => {
                        assert!(matches!(published, Err(StepError::Retiring { .. })));
                    }
                    Some(known) if known.tables == tables => assert_eq!(published, Ok(vec![])),
                    Some(_) => assert!(matches!(published, Err(StepError::AnotherContent { .. }))),
                    None => assert!(published.is_ok()),
                }
            }
            Action::Promote { model, release } => {
                let (model, release) = (model_name(model), release_name(release));
                let (before, map) = (run.release(&model, &release), run.state.map().clone());
                match run.promote(&model, &release) {
                    Ok(_) => {
                        assert!(before.is_some_and(|b| b != ReleaseState::Loading));
                        assert_eq!(run.release(&model, &release), Some(ReleaseState::Current));
                        if before != Some(ReleaseState::Current) {
                            assert_eq!(run.state.map().traffic.get(model.as_str()), None);
                            check_undone(run, &map, &model);
                        }
                    }
                    Err(StepError::NotFound { .. }) => assert_eq!(before, None),
                    Err(StepError::NotReady { waiting_for, .. }) => assert!(!waiting_for.is_empty()),
                    Err(StepError::Halted { .. }) => assert_eq!(run.share(&model, &release), 0),
                    Err(StepError::Retiring { .. }) => assert_eq!(before, Some(ReleaseState::Retiring)),
                    Err(other) => panic!("{other}"),
                }
            }
            Action::Ramp { .. }
            | Action::Shadow { .. }
            | Action::Rollback { .. }
            | Action::Retire { .. }
            | Action::Pin { .. }
            | Action::Count { .. } => self.give_traffic(run, action),
            Action::Drain { node, draining, force } => {
                let was = run.state.is_draining(&node_id(NODES[node]));
                match run.drain(&[NODES[node]], draining, force) {
                    Ok(_) => assert_eq!(run.state.is_draining(&node_id(NODES[node])), draining),
                    Err(StepError::NotFound { .. }) => assert!(!was),
                    Err(StepError::OnlyThere { .. }) => assert!(draining && !force && !was),
                    Err(other) => panic!("{other}"),
                }
            }
            Action::Serve { table: at, version, serve } => {
                let table = table(TABLES[at], &format!("v{version}"));
                if serve {
                    run.step(Event::ServeTable { table: artifact(&table, 3) }).unwrap();
                    assert!(run.state.map().layout(&table).is_some());
                } else {
                    let leaver = Leaver::Table(table.clone());
                    let served = run.state.durable.served.contains(&table)
                        || run.state.observed.leaving.contains_key(&leaver);
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

    /// Who is answered by which release, and what is counted of it.
    fn give_traffic(&mut self, run: &mut Run, action: Action) {
        match action {
            Action::Ramp { model, release, share } => {
                let (model, release) = (model_name(model), release_name(release));
                match run.ramp(&model, &[(&release, share)]) {
                    Ok(_) => assert_eq!(run.share(&model, &release), share),
                    Err(error) => assert_ne!(error.code(), ErrorCode::InvalidRequest, "{error}"),
                }
            }
            Action::Shadow { model, release, sample } => {
                let _ = run.shadow(&model_name(model), &release_name(release), sample);
            }
            Action::Rollback { model, release } => {
                let (model, release) = (model_name(model), release.map(release_name));
                let before = run.state.map().current_release(&model).map(|r| r.release.clone());
                let arms = run.state.map().traffic.get(model.as_str()).is_some_and(|t| !t.arms.is_empty());
                if run.rollback(&model, release.as_deref()).is_ok() {
                    let after = run.state.map().current_release(&model).map(|r| r.release.clone());
                    if release.is_none() {
                        assert_eq!(arms, after == before, "one step, not two");
                    }
                    assert_eq!(run.share(&model, release.as_deref().unwrap_or("r0")), 0);
                }
            }
            Action::Retire { model, release } => {
                let (model, release) = (model_name(model), release_name(release));
                let (state, share) = (run.release(&model, &release), run.share(&model, &release));
                let pinned = run.state.map().release(&model, &release).is_some_and(|r| r.pinned);
                if run.retire(&model, &release).is_ok() {
                    assert_eq!((run.release(&model, &release), share), (Some(ReleaseState::Retiring), 0));
                    assert!(state != Some(ReleaseState::Current) && !pinned);
                    assert_eq!(run.retire(&model, &release), Ok(vec![]), "again is nothing");
                }
            }
            Action::Pin { model, release, pinned } => {
                let (model, release) = (model_name(model), release_name(release));
                if run.pin(&model, &release, pinned).is_ok() {
                    assert_eq!(run.state.map().release(&model, &release).unwrap().pinned, pinned);
                }
            }
            Action::Count { model, release, failed } => {
                let Some(session) = self.rankers.get("ranker-0").copied() else { return };
                let (model, release) = (model_name(model), release_name(release));
                let counted = self.counted.entry((model, release)).or_default();
                counted.requests += 300;
                counted.errors += if failed { 300 } else { 0 };
                let mut report = ranker_report("ranker-0", &[]);
                report.epoch = self.epochs.get("ranker-0").copied().unwrap_or_default();
                report.releases = (self.counted.iter())
                    .map(|((model, release), chosen)| RankerRelease {
                        model: name(model),
                        release: name(release),
                        ready: true,
                        state: None,
                        problem: String::new(),
                        serving: Some(Serving { chosen: chosen.clone(), ..Serving::default() }),
                    })
                    .collect();
                run.step(Event::RankerReported { session, report }).unwrap();
            }
            other => panic!("{other:?} is about something else"),
        }
    }
}

/// After a promotion, going back has everybody answered as before, but for those that arms had.
fn check_undone(run: &mut Run, before: &crate::ClusterMap, model: &str) {
    let promoted = run.state.clone();
    let undone = run.rollback(model, None);
    match undone {
        Ok(_) => {
            for bucket in (0..BUCKETS).step_by(97) {
                let of = |map: &crate::ClusterMap| {
                    map.release_for(model, bucket).map(|(entry, _)| entry.release.clone())
                };
                let was = before.traffic.get(model).and_then(|traffic| traffic.arm(bucket));
                let was = if was.is_some() {
                    before.current_release(model).map(|entry| entry.release.clone())
                } else {
                    of(before)
                };
                assert_eq!(of(run.state.map()), was);
            }
        }
        Err(StepError::NothingBefore { .. }) => assert!(before.current_release(model).is_none()),
        Err(StepError::NotReady { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    run.state = promoted;
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
        // And what was let go has left: first the releases, then their tables.
        for _ in 0..2 {
            run.pass(SETTINGS.retire_grace.as_secs());
        }
        prop_assert!(run.state.observed.leaving.is_empty());
        for release in run.state.map().releases.clone() {
            prop_assert_eq!(run.state.waiting_for(&release), Vec::<String>::new());
            prop_assert_ne!(release.state, ReleaseState::Loading);
            prop_assert_ne!(release.state, ReleaseState::Retiring);
        }
    }
}
