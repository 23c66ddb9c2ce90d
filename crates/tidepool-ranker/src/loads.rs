//! Loads of releases: a few at a time, beside what serves.

use std::sync::{Arc, Weak};

use tidepool_client::{ClusterMap, ReleaseEntry};
use tidepool_runtime::{error::chain, idle};
use tidepool_store::Artifacts;
use tidepool_types::Name;
use tokio::{sync::Semaphore, task::JoinSet};
use tracing::{info, warn};

use crate::{
    batch::Batchers,
    device::Engine,
    error::LoadError,
    loaded::LoadedRelease,
    metrics::Metrics,
    releases::{Loader, Snapshot, State},
    resident::Residence,
};

/// Releases that are loaded at the same time: loading must not take every core from those that serve.
const CONCURRENT_LOADS: usize = 2;
/// Releases whose rows are fetched, to a GPU or into the cache, at the same time. They wait for nodes, and keep no other release from
/// being loaded; but the rows of each are held until they are on the device.
const CONCURRENT_FILLS: usize = 2;

/// A load that has ended.
struct Done {
    number: u64,
    result: Result<LoadedRelease, LoadError>,
}

/// Loads under way.
pub(crate) struct Loads {
    tasks: JoinSet<Done>,
    permits: Arc<Semaphore>,
    fills: Arc<Semaphore>,
    count: u64,
}

impl Default for Loads {
    fn default() -> Self {
        let permits = |count| Arc::new(Semaphore::new(count));
        let (loads, fills) = (permits(CONCURRENT_LOADS), permits(CONCURRENT_FILLS));
        Self { tasks: JoinSet::new(), permits: loads, fills, count: 0 }
    }
}

impl Loads {
    /// Whether no load is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for the next load to end and takes it over. Dropped before that, it has taken nothing.
    pub(crate) async fn take_next(&mut self, now: &mut Snapshot) {
        match self.tasks.join_next().await {
            Some(Ok(done)) => take(now, done),
            // A load catches its own panics, so this is the runtime's end.
            Some(Err(error)) => warn!(%error, "a load was lost"),
            None => {}
        }
    }
}

impl Loader {
    /// Starts to load every release, of all models or of `only` one, that is not loaded and not being loaded.
    pub(crate) fn start_loads(&self, now: &mut Snapshot, loads: &mut Loads, only: Option<&Name>) {
        for at in 0..now.slots.len() {
            let slot = &now.slots[at];
            let is_meant = only.is_none_or(|model| slot.entry.model == *model);
            let is_wanted = slot.is_wanted(&now.rollbacks);
            if !is_meant || matches!(slot.state, State::Ready(_)) || slot.loading.is_some() || !is_wanted {
                continue;
            }
            let before = residences(now, &slot.entry);
            let (artifacts, map, entry) = (self.artifacts.clone(), now.map.clone(), slot.entry.clone());
            loads.count += 1;
            let number = loads.count;
            now.slots[at].loading = Some(number);
            let batchers = (self.batchers.clone(), self.engine.clone());
            let (permits, fills) = (loads.permits.clone(), loads.fills.clone());
            let mut maps = self.maps.clone();
            let (filling, warming) = (self.filling.clone(), self.warming.clone());
            let metrics = self.metrics.clone();
            loads.tasks.spawn(async move {
                let permit = permits.acquire_owned().await;
                let mut result = load(artifacts, batchers, map, entry.clone()).await;
                drop(permit);
                if let Ok(loaded) = &mut result {
                    let fill = async {
                        let _permit = fills.acquire_owned().await;
                        loaded.filled = filling.fill(loaded.resident.as_ref(), before).await;
                        tell(loaded, &metrics);
                        // The cache is not asked for what is on the GPU.
                        warming.warm(&loaded.table_versions, &loaded.filled).await;
                    };
                    tokio::select! {
                        () = fill => {}
                        // Nobody waits for what has left the map, or for anything once the session has ended.
                        _ = maps.wait_for(|map| !lists(map, &entry)) => {}
                    }
                }
                Done { number, result }
            });
        }
    }
}

/// Whether a map has the release of an entry: one of the same name with other tables is another.
fn lists(map: &ClusterMap, entry: &ReleaseEntry) -> bool {
    map.release(&entry.model, &entry.release).is_some_and(|listed| listed.tables == entry.tables)
}

/// The resident sets of the releases that are loaded, those first that say most of what `entry` will be asked for: of the
/// release that answers for its model, then of the model's others, then of other models. A load that waits for its turn
/// keeps none of them on the device.
fn residences(now: &Snapshot, entry: &ReleaseEntry) -> Vec<Weak<Residence>> {
    let is_current = |loaded: &LoadedRelease| {
        let current = now.map.current_release(&loaded.model);
        current.is_some_and(|current| current.release == loaded.release)
    };
    let mut loaded: Vec<_> = now.loaded().collect();
    loaded.sort_by_key(|loaded| (loaded.model != entry.model, !is_current(loaded)));
    let residences = loaded.iter().filter_map(|loaded| loaded.filled.residence.as_ref());
    residences.map(Arc::downgrade).collect()
}

/// Says what of its tables a release has on the GPU, if it was to have something.
fn tell(loaded: &LoadedRelease, metrics: &Metrics) {
    let LoadedRelease { model, release, filled, .. } = loaded;
    metrics.resident_problems.inc_by(filled.problems.len() as u64);
    for problem in &filled.problems {
        warn!(%model, %release, problem, "not all rows are resident that were to be; nodes are asked for the others");
    }
    if filled.residence.is_some() {
        let ids: u64 = filled.tables().iter().map(|table| table.kept).sum();
        info!(%model, %release, ids, bytes = filled.bytes(), "rows of the release are resident");
    }
}

/// Brings a release here if it is elsewhere, and loads it.
async fn load(
    artifacts: Artifacts,
    (batchers, engine): (Batchers, Engine),
    map: Arc<ClusterMap>,
    entry: ReleaseEntry,
) -> Result<LoadedRelease, LoadError> {
    artifacts.bring_release(&entry.model, &entry.release).await?;
    let load = move || LoadedRelease::load(artifacts.files(), &map, &entry, &batchers, &engine);
    let loaded = idle::run(load).await;
    loaded.unwrap_or_else(|e| Err(LoadError::Broken(chain(&e))))
}

fn take(now: &mut Snapshot, done: Done) {
    // No slot waits for it when its release has left the map meanwhile.
    let Some(slot) = now.slots.iter_mut().find(|slot| slot.loading == Some(done.number)) else { return };
    slot.loading = None;
    let (model, release) = (&slot.entry.model, &slot.entry.release);
    match done.result {
        Ok(loaded) => {
            info!(%model, %release, "release loaded");
            slot.state = State::Ready(Arc::new(loaded));
        }
        Err(error) => {
            let problem = chain(&error);
            let told = matches!(&slot.state, State::Failed(before) if *before == problem);
            if !told {
                warn!(%model, %release, %problem, "a release could not be loaded; it is tried again");
            }
            slot.state = State::Failed(problem);
        }
    }
}
