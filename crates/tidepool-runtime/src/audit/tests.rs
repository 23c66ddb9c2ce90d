//! The audit log over real files: what is in it after which accident.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::json;

use super::{file::numbered, *};
use crate::auth::Refusal;

fn change(epoch: u64) -> Change {
    let what = json!({ "model": "ads", "release": "r1" });
    Change { caller: Caller::process("a test"), action: "promote_release".into(), what, epoch }
}

const fn ok(epoch: u64) -> Outcome<'static> {
    Outcome { word: "ok", problem: None, epoch }
}

fn open(path: &Path) -> AuditLog {
    let options = AuditOptions { path: path.to_owned(), max_bytes: 1 << 20, keep: 2 };
    AuditLog::open(Some(options)).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

fn told(path: &Path) -> Vec<String> {
    let word = |line: &Value, key: &str| line[key].to_string().replace('"', "");
    lines(path).iter().map(|line| format!("{} {}", word(line, "outcome"), word(line, "epoch"))).collect()
}

#[tokio::test]
async fn a_change_is_on_the_disk_before_it_is_made_and_its_outcome_after() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let log = open(&path);
    let begun = log.begin(change(7)).await.unwrap();
    // Whoever is killed here leaves this.
    let before = lines(&path);
    assert_eq!(before.len(), 1);
    assert_eq!((&before[0]["outcome"], &before[0]["epoch"]), (&json!("begun"), &json!(7)));
    assert_eq!((&before[0]["who"], &before[0]["known_by"]), (&json!("a test"), &json!("process")));
    assert_eq!(before[0]["what"], json!({ "model": "ads", "release": "r1" }));
    let refused = Outcome { word: "conflict", problem: Some("not ready"), epoch: 7 };
    begun.end(refused).await.unwrap();
    drop(log);
    // Lines are added after a restart, and numbers tell which belong together.
    let log = open(&path);
    log.begin(change(8)).await.unwrap().end(ok(9)).await.unwrap();
    let after = lines(&path);
    assert_eq!(told(&path), ["begun 7", "conflict 7", "begun 8", "ok 9"]);
    assert_eq!(after[1]["problem"], json!("not ready"));
    assert_eq!((&after[0]["change"], &after[2]["change"]), (&after[1]["change"], &after[3]["change"]));
    assert!(after[0].get("problem").is_none() && after[0]["time"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn files_are_put_aside_by_size_and_the_oldest_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let one = {
        let probe = folder.path().join("probe");
        open(&probe).note(change(1), ok(1)).await.unwrap();
        fs::metadata(&probe).unwrap().len()
    };
    let options = AuditOptions { path: path.clone(), max_bytes: 2 * one, keep: 2 };
    let log = AuditLog::open(Some(options)).unwrap();
    for epoch in 1..=7 {
        log.note(change(epoch), ok(epoch)).await.unwrap();
    }
    assert_eq!(told(&path), ["ok 7"]);
    assert_eq!(told(&numbered(&path, 1)), ["ok 5", "ok 6"]);
    assert_eq!(told(&numbered(&path, 2)), ["ok 3", "ok 4"]);
    assert!(!numbered(&path, 3).exists());
}

#[tokio::test]
async fn lines_of_many_at_once_are_all_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let options = AuditOptions { path: path.clone(), max_bytes: 4000, keep: 100 };
    let log = AuditLog::open(Some(options)).unwrap();
    let changes = (1..=100).map(|epoch| {
        let log = log.clone();
        tokio::spawn(async move { log.begin(change(epoch)).await.unwrap().end(ok(epoch)).await.unwrap() })
    });
    for change in changes.collect::<Vec<_>>() {
        change.await.unwrap();
    }
    let files = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
    let mut all: Vec<_> = files.flat_map(|file| told(&file)).collect();
    all.sort();
    let mut expected: Vec<_> = (1..=100).flat_map(|at| [format!("begun {at}"), format!("ok {at}")]).collect();
    expected.sort();
    assert_eq!(all, expected);
}

#[tokio::test]
async fn a_file_that_was_put_aside_by_others_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let log = open(&path);
    let begun = log.begin(change(1)).await.unwrap();
    // As logrotate does it, with `create` and without.
    fs::rename(&path, folder.path().join("first")).unwrap();
    fs::write(&path, "").unwrap();
    begun.end(ok(2)).await.unwrap();
    fs::rename(&path, folder.path().join("second")).unwrap();
    log.note(change(3), ok(3)).await.unwrap();
    assert_eq!(told(&folder.path().join("first")), ["begun 1"]);
    assert_eq!(told(&folder.path().join("second")), ["ok 2"]);
    assert_eq!(told(&path), ["ok 3"]);
    // And with `copytruncate`.
    fs::File::create(&path).unwrap();
    log.note(change(4), ok(4)).await.unwrap();
    assert_eq!(told(&path), ["ok 4"]);
}

#[tokio::test]
async fn half_a_line_does_not_swallow_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    fs::write(&path, "{\"time\":\"2026-11-2").unwrap();
    let log = open(&path);
    log.note(change(1), ok(1)).await.unwrap();
    // And while the log is open: another process was cut off, or a disk was full.
    let half = b"{\"time\":";
    io::Write::write_all(&mut fs::File::options().append(true).open(&path).unwrap(), half).unwrap();
    log.note(change(2), ok(2)).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let whole: Vec<_> = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect();
    assert_eq!(text.lines().count(), 4);
    assert_eq!(whole.iter().map(|line| line["epoch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn where_nothing_can_be_written_nothing_is_begun_and_what_is_owed_is_written_later() {
    let error = AuditLog::open(Some(AuditOptions { path: "/no/such/a.log".into(), max_bytes: 1, keep: 1 }));
    assert_eq!(error.unwrap_err().to_string(), "could not open the audit log /no/such/a.log");
    AuditLog::open(None).unwrap().begin(change(1)).await.unwrap().end(ok(1)).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let (path, real) = (folder.path().join("audit.log"), folder.path().join("real"));
    fs::write(&real, "").unwrap();
    let to = |target: &Path| {
        let link = folder.path().join("link");
        symlink(target, &link).unwrap();
        fs::rename(link, &path).unwrap();
    };
    to(&real);
    let log = open(&path);
    let begun = log.begin(change(1)).await.unwrap();
    to(Path::new("/dev/full"));
    let error = begun.end(ok(2)).await.unwrap_err();
    assert!(matches!(&error, AuditError::File { did: "write", .. }), "{error:?}");
    let error = log.begin(change(2)).await.unwrap_err();
    assert!(crate::error::chain(&error).contains("No space left on device"), "{error:?}");
    to(&real);
    // It is written before anything else is.
    log.begin(change(3)).await.unwrap().end(ok(4)).await.unwrap();
    assert_eq!(told(&path), ["begun 1", "ok 2", "begun 3", "ok 4"]);
}

#[tokio::test]
async fn changes_under_way_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("audit.log"));
    let mut under_way = Vec::new();
    for epoch in 0..MAX_UNDER_WAY as u64 {
        under_way.push(log.begin(change(epoch)).await.unwrap());
    }
    assert!(matches!(log.begin(change(0)).await, Err(AuditError::Busy)));
    under_way.pop().unwrap().end(ok(1)).await.unwrap();
    let again = log.begin(change(0)).await;
    assert!(again.is_ok());
}

#[tokio::test]
async fn refusals_are_counted_by_caller_and_call_however_many_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let log = open(&path);
    let refused = |who: &str, call: &str| {
        let refusal = Refusal { known: true, message: format!("{call} needs the role write") };
        log.refused(&Refused { call: call.into(), caller: Caller::nobody(who), refusal });
    };
    for _ in 0..100_000 {
        refused("mallory", "/x/Promote");
    }
    refused("mallory", "/x/SetQuota");
    for at in 0..1000 {
        refused(&format!("node-{at:04}"), "/x/Promote");
    }
    log.close().await;
    let lines = lines(&path);
    let sum = |who: &str, call: &str| -> u64 {
        let of = lines.iter().filter(|l| l["who"] == who && l["what"]["call"] == call);
        of.map(|l| l["what"]["calls"].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("mallory", "/x/Promote"), sum("mallory", "/x/SetQuota")), (100_000, 1));
    let all: u64 = lines.iter().map(|l| l["what"]["calls"].as_u64().unwrap()).sum();
    assert_eq!(all, 101_001, "none is lost");
    assert!(lines.len() < 2000 && lines.iter().all(|l| l["action"] == "refused" && l.get("epoch").is_none()));
}
