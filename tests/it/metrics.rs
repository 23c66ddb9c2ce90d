//! docs/metrics.md says what the processes show: every metric with its type and labels, and none besides.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::Result;
use prometheus::{Registry, proto::MetricType};
use tidepool_tests::{Sandbox, Shape};

use crate::fixture::{self, MODEL, name};

/// Type and labels of a metric.
type Kind = (String, BTreeSet<String>);

/// What is shown with a GPU alone; it is checked where it is made (`gpu_metrics.rs` of tidepool-ranker).
const WITH_GPU: &str = "\n## Ranker with a GPU\n";

/// The tables of docs/metrics.md, row by row.
fn documented() -> BTreeMap<String, Kind> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(WITH_GPU).unwrap();
    let behind = rest.split_once("\n## ").unwrap().1;
    let mut metrics = BTreeMap::new();
    for line in before.lines().chain(behind.lines()).filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [metric, kind, labels, meaning] = cells[..] else { panic!("{line:?} has not four cells") };
        assert!(!meaning.is_empty(), "{line:?} does not say what it means");
        // Labels stand in backticks, their values after a colon.
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let before = metrics.insert(metric.trim_matches('`').to_owned(), (kind.to_owned(), labels));
        assert!(before.is_none(), "{metric} stands there twice");
    }
    metrics
}

fn shown(registries: &[Registry]) -> BTreeMap<String, Kind> {
    let mut metrics = BTreeMap::new();
    for family in registries.iter().flat_map(Registry::gather) {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            other => panic!("{} is a {other:?}", family.name()),
        };
        let labels = family.get_metric().iter().flat_map(|m| m.get_label());
        let labels = labels.map(|label| label.name().to_owned()).collect();
        metrics.insert(family.name().to_owned(), (kind.to_owned(), labels));
    }
    metrics
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_on_metrics_is_what_the_processes_show() -> Result<()> {
    // Behind locks, which have metrics of their own.
    let mut sandbox = Sandbox::start_locked(Shape { groups: 1, nodes_per_group: 1 }).await?;
    let ranker = sandbox.start_ranker_with_cache(false, 1 << 20).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    sandbox.promote(&name(MODEL), &release.release).await?;
    // A metric by labels is shown from its first value on.
    sandbox.ranker(ranker).await?.rank(fixture::message(&fixture::requests()[0])).await?;
    let registries = sandbox.registries();
    let (documented, mut shown) = (documented(), shown(&registries));
    // Where the system sets no limit, there is none to show.
    if let Some(max_fds) = documented.get("process_max_fds") {
        shown.entry("process_max_fds".into()).or_insert_with(|| max_fds.clone());
    }
    for (metric, kind) in &shown {
        assert_eq!(documented.get(metric), Some(kind), "{metric} in docs/metrics.md");
        let counter = kind.0 == "counter";
        assert_eq!(metric.ends_with("_total"), counter, "{metric}: _total is for counters");
    }
    let gone: Vec<_> = documented.keys().filter(|metric| !shown.contains_key(*metric)).collect();
    assert!(gone.is_empty(), "in docs/metrics.md, and shown nowhere: {gone:?}");

    // Every process shows its own share of the machine, and the cluster is whole.
    for registry in &registries {
        let names: Vec<_> = registry.gather().iter().map(|f| f.name().to_owned()).collect();
        assert!(names.iter().any(|n| n == "process_resident_memory_bytes"), "{names:?}");
    }
    let value = |metric: &str| {
        let families = registries[0].gather();
        let family = families.iter().find(|f| f.name() == metric).unwrap();
        family.get_metric()[0].get_gauge().get_value()
    };
    let placed = value("tidepool_controller_placed_partitions");
    assert_eq!(placed, release.tables.len() as f64 * 4.0);
    assert_eq!(value("tidepool_controller_ready_partitions"), placed);
    sandbox.stop().await
}
