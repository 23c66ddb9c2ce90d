//! A cluster that serves a release of a small trained model, and has another one to come.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;
use tidepool_store::ArtifactStore;
use tidepool_train::SyntheticSize;

use crate::{
    command::{Role, json, keys, node_keys},
    models::{REQUEST, SMALL, trained_of, until},
};

/// Where releases `r1` and `r2` of model `m` lie, and what serves them. All have the same tables under names of
/// their own.
pub(crate) struct Trained {
    pub(crate) dir: TempDir,
    pub(crate) store: ArtifactStore,
}

impl Trained {
    pub(crate) fn new() -> Self {
        Self::of(SMALL)
    }

    /// With tables of so many rows.
    pub(crate) fn of(size: SyntheticSize) -> Self {
        let dir = TempDir::new().unwrap();
        let store = trained_of(dir.path(), &["r1", "r2"], size);
        fs::write(dir.path().join("request.json"), REQUEST).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes of all partition files of a release.
    pub(crate) fn bytes(&self, release: &str) -> u64 {
        fn below(dir: &Path) -> u64 {
            fs::read_dir(dir)
                .unwrap()
                .flatten()
                .map(|entry| {
                    let path = entry.path();
                    let is_file = path.extension().is_some_and(|extension| extension == "tide");
                    if path.is_dir() {
                        below(&path)
                    } else if is_file {
                        entry.metadata().unwrap().len()
                    } else {
                        0
                    }
                })
                .sum()
        }
        let tables = fs::read_dir(self.store.root().join("tables")).unwrap().flatten();
        tables.map(|table| below(&table.path().join(release))).sum()
    }

    /// The only file of a table of a release.
    pub(crate) fn file(&self, table: &str, release: &str) -> std::path::PathBuf {
        let layout = self.store.root().join("tables").join(table).join(release);
        let layout = fs::read_dir(layout).unwrap().flatten().find(|entry| entry.path().is_dir()).unwrap();
        layout.path().join("part-00000.tide")
    }

    pub(crate) fn node(&self, controller: &Role, more: &[(&'static str, String)]) -> Role {
        let mut keys = node_keys(self.path(), self.store.root(), &[&controller.grpc_address]);
        keys.push(("load_retry_ms", "200".into()));
        keys.extend(more.iter().cloned());
        Role::start(self.path(), "node", &keys)
    }

    /// A ranker of the controller at this address.
    pub(crate) fn ranker(&self, controller: &str) -> Role {
        let mut keys = keys(self.path(), self.store.root(), "ranker");
        keys.push(("controllers", format!("{:?}", [controller])));
        keys.push(("ranker", "r-1".into()));
        Role::start(self.path(), "ranker", &keys)
    }

    /// Publishes a release and makes it the current one once it is loaded.
    pub(crate) fn serve(&self, controller: &Role, release: &str) {
        self.publish(controller, release);
        until(&["--controller", &controller.grpc_address, "release", "promote", "m", release], |_| true);
    }

    /// Only publishes it.
    pub(crate) fn publish(&self, controller: &Role, release: &str) {
        let publish =
            ["--controller", &controller.grpc_address, "release", "publish", release, "--model", "m"];
        assert_eq!(json(&publish).0, 0);
    }

    /// What a release waits for, in the controller's words.
    pub(crate) fn waits_for(&self, controller: &Role, release: &str, words: &[&str]) -> String {
        let list = ["--controller", &controller.grpc_address, "release", "list"];
        let of = |value: &Value| {
            let all = value["releases"].as_array().unwrap();
            let found = all.iter().find(|r| r["release"] == release);
            found.map_or_else(String::new, |found| found["waiting_for"].to_string())
        };
        of(&until(&list, |value| words.iter().all(|word| of(value).contains(word))))
    }

    /// Ranks until the answer is from this release.
    pub(crate) fn ranked_by(&self, ranker: &Role, release: &str) {
        let request = self.path().join("request.json");
        let rank = ["rank", request.to_str().unwrap(), "--ranker", &ranker.http_address];
        until(&rank, |value| value["release"] == release);
    }

    /// One answer, which must be from this release.
    pub(crate) fn still(&self, ranker: &Role, release: &str) {
        let request = self.path().join("request.json");
        let (code, value) = json(&["rank", request.to_str().unwrap(), "--ranker", &ranker.http_address]);
        assert_eq!((code, &value["release"]), (0, &Value::from(release)), "{value:#}");
    }
}
