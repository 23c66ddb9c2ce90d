//! [`TableBuilder`]: rows in any order become a published version.

use std::{fs::File, num::NonZeroUsize, path::Path, thread};

use tidepool_kernels::RowKernel;
use tidepool_types::{
    Keying, PartitionCount, PartitionEntry, PartitionIndex, RowFormat, TableManifest, TableSchema,
    TableVersion,
    paths::{MANIFEST_FILE, layout_dir_name, partition_file_name},
};

use crate::{
    error::BuildError,
    group::{Member, group},
    header::{KeyCheck, MAX_PARTITION_ROWS},
    index::{self, BuiltIndex, IndexError, IndexShape},
    publish::StagedDir,
    report::Measure,
    write::{PartitionPlan, write_partition},
};

/// Rows between two calls of a progress callback.
const PROGRESS_ROWS: usize = 1 << 16;

/// What a version is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct TableSpec {
    /// Table and version.
    pub table_version: TableVersion,
    /// Elements of a row; see [`RowFormat::check_dim`].
    pub dim: u32,
    /// How rows are stored.
    pub format: RowFormat,
    /// Which ids there may be.
    pub keying: Keying,
    /// Into how many partitions the version is cut.
    pub partitions: PartitionCount,
    /// What stands for a missing id: `dim` elements, or empty for zeros.
    pub default_row: Vec<f32>,
    /// Hashed keying only: store all 64 bits of each key instead of a 32-bit fingerprint and 32 cold bits,
    /// so that an absent id is told with certainty.
    pub full_keys: bool,
    /// Seeds the index. Same rows and same seed, same bytes.
    pub seed: u64,
}

impl TableSpec {
    fn schema(&self, rows: u64) -> TableSchema {
        TableSchema {
            table_version: self.table_version.clone(),
            dim: self.dim,
            format: self.format,
            keying: self.keying,
            partitions: self.partitions,
            rows,
            default_row: self.default_row.clone(),
        }
    }

    const fn key_check(&self) -> KeyCheck {
        match (self.keying, self.full_keys) {
            (Keying::Dense, _) => KeyCheck::None,
            (Keying::Hashed, false) => KeyCheck::Fingerprint32,
            (Keying::Hashed, true) => KeyCheck::FullKeys,
        }
    }
}

/// Collects the rows of one version, then writes and publishes all of it.
///
/// It holds every stored row and its id in memory until then: `row_bytes + 8` bytes a row, and 16 more
/// while publishing.
#[derive(Debug)]
pub struct TableBuilder {
    spec: TableSpec,
    kernel: RowKernel,
    ids: Vec<u64>,
    /// Stored rows, one after the other, in the order of `ids`.
    stored: Vec<u8>,
    measure: Measure,
    /// Whether rows came as they are stored, so that nothing is known of what they were.
    imported: bool,
    /// A row on its way: stored, and read back.
    row: Vec<u8>,
    values: Vec<f32>,
}

impl TableBuilder {
    /// An empty version.
    ///
    /// # Errors
    /// [`BuildError`] when the spec contradicts itself: dimension, default row, full keys of a dense table.
    pub fn new(spec: TableSpec) -> Result<Self, BuildError> {
        spec.schema(0).validate().map_err(|source| BuildError::Schema { source })?;
        if spec.full_keys && spec.keying == Keying::Dense {
            return Err(BuildError::FullKeysOfDense { table: spec.table_version });
        }
        let kernel = RowKernel::new(spec.format, spec.dim);
        let row = vec![0; kernel.row_bytes()];
        let values = vec![0.0; spec.dim as usize];
        Ok(Self {
            spec,
            kernel,
            ids: Vec::new(),
            stored: Vec::new(),
            measure: Measure::new(),
            imported: false,
            row,
            values,
        })
    }

    /// What is being built.
    #[must_use]
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.ids.len() as u64
    }

    /// Adds a row, `dim` elements long, which is quantized now.
    ///
    /// # Errors
    /// [`BuildError`] names the id: wrong length, a value that cannot be stored, a dense id beyond the
    /// layout. The builder is as it was before. That an id stands twice is noticed by
    /// [`publish`](Self::publish).
    pub fn push(&mut self, id: u64, values: &[f32]) -> Result<(), BuildError> {
        if values.len() != self.spec.dim as usize {
            return Err(BuildError::RowLength { id, found: values.len(), dim: self.spec.dim });
        }
        self.check_id(id)?;
        self.kernel.quantize(values, &mut self.row).map_err(|source| BuildError::Value { id, source })?;
        self.kernel.dequantize(&self.row, &mut self.values);
        self.measure.add(id, values, &self.values);
        self.ids.push(id);
        self.stored.extend_from_slice(&self.row);
        Ok(())
    }

    /// Adds a row as it is stored, without key check. Such a version has no quantization report.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_stored(&mut self, id: u64, row: &[u8]) -> Result<(), BuildError> {
        let expected = self.kernel.row_bytes();
        if row.len() != expected {
            return Err(BuildError::StoredLength { id, found: row.len(), expected });
        }
        self.check_id(id)?;
        self.imported = true;
        self.ids.push(id);
        self.stored.extend_from_slice(row);
        Ok(())
    }

    /// A dense id that no layout can hold is refused at once; holes can only be seen at the end.
    fn check_id(&self, id: u64) -> Result<(), BuildError> {
        let partitions = self.spec.partitions.get();
        let limit = MAX_PARTITION_ROWS * u64::from(partitions);
        if self.spec.keying == Keying::Dense && id >= limit {
            return Err(BuildError::IdTooLarge { id, partitions, limit });
        }
        Ok(())
    }

    /// Writes all partitions and `manifest.json`, and gives them the name `version_dir` in one step:
    /// either the whole version is there, on disk, or nothing is. `progress` is told the rows done and the
    /// rows in all.
    ///
    /// # Errors
    /// [`BuildError`]: an id that stands twice, or is missing from a dense table; a version that exists
    /// already; an I/O error. Nothing is left behind.
    pub fn publish(
        self,
        version_dir: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<TableManifest, BuildError> {
        let staged = StagedDir::create(version_dir, &self.spec.table_version.version)?;
        let groups = group(&self.ids, self.spec.keying, self.spec.partitions)?;
        let total = self.rows();
        progress(0, total);

        let layout = staged.create_dir(&layout_dir_name(self.spec.partitions))?;
        let mut files = Vec::with_capacity(groups.len());
        let mut done = 0;
        for (members, partition) in groups.into_iter().zip(self.spec.partitions.indexes()) {
            let rows = members.len() as u64;
            let mut report = |rows_here: u64| progress(done + rows_here, total);
            files.push(self.write(&layout, partition, &members, &mut report)?);
            done += rows;
            progress(done, total);
        }
        StagedDir::sync_dir(&layout)?;

        let manifest = TableManifest {
            schema_version: TableManifest::SCHEMA_VERSION,
            schema: self.spec.schema(total),
            files,
            quantization: if self.imported { None } else { self.measure.report() },
        };
        manifest.validate().map_err(|error| BuildError::Internal(error.to_string()))?;
        let mut json =
            serde_json::to_vec_pretty(&manifest).map_err(|error| BuildError::Internal(error.to_string()))?;
        json.push(b'\n');
        staged.write_file(MANIFEST_FILE, &json)?;
        staged.publish()?;
        Ok(manifest)
    }

    /// Writes one partition file into `layout`.
    fn write(
        &self,
        layout: &Path,
        partition: PartitionIndex,
        members: &[Member],
        progress: &mut dyn FnMut(u64),
    ) -> Result<PartitionEntry, BuildError> {
        let plan = PartitionPlan {
            table_version: self.spec.table_version.clone(),
            table_rows: self.rows(),
            build_seed: self.spec.seed,
            dim: self.spec.dim,
            format: self.spec.format,
            keying: self.spec.keying,
            key_check: self.spec.key_check(),
            partition,
            partitions: self.spec.partitions,
        };
        let (index, in_order) = self.arrange(partition, members)?;
        let keys: Vec<u64> = in_order.iter().map(|member| member.key).collect();
        let path = layout.join(partition_file_name(partition));
        let io = |source| BuildError::Io { action: "writing", path: path.clone(), source };
        let file = File::create_new(&path).map_err(io)?;
        let row_bytes = self.kernel.row_bytes();
        let row = |at: usize| {
            if at > 0 && at.is_multiple_of(PROGRESS_ROWS) {
                progress(at as u64);
            }
            let pushed = in_order[at].pushed;
            &self.stored[pushed * row_bytes..(pushed + 1) * row_bytes]
        };
        let written = write_partition(file, &plan, &keys, &index, row).map_err(io)?;
        Ok(PartitionEntry {
            partition,
            rows: keys.len() as u64,
            file_bytes: written.file_bytes,
            footer_crc32c: written.footer_crc32c,
        })
    }

    /// The index over the members, and the members in row order. Every key is put through the evaluator
    /// that will serve it: a row that two keys reach, or none, stops the build.
    fn arrange(
        &self,
        partition: PartitionIndex,
        members: &[Member],
    ) -> Result<(BuiltIndex, Vec<Member>), BuildError> {
        if self.spec.keying == Keying::Dense {
            let none = BuiltIndex { shape: IndexShape::EMPTY, pilots: Vec::new(), remap: Vec::new() };
            return Ok((none, members.to_vec()));
        }
        let keys: Vec<u64> = members.iter().map(|member| member.key).collect();
        let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let rows = members.len() as u64;
        let built = index::build(&keys, self.spec.seed, threads).map_err(|error| match error {
            IndexError::TooMany(rows) => BuildError::TooManyRows { partition: partition.0, rows },
            IndexError::Unplaceable => BuildError::Index { partition: partition.0, rows },
        })?;
        let remap = built.remap_bytes();
        let view = built.view(&remap);
        let mut in_order = vec![None; members.len()];
        for &member in members {
            let row = view.row(view.probe(member.key));
            match row.and_then(|row| in_order.get_mut(row as usize)) {
                Some(place @ None) => *place = Some(member),
                _ => {
                    return Err(BuildError::Internal(format!(
                        "the index of partition {partition} gives key {:#x} the row {row:?} of another",
                        member.key
                    )));
                }
            }
        }
        // As many rows as keys, and none reached twice: none is left out.
        Ok((built, in_order.into_iter().flatten().collect()))
    }
}
