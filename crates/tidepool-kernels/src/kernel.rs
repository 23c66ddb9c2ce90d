//! [`RowKernel`]: everything that can be done with rows of one format and dimension.

use tidepool_types::RowFormat;

use crate::{
    QuantizeError,
    isa::Isa,
    pool::{PoolFns, Rows},
    quantize::{self, QuantizeFn, Quantizer},
};

/// Row codec and gather-and-pool for one row format, dimension and instruction set. Small and `Copy`:
/// make it once where the table is opened and pass it along. Nothing is looked up or detected per call.
#[derive(Clone, Copy, Debug)]
pub struct RowKernel {
    format: RowFormat,
    dim: usize,
    row_bytes: usize,
    isa: Isa,
    fns: PoolFns,
    quantize: QuantizeFn,
}

impl RowKernel {
    /// A kernel on the fastest instruction set of this CPU. Which dimensions a table may have is
    /// [`RowFormat::check_dim`]'s to say; this takes any.
    #[must_use]
    pub fn new(format: RowFormat, dim: u32) -> Self {
        Self::with_isa(format, dim, Isa::detect())
            .unwrap_or_else(|| Self::assemble(format, dim, Isa::Scalar, PoolFns::scalar(format)))
    }

    /// A kernel on a given instruction set; `None` when this CPU lacks it.
    #[must_use]
    pub fn with_isa(format: RowFormat, dim: u32, isa: Isa) -> Option<Self> {
        PoolFns::of(format, dim as usize, isa).map(|fns| Self::assemble(format, dim, isa, fns))
    }

    fn assemble(format: RowFormat, dim: u32, isa: Isa, fns: PoolFns) -> Self {
        let quantize = quantize::function(isa);
        Self { format, dim: dim as usize, row_bytes: format.row_bytes(dim), isa, fns, quantize }
    }

    /// How rows are stored.
    #[must_use]
    pub const fn format(&self) -> RowFormat {
        self.format
    }

    /// Elements of a row.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "it was made from a u32")]
    pub const fn dim(&self) -> u32 {
        self.dim as u32
    }

    /// The instruction set in use.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of one stored row, without fingerprint.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// `acc[d] += value(row)[d]` for each row, in order. `acc` is not cleared first.
    ///
    /// `later` are rows that will be wanted soon: while one row is added, one of them is asked for
    /// ([`prefetch_read`](crate::prefetch_read)), so that requests reach the memory at the rate at which it
    /// can answer them. Those past the number of `rows` are not looked at.
    ///
    /// # Panics
    /// When `acc` is not `dim` long, or a row is shorter than [`row_bytes`](Self::row_bytes); bytes past
    /// that are ignored.
    #[inline]
    pub fn accumulate(&self, rows: &[&[u8]], later: &[&[u8]], acc: &mut [f32]) {
        (self.fns.accumulate)(self.dim, Rows { now: rows, later }, acc);
    }

    /// `acc[d] = fma(weight, value(row)[d], acc[d])` for each row with its weight, in order.
    ///
    /// # Panics
    /// As [`accumulate`](Self::accumulate), and when there are not as many weights as rows.
    #[inline]
    pub fn accumulate_weighted(&self, rows: &[&[u8]], weights: &[f32], later: &[&[u8]], acc: &mut [f32]) {
        (self.fns.accumulate_weighted)(self.dim, Rows { now: rows, later }, weights, acc);
    }

    /// The values of one stored row, written over `out`.
    ///
    /// # Panics
    /// When `out` is not `dim` long, or the row is shorter than [`row_bytes`](Self::row_bytes).
    #[inline]
    pub fn dequantize(&self, row: &[u8], out: &mut [f32]) {
        (self.fns.dequantize)(self.dim, row, out);
    }

    /// Stores `values` as the first [`row_bytes`](Self::row_bytes) bytes of `row`, by
    /// [`Quantizer::MinMax`].
    ///
    /// # Errors
    /// As [`quantize_with`](Self::quantize_with).
    ///
    /// # Panics
    /// As [`quantize_with`](Self::quantize_with).
    pub fn quantize(&self, values: &[f32], row: &mut [u8]) -> Result<(), QuantizeError> {
        self.quantize_with(Quantizer::MinMax, values, row)
    }

    /// Stores `values` as the first [`row_bytes`](Self::row_bytes) bytes of `row`. The same values and
    /// quantizer give the same bytes on every machine.
    ///
    /// # Errors
    /// [`QuantizeError`] names the first column that is NaN or infinite, or the one that the format
    /// cannot hold. `row` then holds nothing of use.
    ///
    /// # Panics
    /// When `values` is not `dim` long, or `row` is shorter than [`row_bytes`](Self::row_bytes).
    pub fn quantize_with(
        &self,
        quantizer: Quantizer,
        values: &[f32],
        row: &mut [u8],
    ) -> Result<(), QuantizeError> {
        assert_eq!(values.len(), self.dim, "values of a row of dimension {}", self.dim);
        (self.quantize)(self.format, quantizer, values, &mut row[..self.row_bytes])
    }
}
