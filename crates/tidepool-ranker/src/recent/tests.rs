//! The ring: what is kept, what is forgotten, and how much it can take.

use tidepool_client::{CallEnd, CallKind, CallNote, FeatureNote, LookupAccount, LookupNotes};
use tidepool_types::{ErrorCode, Name, NodeId};

use super::*;

fn request(id: &str) -> v1::RankRequest {
    v1::RankRequest { request_id: id.into(), model: "m".into(), tenant: "ads".into(), ..Default::default() }
}

fn ids(recent: &Recent) -> Vec<String> {
    recent.pick(|_| true, |record| record.number, 100, |record| record.request_id.to_string())
}

#[test]
fn the_last_requests_are_kept_however_they_ended() {
    let recent = Recent::new(3);
    let mut answered = recent.begin(&request("a"), true, Instant::now());
    answered.answered();
    drop(answered);
    recent.begin(&request("b"), true, Instant::now()).failed(&RankError::NoMap);
    drop(recent.begin(&request("c"), true, Instant::now()));
    let ends = recent.pick(|_| true, |r| r.number, 9, |r| r.object()["outcome"].clone());
    assert_eq!(ends, ["answered", "failed", "abandoned"]);
    let failed = recent.pick(Record::failed, |r| r.number, 9, |r| r.object()["error"]["code"].clone());
    assert_eq!(failed, [serde_json::json!("unavailable"), serde_json::Value::Null]);
    drop(recent.begin(&request("d"), true, Instant::now()));
    assert_eq!(ids(&recent), ["b", "c", "d"]);
}

#[test]
fn many_may_write_at_once() {
    let recent = Recent::new(64);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let recent = &recent;
            scope.spawn(move || {
                for n in 0..1_000 {
                    recent.begin(&request(&format!("{thread}-{n}")), true, Instant::now()).answered();
                    if n % 100 == 0 {
                        ids(recent);
                    }
                }
            });
        }
    });
    assert_eq!(ids(&recent).len(), 64);
    assert_eq!(recent.ring.as_ref().unwrap().written.load(Ordering::Relaxed), 4_000);
}

#[test]
fn nothing_is_kept_where_nothing_is_wanted_but_ids_are_given() {
    let recent = Recent::new(0);
    let mut noting = recent.begin(&request("a"), true, Instant::now());
    noting.note(|_| panic!("there is no record"));
    assert!(!noting.is_on());
    drop(noting);
    assert_eq!((ids(&recent).len(), recent.capacity()), (0, 0));
    let (mut first, mut second, mut own) = (String::new(), String::new(), "own".to_owned());
    assert!(!recent.identify(&mut first) && !recent.identify(&mut second) && recent.identify(&mut own));
    assert!(first.starts_with("auto-") && first != second && own == "own", "{first} {second}");
}

#[test]
fn the_largest_record_there_can_be_is_as_large_as_is_promised() {
    let long = "ü".repeat(1 << 20);
    let mut record = Record::of(&long, 1).asked(&long, &long, &long);
    record.fail(ErrorCode::Internal, &long);
    assert_eq!(record.request_id.len(), RankRequest::MAX_REQUEST_ID_BYTES);
    let text = || "x".repeat(LookupAccount::MAX_TEXT_BYTES);
    let call = || CallNote {
        node: NodeId(Name::new("n".repeat(Name::MAX_BYTES)).unwrap()),
        address: text(),
        kind: CallKind::First,
        ids: 1,
        begun: Duration::ZERO,
        took: None,
        end: CallEnd::Failed { code: ErrorCode::Internal, problem: text() },
    };
    let mut calls = Vec::new();
    (0..LookupAccount::MAX_CALLS).for_each(|_| calls.push(call()));
    let mut features = Vec::new();
    (0..LookupAccount::MAX_FEATURES).for_each(|_| features.push(FeatureNote::default()));
    let mut left = LookupAccount::MAX_IDS_IN_ALL;
    for feature in &mut features {
        let take = left.min(LookupAccount::MAX_IDS);
        (0..take as u64).for_each(|id| feature.missing_ids.push(id));
        left -= take;
    }
    record.lookup = LookupNotes { calls, features, ..LookupNotes::default() };
    assert!(record.bytes() <= record::MAX_BYTES, "{} bytes", record.bytes());
}
