//! The gather form: one stored row per id, byte for byte as it lies in the file.

use super::{LayoutView, LookupScratch, Missing, NotHeld, PartitionRows, recycle, resolve::Resolver};

/// Ids whose rows are copied between two looks at how far the resolver is.
const COPY_IDS: usize = 16;

/// The rows of the ids of a lookup.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gathered {
    /// One stored row per id, in order; zeros where missing.
    pub rows: Vec<u8>,
    /// Ids without a row.
    pub missing: Missing,
}

impl<P: PartitionRows> LayoutView<P> {
    /// The stored rows of packed ids (little-endian `u64`), written over `out`.
    ///
    /// # Errors
    /// [`NotHeld`] for the first id whose partition is not; `out` then holds nothing of use.
    pub fn gather(
        &self,
        ids: &[[u8; 8]],
        scratch: &mut LookupScratch,
        out: &mut Gathered,
    ) -> Result<(), NotHeld> {
        out.rows.resize(ids.len() * self.kernel.row_bytes(), 0);
        self.gather_into(ids, scratch, &mut out.rows, &mut out.missing)
    }

    /// The same, written over `rows`, which has room for exactly one row per id.
    ///
    /// # Errors
    /// [`NotHeld`] for the first id whose partition is not; `rows` then holds nothing of use.
    ///
    /// # Panics
    /// When `rows` has another length.
    pub fn gather_into(
        &self,
        ids: &[[u8; 8]],
        scratch: &mut LookupScratch,
        rows: &mut [u8],
        missing: &mut Missing,
    ) -> Result<(), NotHeld> {
        let row_bytes = self.kernel.row_bytes();
        assert_eq!(rows.len(), ids.len() * row_bytes, "room for the rows of {} ids", ids.len());
        let mut resolver = Resolver::new(self, ids, recycle(std::mem::take(&mut scratch.rows)), missing);
        let mut places = rows.chunks_exact_mut(row_bytes);
        let mut copied = 0;
        while copied < ids.len() {
            let to = (copied + COPY_IDS).min(ids.len());
            resolver.ready(to, 0)?;
            for (row, place) in resolver.rows()[copied..to].iter().zip(&mut places) {
                match row.get(..row_bytes) {
                    Some(row) => place.copy_from_slice(row),
                    None => place.fill(0),
                }
            }
            copied = to;
        }
        scratch.rows = recycle(resolver.into_rows());
        Ok(())
    }
}
