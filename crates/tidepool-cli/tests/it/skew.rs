//! `tidepool release skew` on releases whose tables are known to the last number: what a mismatch costs is told, what the
//! matched tables give is as good as it can be, and what is wrong with a sample is told with its line.

use std::{fmt::Write, fs, path::Path, process::Command, time::Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidepool_dense::GraphWriter;
use tidepool_store::ArtifactStore;
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion, mix64};

use crate::{
    command::{DEADLINE, Role, failure, http_get, json, keys},
    models::text,
};

const ITEMS: u64 = 50;
const USERS: u64 = 80;
const PER_USER: u64 = 25;

const MODEL_TOML: &str = r#"
schema_version = 1
model = "m"
score = "p"
outputs = [{ name = "p" }]
inputs = [
    { name = "user", side = "user", table = "user" },
    { name = "item", side = "candidate", table = "item" },
]
"#;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A number from 0 to 1 that is a function of its seed.
fn drawn(seed: u64) -> f64 {
    mix64(seed) as f64 / u64::MAX as f64
}

/// What is true of a user and of an item.
fn of_user(id: u64) -> f64 {
    4.0 * drawn(id + 1_000) - 2.0
}

fn of_item(id: u64) -> f64 {
    6.0 * drawn(id + 5_000) - 3.0
}

fn build(
    store: &ArtifactStore,
    table: &str,
    version: &str,
    dim: usize,
    rows: impl Iterator<Item = (u64, f64)>,
) {
    let table_version = TableVersion { table: name(table), version: name(version) };
    let mut builder = TableBuilder::new(TableSpec {
        table_version: table_version.clone(),
        dim: dim as u32,
        format: RowFormat::F32,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(2).unwrap(),
        default_row: Vec::new(),
        composite: None,
        full_keys: false,
        seed: 1,
    })
    .unwrap();
    for (id, value) in rows {
        let mut row = vec![0.0; dim];
        row[0] = value as f32;
        builder.push(id, &row).unwrap();
    }
    builder.publish(&store.table_dir(&table_version), &mut |_, _| {}).unwrap();
}

/// A release `p = sigmoid(scale (user + item))` with these versions of its tables.
fn release(store: &ArtifactStore, release: &str, scale: f32, dim: usize, versions: [&str; 2]) {
    let mut graph = GraphWriter::new("m");
    graph.input("user", dim);
    graph.input("item", dim);
    graph.output("p", 1);
    graph.concat(&["user", "item"], "x");
    let mut weights = vec![0.0; 2 * dim];
    (weights[0], weights[dim]) = (scale, scale);
    graph.constant("weights", &[2 * dim, 1], &weights);
    graph.constant("bias", &[1], &[0.0]);
    graph.node("Gemm", &["x", "weights", "bias"], "logit");
    graph.node("Sigmoid", &["logit"], "p");
    let tables = [("user", versions[0]), ("item", versions[1])]
        .map(|(table, version)| TableVersion { table: name(table), version: name(version) });
    store.write_release(&name("m"), &name(release), &tables, MODEL_TOML, &graph.into_file()).unwrap();
}

/// Three releases: `r1`; `r2`, which has learnt the same with the signs turned, as training by another seed may; and
/// `wide`, whose rows are longer. `r1-again` has the tables of `r1`.
fn store(dir: &TempDir) -> ArtifactStore {
    let store = ArtifactStore::open(dir.path().join("store")).unwrap();
    for (version, sign, dim) in [("v1", 1.0, 2), ("v2", -1.0, 2), ("wide", 1.0, 4)] {
        build(&store, "user", version, dim, (0..USERS).map(|id| (id, sign * of_user(id))));
        // The second version has lost an item.
        let items = if version == "v2" { ITEMS - 1 } else { ITEMS };
        build(&store, "item", version, dim, (0..items).map(|id| (id, sign * of_item(id))));
    }
    release(&store, "r1", 1.0, 2, ["v1", "v1"]);
    release(&store, "r1-again", 1.0, 2, ["v1", "v1"]);
    release(&store, "r2", -1.0, 2, ["v2", "v2"]);
    release(&store, "wide", 1.0, 4, ["wide", "wide"]);
    store
}

/// What a user would say of an item: drawn with the true probability.
fn label(user: u64, item: u64) -> bool {
    let p = 1.0 / (1.0 + (-(of_user(user) + of_item(item))).exp());
    drawn(user * 7_919 + item + 9_000_000) < p
}

fn items_of(user: u64) -> Vec<u64> {
    (0..PER_USER).map(|n| (user * 13 + n * 2) % ITEMS).collect()
}

fn request(user: u64) -> Value {
    json!({ "request_id": format!("größe-{user}"), "model": "m", "user": { "user": user },
            "candidates": { "item": items_of(user) } })
}

/// Every user's request on a line, with labels if `labelled`.
fn sample(path: &Path, labelled: bool) -> String {
    let mut lines = String::new();
    for user in 0..USERS {
        let mut line = json!({ "request": request(user) });
        if labelled {
            let labels: Vec<u8> = items_of(user).iter().map(|item| label(user, *item).into()).collect();
            line["labels"] = json!({ "p": labels });
        }
        writeln!(lines, "{line}").unwrap();
    }
    fs::write(path, lines).unwrap();
    text(path)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_mismatch_costs_what_it_costs_and_the_matched_tables_nothing() {
    let dir = TempDir::new().unwrap();
    let at = text(store(&dir).root());
    let sample = sample(&dir.path().join("sämple.jsonl"), true);
    let base = ["release", "skew", "m", "r1", "r2", "--store", &at, "--sample", &sample];
    let (code, said) = json(&[&base[..], &["--tables-of", "wide", "--each-table"]].concat());
    assert_eq!((code, &said["schema_version"], &said["requests"]), (0, &json!(1), &json!(USERS)), "{said:#}");
    assert_eq!(said["labelled_candidates"], json!(USERS * PER_USER));
    let cells = said["releases"][0]["cells"].as_array().unwrap();
    let told: Vec<_> =
        cells.iter().map(|c| (c["tables_of"].as_str().unwrap(), c["only_table"].as_str())).collect();
    assert_eq!(
        told,
        [
            ("r1", None),
            ("r2", None),
            ("r2", Some("user")),
            ("r2", Some("item")),
            ("wide", None),
            ("wide", Some("user")),
            ("wide", Some("item")),
        ]
    );
    // What labels were drawn with is as good as it gets: it is calibrated, and nothing is better.
    let (own, other) = (&cells[0]["outputs"]["p"], &cells[1]["outputs"]["p"]);
    let calibration = &own["calibration"];
    let off = (number(&calibration["value"]) - 1.0).abs();
    assert!(off < 3.0 * number(&calibration["standard_error"]) && off < 0.1, "{own:#}");
    assert!(number(&own["auc"]["value"]) > 0.85 && own["change"].is_null(), "{own:#}");
    // With the signs turned the best is the worst.
    assert!(number(&other["auc"]["value"]) < 0.2, "{other:#}");
    let change = &other["change"]["log_loss_percent"];
    assert!(number(&change["value"]) > 100.0 && number(&change["standard_error"]) < 40.0, "{other:#}");
    let item_only = &cells[3]["outputs"]["p"]["change"]["log_loss"];
    assert!(number(&item_only["value"]) > 5.0 * number(&item_only["standard_error"]), "{item_only}");
    // Every table is asked once per id; the second version of one has lost an item.
    assert_eq!(cells[1]["missing"][1]["table"], "item@v2");
    assert_eq!(cells[1]["missing"][1]["ids"], json!(USERS * PER_USER));
    let asked = (0..USERS).flat_map(items_of).filter(|item| *item == ITEMS - 1).count();
    assert!(asked > 0, "the lost item is asked for");
    assert_eq!(cells[1]["missing"][1]["missing_ids"], json!(asked));
    // Rows that are too long are told, and the rest goes on.
    let problem = "vectors of table user@wide have 4 numbers, the model wants 2";
    assert_eq!(cells[4]["not_comparable"], json!(problem));
    // The second release is its own best.
    let of_second = &said["releases"][1]["cells"];
    assert!(number(&of_second[0]["outputs"]["p"]["auc"]["value"]) > 0.85, "{of_second:#}");
}

#[test]
fn a_promise_is_kept_broken_or_not_to_be_told() {
    let dir = TempDir::new().unwrap();
    let at = text(store(&dir).root());
    let all = sample(&dir.path().join("all.jsonl"), true);
    let base = ["release", "skew", "m", "r1", "--store", &at, "--max-loss-change", "1"];
    let verdict = |rest: &[&str]| {
        let (code, said) = json(&[&base[..], rest].concat());
        (code, said["promises"][0]["verdict"].as_str().unwrap().to_owned())
    };
    assert_eq!(verdict(&["--sample", &all, "--tables-of", "r1-again"]), (0, "kept".into()));
    assert_eq!(verdict(&["--sample", &all, "--tables-of", "r2"]), (3, "broken".into()));
    // One request says nothing of chance.
    let one = dir.path().join("one.jsonl");
    let first = fs::read_to_string(&all).unwrap().lines().next().unwrap().to_owned();
    fs::write(&one, first).unwrap();
    assert_eq!(verdict(&["--sample", &text(&one), "--tables-of", "r2"]), (3, "undecided".into()));
    // Nor do two: that they are alike may be chance.
    let two = dir.path().join("two.jsonl");
    let lines = fs::read_to_string(&all).unwrap();
    fs::write(&two, lines.lines().take(2).collect::<Vec<_>>().join("\n")).unwrap();
    for tables in ["r1-again", "r2"] {
        assert_eq!(verdict(&["--sample", &text(&two), "--tables-of", tables]), (3, "undecided".into()));
    }
    // Tables that the model cannot run with are not let through, alone or beside others.
    assert_eq!(verdict(&["--sample", &all, "--tables-of", "wide"]), (3, "undecided".into()));
    let beside = ["--sample", &all, "--tables-of", "r1-again", "--tables-of", "wide"];
    assert_eq!(verdict(&beside), (3, "kept".into()));
    // Nor does a sample without labels say anything.
    let bare = sample(&dir.path().join("bare.jsonl"), false);
    assert_eq!(verdict(&["--sample", &bare, "--tables-of", "r2"]), (3, "undecided".into()));
    let (code, said) = failure(&[&base[..], &["--sample", &all]].concat());
    assert!(code == 1 && said.contains("--tables-of"), "{said}");
}

#[test]
fn labels_that_came_later_find_their_candidates() {
    let dir = TempDir::new().unwrap();
    let at = text(store(&dir).root());
    let bare = sample(&dir.path().join("bare.jsonl"), false);
    // One request has an item twice: whose label it is cannot be known. It is the last.
    let mut lines = fs::read_to_string(&bare).unwrap();
    let mut twice = request(1);
    twice["request_id"] = json!("twice");
    twice["candidates"]["item"] = json!([7, 8, 7]);
    writeln!(lines, "{}", json!({ "request": twice })).unwrap();
    fs::write(&bare, lines).unwrap();
    let labels = dir.path().join("labels.jsonl");
    let mut lines = String::new();
    for user in 0..USERS {
        for (index, item) in items_of(user).into_iter().enumerate() {
            let mut line = json!({ "request_id": format!("größe-{user}"), "labels": { "p": u8::from(label(user, item)) } });
            // By name, and by place.
            if user % 2 == 0 {
                line["candidate"] = json!(item)
            } else {
                line["index"] = json!(index)
            }
            writeln!(lines, "{line}").unwrap();
        }
    }
    for line in [
        json!({ "request_id": "twice", "candidate": 7, "labels": { "p": 1 } }),
        json!({ "request_id": "twice", "candidate": 8, "labels": { "p": true } }),
        json!({ "request_id": "twice", "candidate": 99, "labels": { "p": 1 } }),
        json!({ "request_id": "nobody", "index": 0, "labels": { "p": 1 } }),
        json!({ "request_id": "twice", "candidate": 8, "labels": { "p": 1 } }),
    ] {
        writeln!(lines, "{line}").unwrap();
    }
    fs::write(&labels, &lines).unwrap();
    let labels = text(&labels);
    let base = ["release", "skew", "m", "r1", "--store", &at, "--sample", &bare, "--labels", &labels];
    let (code, said) = json(&[&base[..], &["--candidate-feature", "item"]].concat());
    let joined = USERS * PER_USER + 1;
    let expected = json!({ "read": joined + 3, "joined": joined, "ambiguous": 1, "unmatched": 2 });
    assert_eq!((code, &said["labels"]), (0, &expected), "{said:#}");
    assert_eq!(said["releases"][0]["cells"][0]["outputs"]["p"]["examples"], json!(joined));
    // The same figures as with labels in the sample, but for the one candidate more.
    assert!(number(&said["releases"][0]["cells"][0]["outputs"]["p"]["auc"]["value"]) > 0.85, "{said:#}");

    let (code, said) = failure(&base);
    assert!(code == 1 && said.contains("line 1: which feature names candidates is not said"), "{said}");
    let wrong = |line: &str, problem: &str| {
        fs::write(&labels, format!("{lines}{line}\n")).unwrap();
        let (code, said) = failure(&[&base[..], &["--candidate-feature", "item"]].concat());
        let place = format!("labels.jsonl: line {}: {problem}", lines.lines().count() + 1);
        assert!(code == 1 && said.contains(&place), "{said} does not say {place}");
    };
    wrong(
        r#"{"request_id": "twice", "candidate": 8, "labels": {"p": 0}}"#,
        "label \"p\" contradicts an earlier line",
    );
    wrong(
        r#"{"request_id": "twice", "candidate": 8, "labels": {"p": 0.5}}"#,
        "label \"p\" is 0.5, not 0 or 1",
    );
    wrong(r#"{"request_id": "twice", "labels": {"p": 0}}"#, "either candidate or index is expected");
    wrong(r#"{"request_id": "twice", "candidate": 8, "labels": {}}"#, "labels is empty");
}

#[test]
fn what_is_no_sample_is_refused_with_its_line() {
    let dir = TempDir::new().unwrap();
    let at = text(store(&dir).root());
    let path = dir.path().join("sample.jsonl");
    let good =
        format!("{}\n\n", json!({ "request": request(1), "labels": { "p": vec![0; PER_USER as usize] } }));
    let base = ["release", "skew", "m", "r1", "--store", &at, "--sample", path.to_str().unwrap()];
    let refused = |line: &Value, problem: &str| {
        fs::write(&path, format!("{good}{line}\n")).unwrap();
        let (code, said) = failure(&base);
        assert!(
            code == 1 && said.contains("sample.jsonl") && said.contains(problem),
            "{said} does not say {problem}"
        );
    };
    refused(&json!({}), "line 3 is no sample");
    refused(
        &json!({ "request": request(1), "labels": { "p": [1] } }),
        "line 3: labels of \"p\": 1 of them, there are 25",
    );
    refused(
        &json!({ "request": request(1), "labels": { "q": [1] } }),
        "line 3: labels: there is no output \"q\", there are p",
    );
    let mut other = request(1);
    other["user"] = json!({ "größe": 1 });
    refused(&json!({ "request": other }), "line 3: model m takes no user feature \"größe\"");
    let mut other = request(1);
    other["candidates"]["item"] = json!(["abc"]);
    refused(&json!({ "request": other }), "line 3: candidate feature \"item\": \"abc\" is no number");

    for nothing in ["", "\n\n"] {
        fs::write(&path, nothing).unwrap();
        let (code, said) = failure(&base);
        assert!(code == 1 && said.contains("the sample has no requests"), "{said}");
    }
    fs::write(&path, "{\"audit\":1,\"request\":{}").unwrap();
    let (_, said) = failure(&base);
    assert!(said.contains("no requests, and 1 damaged lines"), "{said}");
    // Nobody's candidates, and the same one twice, are requests like others.
    let mut none = request(1);
    none["candidates"]["item"] = json!([]);
    let mut twice = request(2);
    twice["candidates"]["item"] = json!([3, 3]);
    let lines = [
        json!({ "request": none, "labels": { "p": [] } }),
        json!({ "request": twice, "labels": { "p": [1, 0] } }),
    ];
    fs::write(&path, format!("{}\n{}", lines[0], lines[1])).unwrap();
    let (code, said) = json(&base);
    assert_eq!((code, &said["requests"], &said["candidates"]), (0, &json!(2), &json!(2)), "{said:#}");
    assert_eq!(
        said["releases"][0]["cells"][0]["outputs"]["p"]["auc"]["value"],
        json!(0.5),
        "a tie: {said:#}"
    );

    let store = ["release", "skew", "m", "r9", "--store", &at, "--sample", path.to_str().unwrap()];
    let (code, said) = failure(&store);
    assert!(code == 1 && said.contains("release r9 of model m"), "{said}");
    let (code, said) = failure(&[&base[..], &["--tables-of", "r1"]].concat());
    assert!(code == 1 && said.contains("release r1 is named twice"), "{said}");
    let (code, _) = failure(&[&base[..], &["--max-loss-change", "-1"]].concat());
    assert_eq!(code, 2);
}

#[test]
fn what_a_killed_ranker_wrote_down_is_replayed() {
    let dir = TempDir::new().unwrap();
    let store = store(&dir);
    let at = text(store.root());
    let controller = Role::controller(dir.path(), store.root());
    let _node = Role::node(dir.path(), store.root(), &controller);
    let mut of_ranker = keys(dir.path(), store.root(), "ranker");
    of_ranker.push(("controllers", format!("{:?}", [&controller.grpc_address])));
    of_ranker.extend([("ranker", "r-1".into()), ("audit_sample.percent", "100".into())]);
    let ranker = Role::start(dir.path(), "ranker", &of_ranker);
    let control = ["--controller", &controller.grpc_address];
    assert_eq!(json(&[&control[..], &["release", "publish", "r1", "--model", "m"]].concat()).0, 0);
    assert_eq!(json(&[&control[..], &["release", "promote", "m", "r1"]].concat()).0, 0);
    let file = dir.path().join("request.json");
    let mut missing = 0;
    for user in 0..5 {
        let mut request = request(user);
        // An item that no table has.
        request["candidates"]["item"][0] = json!(u64::MAX);
        fs::write(&file, request.to_string()).unwrap();
        let (code, answer) = json(&["rank", &text(&file), "--ranker", &ranker.http_address]);
        assert_eq!((code, &answer["release"]), (0, &json!("r1")), "{answer:#}");
        missing += answer["missing_ids"].as_u64().unwrap();
    }
    let written = "tidepool_ranker_audit_sample_requests_total{outcome=\"written\"} 5";
    let begun = Instant::now();
    while !http_get(&ranker.http_address, "/metrics").contains(written) {
        assert!(begun.elapsed() < DEADLINE, "five requests are not written down");
    }
    let killed = Command::new("kill").args(["-KILL", &ranker.pid().to_string()]).status().unwrap();
    assert!(killed.success());
    drop(ranker);
    let sample = dir.path().join("ranker/audit-sample.jsonl");
    // The last line as a process leaves it that is killed while it writes.
    let whole = fs::read(&sample).unwrap();
    fs::write(&sample, &whole[..whole.len() - 30]).unwrap();
    let sample = text(&sample);
    let base = ["release", "skew", "m", "r1", "r2", "--store", &at, "--sample", &sample, "--max-beyond", "0"];
    let (code, said) = json(&base);
    // Nobody has asked the second release, so nothing can be promised of it.
    assert_eq!((code, &said["requests"], &said["damaged_lines"]), (3, &json!(4), &json!(1)), "{said:#}");
    assert!(said["first_damaged_line"].as_str().unwrap().ends_with("audit-sample.jsonl, line 5"), "{said:#}");
    let verdicts = [&said["promises"][0]["verdict"], &said["promises"][1]["verdict"]];
    assert_eq!(verdicts, [&json!("kept"), &json!("undecided")]);
    let online = &said["releases"][0]["online"];
    assert_eq!((&online["requests"], &online["values"]), (&json!(4), &json!(4 * PER_USER)), "{online:#}");
    assert!(number(&online["max_difference"]) < 1e-6, "{online:#}");
    assert_eq!((missing, &said["releases"][0]["cells"][0]["missing"][1]["missing_ids"]), (5, &json!(4)));
    // Without labels it is still told how far scores move.
    let moved = &said["releases"][0]["cells"][1];
    assert!(number(&moved["score_change"]["mean"]) > 0.1 && moved["outputs"] == json!({}), "{moved:#}");

    let (code, said) = failure(&["ranker", "--audit-sample", "150", "--set", "ranker=r"]);
    assert!(code == 1 && said.contains("audit_sample.percent: from 0 to 100"), "{said}");
    let large = "audit_sample.max_record_bytes=67108865";
    let (code, said) = failure(&["ranker", "--set", "ranker=r", "--set", large]);
    assert!(code == 1 && said.contains("audit_sample.max_record_bytes: from 1 to 67108864"), "{said}");
}
