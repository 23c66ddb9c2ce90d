//! What operators and developers ask of a running cluster: what is wrong, what happened, what became of a request.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidepool_store::ArtifactStore;
use tidepool_train::{ExportOptions, SyntheticSize, TrainOptions, export_release, synthetic, train};
use tidepool_types::Name;

use crate::command::{DEADLINE, Role, failure, json, keys, node_keys, tidepool};

/// Two groups of one node each, a ranker, and model `m`: r1, and r2 whose item table has fewer items.
pub(crate) struct Site {
    dir: TempDir,
    store: ArtifactStore,
    controller: Role,
    pub(crate) nodes: Vec<Role>,
    ranker: Role,
    user: u64,
    /// That r1 has rows of, and r2 has not.
    items: [u64; 2],
}

/// Items of release r2; r1 has more.
const R2_ITEMS: u32 = 30;

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

impl Site {
    /// Starts it with r1 current.
    pub(crate) fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path().join("store")).unwrap();
        let name = |text: &str| Name::new(text).unwrap();
        let mut options = TrainOptions { resamples: 2, ..TrainOptions::default() };
        (options.pretrain.epochs, options.ranker.max_epochs) = (1, 1);
        let mut known = Vec::new();
        for (release, items) in [("r1", 60), ("r2", R2_ITEMS)] {
            let data = synthetic(3, SyntheticSize { users: 40, items, events: 1_200 });
            let model = train(&data, &options, &mut |_| {}).unwrap().model;
            let export = ExportOptions::new(name("m"), name(release), name(release));
            export_release(&store, &model, &export).unwrap();
            let beyond = data.train.iter().filter(|seen| seen.item >= R2_ITEMS);
            known.extend(
                beyond.map(|seen| (data.users[seen.user as usize].id, data.items[seen.item as usize].id)),
            );
        }
        let (user, first) = known[0];
        let second = known.iter().map(|(_, item)| *item).find(|item| *item != first).unwrap();
        let controller = Role::controller(dir.path(), store.root());
        let node = |group: &str| {
            let home = dir.path().join(group);
            fs::create_dir_all(&home).unwrap();
            let mut keys = node_keys(&home, store.root(), &[&controller.grpc_address]);
            keys.extend([("node", format!("{group}-1")), ("group", group.to_owned())]);
            Role::start(&home, "node", &keys)
        };
        let nodes = vec![node("a"), node("b")];
        let mut of_ranker = keys(dir.path(), store.root(), "ranker");
        of_ranker.push(("controllers", format!("{:?}", [&controller.grpc_address])));
        of_ranker.extend([("ranker", "r-1".into()), ("default_deadline_ms", "20000".into())]);
        let ranker = Role::start(dir.path(), "ranker", &of_ranker);
        let items = [first, second];
        let site = Self { dir, store, controller, nodes, ranker, user, items };
        // Both groups are to have the tables from the beginning.
        site.until(&["cluster", "nodes"], |v| v["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2));
        assert_eq!(site.ask(&["release", "publish", "r1", "--model", "m"]).0, 0);
        assert_eq!(site.ask(&["release", "promote", "m", "r1"]).0, 0);
        site
    }

    pub(crate) fn ask(&self, args: &[&str]) -> (i32, Value) {
        json(&[&["--controller", self.controller.grpc_address.as_str()], args].concat())
    }

    pub(crate) fn refused(&self, args: &[&str]) -> (i32, String) {
        failure(&[&["--controller", self.controller.grpc_address.as_str()], args].concat())
    }

    /// What people are shown.
    fn shown(&self, args: &[&str]) -> String {
        let output =
            tidepool().args(["--controller", &self.controller.grpc_address]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asks until the answer is as `ok` wants it.
    pub(crate) fn until(&self, args: &[&str], ok: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (_, value) = self.ask(args);
            if ok(&value) {
                return value;
            }
            assert!(begun.elapsed() < DEADLINE, "{args:?}: {value:#}");
        }
    }

    /// A ranking of two items that r1 has rows of, and one that nobody has.
    pub(crate) fn request(&self, id: &str, key: &str) -> Value {
        let [first, second] = self.items;
        json!({
            "model": "m", "request_id": id, "routing_key": key,
            "user": { "user": self.user, "occupation": 0, "age": 30, "gender": 1 },
            "candidates": { "item": [first, second, 99999], "genres": [[0], [1, 2], []] },
        })
    }

    /// Posts a ranking; gives status and answer.
    pub(crate) fn rank(&self, request: &Value) -> (u16, Value) {
        let (address, body) = (&self.ranker.http_address, request.to_string());
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!(
            "POST /v1/rank HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
    }
}

fn problems(status: &Value) -> Vec<(String, String)> {
    let word = |p: &Value, key: &str| p[key].as_str().unwrap().to_owned();
    status["problems"].as_array().unwrap().iter().map(|p| (word(p, "gravity"), word(p, "what"))).collect()
}

fn has(status: &Value, gravity: &str, words: &[&str]) -> bool {
    problems(status).iter().any(|(of, what)| of == gravity && words.iter().all(|word| what.contains(word)))
}

#[test]
fn the_state_of_a_cluster_is_told_and_what_is_wrong_with_it_comes_first() {
    let mut site = Site::start();
    let status = site.until(&["cluster", "status", "--check"], |v| v["ok"] == json!(true));
    assert_eq!(site.ask(&["cluster", "status", "--check"]).0, 0);
    assert_eq!(
        (&status["controllers"][0]["leading"], &status["controllers"][0]["term"]),
        (&json!(true), &json!(1))
    );
    assert_eq!(status["releases"][0]["share"], json!(1.0));
    assert_eq!((&status["groups"][0]["nodes_up"], &status["groups"][1]["nodes_up"]), (&json!(1), &json!(1)));
    let placed = &status["tables"][0]["replicas_placed"];
    assert!(placed.as_u64() > Some(1) && *placed == status["tables"][0]["replicas_ready"], "{status:#}");
    let shown = site.shown(&["cluster", "status"]);
    assert!(shown.starts_with("nothing is wrong\n") && shown.contains("m@r1"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 120), "{shown}");

    let (_, nodes) = site.ask(&["cluster", "nodes"]);
    let node = &nodes["nodes"][0];
    assert_eq!((&node["node"], &node["group"], &node["up"]), (&json!("a-1"), &json!("a"), &json!(true)));
    assert!(node["partitions_ready"] == node["partitions_placed"] && node["file_bytes"].as_u64() > Some(0));
    assert_eq!((&node["capacity_bytes"], &node["failed"]), (&json!(null), &json!([])), "{node:#}");
    let (_, tables) = site.ask(&["cluster", "tables"]);
    let item = tables["tables"].as_array().unwrap().iter().find(|t| t["table"] == "item").unwrap();
    assert_eq!((&item["pinned_by"], &item["served"]), (&json!(["m@r1"]), &json!(false)));
    assert_eq!(item["groups"].as_array().map(Vec::len), Some(2));
    for of in ["nodes", "tables", "events"] {
        let shown = site.shown(&["cluster", of]);
        assert!(
            shown.lines().count() >= 3 && shown.lines().all(|line| line.chars().count() <= 120),
            "{shown}"
        );
    }

    // A ramp that its guards halt: r2 has not the items that are asked for.
    assert_eq!(site.ask(&["release", "publish", "r2", "--model", "m"]).0, 0);
    site.until(&["release", "list", "m"], |v| v["releases"][1]["state"] == "ready");
    let ramp = ["release", "ramp", "m", "r2", "50%", "--min-requests", "20", "--max-score-shift", "1"];
    let (code, ramped) = site.ask(&ramp);
    assert_eq!((code, &ramped["current_share"]), (0, &json!(0.5)));
    let listed = site.ask(&["release", "list", "m"]).1;
    assert_eq!(listed["releases"][1]["share"], json!(0.5));
    let begun = Instant::now();
    let halted = (0..).find(|n| {
        (0..50).for_each(|key| assert_eq!(site.rank(&site.request("ramp", &format!("{n}-{key}"))).0, 200));
        assert!(begun.elapsed() < DEADLINE, "it was not halted");
        has(&site.ask(&["cluster", "status"]).1, "undecided", &["m@r2 was halted"])
    });
    assert!(halted.is_some());
    assert!(
        site.ask(&["release", "list"]).1["releases"][1]["halted"].as_str().unwrap().contains("in no table")
    );

    followed(&site);

    // A node dies, and another cannot hold a table whose file is damaged.
    drop(site.nodes.pop());
    let status = site.until(&["cluster", "status", "--check"], |v| has(v, "exposed", &["b-1", "is down"]));
    assert_eq!(site.ask(&["cluster", "status", "--check"]).0, 3);
    assert_eq!(site.ask(&["cluster", "status"]).0, 0);
    assert_eq!(problems(&status)[0].0, "exposed", "{status:#}");
    let root = text(site.store.root());
    assert_eq!(
        json(&["table", "generate", "bad@v1", "--rows", "2000", "--partitions", "2", "--store", &root]).0,
        0
    );
    let partition =
        fs::read_dir(site.store.root().join("tables/bad/v1/layout-2")).unwrap().next().unwrap().unwrap();
    let mut bytes = fs::read(partition.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(partition.path(), bytes).unwrap();
    let (code, said) = site.refused(&["table", "serve", "bad@v1", "--wait-seconds", "2"]);
    assert!(code == 1 && said.contains("bad@v1 is not ready"), "{said}");
    let status =
        site.until(&["cluster", "status"], |v| has(v, "exposed", &["a-1", "1 partitions of bad@v1"]));
    assert!(has(&status, "failing", &["bad@v1", "ready on no node"]), "{status:#}");
    let (_, nodes) = site.ask(&["cluster", "nodes"]);
    assert!(nodes["nodes"][0]["failed"][0].as_str().unwrap().contains("of bad@v1"), "{nodes:#}");
    assert_eq!((&nodes["nodes"][1]["up"], &nodes["nodes"][1]["file_bytes"]), (&json!(false), &json!(null)));
    assert!(site.shown(&["cluster", "nodes"]).contains("DOWN"));
    assert_eq!(site.ask(&["cluster", "tables"]).1["tables"][0]["served"], json!(true));

    collected(&site);
}

/// Events are told from any number on, and as they happen.
fn followed(site: &Site) {
    let (_, events) = site.ask(&["cluster", "events"]);
    let list = events["events"].as_array().unwrap();
    let kinds: Vec<_> = list.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    for kind in ["node_up", "published", "ready", "promoted", "ramped", "halted"] {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }
    let last = events["last"].as_u64().unwrap();
    assert_eq!(list.last().unwrap()["number"], json!(last));
    let (_, two) = site.ask(&["cluster", "events", "--limit", "2"]);
    assert_eq!((two["events"].as_array().map(Vec::len), &two["left_out"]), (Some(2), &json!(last - 2)));
    let since = (last - 1).to_string();
    assert_eq!(
        site.ask(&["cluster", "events", "--since", &since]).1["events"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(site.ask(&["cluster", "events", "--since", "999999"]).1["events"], json!([]));

    let mut follow = tidepool();
    follow.args([
        "--json",
        "--controller",
        &site.controller.grpc_address,
        "cluster",
        "events",
        "--follow",
        "--since",
        &since,
    ]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["number"], json!(last));
    assert_eq!(site.ask(&["release", "shadow", "m", "r2", "1%"]).0, 0);
    let new = next();
    assert_eq!(
        (&new["number"], &new["kind"], &new["release"]),
        (&json!(last + 1), &json!("shadowed"), &json!("r2"))
    );
    assert_eq!(new["schema_version"], json!(1));
    let interrupted = Command::new("kill").args(["-INT", &follow.id().to_string()]).status().unwrap();
    assert!(interrupted.success() && follow.wait().unwrap().success());
    assert_eq!(site.ask(&["release", "shadow", "m", "r2", "0%"]).0, 0);
}

/// A retired release is no longer in the cluster; with the tables that only it used it goes from the store.
fn collected(site: &Site) {
    let root = text(site.store.root());
    let (code, said) = site.refused(&["release", "retire", "m", "r2"]);
    assert!(code == 1 && said.contains("--yes"), "{said}");
    assert_eq!(site.ask(&["release", "retire", "m", "r2", "--yes"]).0, 0);
    // It leaves when what began with it has ended.
    let list = ["release", "list", "m", "--store", root.as_str()];
    let listed = site.until(&list, |v| v["releases"].as_array().map(Vec::len) == Some(1));
    assert_eq!(
        (&listed["only_in_store"][0]["release"], listed["only_in_store"].as_array().map(Vec::len)),
        (&json!("r2"), Some(1))
    );
    assert_eq!(
        site.ask(&["release", "list", "nobody"]).1,
        json!({ "schema_version": 1, "releases": [], "only_in_store": null })
    );
    assert!(site.shown(&["release", "list", "--store", &root]).contains("release m@r2"));

    let gc = ["release", "gc", "--store", root.as_str()];
    let young = site.ask(&[&gc[..], &["--dry-run"]].concat()).1;
    assert_eq!((&young["collected"], &young["dry_run"]), (&json!([]), &json!(true)), "all of it is young");
    let old = [&gc[..], &["--grace-hours", "0"]].concat();
    let names = |value: &Value| -> Vec<String> {
        value["collected"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    // What a node still holds stays; it lets go when it has heard.
    let all = ["m@r2", "genre@r2", "item@r2", "occupation@r2", "user@r2"];
    let would = site.until(&[&old[..], &["--dry-run"]].concat(), |v| names(v).len() == all.len());
    assert_eq!(names(&would), all);
    let (code, said) = site.refused(&old);
    assert!(code == 1 && said.contains("--yes") && said.contains("gone for good"), "{said}");
    assert!(site.store.root().join("tables/item/r2/manifest.json").exists());
    let (code, done) = site.ask(&[&old[..], &["--yes"]].concat());
    assert_eq!((code, names(&done)), (0, all.map(str::to_owned).to_vec()));
    assert!(!site.store.root().join("tables/item/r2").exists());
    assert!(site.store.root().join("tables/bad/v1").exists(), "no release pins it");
    assert_eq!(site.rank(&site.request("still", "x")).0, 200);
}

#[test]
fn a_request_is_told_afterwards_whatever_became_of_it() {
    let mut site = Site::start();
    let nothing = site.refused(&["why", "good"]);
    assert!(nothing.0 == 1 && nothing.1.contains("has had no request since it started"), "{nothing:?}");

    // A good one: from the ranker, and from every ranker that the controller knows.
    let hostile = "größe/1 & \u{1b}[31m?id=x";
    assert_eq!(site.rank(&site.request(hostile, "k")).0, 200);
    let at_ranker = ["why", hostile, "--ranker", site.ranker.http_address.as_str()];
    let (code, told) = json(&at_ranker);
    let good = &told["requests"][0];
    assert_eq!(
        (code, &good["request_id"], &good["outcome"]),
        (0, &json!(hostile), &json!("answered")),
        "{told:#}"
    );
    assert_eq!(
        (&good["release"], &good["choice"], &good["ranker"]),
        (&json!("r1"), &json!("current"), &json!("r-1"))
    );
    let call = &good["calls"][0];
    assert!(["a-1", "b-1"].map(|node| json!(node)).contains(&call["node"]), "{good:#}");
    assert_eq!((&call["end"], &call["problem"]), (&json!("answered"), &json!(null)));
    assert_eq!(site.ask(&["why", hostile]).1["requests"], told["requests"]);
    let shown = site.shown(&["why", hostile]);
    assert!(!shown.contains('\u{1b}') && shown.contains("größe/1 & \\u{1b}[31m"), "{shown}");

    // A defaulted one: which ids is told, by the input and its table.
    let item = good["not_found"].as_array().unwrap().iter().find(|f| f["feature"] == "item").unwrap();
    assert_eq!((&item["missing"], &item["table_version"]), (&json!([99999]), &json!("item@r1")));
    assert_eq!(item["defaulted_bags"], json!(1));
    for part in
        ["item (item@r1): 1 ids missing: 99999", "model m, release r1 (current, bucket", "time: lookup"]
    {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }

    // Twice the same id: both, the newer first.
    site.rank(&site.request(hostile, "k"));
    let both = site.ask(&["why", hostile]).1;
    assert_eq!(both["requests"].as_array().map(Vec::len), Some(2));
    assert_eq!(both["requests"][1], told["requests"][0]);

    // Without an id the ranker gives one, which the answer says; an empty one is not asked for.
    let file = site.dir.path().join("request.json");
    let mut unnamed = site.request("", "k");
    unnamed.as_object_mut().unwrap().remove("request_id");
    fs::write(&file, unnamed.to_string()).unwrap();
    let (_, ranked) = json(&["rank", &text(&file), "--ranker", &site.ranker.http_address]);
    let given = ranked["request_id"].as_str().unwrap();
    let found = site.ask(&["why", given]).1;
    assert_eq!(
        (&found["requests"][0]["request_id_given"], given.starts_with("auto-")),
        (&json!(false), true)
    );
    let output =
        tidepool().args(["rank", &text(&file), "--ranker", &site.ranker.http_address]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("request auto-"));
    let empty = site.refused(&["why", ""]);
    assert!(empty.0 == 1 && empty.1.contains("the id is empty"), "{empty:?}");
    assert_eq!(site.refused(&["why"]).0, 2);
    assert_eq!(site.refused(&["why", "a", "--last", "1"]).0, 2);
    let unknown = site.refused(&["why", "nobody"]);
    assert!(unknown.0 == 1 && unknown.1.contains("remembers 4 requests, since 20"), "{unknown:?}");

    // One of a megabyte is refused, and so much of it as is kept finds it.
    let long = "ü".repeat(1 << 19);
    let (status, refused) = site.rank(&site.request(&long, "k"));
    assert!(status == 400 && refused["error"]["message"].as_str().unwrap().contains("it may have 256"));
    let (_, cut) = site.ask(&["why", &"ü".repeat(1000)]);
    assert_eq!(cut["requests"][0]["error"]["code"], json!("invalid_request"), "{cut:#}");

    // Nobody is left who could answer: which nodes were asked, and what each of them said.
    site.nodes.clear();
    site.until(&["cluster", "status"], |v| has(v, "exposed", &["b-1"]) && has(v, "exposed", &["a-1"]));
    let (status, _) = site.rank(&site.request("failed", "k"));
    assert!(status >= 500, "{status}");
    let (_, told) = site.ask(&["why", "failed"]);
    let failed = &told["requests"][0];
    assert_eq!(
        (&failed["outcome"], &failed["error"]["code"]),
        (&json!("failed"), &json!("unavailable")),
        "{failed:#}"
    );
    let calls = failed["calls"].as_array().unwrap();
    assert!(
        !calls.is_empty() && calls.iter().all(|call| call["end"] == "failed" && call["problem"].is_string()),
        "{failed:#}"
    );
    let (_, last) = site.ask(&["why", "--failed", "1"]);
    assert_eq!(last["requests"][0]["request_id"], json!("failed"));
    assert_eq!(site.ask(&["why", "--slowest", "3"]).1["requests"].as_array().map(Vec::len), Some(3));
    let list = site.shown(&["why", "--last", "5"]);
    assert!(list.contains("unavailable") && list.contains("m@r1") && !list.contains('\u{1b}'), "{list}");

    // A ranker that cannot be asked is named, and what the others say is told all the same.
    let one_gone =
        ["why", "failed", "--ranker", "127.0.0.1:1", "--ranker", site.ranker.http_address.as_str()];
    let (code, told) = json(&one_gone);
    assert_eq!((code, told["rankers"][0]["problem"].is_string()), (0, true), "{told:#}");
    let nobody = failure(&["why", "failed", "--ranker", "127.0.0.1:1"]);
    assert!(nobody.0 == 1 && nobody.1.contains("could not be asked"), "{nobody:?}");
}
