//! Parquet: a column of ids and a column of lists, from one file or a folder of part files.
//!
//! The columns are read below Arrow, by definition and repetition levels: that is all that lists of numbers
//! need, at half the build time. Row groups are streamed: in memory are one page of each column, unpacked,
//! its dictionary, and [`CHUNK_ELEMENTS`] elements.

mod columns;
mod files;
mod schema;

use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use tidepool_types::RowFormat;

pub use self::schema::ParquetColumns;
use self::{
    columns::Wrong,
    files::{Group, Part},
};
use crate::{
    ImportError,
    source::{Position, RowSource},
};

/// Elements that are decoded at once: about 2 MiB with their levels.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// A Parquet file of rows, or a folder of them.
pub struct ParquetSource {
    columns: ParquetColumns,
    files: Vec<PathBuf>,
    /// The one in hand, once any has been opened.
    part: Part,
    part_at: usize,
    group: Option<Group>,
    dim: u32,
    rows: u64,
    /// What has been decoded.
    ids: Vec<u64>,
    values: Vec<f32>,
    /// The next row of that.
    next: usize,
    /// Where in the file `ids` begin.
    first: u64,
}

impl ParquetSource {
    /// Opens a file, or all files of a folder, which are read in the order of their names; there each must end in
    /// `.parquet`, but for names that begin with `_` or `.`, which are passed over. All footers are read now, and
    /// the first vector, which tells the dimension.
    ///
    /// # Errors
    /// [`ImportError`]: a file cannot be read or is not Parquet; a column is not there or has another type than it
    /// should; ids are strings and [`ParquetColumns::string_ids`] does not say what makes numbers of them; there is
    /// no row; the first vector has a dimension that no table may have.
    pub fn open(path: &Path, columns: &ParquetColumns) -> Result<Self, ImportError> {
        let files = files::files(path)?;
        let mut rows = 0u64;
        for file in &files {
            rows = rows.saturating_add(Part::open(file, columns)?.rows()?);
        }
        let part = Part::open(&files[0], columns)?;
        let mut source = Self {
            columns: columns.clone(),
            files,
            part,
            part_at: 0,
            group: None,
            dim: 0,
            rows,
            ids: Vec::new(),
            values: Vec::new(),
            next: 0,
            first: 0,
        };
        if !source.next_group()? {
            return Err(ImportError::NoRows { path: path.into() });
        }
        source.read_dim()?;
        Ok(source)
    }

    /// Reads the first row.
    fn read_dim(&mut self) -> Result<(), ImportError> {
        self.decode(1)?;
        self.dim = RowFormat::check_dim(self.values.len() as u64)
            .map_err(|source| ImportError::Dim { path: self.part.path.clone(), source })?;
        Ok(())
    }

    /// Goes on to the next row group that has rows, in this file or a later one; false at the end.
    fn next_group(&mut self) -> Result<bool, ImportError> {
        loop {
            self.group = self.part.next_group()?;
            if self.group.is_some() {
                return Ok(true);
            }
            let Some(file) = self.files.get(self.part_at + 1) else { return Ok(false) };
            self.part = Part::open(file, &self.columns)?;
            self.part_at += 1;
            self.forget();
            self.first = 0;
        }
    }

    fn forget(&mut self) {
        self.ids.clear();
        self.values.clear();
        self.next = 0;
    }

    /// Decodes up to so many rows of the row group in hand, in place of those that have been decoded.
    fn decode(&mut self, rows: usize) -> Result<(), ImportError> {
        let first = self.first + self.ids.len() as u64;
        let decoded = self.decode_from(first, rows);
        if decoded.is_err() {
            self.forget();
            self.group = None;
        }
        decoded
    }

    fn decode_from(&mut self, first: u64, rows: usize) -> Result<(), ImportError> {
        let Some(group) = &mut self.group else { return Ok(()) };
        let (path, dim) = (&self.part.path, self.dim);
        let wrong = |column: &str, wrong: Wrong| wrong.at(path, column, first, dim);
        let known = (dim > 0).then_some(dim as usize);
        let rows = rows.min(usize::try_from(group.rows_left).unwrap_or(usize::MAX));
        let ids = group.ids.read(rows, &mut self.ids).map_err(|e| wrong(&self.columns.id, e))?;
        let vectors = group.vectors.read(rows, known, &mut self.values);
        let vectors = vectors.map_err(|e| wrong(&self.columns.vector, e))?;
        for (column, found) in [(&self.columns.id, ids), (&self.columns.vector, vectors)] {
            if found != rows {
                let (path, column) = (path.clone(), column.clone());
                return Err(ImportError::RowCount { path, column, row: first + found as u64 });
            }
        }
        // The first vector is as long as it is.
        if known.is_some_and(|dim| self.values.len() != rows * dim) {
            let problem = format!("{} elements in {rows} vectors of {dim}", self.values.len());
            return Err(wrong(&self.columns.vector, Wrong::Bytes(ParquetError::General(problem))));
        }
        group.rows_left -= rows as u64;
        (self.first, self.next) = (first, 0);
        Ok(())
    }
}

impl RowSource for ParquetSource {
    fn path(&self) -> &Path {
        &self.part.path
    }

    fn part(&self) -> usize {
        self.part_at
    }

    fn dim(&self) -> u32 {
        self.dim
    }

    fn rows_hint(&self) -> Option<u64> {
        Some(self.rows)
    }

    fn next_row(&mut self, values: &mut [f32]) -> Result<Option<u64>, ImportError> {
        if self.next == self.ids.len() {
            if self.group.as_ref().is_none_or(|group| group.rows_left == 0) && !self.next_group()? {
                return Ok(None);
            }
            self.decode((CHUNK_ELEMENTS / self.dim as usize).max(1))?;
        }
        let at = self.next;
        let dim = self.dim as usize;
        values.copy_from_slice(&self.values[at * dim..][..dim]);
        self.next += 1;
        Ok(Some(self.ids[at]))
    }

    fn position(&self) -> Position {
        Position::Row(self.first + self.next.saturating_sub(1) as u64)
    }
}
