//! Releases under traffic: shares, guards, shadows, the way back.

use tidepool_types::ErrorCode;

use super::{steps::four_nodes, *};
use crate::{EventKind, ScoreHistogram, Serving, ShadowTally, Tally};

/// Model `m` with r1 current, r2 and r3 ready, and a ranker's session.
fn three_releases() -> (Run, SessionId) {
    let (mut run, nodes) = four_nodes();
    for release in ["r1", "r2", "r3"] {
        run.publish("m", release, &[table("user", release)]).unwrap();
        nodes.iter().for_each(|(node, session)| drop(run.ready(node, *session)));
    }
    run.promote("m", "r1").unwrap();
    let session = run.session();
    (run, session)
}

/// Requests with scores around `center`, some of which failed.
fn tally(requests: u64, errors: u64, center: f32) -> Tally {
    let mut scores = ScoreHistogram::default();
    (0..requests * 16).for_each(|at| scores.record(center + 0.01 * (at % 17) as f32));
    Tally { requests, errors, ids: requests * 10, scores, ..Tally::default() }
}

impl Run {
    /// A ranker reports what it has counted in all, of loads that began at `since`.
    fn count(&mut self, session: SessionId, since: u64, counted: &[(&str, &Tally)]) -> Vec<Effect> {
        let mut report = ranker_report("r", &[("m", "r1"), ("m", "r2"), ("m", "r3")]);
        for (release, chosen) in counted {
            let entry = report.releases.iter_mut().find(|r| r.release.as_str() == *release).unwrap();
            let chosen = Tally::clone(chosen);
            entry.serving = Some(Serving { since, chosen, shadow: ShadowTally::default() });
        }
        self.step(Event::RankerReported { session, report }).unwrap()
    }

    fn kinds(&self) -> Vec<EventKind> {
        self.state.durable.events.after(0).map(|event| event.kind).collect()
    }
}

#[test]
fn a_ramp_grows_and_ends_as_the_current_release() {
    let (mut run, _) = three_releases();
    assert_eq!(run.ramp("m", &[("r2", 100)]).unwrap(), [Effect::Persist, Effect::PublishMap]);
    let first: Vec<_> = run.state.map().traffic["m"].arms[0].buckets.clone();
    run.ramp("m", &[("r2", 500)]).unwrap();
    assert_eq!(run.ramp("m", &[("r2", 500)]), Ok(vec![]), "again is nothing");
    let map = run.state.map().clone();
    for range in first {
        for bucket in range.start..range.end {
            assert_eq!(map.release_for("m", bucket).unwrap().0.release.as_str(), "r2", "who saw it sees it");
        }
    }
    let of_r2 = (0..BUCKETS).filter(|b| map.release_for("m", *b).unwrap().1).count();
    assert_eq!(of_r2, 500);
    run.promote("m", "r2").unwrap();
    assert_eq!((run.release("m", "r2"), run.share("m", "r2")), (Some(ReleaseState::Current), 0));
    assert!(run.state.map().traffic.is_empty() && run.state.durable.ramps.is_empty());
    // Back, and not back again: what was taken back is not what one goes back to.
    run.rollback("m", None).unwrap();
    assert_eq!(run.release("m", "r1"), Some(ReleaseState::Current));
    assert_eq!(run.release("m", "r2"), Some(ReleaseState::Ready));
    let refused = run.rollback("m", None).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Conflict);
    assert!(refused.to_string().contains("no release was current before r1; promote one"), "{refused}");
    let kinds = run.kinds();
    let last = [EventKind::Ramped, EventKind::Ramped, EventKind::Promoted, EventKind::RolledBack];
    assert_eq!(kinds[kinds.len() - 4..], last);
    let event = run.state.durable.events.after(0).last().unwrap();
    assert_eq!((event.by.as_str(), event.why.as_str()), ("a test", "r1 answers everything again"));
}

#[test]
fn an_experiment_moves_shares_between_arms_at_once() {
    let (mut run, _) = three_releases();
    run.ramp("m", &[("r2", 6_000), ("r3", 4_000)]).unwrap();
    let refused = run.ramp("m", &[("r2", 6_001)]).unwrap_err().to_string();
    assert!(
        refused.contains("6001 buckets of 10000 are asked for, and other releases have 4000"),
        "{refused}"
    );
    run.ramp("m", &[("r3", 7_000), ("r2", 3_000)]).unwrap();
    assert_eq!((run.share("m", "r2"), run.share("m", "r3")), (3_000, 7_000));
    // One arm is taken back, the other stays; then all that are left.
    run.rollback("m", Some("r3")).unwrap();
    assert_eq!((run.share("m", "r2"), run.share("m", "r3")), (3_000, 0));
    run.rollback("m", None).unwrap();
    assert_eq!(run.release("m", "r1"), Some(ReleaseState::Current), "arms go first");
    assert!(run.state.map().traffic.is_empty());
}

#[test]
fn what_cannot_be_is_refused_and_says_what_to_do() {
    let (mut run, _) = three_releases();
    let refusal = |result: Result<Vec<Effect>, StepError>| {
        let error = result.unwrap_err();
        (error.code(), error.to_string())
    };
    let (code, text) = refusal(run.ramp("m", &[("r1", 5)]));
    assert_eq!(code, ErrorCode::Conflict);
    assert!(text.contains("m@r1 is the current one: it has all traffic"), "{text}");
    assert_eq!(refusal(run.ramp("m", &[("r9", 5)])).0, ErrorCode::NotFound);
    assert_eq!(refusal(run.ramp("m", &[])).0, ErrorCode::InvalidRequest);
    assert_eq!(refusal(run.ramp("m", &[("r2", 1), ("r2", 2)])).0, ErrorCode::InvalidRequest);
    assert_eq!(refusal(run.ramp("m", &[("r2", BUCKETS + 1)])).0, ErrorCode::InvalidRequest);
    assert_eq!(refusal(run.shadow("m", "r2", BUCKETS + 1)).0, ErrorCode::InvalidRequest);
    let guards = Guards { max_score_shift: 2.0, ..Guards::default() };
    let shares = vec![(name("r2"), 5)];
    let event = Event::SetShares { model: name("m"), shares, guards, by: String::new() };
    assert!(refusal(run.step(event)).1.contains("max_score_shift is 2"));
    run.publish("m", "r4", &[table("user", "r4")]).unwrap();
    let (code, text) = refusal(run.ramp("m", &[("r4", 5)]));
    assert!(code == ErrorCode::Conflict && text.contains("user@r4"), "{text}");
    run.publish("n", "r1", &[]).unwrap();
    assert!(refusal(run.ramp("n", &[("r1", 5)])).1.contains("no current release: promote one first"));
    assert!(refusal(run.rollback("m", Some("r2"))).1.contains("release r2 answers nobody"));
    assert!(refusal(run.retire("m", "r1")).1.contains("promote another, or roll back"));
    run.ramp("m", &[("r2", 5)]).unwrap();
    run.shadow("m", "r2", 7).unwrap();
    let (code, text) = refusal(run.retire("m", "r2"));
    assert_eq!(code, ErrorCode::Conflict);
    assert!(text.contains("has 5 of 10000 buckets, and is the shadow of 7 requests in 10000"), "{text}");
    run.ramp("m", &[("r2", 0)]).unwrap();
    run.shadow("m", "r2", 0).unwrap();
    run.retire("m", "r2").unwrap();
    run.pass(5);
    assert_eq!(run.release("m", "r2"), None);
    run.pass(5);
    assert!(run.state.map().layout(&table("user", "r2")).is_none(), "its table goes after it");
}

#[test]
fn a_release_whose_requests_fail_is_halted_and_stays_so() {
    let (mut run, ranker) = three_releases();
    run.ramp("m", &[("r2", 500)]).unwrap();
    let (good, none) = (tally(4_000, 0, 0.5), Tally::default());
    assert_eq!(run.count(ranker, 1, &[("r1", &good), ("r2", &none)]), []);
    // What was counted before the first report is nobody's fault.
    let mut current = good.clone();
    current.add(&tally(4_000, 0, 0.5));
    assert_eq!(run.count(ranker, 1, &[("r1", &current), ("r2", &tally(150, 150, 0.5))]), [], "too few");
    let effects = run.count(ranker, 1, &[("r1", &current), ("r2", &tally(210, 210, 0.5))]);
    assert_eq!(effects, [Effect::Persist, Effect::PublishMap]);
    assert_eq!(run.share("m", "r2"), 0);
    let why = run.state.durable.ramp("m", "r2").unwrap().halted.clone().unwrap();
    assert!(why.starts_with("at 5 % of the traffic: 100.00 % (210 of 210) of its requests fail"), "{why}");
    let event = run.state.durable.events.after(0).last().unwrap().clone();
    assert_eq!((event.kind, event.by.as_str(), event.why), (EventKind::Halted, "guards", why));

    // Nothing but a person brings it back.
    current.add(&tally(50_000, 0, 0.5));
    assert_eq!(run.count(ranker, 1, &[("r1", &current), ("r2", &tally(9_000, 210, 0.5))]), []);
    run.restart();
    run.pass(20);
    assert_eq!(run.share("m", "r2"), 0);
    let (mut run, ranker) = three_releases();
    run.ramp("m", &[("r2", 500)]).unwrap();
    run.count(ranker, 1, &[("r1", &none), ("r2", &none)]);
    run.count(ranker, 1, &[("r1", &good), ("r2", &tally(300, 300, 0.5))]);
    let refused = run.promote("m", "r2").unwrap_err();
    assert!(refused.to_string().contains("was halted: at 5 %"), "{refused}");
    // Who has seen the ramp, and not yet how it ended, does not mean the current release.
    let refused = run.rollback("m", None).unwrap_err();
    assert!(refused.to_string().contains("r2 was halted already"), "{refused}");
    run.ramp("m", &[("r2", 10)]).unwrap();
    assert_eq!(run.share("m", "r2"), 10);
    assert_eq!(run.count(ranker, 1, &[("r1", &good), ("r2", &tally(300, 300, 0.5))]), [], "it begins anew");
    run.promote("m", "r2").unwrap();
}

#[test]
fn that_a_release_was_halted_is_kept_until_it_is_ramped_again_or_retired() {
    let (mut run, ranker) = three_releases();
    run.ramp("m", &[("r2", 500)]).unwrap();
    run.count(ranker, 1, &[("r1", &Tally::default()), ("r2", &Tally::default())]);
    run.count(ranker, 1, &[("r1", &tally(4_000, 0, 0.5)), ("r2", &tally(300, 300, 0.5))]);
    let halted = |run: &Run| run.state.durable.ramp("m", "r2").is_some_and(|ramp| ramp.halted.is_some());
    assert!(halted(&run));
    run.ramp("m", &[("r2", 0)]).unwrap();
    assert!(halted(&run));
    assert_eq!(run.ramp("m", &[("r2", 0)]), Ok(vec![]), "again is nothing");
    assert!(matches!(run.promote("m", "r2"), Err(StepError::Halted { .. })));
    run.promote("m", "r3").unwrap();
    assert!(halted(&run));
    // Somebody has acted on it since: a rollback now means the current release.
    run.rollback("m", None).unwrap();
    assert!(halted(&run) && run.release("m", "r1") == Some(ReleaseState::Current));
    assert!(matches!(run.promote("m", "r2"), Err(StepError::Halted { .. })));
    run.restart();
    assert!(halted(&run));
    run.retire("m", "r2").unwrap();
    assert!(!halted(&run));
}

#[test]
fn a_shadow_is_compared_since_it_is_one() {
    let (mut run, ranker) = three_releases();
    let of = |compared| ShadowTally { compared, ..ShadowTally::default() };
    let say = |run: &mut Run, compared| {
        let mut report = ranker_report("r", &[("m", "r1"), ("m", "r3")]);
        report.releases[1].serving = Some(Serving { since: 1, shadow: of(compared), ..Serving::default() });
        run.step(Event::RankerReported { session: ranker, report }).unwrap();
    };
    run.shadow("m", "r3", 1_000).unwrap();
    say(&mut run, 40);
    say(&mut run, 70);
    let compared = |run: &Run| run.state.shadow_tally(&name("m"), &name("r3")).compared;
    assert_eq!(compared(&run), 30, "what was counted before the first report is of another time");
    run.shadow("m", "r3", 2_000).unwrap();
    assert_eq!(compared(&run), 30);
    run.shadow("m", "r3", 0).unwrap();
    assert_eq!(compared(&run), 0);
    run.shadow("m", "r3", 1_000).unwrap();
    say(&mut run, 90);
    say(&mut run, 95);
    assert!((5..=25).contains(&compared(&run)), "{}", compared(&run));
}

#[test]
fn other_scores_halt_and_the_same_do_not() {
    for (center, halted) in [(0.5, false), (0.9, true)] {
        let (mut run, ranker) = three_releases();
        run.ramp("m", &[("r2", 500)]).unwrap();
        let (mut current, mut candidate) = (Tally::default(), Tally::default());
        for _ in 0..40 {
            run.count(ranker, 1, &[("r1", &current), ("r2", &candidate)]);
            current.add(&tally(950, 1, 0.5));
            candidate.add(&tally(50, 0, center));
        }
        let why = run.state.durable.ramp("m", "r2").unwrap().halted.clone();
        assert_eq!(why.is_some(), halted, "{why:?}");
        if halted {
            assert!(why.unwrap().contains("its scores over 200 requests are 1.000 away"));
        } else {
            // Windows move on: what is judged is never more than the last of it.
            let (judged, beside) = run.state.evidence(&name("m"), &name("r2"));
            assert!((1_000..=2_000).contains(&judged.requests), "{}", judged.requests);
            assert_eq!(beside.requests, judged.requests * 19);
        }
    }
}

#[test]
fn a_ranker_that_counts_anew_is_counted_from_nothing() {
    let (mut run, ranker) = three_releases();
    run.ramp("m", &[("r2", 500)]).unwrap();
    run.count(ranker, 1, &[("r1", &tally(5_000, 0, 0.5)), ("r2", &tally(90, 0, 0.5))]);
    let counted = |run: &Run| {
        let (candidate, current) = run.state.evidence(&name("m"), &name("r2"));
        (candidate.requests, current.requests)
    };
    assert_eq!(counted(&run), (0, 0), "the first report sets the mark");
    run.count(ranker, 1, &[("r1", &tally(5_100, 0, 0.5)), ("r2", &tally(100, 0, 0.5))]);
    assert_eq!(counted(&run), (10, 100));
    // Another load, whose number is larger by now: it is no continuation.
    run.count(ranker, 2, &[("r1", &tally(6_000, 0, 0.5)), ("r2", &tally(120, 0, 0.5))]);
    assert_eq!(counted(&run), (130, 6_100));
    // The same load with smaller numbers is none either.
    run.count(ranker, 2, &[("r1", &tally(6_000, 0, 0.5)), ("r2", &tally(20, 0, 0.5))]);
    assert_eq!(counted(&run), (150, 6_100));
    // A session that ends loses nothing: the process may have lived on.
    run.step(Event::RankerGone { ranker: name("r"), session: ranker }).unwrap();
    let again = run.session();
    run.count(again, 2, &[("r1", &tally(6_000, 0, 0.5)), ("r2", &tally(25, 0, 0.5))]);
    assert_eq!(counted(&run), (155, 6_100));
    run.restart();
    assert_eq!(counted(&run), (0, 0));
    let (session, before) = (run.session(), run.state.map().clone());
    run.count(session, 2, &[("r1", &tally(6_000, 0, 0.5)), ("r2", &tally(25, 0, 0.5))]);
    run.count(session, 2, &[("r1", &tally(6_001, 0, 0.5)), ("r2", &tally(27, 0, 0.5))]);
    assert_eq!(counted(&run), (2, 1), "a ramp is judged on after a restart");
    assert_eq!(*run.state.map(), before);
}

#[test]
fn shadows_are_kept_beside_arms_and_end_with_a_promotion() {
    let (mut run, _) = three_releases();
    run.shadow("m", "r3", 1_000).unwrap();
    assert_eq!(run.shadow("m", "r3", 1_000), Ok(vec![]), "again is nothing");
    run.ramp("m", &[("r2", 500)]).unwrap();
    assert_eq!(run.state.map().traffic["m"].shadows[0].sample, 1_000);
    run.rollback("m", None).unwrap();
    assert_eq!(run.state.map().traffic["m"].shadows.len(), 1, "it answers nobody");
    run.promote("m", "r3").unwrap();
    assert!(run.state.map().traffic.is_empty());
}

#[test]
fn events_have_the_time_of_the_clock() {
    let mut run = Run::new();
    run.state = run.state.clone().begun_at(1_000_000);
    run.now = Duration::from_secs(77);
    run.publish("m", "r1", &[]).unwrap();
    let event = run.state.durable.events.after(0).next().unwrap().clone();
    assert_eq!((event.kind, event.unix_seconds, event.number), (EventKind::Published, 1_000_077, 1));
}

#[test]
fn a_release_that_a_ranker_could_not_load_again_gets_no_traffic() {
    let (mut run, session) = three_releases();
    let mut report = ranker_report("r", &[("m", "r1"), ("m", "r2"), ("m", "r3")]);
    (report.releases[1].ready, report.releases[1].problem) = (false, "no such file".into());
    run.step(Event::RankerReported { session, report }).unwrap();
    for refused in [run.promote("m", "r2").unwrap_err(), run.ramp("m", &[("r2", 5)]).unwrap_err()] {
        assert!(refused.to_string().contains("no such file"), "{refused}");
    }
    run.promote("m", "r3").unwrap();
}
