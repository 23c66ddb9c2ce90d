//! The tables that a contract names, with rows that are a function of their ids: built once, kept in the store.

use tidepool_kernels::RowKernel;
use tidepool_store::ArtifactStore;
use tidepool_table::{LayoutReader, LayoutView, TableBuilder, TableSpec};
use tidepool_types::{InputSource, Keying, ModelSpec, Name, PartitionCount, RowFormat, TableVersion};

use super::{RankModel, unfit};
use crate::{
    BenchError,
    rows::{id_of, stored_row},
};

/// Rows between two words of progress.
const TELL_ROWS: u64 = 1 << 16;
/// How rows are stored: as they are in production.
pub(super) const FORMAT: RowFormat = RowFormat::Int4;
/// Which rows they have.
pub(super) const VERSION: u64 = 1;
/// Partitions of every table.
const PARTITIONS: u32 = 32;

/// A table of the bench.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RankTable {
    pub(super) table_version: TableVersion,
    pub(super) dim: u32,
    pub(super) rows: u64,
    pub(super) keying: Keying,
}

impl RankTable {
    /// Those that the inputs of `model` look up, each once; hashed ones have `rows` rows.
    pub(super) fn of(model: &RankModel, rows: u64) -> Result<Vec<Self>, BenchError> {
        let tables = model.spec.tables().map(|table| {
            let known = model.tables.iter().find(|known| known.name == table.as_str());
            let known = known.ok_or_else(|| unfit(&model.spec, &format!("nobody knows table {table}")))?;
            let rows = if known.keying == Keying::Hashed { rows } else { known.rows.max(1) };
            // Whatever decides the bytes is in the name, so that what is kept is what is wanted.
            let version = Name::new(format!("rows-1-d{}-n{rows}-p{PARTITIONS}", known.dim))?;
            let table_version = TableVersion { table: table.clone(), version };
            Ok(Self { table_version, dim: known.dim, rows, keying: known.keying })
        });
        tables.collect()
    }

    /// The table that an input looks up.
    pub(super) fn find<'a>(tables: &'a [Self], spec: &ModelSpec, input: &str) -> Option<&'a Self> {
        let input = spec.inputs.iter().find(|known| known.name == input)?;
        let InputSource::Pooled { table, .. } = &input.source else { return None };
        tables.iter().find(|known| known.table_version.table == *table)
    }

    /// Builds it in `store`, unless it is there; says whether it had to.
    pub(super) fn ensure(
        &self,
        store: &ArtifactStore,
        progress: &mut dyn FnMut(u64),
    ) -> Result<bool, BenchError> {
        let dir = store.table_dir(&self.table_version);
        if dir.exists() {
            return Ok(false);
        }
        let partitions = PartitionCount::new(PARTITIONS).unwrap_or(PartitionCount::ONE);
        let mut builder = TableBuilder::new(TableSpec {
            table_version: self.table_version.clone(),
            dim: self.dim,
            format: FORMAT,
            keying: self.keying,
            partitions,
            default_row: Vec::new(),
            composite: None,
            full_keys: false,
            seed: 1,
        })?;
        let mut row = vec![0; FORMAT.row_bytes(self.dim)];
        for n in 0..self.rows {
            let id = id_of(self.keying, n);
            stored_row(FORMAT, id, VERSION, &mut row);
            builder.push_stored(id, &row)?;
            if n % TELL_ROWS == 0 {
                progress(n);
            }
        }
        builder.publish(&dir, &mut |_, _| {})?;
        Ok(true)
    }

    /// Opens it in this process.
    pub(super) fn open(&self, store: &ArtifactStore) -> Result<LayoutView, BenchError> {
        let reader = LayoutReader::open(&store.table_dir(&self.table_version))?;
        for partition in reader.partitions() {
            partition.verify()?;
        }
        Ok(reader.into_view(RowKernel::new(FORMAT, self.dim)))
    }
}
