//! [`import()`]: one thread reads, all threads quantize.

use std::{
    panic,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use tidepool_table::{BuildError, TableBuilder};

use crate::{
    ImportError,
    source::{Position, RowSource},
};

/// Bytes of a batch, ids and positions with its values: enough rows for every thread, whatever the dimension.
const BATCH_BYTES: usize = 32 << 20;

/// Rows on their way from the reader to the builder.
#[derive(Default)]
struct Batch {
    ids: Vec<u64>,
    values: Vec<f32>,
    positions: Vec<Position>,
    /// Where rows of another file begin, and which file that is.
    parts: Vec<(usize, PathBuf)>,
}

impl Batch {
    /// Replaces what is there by the next rows of `source`; false when these are the last. Rows read before an
    /// error stay: whatever is wrong with them came first.
    fn fill(&mut self, source: &mut dyn RowSource, rows: usize) -> Result<bool, ImportError> {
        let dim = source.dim() as usize;
        self.ids.clear();
        self.values.clear();
        self.positions.clear();
        self.parts.clear();
        let mut part = None;
        while self.ids.len() < rows {
            let end = self.values.len();
            self.values.resize(end + dim, 0.0);
            let row = source.next_row(&mut self.values[end..]);
            if !matches!(row, Ok(Some(_))) {
                self.values.truncate(end);
            }
            let Some(id) = row? else { return Ok(false) };
            if part != Some(source.part()) {
                part = Some(source.part());
                self.parts.push((self.ids.len(), source.path().to_path_buf()));
            }
            self.ids.push(id);
            self.positions.push(source.position());
        }
        Ok(true)
    }

    fn place(&self, row: usize) -> (PathBuf, Position) {
        let part = self.parts.iter().rev().find(|&&(first, _)| first <= row);
        let path = part.map(|(_, path)| path.clone()).unwrap_or_default();
        (path, self.positions.get(row).copied().unwrap_or(Position::Row(0)))
    }

    /// Pushes all rows, or says which one is refused.
    fn push(&self, builder: &mut TableBuilder) -> Result<(), ImportError> {
        let Err(error) = builder.push_rows(&self.ids, &self.values) else { return Ok(()) };
        if matches!(error, BuildError::Io { .. }) {
            let (path, _) = self.place(0);
            return Err(ImportError::Build { path, source: Box::new(error) });
        }
        // Nothing of the batch has been taken: one by one, the refused row is the one that is refused.
        let dim = builder.spec().dim as usize;
        for (row, (&id, values)) in self.ids.iter().zip(self.values.chunks_exact(dim)).enumerate() {
            if let Err(error) = builder.push(id, values) {
                let (path, position) = self.place(row);
                return Err(ImportError::Row { path, position, source: Box::new(error) });
            }
        }
        let (path, _) = self.place(0);
        Err(ImportError::Build { path, source: Box::new(error) })
    }
}

/// Pushes every row of `source` into `builder` and gives their number. `progress` is told how many are
/// done, now and then and at the end.
///
/// One thread reads, up to two batches ahead; the builder's threads quantize. A batch has 32 MiB, so this
/// takes about 150 MiB on top of what the source and the builder say they need.
///
/// # Errors
/// [`ImportError`]: the file is not what it should be, the builder refuses a row, the dimensions of the
/// two differ, or there is no row at all. That an id stands twice is noticed by the builder's `publish`.
pub fn import(
    source: &mut dyn RowSource,
    builder: &mut TableBuilder,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, ImportError> {
    let dim = builder.spec().dim;
    if source.dim() != dim {
        return Err(ImportError::DimMismatch { path: source.path().into(), found: source.dim(), dim });
    }
    let row_bytes = dim as usize * size_of::<f32>() + size_of::<u64>() + size_of::<Position>();
    let rows_each = (BATCH_BYTES / row_bytes).max(1);
    let path: PathBuf = Path::to_path_buf(source.path());
    let mut rows = 0;
    thread::scope(|scope| {
        let (filled, batches) = mpsc::sync_channel::<Batch>(1);
        let (emptied, spare) = mpsc::channel::<Batch>();
        let reader = scope.spawn(move || -> Result<(), ImportError> {
            loop {
                let mut batch = spare.try_recv().unwrap_or_default();
                let read = batch.fill(source, rows_each);
                // Nobody receives when a row has been refused: that error is told.
                let wanted = batch.ids.is_empty() || filled.send(batch).is_ok();
                if !read? || !wanted {
                    return Ok(());
                }
            }
        });
        let mut pushed = Ok(());
        for batch in batches {
            pushed = batch.push(builder);
            if pushed.is_err() {
                break;
            }
            rows += batch.ids.len() as u64;
            progress(rows);
            // The reader may have ended.
            let _ = emptied.send(batch);
        }
        pushed.and(reader.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
    })?;
    if rows == 0 {
        return Err(ImportError::NoRows { path });
    }
    Ok(rows)
}
