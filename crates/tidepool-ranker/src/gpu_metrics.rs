//! What is shown of a GPU: the device itself, and of each release that is loaded its memory there, its batches, and the rows of
//! its tables that are resident. Nothing is kept here: every scrape asks the releases, so a release takes its series with it. The
//! driver is not asked: the loader looks at the device.

use std::sync::Arc;

use prometheus::{
    CounterVec, GaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tidepool_dense::Usage;

use crate::{device::Engine, loaded::LoadedRelease, releases::Releases, resident::TableUse};

/// What is shown of a ranker's GPU. Of a ranker without one there is nothing to show.
pub(crate) struct GpuMetrics {
    releases: Releases,
    engine: Engine,
    descriptions: Vec<Desc>,
}

/// What one scrape shows.
struct Facts {
    /// Free and total bytes of the device when it was last looked at, if it answered: nothing here asks the driver.
    memory: Option<(u64, u64)>,
    is_lost: bool,
    loaded: Vec<Arc<LoadedRelease>>,
}

/// The values of a metric's labels, and its value.
type Series = (Vec<String>, f64);

/// A number of what a release has asked of the GPU.
type Read = fn(&Usage) -> f64;

/// A metric: its name, its help, its labels, and where its values come from. One whose name ends with `_total` is a counter.
struct Shown {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    read: fn(&Facts) -> Vec<Series>,
}

const RELEASE: &[&str] = &["model", "release"];
const TABLE: &[&str] = &["model", "release", "table"];

const SHOWN: [Shown; 16] = [
    Shown {
        name: "gpu_lost",
        help: "1 once the GPU is lost, until the process is started anew",
        labels: &[],
        read: |facts| vec![(Vec::new(), f64::from(u8::from(facts.is_lost)))],
    },
    Shown {
        name: "gpu_free_bytes",
        help: "Bytes of the GPU that are free",
        labels: &[],
        read: |facts| facts.memory.iter().map(|(free, _)| (Vec::new(), *free as f64)).collect(),
    },
    Shown {
        name: "gpu_all_bytes",
        help: "Bytes that the GPU has",
        labels: &[],
        read: |facts| facts.memory.iter().map(|(_, all)| (Vec::new(), *all as f64)).collect(),
    },
    Shown {
        name: "gpu_model_bytes",
        help: "Bytes that a release has, by where and for what",
        labels: &["model", "release", "memory", "what"],
        read: model_bytes,
    },
    Shown {
        name: "gpu_batches_total",
        help: "Batches that the GPU has done",
        labels: RELEASE,
        read: |facts| usage(facts, |usage| usage.batches as f64),
    },
    Shown {
        name: "gpu_rows_total",
        help: "Rows of these batches, padding left out",
        labels: RELEASE,
        read: |facts| usage(facts, |usage| usage.rows as f64),
    },
    Shown {
        name: "gpu_launches_total",
        help: "Launches of graphs for them",
        labels: RELEASE,
        read: |facts| usage(facts, |usage| usage.launches as f64),
    },
    Shown {
        name: "gpu_copied_bytes_total",
        help: "Bytes that were copied for them, by direction",
        labels: &["model", "release", "direction"],
        read: |facts| by(facts, [("in", |u| u.bytes_in as f64), ("out", |u| u.bytes_out as f64)]),
    },
    Shown {
        name: "gpu_busy_seconds_total",
        help: "Time that batches were on the GPU, copies included",
        labels: RELEASE,
        read: |facts| usage(facts, |usage| usage.on_device.as_secs_f64()),
    },
    Shown {
        name: "gpu_wait_seconds_total",
        help: "Time that batches waited, by what for",
        labels: &["model", "release", "awaited"],
        read: |facts| {
            let lane: Read = |usage| usage.waited_for_lane.as_secs_f64();
            by(facts, [("memory", lane), ("stream", |usage| usage.waited_for_turn.as_secs_f64())])
        },
    },
    Shown {
        name: "gpu_refused_batches_total",
        help: "Batches that were refused, by reason",
        labels: &["model", "release", "reason"],
        read: |facts| by(facts, [("busy", |u| u.busy as f64), ("late", |u| u.late as f64)]),
    },
    Shown {
        name: "resident_offered_ids",
        help: "Ids of a table that were to choose from",
        labels: TABLE,
        read: |facts| tables(facts, |table| table.offered),
    },
    Shown {
        name: "resident_ids",
        help: "Ids of a table that are resident on the GPU",
        labels: TABLE,
        read: |facts| tables(facts, |table| table.kept),
    },
    Shown {
        name: "resident_bytes",
        help: "Bytes of the GPU that they take",
        labels: TABLE,
        read: |facts| tables(facts, |table| table.bytes),
    },
    Shown {
        name: "resident_asked_ids_total",
        help: "Unique ids of lookups that were held against what is resident",
        labels: TABLE,
        read: |facts| tables(facts, |table| table.asked),
    },
    Shown {
        name: "resident_hit_ids_total",
        help: "Those of them that no node was asked for",
        labels: TABLE,
        read: |facts| tables(facts, |table| table.resident),
    },
];

fn labels_of(loaded: &LoadedRelease) -> Vec<String> {
    vec![loaded.model.to_string(), loaded.release.to_string()]
}

fn usage(facts: &Facts, read: Read) -> Vec<Series> {
    let one =
        |loaded: &Arc<LoadedRelease>| Some((labels_of(loaded), read(&loaded.batch_model.scorer.usage()?)));
    facts.loaded.iter().filter_map(one).collect()
}

fn by<const N: usize>(facts: &Facts, kinds: [(&str, Read); N]) -> Vec<Series> {
    let with = |kind: &str, (mut labels, value): Series| {
        labels.push(kind.to_owned());
        (labels, value)
    };
    let of = |(kind, read)| usage(facts, read).into_iter().map(move |series| with(kind, series));
    kinds.into_iter().flat_map(of).collect()
}

fn tables(facts: &Facts, read: fn(&TableUse) -> u64) -> Vec<Series> {
    let of = |loaded: &Arc<LoadedRelease>| {
        let labels = labels_of(loaded);
        let series = move |table: TableUse| {
            let mut labels = labels.clone();
            labels.push(table.table.table.to_string());
            (labels, read(&table) as f64)
        };
        loaded.filled.tables().into_iter().map(series)
    };
    facts.loaded.iter().flat_map(of).collect()
}

/// The memory of each release, that of all its streams and buckets together.
fn model_bytes(facts: &Facts) -> Vec<Series> {
    let of = |loaded: &Arc<LoadedRelease>| {
        let of_model = loaded.device_memory.iter().map(|used| (used.pinned, used.what, used.bytes));
        let resident =
            Some((false, "resident rows", loaded.filled.bytes())).filter(|(_, _, bytes)| *bytes > 0);
        let mut sums: Vec<Series> = Vec::new();
        for (pinned, what, bytes) in of_model.chain(resident) {
            let mut labels = labels_of(loaded);
            labels.extend([if pinned { "pinned" } else { "device" }, what].map(str::to_owned));
            match sums.iter_mut().find(|(known, _)| *known == labels) {
                Some((_, sum)) => *sum += bytes as f64,
                None => sums.push((labels, bytes as f64)),
            }
        }
        sums
    };
    facts.loaded.iter().flat_map(of).collect()
}

impl Shown {
    fn options(&self) -> Opts {
        Opts::new(format!("tidepool_ranker_{}", self.name), self.help)
    }

    fn is_counter(&self) -> bool {
        self.name.ends_with("_total")
    }

    fn descriptions(&self) -> prometheus::Result<Vec<Desc>> {
        let desc = if self.is_counter() {
            CounterVec::new(self.options(), self.labels)?.desc().into_iter().cloned().collect()
        } else {
            GaugeVec::new(self.options(), self.labels)?.desc().into_iter().cloned().collect()
        };
        Ok(desc)
    }

    /// The metric as it is now; `None`: nothing of it is there, and an empty family is not to be shown.
    fn family(&self, facts: &Facts) -> Option<MetricFamily> {
        let series = (self.read)(facts);
        let families = if self.is_counter() {
            let all = CounterVec::new(self.options(), self.labels).ok()?;
            series.iter().for_each(|(labels, value)| all.with_label_values(labels).inc_by(*value));
            all.collect()
        } else {
            let all = GaugeVec::new(self.options(), self.labels).ok()?;
            series.iter().for_each(|(labels, value)| all.with_label_values(labels).set(*value));
            all.collect()
        };
        families.into_iter().next().filter(|family| !family.get_metric().is_empty())
    }
}

impl GpuMetrics {
    /// Of the releases of a ranker and of what runs them.
    ///
    /// # Errors
    /// When a name is none: a defect.
    pub(crate) fn new(releases: Releases, engine: Engine) -> prometheus::Result<Self> {
        let mut descriptions = Vec::new();
        for shown in &SHOWN {
            descriptions.extend(shown.descriptions()?);
        }
        Ok(Self { releases, engine, descriptions })
    }
}

impl Collector for GpuMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if matches!(self.engine, Engine::Cpu) {
            return Vec::new();
        }
        let loaded = self.releases.snapshot().loaded().cloned().collect();
        let facts = Facts { memory: self.engine.memory(), is_lost: self.engine.lost().is_some(), loaded };
        SHOWN.iter().filter_map(|shown| shown.family(&facts)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::overload_tests::ranker;

    #[test]
    fn the_page_on_metrics_has_what_a_gpu_shows() {
        let page = include_str!("../../../docs/metrics.md");
        let section = page.split("\n## Ranker with a GPU\n").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let documented: BTreeSet<_> = section
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| {
                let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
                let labels: Vec<_> = cells[2].split('`').skip(1).step_by(2).map(str::to_owned).collect();
                (cells[0].trim_matches('`').to_owned(), cells[1].to_owned(), labels)
            })
            .collect();
        let shown = SHOWN.iter().map(|shown| {
            let kind = if shown.is_counter() { "counter" } else { "gauge" };
            let labels = shown.labels.iter().map(|label| (*label).to_owned()).collect();
            (format!("tidepool_ranker_{}", shown.name), kind.to_owned(), labels)
        });
        assert_eq!(documented, shown.collect());
    }

    #[test]
    fn what_a_release_lacks_has_no_series_and_a_cpu_shows_nothing() {
        let releases = ranker().releases;
        let loaded = releases.snapshot().loaded().cloned().collect();
        let facts = Facts { memory: Some((3, 8)), is_lost: false, loaded };
        let families: Vec<_> = SHOWN.iter().filter_map(|shown| shown.family(&facts)).collect();
        let names: Vec<_> = families.iter().map(|family| family.name()).collect();
        assert_eq!(
            names,
            ["tidepool_ranker_gpu_lost", "tidepool_ranker_gpu_free_bytes", "tidepool_ranker_gpu_all_bytes"]
        );
        assert_eq!(families[1].get_metric()[0].get_gauge().get_value(), 3.0);
        let metrics = GpuMetrics::new(releases, Engine::Cpu).unwrap();
        assert!(metrics.collect().is_empty() && metrics.desc().len() == SHOWN.len());
    }
}
