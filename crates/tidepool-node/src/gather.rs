//! The gather form: one stored row per id, byte for byte as it lies in the file.

use tidepool_types::PartitionIndex;

use crate::{
    decode::Feature,
    partitions::{FindRows, LayoutSlots},
    rows::{Finder, Missing},
};

/// The bytes of an answer's `rows`, before any work is done.
pub(crate) const fn answer_bytes(ids: usize, row_bytes: usize) -> u64 {
    (ids as u64).saturating_mul(row_bytes as u64)
}

/// The stored rows of a feature's ids, in order, zeros where missing.
///
/// # Errors
/// The first partition that is needed and not held.
pub(crate) fn gather<'a, P: FindRows>(
    layout: &'a LayoutSlots<P>,
    feature: &Feature,
    finder: &mut Finder<'a>,
) -> Result<(Vec<u8>, Missing), PartitionIndex> {
    let (ids, row_bytes) = (feature.id_count(), layout.kernel.row_bytes());
    let mut rows = Vec::with_capacity(ids * row_bytes);
    let mut missing = Missing::default();
    finder.find(layout, feature.ids(), |position, row| match row {
        Some(row) => rows.extend_from_slice(row),
        None => {
            missing.mark(position, ids);
            rows.resize(rows.len() + row_bytes, 0);
        }
    })?;
    Ok((rows, missing))
}
