//! Gather-and-pool and dequantize: one file per instruction set, chosen once as a set of function pointers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(test)]
mod tests;

use tidepool_types::RowFormat;

use crate::{
    isa::Isa,
    prefetch::{LINE_BYTES, prefetch_lines},
};

type AccumulateWeighted = fn(usize, Rows<'_>, &[f32], &mut [f32]);

/// Rows to add, and rows to ask for meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) now: &'a [&'a [u8]],
    pub(crate) later: &'a [&'a [u8]],
}

impl Rows<'_> {
    /// To be called while row `at` is added, in the first block of columns only. Rows are of `dim` columns;
    /// a slice with a key behind its row, of 8 bytes at most, is asked for with that.
    #[inline(always)]
    fn ask(&self, at: usize, format: RowFormat, dim: usize) {
        let Some(row) = self.later.get(at) else { return };
        let row_bytes = row_bytes(format, dim);
        let with_key = row_bytes.saturating_add(size_of::<u64>());
        // For nearly all dimensions no line begins in the key, and this is known when it is compiled.
        let same_lines = row_bytes.div_ceil(LINE_BYTES) == with_key.div_ceil(LINE_BYTES);
        prefetch_lines(row, if same_lines { row_bytes } else { row.len().min(with_key) });
    }
}

/// What one instruction set does for one row format. Each function takes the dimension first and checks
/// the lengths of its slices with [`check`], so each is safe to call with anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolFns {
    /// `(dim, rows, acc)`.
    pub(crate) accumulate: fn(usize, Rows<'_>, &mut [f32]),
    /// `(dim, rows, weights, acc)`.
    pub(crate) accumulate_weighted: AccumulateWeighted,
    /// `(dim, row, out)`.
    pub(crate) dequantize: fn(usize, &[u8], &mut [f32]),
}

impl PoolFns {
    /// The functions of an instruction set; `None` when this CPU lacks it.
    /// Some are made for one dimension, and must be given that one.
    pub(crate) fn of(format: RowFormat, dim: usize, isa: Isa) -> Option<Self> {
        match isa {
            Isa::Scalar => Some(Self::scalar(format)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::fns(format, dim),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::fns(format, dim),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => None,
        }
    }

    /// The reference.
    pub(crate) fn scalar(format: RowFormat) -> Self {
        scalar::fns(format)
    }
}

/// Bytes of a row of `dim` columns. No row is as long as the largest number, so no slice passes for one.
#[inline(always)]
fn row_bytes(format: RowFormat, dim: usize) -> usize {
    u32::try_from(dim).map_or(usize::MAX, |dim| format.row_bytes(dim))
}

/// Panics unless `out` has `dim` elements and every row at least the bytes that the format needs. All
/// unsafe code of this folder stands on this check.
#[inline]
fn check(format: RowFormat, dim: usize, rows: &[&[u8]], out: &[f32]) {
    assert_eq!(out.len(), dim, "elements of the vector that rows of dimension {dim} are added to");
    let row_bytes = row_bytes(format, dim);
    for (at, row) in rows.iter().enumerate() {
        assert!(row.len() >= row_bytes, "row {at} has {} bytes, not {row_bytes}", row.len());
    }
}

/// Panics unless there is one weight per row.
#[inline]
fn check_weights(rows: &[&[u8]], weights: &[f32]) {
    assert_eq!(weights.len(), rows.len(), "one weight per row");
}
