//! The audit sample over real files: what is in it after which accident, and that nobody waits for it.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use tidepool_types::{Epoch, ModelSpec, Name};

use super::*;
use crate::{
    choice::Choice,
    rank::RankStages,
    request::Limits,
    samples::{Entry, Sample, SampleReader},
};

fn options(path: &Path) -> AuditSampleOptions {
    AuditSampleOptions {
        percent: 100.0,
        path: path.to_owned(),
        max_bytes: 1 << 20,
        keep: 2,
        max_record_bytes: 1 << 16,
    }
}

fn request(id: &str) -> RankRequest {
    let feature = |name: &str| RankFeature { name: name.into(), ..RankFeature::default() };
    RankRequest {
        request_id: id.into(),
        tenant: "whoever".into(),
        routing_key: "s3cret".into(),
        model: "m".into(),
        candidates: 2,
        user: vec![RankFeature {
            texts: vec!["größe".into(), "ü\"\n".into()],
            lengths: Some(vec![2]),
            ..feature("seen")
        }],
        candidate: vec![
            RankFeature { ids: vec![u64::MAX, 7], ..feature("item") },
            RankFeature { values: vec![0.1, 2.0, -3.5, 4.0], ..feature("price") },
            RankFeature {
                ids: vec![1, 2, 3],
                lengths: Some(vec![3, 0]),
                weights: Some(vec![0.5, 1.0, 0.1]),
                ..feature("genres")
            },
        ],
        surface: "home".into(),
        ..RankRequest::default()
    }
}

fn answer() -> RankAnswer {
    let name = |text: &str| Name::new(text).unwrap();
    RankAnswer {
        model: name("m"),
        release: name("r1"),
        choice: Choice::Current,
        bucket: 0,
        table_versions: vec![serde_json::from_str(r#"{"table": "item", "version": "v3"}"#).unwrap()],
        epoch: Epoch(1),
        candidates: 2,
        ranked: vec![(1, 0.9)],
        outputs: vec![("p".into(), vec![0.9])],
        schema_hash: 0,
        ignored_features: Vec::new(),
        missing_ids: 3,
        defaulted_bags: 0,
        unavailable_ids: 0,
        rows_looked_up: 0,
        nodes_touched: 0,
        batch_requests: 0,
        batch_wait: std::time::Duration::ZERO,
        lookup_time: std::time::Duration::ZERO,
        queue_time: std::time::Duration::ZERO,
        dense_time: std::time::Duration::ZERO,
        stages: RankStages::default(),
    }
}

fn spec() -> ModelSpec {
    ModelSpec::from_toml(
        r#"
        schema_version = 1
        model = "m"
        score = "p"
        outputs = [{ name = "p" }]
        inputs = [
            { name = "seen", side = "user", table = "seen", transform = [{ op = "hash", seed = 7 }] },
            { name = "item", side = "candidate", table = "item" },
            { name = "genres", side = "candidate", table = "genre", pooling = "mean" },
            { name = "price", side = "candidate", width = 2 },
        ]"#,
    )
    .unwrap()
}

/// What is in a file, and how many lines of it are damaged.
fn read(path: &Path) -> (Vec<Sample>, usize) {
    let text = fs::read(path).unwrap();
    let mut reader = SampleReader::new(&text[..]);
    let (mut samples, mut damaged) = (Vec::new(), 0);
    while let Some(entry) = reader.next_entry().unwrap() {
        match entry {
            Entry::Sample(sample) => samples.push(*sample),
            Entry::Damaged { .. } => damaged += 1,
        }
    }
    assert_eq!(reader.bytes(), text.len() as u64);
    (samples, damaged)
}

fn count(sample: &AuditSample, outcome: &str) -> u64 {
    sample.0.as_ref().unwrap().metrics.0.with_label_values(&[outcome]).get()
}

async fn write(sample: &AuditSample, ids: impl Iterator<Item = String>) {
    for id in ids {
        let drawn = sample.draw(&request(&id)).unwrap();
        sample.answered(drawn, &answer());
        sample.close().await;
    }
}

#[tokio::test]
async fn what_was_asked_is_read_back_and_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.jsonl");
    let sample = AuditSample::open(Some(options(&path)), &Registry::new()).unwrap();
    write(&sample, ["größe-1".to_owned()].into_iter()).await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("s3cret") && !text.contains("whoever"), "{text}");
    let (samples, damaged) = read(&path);
    assert_eq!((samples.len(), damaged, samples[0].request_id()), (1, 0, "größe-1"));
    let online = samples[0].online.as_ref().unwrap();
    assert_eq!((online.release.as_str(), &online.tables[..]), ("r1", &["item@v3".to_owned()][..]));
    assert_eq!((&online.scores, online.missing_ids), (&vec![None, Some(0.9)], 3));
    assert_eq!(online.outputs["p"], [None, Some(0.9)]);
    assert_eq!(samples[0].candidate_names("item").unwrap(), [u64::MAX.to_string(), "7".into()]);
    let limits = Limits { max_candidates: 10, max_ids: 100 };
    let again = samples[0].prepare(&spec(), limits).unwrap();
    let asked =
        crate::request::check(RankRequest { tenant: String::new(), ..request("größe-1") }, &spec(), limits);
    let mut asked = asked.unwrap();
    // Ids of one each are written as they are, whether or not their lengths were.
    let lengths = |rows: &mut crate::request::InputRows| match rows {
        crate::request::InputRows::Bags { ids, lengths, .. } if lengths.is_none() => {
            *lengths = Some(vec![1; ids.len()]);
        }
        _ => {}
    };
    asked.rows.iter_mut().for_each(lengths);
    assert_eq!(again.rows, asked.rows);
    assert_eq!(again.finishing.surface, "home");
}

#[tokio::test]
async fn a_torn_line_is_told_and_the_next_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.jsonl");
    let open = || AuditSample::open(Some(options(&path)), &Registry::new()).unwrap();
    write(&open(), ["a".to_owned(), "b".into()].into_iter()).await;
    let whole = fs::read(&path).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // Wherever the process was killed, what stands before is there, and what comes after is too.
    for cut in [first + 1, first + 5, first + 40, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let torn = usize::from(cut < whole.len() - 1);
        assert_eq!(read(&path).1, torn, "cut at {cut}");
        write(&open(), ["c".to_owned()].into_iter()).await;
        let (samples, damaged) = read(&path);
        let ids: Vec<_> = samples.iter().map(Sample::request_id).collect();
        let expected = if torn == 1 { vec!["a", "c"] } else { vec!["a", "b", "c"] };
        assert_eq!((ids, damaged), (expected, torn), "cut at {cut}");
    }
    let mut changed = whole.clone();
    changed[first + 60] ^= 1;
    fs::write(&path, changed).unwrap();
    assert_eq!((read(&path).0.len(), read(&path).1), (1, 1), "a checksum is one");
}

#[tokio::test]
async fn files_are_bounded_and_a_full_disk_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.jsonl");
    let sample = AuditSample::open(Some(options(&path)), &Registry::new()).unwrap();
    write(&sample, ["a".to_owned()].into_iter()).await;
    let one = fs::metadata(&path).unwrap().len();
    drop(sample);
    let small = AuditSampleOptions { max_bytes: 2 * one, keep: 1, ..options(&path) };
    let sample = AuditSample::open(Some(small), &Registry::new()).unwrap();
    write(&sample, (0..9).map(|n| n.to_string())).await;
    let files: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
    assert!(files.len() == 2 && files.iter().all(|len| *len <= 2 * one), "{files:?}");
    assert_eq!((count(&sample, "written"), count(&sample, "failed")), (9, 0));

    let full = AuditSample::open(Some(options(Path::new("/dev/full"))), &Registry::new()).unwrap();
    write(&full, ["a".to_owned(), "b".into()].into_iter()).await;
    assert_eq!((count(&full, "written"), count(&full, "failed")), (0, 2));
}

#[tokio::test]
async fn there_is_room_for_so_much_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.jsonl");
    let sample = AuditSample::open(Some(options(&path)), &Registry::new()).unwrap();
    let wide = |ids: usize| {
        let feature = RankFeature { name: "item".into(), ids: vec![1; ids], ..RankFeature::default() };
        RankRequest { user: vec![feature], ..request("wide") }
    };
    let large = sample.draw(&wide(1 << 14)).unwrap();
    assert_eq!(count(&sample, "too_large"), 0, "it is not answered yet");
    sample.answered(large, &answer());
    assert_eq!(count(&sample, "too_large"), 1);
    // Requests that have no answer yet take room too, and give it back.
    let mut drawn = Vec::new();
    loop {
        let one = sample.draw(&wide(8_000)).unwrap();
        if one.0.is_err() {
            sample.answered(one, &answer());
            break;
        }
        drawn.push(one);
    }
    assert!((900..1100).contains(&drawn.len()) && count(&sample, "dropped") == 1, "{}", drawn.len());
    drawn.clear();
    assert!(sample.draw(&wide(8_000)).unwrap().0.is_ok());
    assert!(sample.draw(&RankRequest { candidates: 0, ..request("none") }).is_none());
}

#[tokio::test]
async fn the_same_requests_are_drawn_everywhere_and_as_many_as_were_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let draws = |percent: f64| {
        let options = AuditSampleOptions { percent, ..options(&folder.path().join("sample.jsonl")) };
        let sample = AuditSample::open(Some(options), &Registry::new()).unwrap();
        let drawn = |n: &u32| sample.draw(&request(&format!("request-{n}"))).is_some();
        (0..20_000).filter(drawn).collect::<Vec<_>>()
    };
    let (one, five) = (draws(1.0), draws(5.0));
    assert_eq!(one, draws(1.0));
    assert!(
        (120..280).contains(&one.len()) && (850..1150).contains(&five.len()),
        "{} {}",
        one.len(),
        five.len()
    );
    assert!(one.iter().all(|n| five.contains(n)), "a larger share has the smaller one in it");
    assert_eq!(draws(100.0).len(), 20_000);
}
