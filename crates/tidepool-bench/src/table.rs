//! The table of a bench: built once into an artifact store, kept under a name that says what it is, verified
//! whenever it is opened here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tidepool_kernels::RowKernel;
use tidepool_store::ArtifactStore;
use tidepool_table::{
    BuildOptions, Damage, LayoutReader, LayoutView, PartitionFile, Residency, Smaps, TableBuilder, TableSpec,
};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableSchema, TableVersion};

use crate::{
    BenchError,
    rows::{id_of, number_of, stored_row},
};

/// The version whose rows a bench table has.
pub const ROWS_VERSION: u64 = 1;
/// Rows between two words of progress.
const TELL_ROWS: u64 = 1 << 16;

/// How far a bench is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Rows are made.
    Rows,
    /// Rows are sorted into partition files.
    Building,
    /// Partitions are verified.
    Verifying,
    /// Milliseconds of measuring.
    Timing,
}

/// A table of a bench: its rows are [`stored_row`]s of [`ROWS_VERSION`], their ids [`id_of`] 0, 1, 2, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchTable {
    /// Rows of the table.
    pub rows: u64,
    /// Elements of a row.
    pub dim: u32,
    /// How rows are stored.
    pub format: RowFormat,
    /// Which ids the rows have.
    pub keying: Keying,
    /// Into how many partitions the table is cut.
    pub partitions: PartitionCount,
}

impl BenchTable {
    /// The name of the table, made of its parameters, and its version.
    ///
    /// # Errors
    /// [`BenchError::Name`].
    pub fn table_version(&self) -> Result<TableVersion, BenchError> {
        let Self { rows, dim, format, keying, partitions } = self;
        Ok(TableVersion {
            table: Name::new(format!("{format}-d{dim}-{keying}-n{rows}-p{partitions}"))?,
            version: Name::new(format!("rows-{ROWS_VERSION}"))?,
        })
    }

    /// The bench table that a served table is; `None` when its name is not that of one, or when it has what
    /// bench tables have not: a default row other than zeros, several rows for an id.
    #[must_use]
    pub fn of_schema(schema: &TableSchema) -> Option<Self> {
        let TableSchema { rows, dim, format, keying, partitions, .. } = *schema;
        let table = Self { rows, dim, format, keying, partitions };
        let is_plain = schema.default_row.is_empty() && schema.composite.is_none();
        (is_plain && table.table_version().ok()? == schema.table_version).then_some(table)
    }

    /// Whether the table has a row of `id`.
    #[must_use]
    pub const fn has(&self, id: u64) -> bool {
        number_of(self.keying, id) < self.rows
    }

    /// Builds the table in `store`, unless it is there, and says whether it had to. `progress` is told what is
    /// done of how much.
    ///
    /// # Errors
    /// [`BenchError`]: parameters that no table can have, or a table that cannot be built.
    pub fn ensure(
        &self,
        store: &ArtifactStore,
        progress: &mut dyn FnMut(Step, u64, u64),
    ) -> Result<bool, BenchError> {
        RowFormat::check_dim(self.dim.into())?;
        if self.rows == 0 {
            return Err(BenchError::Parameters("a table has rows"));
        }
        let table_version = self.table_version()?;
        let dir = store.table_dir(&table_version);
        if dir.exists() {
            return Ok(false);
        }
        let spec = TableSpec {
            table_version,
            dim: self.dim,
            format: self.format,
            keying: self.keying,
            partitions: self.partitions,
            default_row: Vec::new(),
            composite: None,
            full_keys: false,
            seed: 1,
        };
        let mut builder = TableBuilder::staged(spec, BuildOptions::default(), &dir)?;
        let mut row = vec![0; self.format.row_bytes(self.dim)];
        for n in 0..self.rows {
            let id = id_of(self.keying, n);
            stored_row(self.format, id, ROWS_VERSION, &mut row);
            builder.push_stored(id, &row)?;
            if n % TELL_ROWS == 0 {
                progress(Step::Rows, n, self.rows);
            }
        }
        builder.publish(&dir, &mut |done, total| progress(Step::Building, done, total))?;
        Ok(true)
    }

    /// Opens the table in this process, verifies it and brings its rows to where `residency` wants them.
    ///
    /// # Errors
    /// [`BenchError`]: a table that cannot be opened or verified, or memory that cannot be had.
    pub(crate) fn open(
        &self,
        store: &ArtifactStore,
        kernel: RowKernel,
        residency: Residency,
        progress: &mut dyn FnMut(Step, u64, u64),
    ) -> Result<OpenTable, BenchError> {
        let began = Instant::now();
        let reader = LayoutReader::open(&store.table_dir(&self.table_version()?))?;
        verify(reader.partitions(), progress)?;
        let open_and_verify = began.elapsed();
        let mut view = reader.into_view(kernel);
        settle(&mut view, residency)?;
        Ok(OpenTable { view, open_and_verify })
    }
}

/// A table that is open and whole.
pub(crate) struct OpenTable {
    pub(crate) view: LayoutView,
    pub(crate) open_and_verify: Duration,
}

/// Brings the rows to where they are to lie, as a node does. Verification has read every page of the map by
/// now.
fn settle(view: &mut LayoutView, residency: Residency) -> Result<(), BenchError> {
    let files: Vec<Arc<PartitionFile>> = view.partitions().cloned().collect();
    let version_bytes = files.iter().map(|file| file.lookup_bytes()).sum();
    let smaps = Smaps::read().unwrap_or_default();
    for file in files {
        let copy = match residency {
            Residency::Mapped => false,
            Residency::Locked => {
                file.lock()?;
                false
            }
            Residency::Copied => true,
            Residency::Auto => file.memory_use(&smaps).lacks_huge_pages(version_bytes),
        };
        if copy {
            let copy = Arc::new(file.to_copied()?);
            view.insert(file.meta().partition, copy.clone());
            copy.release_unread();
        }
    }
    Ok(())
}

/// Bytes that lookups read, and that are on 2 MiB pages.
pub(crate) fn huge_page_bytes(view: &LayoutView) -> u64 {
    let smaps = Smaps::read().unwrap_or_default();
    view.partitions().map(|file| file.memory_use(&smaps).huge_page_bytes).sum()
}

/// Verifies all partitions, on all cores.
fn verify(files: &[PartitionFile], progress: &mut dyn FnMut(Step, u64, u64)) -> Result<(), BenchError> {
    let next = AtomicUsize::new(0);
    let (tell, told) = std::sync::mpsc::channel::<Result<(), Damage>>();
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(files.len());
        for _ in 0..threads {
            let (tell, next) = (tell.clone(), &next);
            scope.spawn(move || {
                // Who listens has left when another partition was found damaged.
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if tell.send(file.verify()).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for (result, done) in told.into_iter().zip(1..) {
            result?;
            progress(Step::Verifying, done, files.len() as u64);
        }
        Ok(())
    })
}
