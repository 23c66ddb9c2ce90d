//! Nodes and operators on an object store: real processes, and moto's server as the S3 that they speak to.

pub(crate) mod peer;
mod releases;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{DEADLINE, Role, http_get, node_keys};
use peer::{BUCKET, Link, Moto, SECRET, run, variables};

/// Rows of a table whose two files have three ranges of 8 MiB each.
pub(crate) const ROWS: &str = "1000000";

/// A store in S3 with a table in it, which lies in a directory as well.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) moto: Moto,
    location: String,
    built: PathBuf,
}

impl Site {
    pub(crate) fn new(rows: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (moto, built) = (Moto::start(), dir.path().join("built"));
        let site = Self { dir, moto, location: format!("s3://{BUCKET}/ads/prod"), built };
        site.push("v1", rows);
        site
    }

    pub(crate) fn push(&self, version: &str, rows: &str) {
        let table = format!("big@{version}");
        let built = self.built.to_str().unwrap();
        let generate = [
            "table",
            "generate",
            &table,
            "--rows",
            rows,
            "--keying",
            "dense",
            "--dim",
            "64",
            "--partitions",
            "2",
        ];
        let (code, said, _) = run(self.moto.address, &[&generate[..], &["--store", built]].concat());
        assert_eq!(code, 0, "{said}");
        let push = ["store", "push", "--from", built, "--store", &self.location, "--table", &table];
        let (code, said, pushed) = run(self.moto.address, &push);
        assert_eq!((code, &pushed["pushed"][0]["uploaded"]), (0, &Value::Bool(true)), "{said}");
        assert_eq!(run(self.moto.address, &push).2["pushed"][0]["uploaded"], Value::Bool(false));
    }

    pub(crate) fn file(&self, version: &str, partition: u32) -> PathBuf {
        self.built.join(format!("tables/big/{version}/layout-2/part-{partition:05}.tide"))
    }

    pub(crate) fn bytes(&self, version: &str) -> u64 {
        (0..2).map(|p| fs::metadata(self.file(version, p)).unwrap().len()).sum()
    }

    pub(crate) fn controller(&self) -> Role {
        let keys = [
            ("store", self.location.clone()),
            ("data_dir", self.dir.path().join("controller").to_str().unwrap().to_owned()),
            ("group_settle_ms", "0".into()),
            ("retire_grace_ms", "500".into()),
        ];
        Role::start_in(self.dir.path(), "controller", &keys, &variables(self.moto.address))
    }

    /// Starts the node, which reaches the store at `link`.
    pub(crate) fn node(
        &self,
        controller: &Role,
        link: std::net::SocketAddr,
        more: &[(&'static str, &str)],
    ) -> Role {
        let mut keys = node_keys(self.dir.path(), Path::new(&self.location), &[&controller.grpc_address]);
        keys.push(("load_retry_ms", "200".into()));
        keys.extend(more.iter().map(|&(key, value)| (key, value.to_owned())));
        Role::start_in(self.dir.path(), "node", &keys, &variables(link))
    }

    pub(crate) fn serve(&self, controller: &Role, version: &str, wait: &str) -> (i32, String) {
        let table = format!("big@{version}");
        let args =
            ["--controller", &controller.grpc_address, "table", "serve", &table, "--wait-seconds", wait];
        let (code, said, _) = run(self.moto.address, &args);
        (code, said)
    }

    /// The stored row of an id, by the cluster and by the files that it was built into.
    pub(crate) fn check(&self, controller: &Role, version: &str) {
        let table = format!("big@{version}");
        let stored = |args: &[&str]| {
            let (code, said, found) = run(self.moto.address, args);
            assert_eq!(code, 0, "{said}");
            found["rows"][0]["stored_row"].clone()
        };
        let served = stored(&["--controller", &controller.grpc_address, "lookup", &table, "4711"]);
        let built = self.built.to_str().unwrap();
        assert_eq!(served, stored(&["table", "lookup", &table, "4711", "--store", built]));
        assert!(served.is_string(), "{served}");
    }
}

pub(crate) fn status(node: &Role) -> Value {
    let answer = http_get(&node.http_address, "/status");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

pub(crate) fn metric(node: &Role, name: &str) -> u64 {
    let text = http_get(&node.http_address, "/metrics");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Waits for a state, with a deadline.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < DEADLINE, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn log(role: &Role) -> String {
    let log = fs::read_to_string(&role.log).unwrap();
    assert!(!log.contains(SECRET), "a log has the secret");
    log
}

#[test]
fn s3_a_node_that_is_killed_midway_goes_on_from_there() {
    let site = Site::new(ROWS);
    let controller = site.controller();
    let throttled = [("fetch_bytes_per_second", "8_000_000"), ("fetch_parallelism", "2")];
    let node = site.node(&controller, site.moto.address, &throttled);
    let served = thread::scope(|scope| {
        let serving = scope.spawn(|| site.serve(&controller, "v1", "60"));
        until("half of it has come", || {
            metric(&node, "tidepool_node_fetched_bytes_total") > site.bytes("v1") / 2
        });
        // SIGKILL: nothing is put in order.
        drop(node);
        let node = site.node(&controller, site.moto.address, &[]);
        assert_eq!(serving.join().unwrap().0, 0);
        node
    });
    site.check(&controller, "v1");
    let (whole, came) = (site.bytes("v1"), metric(&served, "tidepool_node_fetched_bytes_total"));
    let resumed = metric(&served, "tidepool_node_fetch_resumed_bytes_total");
    assert_eq!(came + resumed, whole);
    assert!(resumed >= 8 << 20 && came < whole, "{came} of {whole} bytes came again");
    let store = status(&served)["store"].clone();
    assert_eq!(store["location"], Value::from(site.location.as_str()));
    log(&served);
    log(&controller);
}

#[test]
fn s3_a_store_that_is_cut_off_midway_is_asked_again_and_what_is_served_goes_on() {
    let site = Site::new("20000");
    let controller = site.controller();
    let link = Link::to(site.moto.address);
    let node = site.node(&controller, link.address, &[("fetch_bytes_per_second", "8_000_000")]);
    assert_eq!(site.serve(&controller, "v1", "30").0, 0);
    site.push("v2", ROWS);
    thread::scope(|scope| {
        let serving = scope.spawn(|| site.serve(&controller, "v2", "90"));
        let before = site.bytes("v1");
        until("some of it has come", || {
            metric(&node, "tidepool_node_fetched_bytes_total") > before + site.bytes("v2") / 4
        });
        link.cut();
        until("it is tried again", || metric(&node, "tidepool_node_fetch_retries_total") > 0);
        site.check(&controller, "v1");
        link.mend();
        let (code, said) = serving.join().unwrap();
        assert_eq!(code, 0, "{said}");
    });
    site.check(&controller, "v2");
    log(&node);
}

#[test]
fn s3_a_store_that_stops_midway_is_waited_for_and_what_is_served_goes_on() {
    let site = Site::new("20000");
    let controller = site.controller();
    let node = site.node(&controller, site.moto.address, &[("fetch_bytes_per_second", "8_000_000")]);
    assert_eq!(site.serve(&controller, "v1", "30").0, 0);
    site.push("v2", ROWS);
    let before = site.bytes("v1");
    thread::scope(|scope| {
        let serving = scope.spawn(|| site.serve(&controller, "v2", "120"));
        until("some of it has come", || {
            metric(&node, "tidepool_node_fetched_bytes_total") > before + site.bytes("v2") / 4
        });
        // Connections stay open, and nothing comes: after 20 seconds of that a range is asked for again.
        site.moto.signal("-STOP");
        until("it is tried again", || {
            site.check(&controller, "v1");
            metric(&node, "tidepool_node_fetch_retries_total") > 0
        });
        site.moto.signal("-CONT");
        let (code, said) = serving.join().unwrap();
        assert_eq!(code, 0, "{said}");
    });
    site.check(&controller, "v2");
    // What had come was not asked for again: of four ranges on their way at most.
    let came = metric(&node, "tidepool_node_fetched_bytes_total");
    assert!(came <= before + site.bytes("v2") + 4 * (8 << 20), "{came} bytes came");
    log(&node);
}

#[test]
fn s3_a_damaged_object_is_named_and_the_old_version_serves_until_a_good_one_heals() {
    let site = Site::new("20000");
    let controller = site.controller();
    let node = site.node(&controller, site.moto.address, &[]);
    assert_eq!(site.serve(&controller, "v1", "30").0, 0);
    site.push("v2", "20000");
    let good = fs::read(site.file("v2", 1)).unwrap();
    let mut bad = good.clone();
    bad[4096] ^= 1;
    let key = "ads/prod/tables/big/v2/layout-2/part-00001.tide";
    site.moto.put(key, &bad);
    let (code, said) = site.serve(&controller, "v2", "5");
    assert!(code == 1 && said.contains("big@v2"), "{said}");
    site.check(&controller, "v1");
    let named = format!("s3://{BUCKET}/{key} is not what was published");
    assert!(status(&node).to_string().contains(&named), "{}", status(&node));
    assert!(log(&node).contains(&named));
    site.moto.put(key, &good);
    assert_eq!(site.serve(&controller, "v2", "30").0, 0);
    site.check(&controller, "v2");
}

#[test]
fn s3_operators_list_pull_and_collect() {
    let site = Site::new("20000");
    site.push("v2", "20000");
    let controller = site.controller();
    let _node = site.node(&controller, site.moto.address, &[]);
    assert_eq!(site.serve(&controller, "v1", "30").0, 0);
    let with_controller =
        |args: &[&str]| run(site.moto.address, &[&["--controller", &controller.grpc_address], args].concat());
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap().to_owned()).collect()
    };
    let (code, said, listed) = with_controller(&["store", "list", "--store", &site.location]);
    assert_eq!((code, names(&listed["artifacts"])), (0, vec!["big@v1".into(), "big@v2".into()]), "{said}");

    let pulled = site.dir.path().join("pulled");
    let pull =
        ["store", "pull", "--store", &site.location, "--table", "big@v2", "--to", pulled.to_str().unwrap()];
    assert_eq!(run(site.moto.address, &pull).0, 0);
    let copy = pulled.join("tables/big/v2/layout-2/part-00001.tide");
    assert_eq!(fs::read(copy).unwrap(), fs::read(site.file("v2", 1)).unwrap());

    let gc = ["store", "gc", "--grace-hours", "0", "--store", &site.location];
    let (_, _, would) = with_controller(&[&gc[..], &["--dry-run"]].concat());
    assert_eq!(names(&would["collected"]), ["big@v2"]);
    let (code, said, done) = with_controller(&[&gc[..], &["--yes"]].concat());
    assert_eq!((code, names(&done["collected"])), (0, vec!["big@v2".to_owned()]), "{said}");
    let (_, _, listed) = with_controller(&["store", "list", "--store", &site.location]);
    assert_eq!(names(&listed["artifacts"]), ["big@v1"]);
    site.check(&controller, "v1");
}

#[test]
fn s3_what_is_not_there_is_said_in_words() {
    let site = Site::new("1000");
    let list = |location: &str| run(site.moto.address, &["store", "list", "--offline", "--store", location]);
    let (code, said, _) = list("s3://no-such-bucket/x");
    assert!(code == 1 && said.contains("s3://no-such-bucket"), "{said}");
    let table =
        ["store", "pull", "--store", &site.location, "--to", site.dir.path().to_str().unwrap(), "--table"];
    let (code, said, _) = run(site.moto.address, &[&table[..], &["big@v9"]].concat());
    assert!(code == 1 && said.contains("there is no table big@v9"), "{said}");
    let nobody = "127.0.0.1:1".parse().unwrap();
    let (code, said, _) = run(nobody, &["store", "list", "--offline", "--store", &site.location]);
    assert!(code == 1 && said.contains(&site.location) && said.contains("times"), "{said}");
}
