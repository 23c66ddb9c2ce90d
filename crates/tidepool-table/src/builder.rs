//! [`TableBuilder`]: rows in any order become a published version.

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicU8, Ordering},
    thread,
};

use tidepool_kernels::{Quantizer, RowKernel};
use tidepool_types::{
    Composite, Keying, PartitionCount, PartitionEntry, PartitionIndex, RowFormat, TableManifest, TableSchema,
    TableVersion,
    paths::{MANIFEST_FILE, layout_dir_name},
};

use crate::{
    assemble::{Assembled, Assembly, MIN_CHUNK_BYTES},
    error::BuildError,
    header::{KeyCheck, MAX_PARTITION_ROWS},
    parallel,
    publish::StagedDir,
    report::{self, Measure, RowCost},
    spill::{Records, Spill},
    write::PartitionPlan,
};

/// Rows that [`TableBuilder::push_many`] gives to one thread at least.
const ROWS_PER_THREAD: usize = 1 << 10;
/// The folder of spilled rows, inside the temporary directory of the version.
const SPILL_DIR: &str = "spill";

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
    /// What stands for a missing id: as many elements as a vector has, or empty for zeros.
    pub default_row: Vec<f32>,
    /// Dense keying only: how ids that are not those of rows find several rows each. It changes no byte of a
    /// partition file.
    pub composite: Option<Composite>,
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
            composite: self.composite.clone(),
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

/// What becomes of an id that is pushed twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// The build is refused; the error names the smallest such id.
    #[default]
    Error,
    /// The row that was pushed last stays.
    Last,
}

impl std::str::FromStr for Duplicates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "last" => Ok(Self::Last),
            _ => Err(format!("{text:?}: error or last is wanted")),
        }
    }
}

/// How a version is built. Memory and threads do not change a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// What becomes of an id that is pushed twice.
    pub duplicates: Duplicates,
    /// How the values of a row become its codes.
    pub quantizer: Quantizer,
    /// How much memory a [staged](TableBuilder::staged) build may use. A quarter of it is for rows on their
    /// way to the disk, the rest for partitions in the making. A partition of n rows needs `9 n` bytes while
    /// its index is built, then room for all of its rows or some of them, at least 4 MiB; as many
    /// partitions are built at once as fit. One partition is built even when it alone needs more than that.
    pub memory_bytes: u64,
    /// How many threads work on it.
    pub threads: NonZeroUsize,
}

impl Default for BuildOptions {
    /// Duplicates are errors, FBGEMM's quantizer, 2 GiB, all cores.
    fn default() -> Self {
        Self {
            duplicates: Duplicates::Error,
            quantizer: Quantizer::MinMax,
            memory_bytes: 2 << 30,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// Collects the rows of one version, sorted into partitions, then builds each partition on its own and
/// publishes all of them at once.
///
/// One made with [`new`](Self::new) holds every stored row in memory until then, with 8 bytes for its id. A
/// [`staged`](Self::staged) one writes rows to disk as they come and keeps to
/// [`BuildOptions::memory_bytes`], whatever the number of rows.
#[derive(Debug)]
pub struct TableBuilder {
    spec: TableSpec,
    options: BuildOptions,
    kernel: RowKernel,
    staged: Option<StagedDir>,
    spill: Spill,
    rows: u64,
    measure: Measure,
    /// Whether rows came as they are stored, so that nothing is known of what they were.
    imported: bool,
    /// A record on its way.
    record: Vec<u8>,
    /// A row as it reads back.
    values: Vec<f32>,
}

impl TableBuilder {
    /// An empty version, to be collected in memory.
    ///
    /// # Errors
    /// [`BuildError`] when the spec contradicts itself: dimension, default row, composite, full keys of a dense
    /// table.
    pub fn new(spec: TableSpec) -> Result<Self, BuildError> {
        Self::with_options(spec, BuildOptions::default())
    }

    /// An empty version, to be collected in memory and built as `options` say.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(spec: TableSpec, options: BuildOptions) -> Result<Self, BuildError> {
        Self::check(&spec)?;
        Ok(Self::assembled(spec, options, None, None))
    }

    /// An empty version, to be collected on disk, in a temporary directory beside `version_dir`, which is
    /// removed when the builder is dropped. What killed builds of this version left there is removed now.
    ///
    /// # Errors
    /// As [`new`](Self::new); a version that exists already; an I/O error.
    pub fn staged(spec: TableSpec, options: BuildOptions, version_dir: &Path) -> Result<Self, BuildError> {
        Self::check(&spec)?;
        let staged = StagedDir::create(version_dir, &spec.table_version.version)?;
        let dir = staged.create_dir(SPILL_DIR)?;
        Ok(Self::assembled(spec, options, Some(staged), Some(dir)))
    }

    fn check(spec: &TableSpec) -> Result<(), BuildError> {
        spec.schema(0).validate().map_err(|source| BuildError::Schema { source })?;
        if spec.full_keys && spec.keying == Keying::Dense {
            return Err(BuildError::FullKeysOfDense { table: spec.table_version.clone() });
        }
        Ok(())
    }

    fn assembled(
        spec: TableSpec,
        options: BuildOptions,
        staged: Option<StagedDir>,
        spill_dir: Option<std::path::PathBuf>,
    ) -> Self {
        let kernel = RowKernel::new(spec.format, spec.dim);
        let record_bytes = 8 + costs_bytes(options) + kernel.row_bytes();
        let spill = Spill::new(spec.partitions, record_bytes, spill_dir, options.memory_bytes / 4);
        let values = vec![0.0; spec.dim as usize];
        Self {
            spec,
            options,
            kernel,
            staged,
            spill,
            rows: 0,
            measure: Measure::new(),
            imported: false,
            record: Vec::with_capacity(record_bytes),
            values,
        }
    }

    /// What is being built.
    #[must_use]
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Rows pushed so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds a row, `dim` elements long, which is quantized now.
    ///
    /// # Errors
    /// [`BuildError`] names the id: wrong length, a value that cannot be stored, a dense id beyond the
    /// layout. The builder is as it was before. After [`BuildError::Io`] it is of no more use. That an id
    /// stands twice is noticed by [`publish`](Self::publish).
    pub fn push(&mut self, id: u64, values: &[f32]) -> Result<(), BuildError> {
        let location = self.locate(id)?;
        self.record.clear();
        let cost =
            encode(&self.kernel, self.options, (id, location.1), values, &mut self.values, &mut self.record)?;
        if self.options.duplicates == Duplicates::Error {
            self.measure.add(id, cost);
        }
        self.push_record(location.0)
    }

    /// Adds many rows, quantized by all threads: `fill` writes the values of an id. The order of `ids` is
    /// the order of pushing.
    ///
    /// # Errors
    /// As [`push`](Self::push). No row of `ids` is added then.
    pub fn push_many(
        &mut self,
        ids: &[u64],
        fill: impl Fn(u64, &mut [f32]) + Sync,
    ) -> Result<(), BuildError> {
        self.push_filled(ids, |at, values| fill(ids[at], values))
    }

    /// Adds many rows, quantized by all threads: `values` has those of all `ids`, one row after the other.
    ///
    /// # Errors
    /// As [`push`](Self::push), and when `values` is not as long as `ids` ask for. No row is added then.
    pub fn push_rows(&mut self, ids: &[u64], values: &[f32]) -> Result<(), BuildError> {
        let dim = self.spec.dim as usize;
        if values.len() != ids.len() * dim {
            let id = ids.first().copied().unwrap_or_default();
            return Err(BuildError::RowLength {
                id,
                found: values.len() / ids.len().max(1),
                dim: self.spec.dim,
            });
        }
        self.push_filled(ids, |at, row| row.copy_from_slice(&values[at * dim..][..dim]))
    }

    /// Adds many rows: `fill` writes the values of the row at a place.
    fn push_filled(
        &mut self,
        ids: &[u64],
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<(), BuildError> {
        let this = &*self;
        let share = ids.len().div_ceil(this.options.threads.get()).max(ROWS_PER_THREAD);
        let chunks: Vec<&[u64]> = ids.chunks(share).collect();
        let encoded = parallel::for_each(
            chunks,
            this.options.threads.get(),
            |chunk, ids, _| this.encode_many(ids, &|at, values: &mut [f32]| fill(chunk * share + at, values)),
            &mut |_| (),
        );
        let encoded = encoded.into_iter().collect::<Result<Vec<_>, _>>()?;
        let record_bytes = 8 + costs_bytes(self.options) + self.kernel.row_bytes();
        let records = encoded.iter().flat_map(|(records, _)| records.chunks_exact(record_bytes));
        for (&id, record) in ids.iter().zip(records) {
            self.spill.push(self.spec.keying.locate(id, self.spec.partitions).partition, record)?;
            self.rows += 1;
        }
        encoded.iter().for_each(|(_, measure)| self.measure.merge(measure));
        Ok(())
    }

    fn encode_many(
        &self,
        ids: &[u64],
        fill: &(impl Fn(usize, &mut [f32]) + Sync),
    ) -> Result<(Vec<u8>, Measure), BuildError> {
        let mut measure = Measure::new();
        let mut records =
            Vec::with_capacity(ids.len() * (8 + costs_bytes(self.options) + self.kernel.row_bytes()));
        let mut values = vec![0.0; self.spec.dim as usize];
        let mut stored = values.clone();
        for (at, &id) in ids.iter().enumerate() {
            fill(at, &mut values);
            let (_, key) = self.locate(id)?;
            let cost = encode(&self.kernel, self.options, (id, key), &values, &mut stored, &mut records)?;
            if self.options.duplicates == Duplicates::Error {
                measure.add(id, cost);
            }
        }
        Ok((records, measure))
    }

    /// Adds a row as it is stored, without key check; any bytes of that length are taken. Such a version
    /// has no quantization report.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_stored(&mut self, id: u64, row: &[u8]) -> Result<(), BuildError> {
        let expected = self.kernel.row_bytes();
        if row.len() != expected {
            return Err(BuildError::StoredLength { id, found: row.len(), expected });
        }
        let (partition, key) = self.locate(id)?;
        self.imported = true;
        self.record.clear();
        self.record.extend(key.to_le_bytes());
        self.record.resize(8 + costs_bytes(self.options), 0);
        self.record.extend_from_slice(row);
        self.push_record(partition)
    }

    fn push_record(&mut self, partition: PartitionIndex) -> Result<(), BuildError> {
        self.spill.push(partition, &self.record)?;
        self.rows += 1;
        Ok(())
    }

    /// Partition and key. A dense id that no layout can hold is refused at once; holes can only be seen at
    /// the end.
    fn locate(&self, id: u64) -> Result<(PartitionIndex, u64), BuildError> {
        let partitions = self.spec.partitions.get();
        let limit = MAX_PARTITION_ROWS * u64::from(partitions);
        if self.spec.keying == Keying::Dense && id >= limit {
            return Err(BuildError::IdTooLarge { id, partitions, limit });
        }
        let location = self.spec.keying.locate(id, self.spec.partitions);
        Ok((location.partition, location.key))
    }

    /// Builds all partitions and `manifest.json`, and gives them the name `version_dir` in one step:
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
        let Self { spec, options, kernel, staged, spill, rows, mut measure, imported, .. } = self;
        let (staged, spilled) = match staged {
            Some(staged) if staged.target() == version_dir => (staged, true),
            Some(staged) => {
                let staged = staged.target().to_owned();
                return Err(BuildError::StagedElsewhere { staged, path: version_dir.to_owned() });
            }
            None => (StagedDir::create(version_dir, &spec.table_version.version)?, false),
        };
        let layout = staged.create_dir(&layout_dir_name(spec.partitions))?;
        let records = spill.into_partitions();
        let largest = records.iter().map(Records::rows).max().unwrap_or(0);
        let (workers, chunk_bytes) = workers(options, spec.partitions, largest);
        let mut assembly = Assembly {
            plan: PartitionPlan {
                table_version: spec.table_version.clone(),
                table_rows: rows,
                build_seed: spec.seed,
                dim: spec.dim,
                format: spec.format,
                keying: spec.keying,
                key_check: spec.key_check(),
                partition: PartitionIndex(0),
                partitions: spec.partitions,
            },
            layout: &layout,
            duplicates: options.duplicates,
            costs: options.duplicates == Duplicates::Last && !imported,
            row_bytes: kernel.row_bytes(),
            chunk_bytes,
            threads: NonZeroUsize::new(options.threads.get() / workers).unwrap_or(NonZeroUsize::MIN),
        };
        if options.duplicates == Duplicates::Last {
            // The number of rows stands in every file.
            let count = |_, records: &Records, _: &dyn Fn(u64)| assembly.distinct(records);
            let counts = parallel::for_each(records.iter().collect(), workers, count, &mut |_| ());
            assembly.plan.table_rows = counts.into_iter().sum::<Result<u64, _>>()?;
        }
        let total = assembly.plan.table_rows;
        progress(0, total);
        // Of each row we are told twice.
        let mut told = 0;
        let built = build_all(&assembly, records, workers, &mut |rows| {
            told += rows;
            progress(told / 2, total);
        })?;
        let mut files: Vec<PartitionEntry> = Vec::with_capacity(built.len());
        let (mut file_bytes, mut index_bytes) = (0, 0);
        for Assembled { entry, index_bytes: of_index, measure: of_partition } in built {
            file_bytes += entry.file_bytes;
            index_bytes += of_index;
            files.push(entry);
            of_partition.iter().for_each(|of_partition| measure.merge(of_partition));
        }
        StagedDir::sync_dir(&layout)?;
        if spilled {
            staged.remove_dir(SPILL_DIR)?;
        }

        let schema = spec.schema(total);
        let manifest = TableManifest {
            schema_version: TableManifest::SCHEMA_VERSION,
            bytes: report::sizes(&schema, file_bytes, index_bytes),
            schema,
            files,
            quantization: if imported { None } else { measure.report(options.quantizer, spec.format) },
        };
        manifest.validate().map_err(|error| BuildError::Internal(error.to_string()))?;
        let mut json =
            serde_json::to_vec_pretty(&manifest).map_err(|error| BuildError::Internal(error.to_string()))?;
        json.push(b'\n');
        staged.write_file(MANIFEST_FILE, &json)?;
        staged.publish()?;
        Ok(manifest)
    }
}

/// What a record has between key and row: with `Duplicates::Last` the cost of the row, as only the end
/// tells which rows count.
const fn costs_bytes(options: BuildOptions) -> usize {
    match options.duplicates {
        Duplicates::Error => 0,
        Duplicates::Last => RowCost::BYTES,
    }
}

/// Appends a record to `out`, and gives what storing the row costs. `stored` is room for the row as it
/// reads back. On an error `out` may have grown.
fn encode(
    kernel: &RowKernel,
    options: BuildOptions,
    (id, key): (u64, u64),
    values: &[f32],
    stored: &mut [f32],
    out: &mut Vec<u8>,
) -> Result<RowCost, BuildError> {
    if values.len() != kernel.dim() as usize {
        return Err(BuildError::RowLength { id, found: values.len(), dim: kernel.dim() });
    }
    let cost_at = out.len() + 8;
    let row_at = cost_at + costs_bytes(options);
    out.extend(key.to_le_bytes());
    out.resize(row_at + kernel.row_bytes(), 0);
    kernel
        .quantize_with(options.quantizer, values, &mut out[row_at..])
        .map_err(|source| BuildError::Value { id, source })?;
    kernel.dequantize(&out[row_at..], stored);
    let cost = RowCost::of(values, stored);
    if row_at > cost_at {
        out[cost_at..row_at].copy_from_slice(&cost.to_bytes());
    }
    Ok(cost)
}

/// How many partitions are built at once, and how many bytes of rows each has in memory, when the largest
/// one has `rows` rows. [`BuildOptions::memory_bytes`] says what for.
fn workers(options: BuildOptions, partitions: PartitionCount, rows: u64) -> (usize, u64) {
    let memory = options.memory_bytes / 4 * 3;
    // Keys and index while the index is built; then index and chunk.
    let least = rows.saturating_mul(9).max(rows / 10 * 6 + MIN_CHUNK_BYTES).max(1);
    let most = options.threads.get().min(partitions.get() as usize) as u64;
    let workers = (memory / least).clamp(1, most);
    (workers as usize, (memory / workers).saturating_sub(rows / 10 * 6))
}

/// Builds every partition. After a refusal the other partitions are only checked, so that the error does
/// not depend on who was faster; after any other error they are left alone.
fn build_all(
    assembly: &Assembly<'_>,
    records: Vec<Records>,
    workers: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Assembled>, BuildError> {
    const BUILD: u8 = 0;
    const CHECK: u8 = 1;
    const STOP: u8 = 2;
    let mode = AtomicU8::new(BUILD);
    let one = |at: usize, records: Records, tell: &dyn Fn(u64)| -> Result<Option<Assembled>, BuildError> {
        let partition = PartitionIndex(at as u32);
        let result = match mode.load(Ordering::Relaxed) {
            BUILD => assembly.assemble(partition, &records, tell).map(Some),
            CHECK => assembly.check(partition, &records).map(|()| None),
            _ => Ok(None),
        };
        let result = records.discard().and(result);
        if let Err(error) = &result {
            let rank = if rank(error).0 < OTHER { CHECK } else { STOP };
            mode.fetch_max(rank, Ordering::Relaxed);
        }
        result
    };
    let mut built = Vec::with_capacity(records.len());
    let mut worst: Option<BuildError> = None;
    for result in parallel::for_each(records, workers, one, progress) {
        match result {
            Ok(assembled) => built.extend(assembled),
            Err(error) if worst.as_ref().is_some_and(|worst| rank(worst) <= rank(&error)) => {}
            Err(error) => worst = Some(error),
        }
    }
    worst.map_or(Ok(built), Err)
}

/// [`rank`] of what does not name an id.
const OTHER: u8 = 2;

/// Which of several errors is told: ids that stand twice before ids that are missing, the smallest id first.
const fn rank(error: &BuildError) -> (u8, u64) {
    match error {
        BuildError::DuplicateId { id } => (0, *id),
        BuildError::MissingId { id, .. } => (1, *id),
        _ => (OTHER, 0),
    }
}
