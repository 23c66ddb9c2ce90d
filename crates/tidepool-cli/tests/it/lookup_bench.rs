//! `tidepool bench lookup` on a small table: real nodes, checked answers, steps, and nobody left behind.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant, UNIX_EPOCH},
};

use serde_json::Value;
use tempfile::TempDir;
use tidepool_client::{
    FeatureLookup,
    trace::{TraceEnd, TraceStart, TraceWriter, TracedLookup},
};
use tidepool_types::{Name, Pooling, TableVersion};

use crate::command::{Role, failure, json, tidepool};

const TABLE: [&str; 6] = ["--rows", "3_000", "--dim", "8", "--partitions", "8"];

/// Runs `bench lookup` on a small table in `dir`.
fn bench(dir: &TempDir, words: &str) -> (i32, Value) {
    let dir = dir.path().to_str().unwrap();
    let words: Vec<&str> = words.split(' ').collect();
    json(&[&["bench", "lookup", "--dir", dir], &TABLE[..], &words].concat())
}

fn number(of: &Value, key: &str) -> f64 {
    of[key].as_f64().unwrap_or_else(|| panic!("{key} of {of:#}"))
}

#[test]
fn lookups_are_measured_beside_bare_bytes_and_the_kernel() {
    let dir = TempDir::new().unwrap();
    let (code, report) =
        bench(&dir, "--nodes 2 --rate 200 --batch 30 --bag 4 --weighted --seconds 0.4 --kernel --seed 7");
    assert_eq!(code, 0, "{report:#}");
    for (key, expected) in
        [("table_rows", 3000), ("nodes", 2), ("batch", 30), ("seed", 7), ("schema_version", 1)]
    {
        assert_eq!(report[key], expected, "{key}");
    }
    for zero in ["failed_requests", "wrong_answers", "cache_hit_rate", "unchecked_requests", "missing_ids"] {
        assert_eq!(number(&report, zero), 0.0, "{zero} of {report:#}");
    }
    let requests = number(&report, "requests");
    assert!(requests > 20.0, "about eighty: {report:#}");
    assert_eq!(number(&report, "checked_answers"), 30.0 * requests, "every bag of every answer");
    let in_order: Vec<f64> =
        ["p50_us", "p99_us", "p999_us", "max_us"].map(|key| number(&report, key)).to_vec();
    assert!(in_order.is_sorted() && in_order[0] > 0.0, "{in_order:?}");
    assert_eq!(number(&report, "nodes_touched_per_request"), 2.0);
    let above_zero = [
        "mean_us",
        "rows_per_second",
        "requests_per_second",
        "wire_bytes_per_request",
        "node_cpu_us_per_request",
        "client_cpu_us_per_request",
        "offered_rate",
    ];
    for key in above_zero {
        assert!(number(&report, key) > 0.0, "{key} of {report:#}");
    }
    let bare = &report["bare_tcp"];
    assert_eq!(number(bare, "requests"), requests, "the same arrivals: {report:#}");
    assert_eq!(number(bare, "failed_requests"), 0.0);
    assert!(
        number(&bare["mean_ratio"], "median") > 0.0
            && number(&report["kernel"]["node_cpu_ratio"], "median") > 0.0
    );
    let bytes = number(bare, "sent_bytes_per_request") + number(bare, "received_bytes_per_request");
    assert!((bytes - number(&report, "wire_bytes_per_request")).abs() < 1.0, "{report:#}");
    assert!(report["machine"]["cpu"].is_string());
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["tables"], "the table stays, the cluster's files go");
}

#[test]
fn steps_grow_and_several_numbers_of_nodes_are_plotted() {
    let dir = TempDir::new().unwrap();
    let page = dir.path().join("page.html");
    let page = page.to_str().unwrap();
    let (code, report) = bench(
        &dir,
        &format!(
            "--nodes 1,2 --rate 100 --batch 5 --batch-shape heavy --seconds 0.1 --steps 2 --html {page}"
        ),
    );
    let runs = report["runs"].as_array().unwrap();
    // On a machine that does other things too, not even the first step may hold.
    let none_held = runs.iter().any(|run| run["steps_held"] == 0);
    assert_eq!(code, if none_held { 3 } else { 0 }, "{report:#}");
    assert_eq!(runs.iter().map(|run| number(run, "nodes")).collect::<Vec<_>>(), [1.0, 2.0]);
    for run in runs {
        let steps = run["steps"].as_array().unwrap();
        assert!((1..=2).contains(&steps.len()), "{run:#}");
        assert_eq!(number(&steps[0], "offered_rate"), 100.0);
        let held = steps.len() - usize::from(!run["steps_ended_by"].is_null());
        assert_eq!(number(run, "steps_held"), held as f64, "{run:#}");
        let head = &steps[held.saturating_sub(1)];
        assert_eq!(run["offered_rate"], head["offered_rate"], "the last that held is at the head: {run:#}");
        assert_eq!(number(run, "partitions"), 8.0, "all of them serve the same table");
    }
    assert_eq!(runs[1]["built"], false);
    let page = fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 3, "each number of nodes, and both side by side");
    assert!(page.contains("1 nodes p99") && page.contains("2 nodes p50"));
    assert!(!page.contains("http"), "nothing is fetched");
    for words in ["p99.9", "latency (log scale)", "answered requests per second", "prefers-color-scheme"] {
        assert!(page.contains(words), "{words}");
    }

    let (code, report) =
        bench(&dir, "--rate 50 --steps 5 --slo-p99-us 0.5 --batch 2 --seconds 0.1 --exact --pooling mean");
    assert_eq!(
        (code, report["steps"].as_array().unwrap().len()),
        (3, 1),
        "the SLO breaks at once: {report:#}"
    );
    assert_eq!((&report["steps_held"], &report["steps_ended_by"]), (&0.into(), &"slo".into()));
}

/// A trace of 30 lookups of two tables, 5 bags with 8 ids each.
fn trace(file: &Path) {
    let name = |text: &str| Name::new(text).unwrap();
    let feature = |table, ids: Vec<u64>, lengths: Option<Vec<u32>>| FeatureLookup {
        table_version: TableVersion { table: name(table), version: name("v1") },
        pooling: if lengths.is_some() { Pooling::Mean } else { Pooling::None },
        ids,
        lengths,
        weights: None,
    };
    let start = TraceStart { began: UNIX_EPOCH, every: 1, source: "r-7".into() };
    let mut writer = TraceWriter::new(fs::File::create(file).unwrap(), &start).unwrap();
    for number in 0..30 {
        let features = vec![
            feature("item", vec![number, u64::MAX, 3, 3, number], Some(vec![2, 0, 3])),
            feature("user", vec![number, 3, 3], None),
        ];
        let arrival = Duration::from_secs(number);
        writer.lookup(&TracedLookup { arrival, number, tenant: None, features }).unwrap();
    }
    writer.finish(&TraceEnd::default()).unwrap();
}

#[test]
fn what_a_trace_asks_is_asked_of_a_bench_table_in_order_and_once() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("day.trace");
    trace(&file);
    let traced = format!("--nodes 2 --rate 400 --trace {}", file.display());
    let (code, report) = bench(&dir, &format!("{traced} --seconds 10"));
    assert_eq!(code, 0, "{report:#}");
    let used = &report["trace"];
    assert_eq!((number(used, "lookups"), number(used, "asked")), (30.0, 30.0), "{report:#}");
    assert_eq!(
        (&used["ended"], &used["repeat"], &used["source"]),
        (&true.into(), &false.into(), &"r-7".into())
    );
    assert_eq!((number(&report, "requests"), number(&report["bare_tcp"], "requests")), (30.0, 30.0));
    assert_eq!((number(&report, "checked_answers"), number(&report, "wrong_answers")), (180.0, 0.0));
    assert_eq!((&report["skew"], &report["pooling"]), (&"trace".into(), &Value::Null));
    assert!(number(&report, "seconds") < 5.0, "it ends with the trace: {report:#}");
    // Each has three rows of one table and two of the other, but for number 3, which has one less of both.
    assert_eq!(number(&report, "looked_up_rows_per_request"), 148.0 / 30.0, "{report:#}");

    let (code, report) = bench(&dir, &format!("{traced} --seconds 0.4 --no-baseline --trace-repeat"));
    assert_eq!((code, &report["trace"]["ended"]), (0, &false.into()), "{report:#}");
    assert!(number(&report["trace"], "asked") > 30.0, "it begins again: {report:#}");
    let (code, report) = bench(&dir, &format!("{traced} --seconds 0.05 --steps 9 --trace-repeat"));
    assert!(code == 0 || report["steps_held"] == 0, "{report:#}");
    assert_eq!(
        report["steps"].as_array().unwrap().iter().map(|s| number(s, "requests")).sum::<f64>(),
        number(&report["trace"], "asked")
    );
}

#[test]
fn a_running_cluster_is_benched_when_it_serves_a_bench_table() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let controller = Role::controller(dir.path(), &store);
    let _node = Role::node(dir.path(), &store, &controller);
    let store = store.to_str().unwrap();
    let controller = ["--controller", controller.grpc_address.as_str()];

    let asked = ["bench", "lookup", "--rate", "max", "--in-flight", "2", "--batch", "4", "--seconds", "0.1"];
    let (code, said) = failure(&[&asked[..], &controller].concat());
    assert!(code == 1 && said.contains("tidepool bench table"), "{said}");
    let (_, built) = json(&[&["bench", "table", "--dir", store], &TABLE[..]].concat());
    assert_eq!(built["built"], true);
    let version = format!("{}@{}", built["table_version"]["table"].as_str().unwrap(), "rows-1");
    assert_eq!(json(&[&["table", "serve", &version], &controller[..]].concat()).0, 0);
    let (code, report) = json(&[&asked[..], &controller].concat());
    assert_eq!(code, 0, "{report:#}");
    assert!(number(&report, "checked_answers") > 0.0 && report["offered_rate"].is_null());
    assert_eq!((number(&report, "wrong_answers"), number(&report, "in_flight")), (0.0, 2.0));
    assert_eq!(number(&report, "table_rows"), 3000.0);
    assert!(report["bare_tcp"].is_null() && report["node_cpu_us_per_request"].is_null());
}

#[test]
fn what_cannot_be_benched_is_refused() {
    let cases = [
        ("--rate 0", 2, "neither max nor a number"),
        ("--rate max --steps", 1, "give --rate R"),
        ("--slo-p99-us 100", 2, "--steps"),
        ("--batch 0", 2, "--batch"),
        ("--wire-form rows", 2, "gather or pool"),
        ("--trace x --batch 3", 2, "--batch"),
        ("--trace-repeat", 2, "--trace"),
        ("--weighted --pooling none", 1, "weights go with sum or mean"),
    ];
    let dir = TempDir::new().unwrap();
    let at = dir.path().to_str().unwrap();
    for (words, expected, said) in cases {
        let words: Vec<&str> = words.split(' ').collect();
        let (code, text) = failure(&[&["bench", "lookup", "--dir", at], &TABLE[..], &words].concat());
        assert!(code == expected && text.contains(said), "{words:?}: {code} {text}");
    }
}

/// Ids of the processes whose parent is `pid`.
fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let all: Vec<String> = tasks.map(|task| of_task(task.unwrap())).collect();
    all.iter().flat_map(|text| text.split_whitespace()).map(|pid| pid.parse().unwrap()).collect()
}

fn wait_until(what: &str, mut ok: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ok() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::yield_now();
    }
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn no_process_outlives_a_bench_that_is_killed_not_even_a_stopped_one() {
    /// Ends what a failed test would leave.
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let dir = TempDir::new().unwrap();
    let mut command = tidepool();
    command.args(["bench", "lookup", "--nodes", "2", "--seconds", "60", "--no-baseline", "--dir"]);
    command.arg(dir.path()).args(TABLE).stdout(Stdio::null()).stderr(Stdio::null());
    let mut bench = Killed(command.spawn().unwrap());
    let mut started = Vec::new();
    wait_until("a controller and two nodes start", || {
        started = children(bench.0.id());
        started.len() == 3
    });
    let state = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next().unwrap_or_default())
    };
    let stopped = started[2];
    signal("-STOP", stopped);
    wait_until("it is stopped", || state(stopped) == Some('T'));
    bench.0.kill().unwrap();
    bench.0.wait().unwrap();
    // A zombie has ended; whoever adopted it may be slow to notice.
    wait_until("all of them end", || started.iter().all(|pid| matches!(state(*pid), None | Some('Z'))));
}
