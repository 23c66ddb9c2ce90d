//! Releases of a small model `m` that was trained a moment, and asking until something is so.

use std::{path::Path, time::Instant};

use serde_json::Value;
use tidepool_store::ArtifactStore;
use tidepool_train::{ExportOptions, SyntheticSize, TrainOptions, export_release, synthetic, train};
use tidepool_types::Name;

use crate::command::{DEADLINE, tidepool};

/// A request for a release of it.
pub(crate) const REQUEST: &str = r#"{"model": "m", "routing_key": "user-1",
    "user": {"user": 1, "occupation": 0, "age": 30, "gender": 1},
    "candidates": {"item": [1, 2], "genres": [[0], [1, 2]]}}"#;

/// As many users and items as a quick test needs.
pub(crate) const SMALL: SyntheticSize = SyntheticSize { users: 40, items: 60, events: 1_200 };

/// A path as an argument.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A store in `dir` with these releases of model `m`; the tables of each have its name as their version.
pub(crate) fn trained(dir: &Path, releases: &[&str]) -> ArtifactStore {
    trained_of(dir, releases, SMALL)
}

/// The same with tables of so many rows.
pub(crate) fn trained_of(dir: &Path, releases: &[&str], size: SyntheticSize) -> ArtifactStore {
    let data = synthetic(3, size);
    let mut options = TrainOptions { resamples: 2, ..TrainOptions::default() };
    (options.pretrain.epochs, options.ranker.max_epochs) = (1, 1);
    let model = train(&data, &options, &mut |_| {}).unwrap().model;
    let name = |text: &str| Name::new(text).unwrap();
    let store = ArtifactStore::open(dir.join("store")).unwrap();
    for release in releases {
        export_release(&store, &model, &ExportOptions::new(name("m"), name(release), name(release))).unwrap();
    }
    store
}

/// Asks until there is an answer and it is as `ok` wants it.
pub(crate) fn until(args: &[&str], ok: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let output = tidepool().arg("--json").args(args).output().unwrap();
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        match answer {
            Some(value) if output.status.success() && ok(&value) => return value,
            _ => assert!(begun.elapsed() < DEADLINE, "{args:?}: {output:?}"),
        }
    }
}
