//! One release, loaded: its model, and which table version each input pools from.

use std::sync::Arc;

use tidepool_client::{ClusterMap, ReleaseEntry};
use tidepool_dense::{DenseBatch, DenseModel};
use tidepool_store::ArtifactStore;
use tidepool_types::{ModelSpec, Name, Side, TableVersion};

use crate::{counters::Counters, error::LoadError, recent::Told};

/// Rows of the run that warms a model up: enough to go through its vectorised loops.
const WARM_UP_ROWS: usize = 16;

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
    /// The model.
    pub(crate) dense: DenseModel,
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
        let rows = |side| if side == Side::User { 1 } else { WARM_UP_ROWS };
        let zeros =
            files.spec.inputs.iter().zip(dense.widths()).map(|(i, width)| vec![0.0; rows(i.side) * width]);
        let zeros: Vec<_> = zeros.collect();
        let inputs: Vec<&[f32]> = zeros.iter().map(Vec::as_slice).collect();
        let request_of = [0; WARM_UP_ROWS];
        dense.run(&DenseBatch {
            rows: WARM_UP_ROWS,
            requests: 1,
            request_of: &request_of,
            inputs: &inputs,
        })?;
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
            dense,
            counters: Counters::default(),
            told: Arc::new(told),
        })
    }
}
