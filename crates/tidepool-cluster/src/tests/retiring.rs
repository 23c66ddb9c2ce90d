//! How releases and tables leave.

use tidepool_types::ErrorCode;

use super::{steps::four_nodes, *};
use crate::{EventKind, NodeReport};

/// Model `m` with r1 to r3 published, each with a table of its own, and ready; r1 current.
fn three_releases() -> Run {
    let (mut run, nodes) = four_nodes();
    for release in ["r1", "r2", "r3"] {
        run.publish("m", release, &[table("user", release)]).unwrap();
        nodes.iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    }
    run.promote("m", "r1").unwrap();
    run
}

impl Run {
    /// A ranker reports the epoch that it works by.
    fn works_by(&mut self, ranker: &str, session: SessionId, epoch: Epoch) -> Vec<Effect> {
        let mut report = ranker_report(ranker, &[("m", "r1"), ("m", "r2"), ("m", "r3")]);
        report.epoch = epoch;
        self.step(Event::RankerReported { session, report }).unwrap()
    }

    fn has_table(&self, version: &str) -> bool {
        self.state.map().layout(&table("user", version)).is_some()
    }
}

#[test]
fn a_release_leaves_when_every_ranker_knows_and_a_grace_has_passed() {
    let mut run = three_releases();
    let (first, second) = (run.session(), run.session());
    let before = run.state.map().epoch;
    run.works_by("r-1", first, before);
    run.works_by("r-2", second, before);
    run.promote("m", "r2").unwrap();
    run.promote("m", "r3").unwrap();
    assert_eq!(run.release("m", "r1"), Some(ReleaseState::Retiring));
    let retired = run.state.map().epoch;
    let last = run.state.durable.events.after(0).last().unwrap().clone();
    assert_eq!((last.kind, last.release), (EventKind::Retired, Some(name("r1"))));

    assert_eq!(run.works_by("r-1", first, retired), []);
    assert_eq!(run.state.next_deadline(), None, "the other ranker is waited for, however long");
    assert_eq!(run.pass(100), []);
    let words = run.waiting_for("m", "r1").join("\n");
    assert!(
        words.contains(&format!("ranker r-2 works by map epoch {before}, and {retired} lets it go")),
        "{words}"
    );
    assert_eq!(run.works_by("r-2", second, retired), []);
    assert_eq!(run.state.next_deadline(), Some(run.now + SETTINGS.retire_grace));
    run.pass(3);
    // A ranker that comes with an old map has requests of it, too.
    let third = run.session();
    run.works_by("r-3", third, before);
    assert_eq!(run.pass(10), []);
    run.step(Event::RankerGone { ranker: name("r-3"), session: third }).unwrap();
    assert_eq!(run.pass(4), []);
    assert_eq!(run.pass(1), [Effect::Persist, Effect::PublishMap]);
    assert_eq!((run.release("m", "r1"), run.has_table("r1")), (None, true));

    // Whoever named it in the last moment asks for its table, and rankers that do not know yet take such requests.
    let left = run.state.map().epoch;
    assert_eq!(run.works_by("r-1", first, left), []);
    assert_eq!(run.state.next_deadline(), None, "the other ranker is waited for, however long");
    assert_eq!(run.pass(100), []);
    assert_eq!(run.works_by("r-2", second, left), []);
    assert_eq!(run.state.next_deadline(), Some(run.now + SETTINGS.retire_grace));
    assert_eq!(run.pass(4), []);
    assert!(run.has_table("r1"));
    assert_eq!(run.pass(1), [Effect::Persist, Effect::PublishMap]);
    assert!(!run.has_table("r1") && run.has_table("r2") && run.has_table("r3"));
    assert_eq!(run.state.next_deadline(), None);
}

#[test]
fn what_is_let_go_gets_nothing_and_does_not_come_back() {
    let mut run = three_releases();
    run.retire("m", "r2").unwrap();
    assert_eq!(run.retire("m", "r2"), Ok(vec![]), "again is nothing");
    let tables = [table("user", "r2")];
    for refused in [
        run.publish("m", "r2", &tables).unwrap_err(),
        run.promote("m", "r2").unwrap_err(),
        run.ramp("m", &[("r2", 5)]).unwrap_err(),
        run.shadow("m", "r2", 5).unwrap_err(),
    ] {
        assert_eq!(refused.code(), ErrorCode::Conflict);
        assert!(refused.to_string().contains("m@r2 is being let go"), "{refused}");
    }
    assert!(run.rollback("m", Some("r2")).unwrap_err().to_string().contains("answers nobody"));
    run.pass(5);
    assert_eq!((run.release("m", "r2"), run.has_table("r2")), (None, true));
    run.publish("m", "r2", &tables).unwrap();
    assert_ne!(run.release("m", "r2"), Some(ReleaseState::Retiring), "it is another one now");
    run.pass(100);
    assert!(run.has_table("r2"), "its table was on its way out, and is wanted again");
}

#[test]
fn a_pinned_release_stays_until_it_is_unpinned() {
    let mut run = three_releases();
    run.pin("m", "r1", true).unwrap();
    assert_eq!(run.pin("m", "r1", true), Ok(vec![]), "again is nothing");
    run.promote("m", "r2").unwrap();
    assert_eq!(run.release("m", "r1"), Some(ReleaseState::Previous));
    run.promote("m", "r3").unwrap();
    assert_eq!(
        run.release("m", "r1"),
        Some(ReleaseState::Ready),
        "it is not the way back any more, and stays"
    );
    run.restart();
    run.pass(10);
    let refused = run.retire("m", "r1").unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Conflict);
    assert!(refused.to_string().contains("m@r1 is pinned: unpin it"), "{refused}");
    run.pin("m", "r1", false).unwrap();
    run.retire("m", "r1").unwrap();
    assert!(matches!(run.pin("m", "r1", true), Err(StepError::Retiring { .. })));
    assert!(matches!(run.pin("m", "r9", true), Err(StepError::NotFound { .. })));
    let kinds: Vec<_> = run.state.durable.events.after(0).map(|event| event.kind).collect();
    assert!(kinds.contains(&EventKind::Pinned) && kinds.contains(&EventKind::Unpinned));
}

#[test]
fn a_release_that_a_ranker_went_back_to_is_not_retired() {
    let mut run = three_releases();
    let session = run.session();
    let mut report = ranker_report("r-1", &[("m", "r1"), ("m", "r2"), ("m", "r3")]);
    report.rolled_back = vec![name("m")];
    report.rolled_back_to = vec![(name("m"), name("r2"))];
    run.step(Event::RankerReported { session, report: report.clone() }).unwrap();
    let refused = run.retire("m", "r2").unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Conflict);
    assert!(
        refused.to_string().contains("m@r2 answers at r-1") && refused.to_string().contains("--undo"),
        "{refused}"
    );
    run.retire("m", "r3").unwrap();
    report.rolled_back_to.clear();
    run.step(Event::RankerReported { session, report }).unwrap();
    run.retire("m", "r2").unwrap();
}

/// A ranker is rolled back while no controller can be asked, and tells so after the release was let go.
#[test]
fn a_release_that_a_ranker_turns_out_to_have_gone_back_to_stays_until_that_is_undone() {
    let mut run = three_releases();
    run.retire("m", "r2").unwrap();
    let session = run.session();
    let mut report = ranker_report("r-1", &[("m", "r1"), ("m", "r2"), ("m", "r3")]);
    report.epoch = run.state.map().epoch;
    report.rolled_back = vec![name("m")];
    report.rolled_back_to = vec![(name("m"), name("r2"))];
    run.step(Event::RankerReported { session, report: report.clone() }).unwrap();
    assert_eq!(run.pass(100), []);
    assert!(run.has_table("r2"));
    let words = run.waiting_for("m", "r2").join("\n");
    assert!(words.contains("ranker r-1 was rolled back to it by itself"), "{words}");
    (report.rolled_back, report.rolled_back_to) = (Vec::new(), Vec::new());
    run.step(Event::RankerReported { session, report }).unwrap();
    run.pass(SETTINGS.retire_grace.as_secs());
    assert_eq!((run.release("m", "r2"), run.has_table("r2")), (None, true));
}

#[test]
fn a_table_that_another_release_pins_stays_when_one_leaves() {
    let mut run = three_releases();
    run.publish("m", "r4", &[table("user", "r2")]).unwrap();
    run.retire("m", "r2").unwrap();
    run.pass(5);
    assert_eq!((run.release("m", "r2"), run.has_table("r2")), (None, true));
    run.retire("m", "r4").unwrap();
    run.step(Event::ServeTable { table: artifact(&table("user", "r2"), 3) }).unwrap();
    run.pass(3);
    // It stays while a release pins it that is let go, and a grace longer.
    run.step(Event::StopTable { table_version: table("user", "r2") }).unwrap();
    run.pass(2);
    assert!(run.has_table("r2") && run.release("m", "r4").is_none());
    run.pass(4);
    assert!(run.has_table("r2"));
    run.pass(1);
    assert!(!run.has_table("r2"));
}

#[test]
fn a_table_that_is_served_again_stays() {
    let mut run = three_releases();
    let items = table("item", "v1");
    run.step(Event::ServeTable { table: artifact(&items, 3) }).unwrap();
    run.step(Event::StopTable { table_version: items.clone() }).unwrap();
    run.pass(4);
    run.step(Event::ServeTable { table: artifact(&items, 3) }).unwrap();
    run.pass(10);
    assert!(run.state.map().layout(&items).is_some());
}

#[test]
fn after_a_restart_the_grace_begins_anew() {
    let mut run = three_releases();
    run.retire("m", "r3").unwrap();
    run.pass(4);
    run.restart();
    let nodes = ["a-1", "a-2", "b-1", "b-2"];
    for node in nodes {
        let session = run.session();
        let report: NodeReport =
            report(node, &run.state.map().assignment(&node_id(node)), |_| PartitionState::Ready);
        run.step(Event::NodeReported { session, report }).unwrap();
    }
    // Nobody knows which rankers there are before they had time to come back.
    assert_eq!(run.pass(9), []);
    run.pass(1);
    assert_eq!(run.release("m", "r3"), Some(ReleaseState::Retiring));
    assert_eq!(run.state.next_deadline(), Some(run.now + SETTINGS.retire_grace));
    assert_eq!(run.pass(4), []);
    assert_eq!(run.pass(1), [Effect::Persist, Effect::PublishMap]);
    assert_eq!((run.release("m", "r3"), run.has_table("r3")), (None, true));
    // So does that of a table whose release has left.
    run.pass(4);
    run.restart();
    assert_eq!(run.pass(9), []);
    run.pass(1);
    assert_eq!(run.pass(4), []);
    assert_eq!(run.pass(1), [Effect::Persist, Effect::PublishMap]);
    assert!(!run.has_table("r3"));
}
