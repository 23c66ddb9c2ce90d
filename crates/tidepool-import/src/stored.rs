//! Rows as FBGEMM and TorchRec store them: an NPY array of u1, one row after the other, taken and given
//! back to the byte.

use std::path::Path;

use tidepool_table::TableBuilder;
use tidepool_types::RowFormat;

use crate::{
    ImportError,
    npy::{ArrayFile, IdElement, open_ids},
    source::{PROGRESS_ROWS, Position},
};

/// A file of stored rows, with or without a file of ids beside it.
#[derive(Debug)]
pub struct StoredSource {
    rows: ArrayFile,
    ids: Option<(ArrayFile, IdElement)>,
    count: u64,
    dim: u32,
    row: Vec<u8>,
}

impl StoredSource {
    /// Opens a 2-D array of u1, `(rows, bytes of a row)`, of rows in `format`, and where there is one the file
    /// of their ids; without it the ids are 0, 1, 2 and so on. The dimension follows from the bytes of a row.
    ///
    /// # Errors
    /// [`ImportError`]: a file cannot be read, is not NPY, has another type, shape or order than it should,
    /// is shorter or longer than its header says, the two differ in length, or no dimension has such rows.
    pub fn open(rows: &Path, ids: Option<&Path>, format: RowFormat) -> Result<Self, ImportError> {
        let mut rows = ArrayFile::open(rows)?;
        if rows.header.descr != "|u1" {
            return Err(rows.wrong_dtype("|u1 (uint8)"));
        }
        let &[count, row_bytes] = rows.header.shape.as_slice() else {
            return Err(rows.wrong_shape("(rows, bytes of a row)"));
        };
        let dim = dim_of(format, row_bytes).ok_or_else(|| ImportError::StoredBytes {
            path: rows.path.clone(),
            found: row_bytes,
            format,
        })?;
        rows.check_length(count, row_bytes)?;
        let ids = ids.map(|path| open_ids(path, count)).transpose()?;
        let row = vec![0; format.row_bytes(dim)];
        Ok(Self { rows, ids, count, dim, row })
    }

    /// Elements of a row.
    #[must_use]
    pub const fn dim(&self) -> u32 {
        self.dim
    }

    /// How many rows there are.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.count
    }
}

/// The dimension of which a row has so many bytes.
fn dim_of(format: RowFormat, row_bytes: u64) -> Option<u32> {
    let dims = (2..=tidepool_types::MAX_DIM).step_by(2);
    dims.into_iter().find(|&dim| format.row_bytes(dim) as u64 == row_bytes)
}

/// Pushes every row of `source` into `builder`, as it is, and gives their number. `progress` is told how
/// many are done, now and then and at the end.
///
/// # Errors
/// [`ImportError`]: the files are not what they should be, the builder refuses a row (because its format has
/// rows of another length, for example), or there is no row at all.
pub fn import_stored(
    mut source: StoredSource,
    builder: &mut TableBuilder,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, ImportError> {
    for at in 0..source.count {
        source.rows.read_exact(&mut source.row)?;
        let id = match &mut source.ids {
            None => at,
            Some((file, element)) => element.read(file, at)?,
        };
        builder.push_stored(id, &source.row).map_err(|error| ImportError::Row {
            path: source.rows.path.clone(),
            position: Position::Row(at),
            source: Box::new(error),
        })?;
        if (at + 1) % PROGRESS_ROWS == 0 {
            progress(at + 1);
        }
    }
    if source.count == 0 {
        return Err(ImportError::NoRows { path: source.rows.path });
    }
    progress(source.count);
    Ok(source.count)
}
