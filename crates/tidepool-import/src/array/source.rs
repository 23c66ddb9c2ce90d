//! [`ArraySource`]: a 2-D array of vectors, with or without a 1-D array of their ids.

use std::path::Path;

use tidepool_types::RowFormat;

use super::{Array, ArrayPath, Element, IdElement, element::f64_at, open_ids};
use crate::{
    ImportError,
    source::{Position, RowSource},
};

/// An array of vectors, with or without an array of ids.
pub struct ArraySource {
    vectors: Array,
    element: Element,
    dim: u32,
    ids: Option<(Array, IdElement)>,
    rows: u64,
    next: u64,
    row: Vec<u8>,
}

impl ArraySource {
    /// Opens an array of vectors and, where there is one, the array of their ids; without it the ids are
    /// 0, 1, 2 and so on.
    ///
    /// # Errors
    /// [`ImportError`]: a file cannot be read or is not what its name says; an array has another type, shape or
    /// order than it should, or another length than its header says; or the two differ in length.
    pub fn open(vectors: &ArrayPath, ids: Option<&ArrayPath>) -> Result<Self, ImportError> {
        let mut vectors = vectors.open()?;
        let element = Element::of(&vectors.dtype).ok_or_else(|| vectors.wrong_dtype(Element::EXPECTED))?;
        let &[rows, dim] = vectors.shape.as_slice() else {
            return Err(vectors.wrong_shape("(rows, dimension)"));
        };
        let dim = RowFormat::check_dim(dim)
            .map_err(|source| ImportError::Dim { path: vectors.path.clone(), source })?;
        let row_bytes = dim as usize * element.bytes();
        vectors.check_length(rows, row_bytes as u64)?;
        let ids = ids.map(|ids| open_ids(ids, rows)).transpose()?;
        Ok(Self { vectors, element, dim, ids, rows, next: 0, row: vec![0; row_bytes] })
    }
}

impl RowSource for ArraySource {
    fn path(&self) -> &Path {
        &self.vectors.path
    }

    fn dim(&self) -> u32 {
        self.dim
    }

    fn rows_hint(&self) -> Option<u64> {
        Some(self.rows)
    }

    fn next_row(&mut self, values: &mut [f32]) -> Result<Option<u64>, ImportError> {
        if self.next == self.rows {
            self.vectors.finish()?;
            if let Some((ids, _)) = &mut self.ids {
                ids.finish()?;
            }
            return Ok(None);
        }
        let row = self.next;
        self.vectors.read_exact(&mut self.row)?;
        self.element.decode(&self.row, values).map_err(|column| ImportError::TooLarge {
            path: self.vectors.path.clone(),
            row,
            column,
            value: f64_at(&self.row, column),
        })?;
        let id = match &mut self.ids {
            None => row,
            Some((ids, element)) => element.read(ids, row)?,
        };
        self.next += 1;
        Ok(Some(id))
    }

    fn position(&self) -> Position {
        Position::Row(self.next.saturating_sub(1))
    }
}
