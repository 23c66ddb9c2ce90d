//! One Parquet file, or a folder of them.

use std::{
    fs::{self, File},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

use parquet::{
    errors::ParquetError,
    file::{reader::FileReader, serialized_reader::SerializedFileReader},
};

use tidepool_types::MAX_DIM;

use super::{
    columns::{Ids, Vectors},
    schema::{Leaves, ParquetColumns},
};
use crate::ImportError;

/// How the names of Parquet files end.
const EXTENSION: &str = "parquet";

/// The files to read, in order: the file itself, or those of a folder by name. What begins with `_` or `.` is
/// passed over, as every reader of such folders does.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let io = |source| ImportError::Io { action: "opening", path: path.into(), source };
    if !fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let (name, file) = (entry.file_name(), entry.path());
        if name.as_encoded_bytes().starts_with(b"_") || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // A file that is left out is a table that is not whole, and nobody would know.
        if file.extension().is_none_or(|extension| extension != EXTENSION) || file.is_dir() {
            return Err(ImportError::NoPart { path: file });
        }
        files.push(file);
    }
    files.sort_unstable();
    if files.is_empty() {
        return Err(ImportError::NoRows { path: path.into() });
    }
    Ok(files)
}

/// A file whose footer has been read, row group by row group.
pub(super) struct Part {
    pub(super) path: PathBuf,
    reader: SerializedFileReader<File>,
    leaves: Leaves,
    /// The next row group.
    next_group: usize,
}

/// A row group on its way.
pub(super) struct Group {
    pub(super) ids: Ids,
    pub(super) vectors: Vectors,
    /// Rows not read yet, as the footer says it.
    pub(super) rows_left: u64,
}

impl Part {
    pub(super) fn open(path: &Path, columns: &ParquetColumns) -> Result<Self, ImportError> {
        let file = File::open(path).map_err(|source| ImportError::Io {
            action: "opening",
            path: path.into(),
            source,
        })?;
        let reader = guarded(|| SerializedFileReader::new(file))
            .map_err(|source| ImportError::Parquet { path: path.into(), source })?;
        let leaves = Leaves::find(reader.metadata().file_metadata().schema_descr(), columns, path)?;
        Ok(Self { path: path.into(), reader, leaves, next_group: 0 })
    }

    /// Rows in all.
    pub(super) fn rows(&self) -> Result<u64, ImportError> {
        let groups = self.reader.metadata().row_groups().iter();
        let mut rows = groups.map(|group| u64::try_from(group.num_rows()).ok());
        let total = rows.try_fold(0u64, |total, rows| total.checked_add(rows?));
        total.ok_or_else(|| self.malformed("its row groups have a negative number of rows"))
    }

    /// The next row group that has rows.
    pub(super) fn next_group(&mut self) -> Result<Option<Group>, ImportError> {
        while self.next_group < self.reader.num_row_groups() {
            let at = self.next_group;
            self.next_group += 1;
            let metadata = self.reader.metadata().row_group(at);
            let rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
            if rows == 0 {
                continue;
            }
            let (found, most) =
                (metadata.column(self.leaves.vector).num_values(), rows.saturating_mul(MAX_DIM.into()));
            if u64::try_from(found).is_ok_and(|found| found > most) {
                return Err(self.malformed(&format!("{found} elements in the vectors of {rows} rows")));
            }
            let (ids, vectors) = guarded(|| {
                let group = self.reader.get_row_group(at)?;
                Ok((group.get_column_reader(self.leaves.id)?, group.get_column_reader(self.leaves.vector)?))
            })
            .map_err(|source| ImportError::Parquet { path: self.path.clone(), source })?;
            let other = || self.malformed("a column has another type than the schema");
            return Ok(Some(Group {
                ids: Ids::new(ids, self.leaves.id_kind, self.leaves.id_defined).ok_or_else(other)?,
                vectors: Vectors::new(vectors, self.leaves.element, self.leaves.list).ok_or_else(other)?,
                rows_left: rows,
            }));
        }
        Ok(None)
    }

    fn malformed(&self, problem: &str) -> ImportError {
        let source = ParquetError::General(problem.into());
        ImportError::Parquet { path: self.path.clone(), source }
    }
}

/// Calls the Parquet library, which has asserts that some damaged files fail (a page of dictionary positions
/// without a dictionary, for one). Such a panic becomes an error like any other; what was being read is then
/// dropped.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    panic::catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        Err(ParquetError::General(format!("the decoder gave up: {text}")))
    })
}
