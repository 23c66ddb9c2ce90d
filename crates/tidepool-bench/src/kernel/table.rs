//! The table of a bench: built once, kept under a name that says what it is, verified whenever it is opened.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tidepool_kernels::RowKernel;
use tidepool_table::{
    BuildOptions, Damage, LayoutReader, LayoutView, PartitionFile, Residency, Smaps, TableBuilder, TableSpec,
};
use tidepool_types::{Name, TableVersion};

use super::{Params, ROWS_VERSION, Step};
use crate::{
    BenchError,
    rows::{id_of, stored_row},
};

/// Rows between two words of progress.
const TELL_ROWS: u64 = 1 << 16;

/// A table that is open and whole.
pub(super) struct Table {
    pub(super) view: LayoutView,
    pub(super) open_and_verify: Duration,
    pub(super) built: bool,
}

/// Opens the table of `params`, after building it if it is not there.
pub(super) fn open(
    params: &Params,
    kernel: RowKernel,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<Table, BenchError> {
    let name = Name::new(format!(
        "{}-d{}-{}-n{}-p{}",
        params.format, params.dim, params.keying, params.rows, params.partitions
    ))?;
    let version = Name::new(format!("rows-{ROWS_VERSION}"))?;
    let dir = params.dir.join(name.as_str()).join(version.as_str());
    let built = !dir.exists();
    if built {
        build(params, TableVersion { table: name, version }, &dir, progress)?;
    }
    let began = Instant::now();
    let reader = LayoutReader::open(&dir)?;
    verify(reader.partitions(), progress)?;
    let open_and_verify = began.elapsed();
    let mut view = reader.into_view(kernel);
    settle(&mut view, params.residency)?;
    Ok(Table { view, open_and_verify, built })
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
pub(super) fn huge_page_bytes(view: &LayoutView) -> u64 {
    let smaps = Smaps::read().unwrap_or_default();
    view.partitions().map(|file| file.memory_use(&smaps).huge_page_bytes).sum()
}

fn build(
    params: &Params,
    table_version: TableVersion,
    dir: &Path,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<(), BenchError> {
    let spec = TableSpec {
        table_version,
        dim: params.dim,
        format: params.format,
        keying: params.keying,
        partitions: params.partitions,
        default_row: Vec::new(),
        composite: None,
        full_keys: false,
        seed: 1,
    };
    let mut builder = TableBuilder::staged(spec, BuildOptions::default(), dir)?;
    let mut row = vec![0; params.format.row_bytes(params.dim)];
    for n in 0..params.rows {
        let id = id_of(params.keying, n);
        stored_row(params.format, id, ROWS_VERSION, &mut row);
        builder.push_stored(id, &row)?;
        if n % TELL_ROWS == 0 {
            progress(Step::Rows, n, params.rows);
        }
    }
    builder.publish(dir, &mut |done, total| progress(Step::Building, done, total))?;
    Ok(())
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
