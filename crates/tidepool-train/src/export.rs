//! Writes a trained model into the artifact store: a version of each table, then the release that pins them.

use tidepool_store::{ArtifactStore, NewRelease};
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_types::{Golden, ModelSpec, Name, PartitionCount, ReleaseManifest, RowFormat, TableVersion};

use crate::{
    error::TrainError,
    model::{TrainedModel, TrainedTable},
};

/// Under which names, and in which form, a model is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// The model.
    pub model: Name,
    /// The release of it.
    pub release: Name,
    /// The version that every table gets.
    pub version: Name,
    /// How rows are stored.
    pub format: RowFormat,
    /// Into how many partitions each table is cut.
    pub partitions: PartitionCount,
    /// For the index of hashed tables: the same seed and rows give the same bytes.
    pub seed: u64,
}

impl ExportOptions {
    /// INT4 rows in four partitions.
    #[must_use]
    pub fn new(model: Name, release: Name, version: Name) -> Self {
        let partitions = PartitionCount::new(4).unwrap_or(PartitionCount::ONE);
        Self { model, release, version, format: RowFormat::Int4, partitions, seed: 1 }
    }
}

/// Writes one version of each of the model's tables, then `model.toml`, `model.onnx` and `release.json`. There are no golden
/// vectors: its contract takes ids and numbers as they are, and ranks by an output.
///
/// # Errors
/// [`TrainError`] when a version or the release exists already, a row cannot be stored, or writing fails. Tables
/// written before the failure stay: they are whole, and no release names them.
pub fn export_release(
    store: &ArtifactStore,
    model: &TrainedModel,
    options: &ExportOptions,
) -> Result<ReleaseManifest, TrainError> {
    write(store, &model.tables, &model.spec(options.model.clone())?, (&model.onnx(), None), options)
}

/// Writes a version of each table, then the release that pins them: its graph, and what training says that its contract
/// makes of numbers, if the contract makes anything of them. Features of these models are ids of their tables and numbers as
/// they are, so there are no transforms for golden vectors to speak of; some are ranked by a formula.
pub(crate) fn write(
    store: &ArtifactStore,
    tables: &[TrainedTable],
    spec: &ModelSpec,
    (onnx, golden): (&[u8], Option<&Golden>),
    options: &ExportOptions,
) -> Result<ReleaseManifest, TrainError> {
    let mut versions = Vec::new();
    for table in tables {
        let table_version =
            TableVersion { table: Name::new(table.name.as_str())?, version: options.version.clone() };
        write_table(store, table, &table_version, options)
            .map_err(|source| TrainError::Table { table: table_version.clone(), source: Box::new(source) })?;
        versions.push(table_version);
    }
    let golden = golden.map(serde_json::to_string_pretty).transpose().map_err(TrainError::Golden)?;
    let new = NewRelease {
        model: &options.model,
        release: &options.release,
        tables: &versions,
        model_toml: &spec.to_toml(),
        onnx,
        golden: golden.as_deref(),
    };
    store.write(new).map_err(|source| TrainError::Store(Box::new(source)))
}

fn write_table(
    store: &ArtifactStore,
    table: &TrainedTable,
    table_version: &TableVersion,
    options: &ExportOptions,
) -> Result<(), tidepool_table::BuildError> {
    let mut builder = TableBuilder::new(TableSpec {
        table_version: table_version.clone(),
        dim: table.dim as u32,
        format: options.format,
        keying: table.keying,
        partitions: options.partitions,
        default_row: table.default_row.clone(),
        composite: None,
        full_keys: false,
        seed: options.seed,
    })?;
    for (id, values) in table.entries() {
        builder.push(id, values)?;
    }
    builder.publish(&store.table_dir(table_version), &mut |_, _| {})?;
    Ok(())
}
