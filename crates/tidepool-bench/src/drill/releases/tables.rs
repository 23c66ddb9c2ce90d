//! The tables of the drills: built once, kept, and lent to the store of each drill without copying a byte.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tidepool_store::ArtifactStore;
use tidepool_table::{BuildOptions, TableBuilder, TableSpec};
use tidepool_types::{Keying, PartitionCount};

use super::truth::{DIM, FORMAT, Table, row_of};
use crate::{BenchError, rows::id_of};

/// Into how many partitions a table is cut.
const PARTITIONS: u32 = 16;
/// Changes whenever the rows of drills do: what was kept before is not theirs.
const ROWS: &str = "rows1";

/// Where tables of so many rows each are kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    rows: u64,
    store: ArtifactStore,
}

impl Kept {
    /// Those under `dir`; with `fresh`, none yet.
    pub(super) fn open(dir: &Path, rows: u64, fresh: bool) -> Result<Self, BenchError> {
        let root = dir.join("drill-tables").join(format!("{ROWS}-n{rows}"));
        if fresh && root.exists() {
            fs::remove_dir_all(&root).map_err(BenchError::io(format!("removing {}", root.display())))?;
        }
        Ok(Self { rows, store: ArtifactStore::open(root)? })
    }

    /// Builds what is missing of both tables in these versions, on all cores; says how many that were.
    pub(super) fn ensure(&self, versions: impl Iterator<Item = u64>) -> Result<usize, BenchError> {
        let mut missing = Vec::new();
        for version in versions {
            for table in Table::ALL {
                if !self.store.table_dir(&table.version(version)?).exists() {
                    missing.push((table, version));
                }
            }
        }
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let threads = thread::available_parallelism().map_or(1, usize::from).min(missing.len());
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((table, version)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.build(*table, *version) {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            return;
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(missing.len()),
        }
    }

    fn build(&self, table: Table, version: u64) -> Result<(), BenchError> {
        let table_version = table.version(version)?;
        let dir = self.store.table_dir(&table_version);
        let spec = TableSpec {
            table_version,
            dim: DIM as u32,
            format: FORMAT,
            keying: Keying::Hashed,
            partitions: PartitionCount::new(PARTITIONS).ok_or(BenchError::Parameters("a power of two"))?,
            default_row: Vec::new(),
            composite: None,
            full_keys: false,
            seed: 1,
        };
        let mut builder = TableBuilder::staged(spec, BuildOptions::default(), &dir)?;
        let mut row = vec![0; FORMAT.row_bytes(DIM as u32)];
        for n in 0..self.rows {
            let id = id_of(Keying::Hashed, n);
            row_of(table, id, version, &mut row);
            builder.push_stored(id, &row)?;
        }
        builder.publish(&dir, &mut |_, _| {})?;
        Ok(())
    }

    /// Puts both tables in these versions into another store on the same file system, as further names of the same
    /// files, which nobody writes to.
    pub(super) fn lend(
        &self,
        versions: impl Iterator<Item = u64>,
        to: &ArtifactStore,
    ) -> Result<(), BenchError> {
        for version in versions {
            for table in Table::ALL {
                let table_version = table.version(version)?;
                link(&self.store.table_dir(&table_version), &to.table_dir(&table_version))?;
            }
        }
        Ok(())
    }
}

fn link(from: &Path, to: &Path) -> Result<(), BenchError> {
    let failed = |path: &Path| BenchError::io(format!("lending {}", path.display()));
    fs::create_dir_all(to).map_err(failed(to))?;
    let entries: Result<Vec<PathBuf>, _> =
        fs::read_dir(from).map_err(failed(from))?.map(|entry| entry.map(|it| it.path())).collect();
    for entry in entries.map_err(failed(from))? {
        let Some(name) = entry.file_name() else { continue };
        if entry.is_dir() {
            link(&entry, &to.join(name))?;
        } else {
            fs::hard_link(&entry, to.join(name)).map_err(failed(&entry))?;
        }
    }
    Ok(())
}
