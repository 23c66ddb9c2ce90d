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
        let rows = recycle(std::mem::take(&mut scratch.rows));
        let mut resolver = Resolver::new(self, ids, rows, &mut out.missing);
        let row_bytes = self.kernel.row_bytes();
        out.rows.clear();
        out.rows.reserve(ids.len() * row_bytes);
        let mut copied = 0;
        while copied < ids.len() {
            let to = (copied + COPY_IDS).min(ids.len());
            resolver.ready(to, 0)?;
            for row in &resolver.rows()[copied..to] {
                match row.get(..row_bytes) {
                    Some(row) => out.rows.extend_from_slice(row),
                    None => out.rows.resize(out.rows.len() + row_bytes, 0),
                }
            }
            copied = to;
        }
        scratch.rows = recycle(resolver.into_rows());
        Ok(())
    }
}
