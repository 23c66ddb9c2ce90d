//! One release, loaded: its model, which table version each input pools from, and the batches of its model.

use std::{fs, path::Path, sync::Arc};

use tidepool_client::{ClusterMap, ReleaseEntry};
use tidepool_dense::{DenseModel, MemoryUse};
use tidepool_store::ArtifactStore;
use tidepool_types::{InputSource, ModelSpec, Name, TableVersion};

use crate::{
    batch::{BatchInput, BatchModel, Batcher, Batchers, InputFrom, MAX_ELEMENTS, Reserved},
    counters::Counters,
    device::{Engine, Placed, ResidentPlace},
    error::LoadError,
    recent::Told,
    resident::Filled,
    warm_up::warm_up,
};

/// A release that answers requests. It is immutable; requests in flight keep it alive.
#[derive(Debug)]
pub(crate) struct LoadedRelease {
    /// The model.
    pub(crate) model: Name,
    /// The release.
    pub(crate) release: Name,
    /// The contract.
    pub(crate) spec: ModelSpec,
    /// The identity of the contract.
    pub(crate) schema_hash: u64,
    /// The table versions that the release pins.
    pub(crate) table_versions: Vec<TableVersion>,
    /// Per input of the contract: what it pools from, if it does.
    pub(crate) table_of: Vec<Option<TableVersion>>,
    /// Elements per row of each input.
    pub(crate) widths: Vec<usize>,
    /// What batches of it are made with.
    pub(crate) batch_model: Arc<BatchModel>,
    /// Where its requests share batches, with those of the model's other releases beside them.
    pub(crate) batcher: Batcher,
    /// Its memory.
    _reserved: Reserved,
    /// Its memory on a GPU.
    pub(crate) device_memory: Vec<MemoryUse>,
    /// Where rows of its tables that are resident on a GPU go; `None`: it takes no rows.
    pub(crate) resident: Option<ResidentPlace>,
    /// What went there, before the release serves.
    pub(crate) filled: Filled,
    /// What it has answered since it was loaded.
    pub(crate) counters: Counters,
    /// What records of requests say of it.
    pub(crate) told: Arc<Told>,
}

impl LoadedRelease {
    /// Reads the release from the store (which verifies every hash), holds it against the map's schemas,
    /// and runs the model once. It takes milliseconds to seconds: call it off the async threads.
    pub(crate) fn load(
        store: &ArtifactStore,
        map: &ClusterMap,
        entry: &ReleaseEntry,
        batchers: &Batchers,
        engine: &Engine,
    ) -> Result<Self, LoadError> {
        let files = store.release(&entry.model, &entry.release)?;
        let (mut stored, mut mapped) = (files.manifest.tables.clone(), entry.tables.clone());
        stored.sort_unstable();
        mapped.sort_unstable();
        if stored != mapped {
            return Err(LoadError::Tables { stored, mapped });
        }
        let mismatches = files.golden.as_ref().map(|golden| golden.check(&files.spec)).unwrap_or_default();
        if !mismatches.is_empty() {
            return Err(LoadError::Golden(mismatches));
        }
        let mut table_of = Vec::new();
        for input in &files.spec.inputs {
            table_of.push(match input.source.table() {
                None => None,
                Some(table) => {
                    let version = files.manifest.version_of(table).cloned();
                    let unpinned = || LoadError::Unpinned { input: input.name.clone(), table: table.clone() };
                    Some(version.ok_or_else(unpinned)?)
                }
            });
        }
        let dim_of = |table: &Name| {
            let version = files.manifest.version_of(table)?;
            map.layout(version).map(|layout| layout.schema.vector_dim())
        };
        let dense = DenseModel::load(&files.onnx_path, &files.spec, &dim_of)?;
        let dense = Arc::new(dense);
        let widths = dense.widths().to_vec();
        let schema_of = |table: &Option<TableVersion>| {
            table.as_ref().and_then(|table| map.layout(table)).map(|layout| &layout.schema)
        };
        let schemas: Vec<_> = table_of.iter().map(schema_of).collect();
        let Placed { scorer, memory, resident } = engine.place(dense.clone(), &files.spec, &schemas)?;
        let batch_model = Arc::new(BatchModel {
            model: entry.model.clone(),
            release: entry.release.clone(),
            inputs: batch_inputs(&files.spec, &table_of, &widths),
            scorer: batchers.scorer(scorer),
        });
        let batcher = batchers.of(&entry.model);
        let reserved = reserve(&batcher, &batch_model, &dense, &memory, &files.onnx_path)?;
        warm_up(&batch_model, &schemas)?;
        let pooled = files.spec.inputs.iter().zip(&table_of);
        let features = pooled.filter_map(|(input, table)| Some((input.name.clone(), table.clone()?)));
        let told = Told {
            names: Some((entry.model.clone(), entry.release.clone())),
            table_versions: files.manifest.tables.clone(),
            features: features.collect(),
        };
        Ok(Self {
            model: entry.model.clone(),
            release: entry.release.clone(),
            schema_hash: files.spec.schema_hash(),
            spec: files.spec,
            table_versions: files.manifest.tables,
            table_of,
            widths,
            batch_model,
            batcher,
            _reserved: reserved,
            device_memory: memory,
            resident,
            filled: Filled::default(),
            counters: Counters::default(),
            told: Arc::new(told),
        })
    }
}

/// The inputs of the contract, as batches see them.
pub(crate) fn batch_inputs(
    spec: &ModelSpec,
    table_of: &[Option<TableVersion>],
    widths: &[usize],
) -> Vec<BatchInput> {
    let inputs = spec.inputs.iter().zip(table_of).zip(widths);
    let inputs = inputs.map(|((input, table_version), &width)| {
        let from = match (&input.source, table_version.clone()) {
            (InputSource::Pooled { pooling, .. }, Some(table_version)) => {
                InputFrom::Bags(table_version, *pooling)
            }
            (InputSource::Sequence { max_len, mask, .. }, Some(table_version)) => {
                InputFrom::Sequence { table_version, max_len: *max_len as usize, mask: mask.is_some() }
            }
            // The one is not in a table, and of the others each has its version.
            (InputSource::Dense { .. }, _) | (_, None) => InputFrom::Request,
        };
        BatchInput { name: input.name.clone(), side: input.side, width, from }
    });
    inputs.collect()
}

/// Makes sure that a batch can have a row of the model, and that the model may have the memory for it. A graph takes
/// about as much as its file, which is its weights, and what its dense runs work in; on a GPU, where it has the memory `device`,
/// they work in none of this machine but what is pinned there.
fn reserve(
    batcher: &Batcher,
    model: &BatchModel,
    dense: &DenseModel,
    device: &[MemoryUse],
    onnx: &Path,
) -> Result<Reserved, LoadError> {
    let (user, candidate) = model.elements();
    let elements = user.saturating_add(candidate);
    if elements > MAX_ELEMENTS {
        return Err(LoadError::TooWide { elements, limit: MAX_ELEMENTS });
    }
    let unread = |source| LoadError::Size { path: onnx.to_path_buf(), source };
    let weights = fs::metadata(onnx).map_err(unread)?.len();
    let works_in = match device {
        [] => batcher.arena_bytes(model, dense),
        device => device.iter().filter(|used| used.pinned).map(|used| used.bytes).sum(),
    };
    let release = weights.saturating_add(works_in);
    let batches = batcher.batch_bytes(model);
    batcher.reserve(release, batches).map_err(|(loaded, limit)| LoadError::Memory {
        model: model.model.clone(),
        release,
        loaded,
        batches,
        limit,
    })
}
