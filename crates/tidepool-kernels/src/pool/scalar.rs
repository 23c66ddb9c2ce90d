//! The reference: plain Rust, `mul_add` where SIMD fuses. The SIMD files use it for the columns that do
//! not fill a vector, so there is one decoder of each format and not two.

use half::f16;
use tidepool_types::RowFormat;

use super::{PoolFns, Rows, check, check_weights};

/// How the elements of a row are read. `row` has been checked to be long enough for `dim`.
pub(super) trait Codec {
    /// The format.
    const FORMAT: RowFormat;

    /// `(scale, bias)`; formats without codes have none and give `(1, 0)`, which they ignore.
    fn scale_bias(row: &[u8], dim: usize) -> (f32, f32);

    /// The value at `column`.
    fn value(row: &[u8], column: usize, scale_bias: (f32, f32)) -> f32;
}

/// [`RowFormat::Int4`].
pub(super) struct Int4;
/// [`RowFormat::Int8`].
pub(super) struct Int8;
/// [`RowFormat::F16`].
pub(super) struct F16;
/// [`RowFormat::F32`].
pub(super) struct F32;

impl Codec for Int4 {
    const FORMAT: RowFormat = RowFormat::Int4;

    #[inline(always)]
    fn scale_bias(row: &[u8], dim: usize) -> (f32, f32) {
        let tail = &row[dim.div_ceil(2)..][..4];
        (f16::from_le_bytes([tail[0], tail[1]]).to_f32(), f16::from_le_bytes([tail[2], tail[3]]).to_f32())
    }

    #[inline(always)]
    fn value(row: &[u8], column: usize, (scale, bias): (f32, f32)) -> f32 {
        let code = row[column / 2] >> (4 * (column % 2)) & 0xf;
        f32::from(code).mul_add(scale, bias)
    }
}

impl Codec for Int8 {
    const FORMAT: RowFormat = RowFormat::Int8;

    #[inline(always)]
    fn scale_bias(row: &[u8], dim: usize) -> (f32, f32) {
        (read_f32(row, dim), read_f32(row, dim + 4))
    }

    #[inline(always)]
    fn value(row: &[u8], column: usize, (scale, bias): (f32, f32)) -> f32 {
        f32::from(row[column]).mul_add(scale, bias)
    }
}

impl Codec for F16 {
    const FORMAT: RowFormat = RowFormat::F16;

    #[inline(always)]
    fn scale_bias(_row: &[u8], _dim: usize) -> (f32, f32) {
        (1.0, 0.0)
    }

    #[inline(always)]
    fn value(row: &[u8], column: usize, _scale_bias: (f32, f32)) -> f32 {
        f16::from_le_bytes([row[2 * column], row[2 * column + 1]]).to_f32()
    }
}

impl Codec for F32 {
    const FORMAT: RowFormat = RowFormat::F32;

    #[inline(always)]
    fn scale_bias(_row: &[u8], _dim: usize) -> (f32, f32) {
        (1.0, 0.0)
    }

    #[inline(always)]
    fn value(row: &[u8], column: usize, _scale_bias: (f32, f32)) -> f32 {
        read_f32(row, 4 * column)
    }
}

#[inline(always)]
fn read_f32(row: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
}

/// Adds the columns of `row` from `first` on. `acc` is the whole vector.
#[inline(always)]
pub(super) fn add_row<C: Codec>(first: usize, row: &[u8], acc: &mut [f32]) {
    let scale_bias = C::scale_bias(row, acc.len());
    for (column, sum) in acc.iter_mut().enumerate().skip(first) {
        *sum += C::value(row, column, scale_bias);
    }
}

/// As [`add_row`], each value times `weight`.
#[inline(always)]
pub(super) fn add_row_weighted<C: Codec>(first: usize, row: &[u8], weight: f32, acc: &mut [f32]) {
    let scale_bias = C::scale_bias(row, acc.len());
    for (column, sum) in acc.iter_mut().enumerate().skip(first) {
        *sum = weight.mul_add(C::value(row, column, scale_bias), *sum);
    }
}

/// Writes the columns of `row` from `first` on over `out`, which is the whole vector.
#[inline(always)]
pub(super) fn read_row<C: Codec>(first: usize, row: &[u8], out: &mut [f32]) {
    let scale_bias = C::scale_bias(row, out.len());
    for (column, value) in out.iter_mut().enumerate().skip(first) {
        *value = C::value(row, column, scale_bias);
    }
}

fn accumulate<C: Codec>(dim: usize, rows: Rows<'_>, acc: &mut [f32]) {
    check(C::FORMAT, dim, rows.now, acc);
    for (at, row) in rows.now.iter().enumerate() {
        rows.ask(at, C::FORMAT, dim);
        add_row::<C>(0, row, acc);
    }
}

fn accumulate_weighted<C: Codec>(dim: usize, rows: Rows<'_>, weights: &[f32], acc: &mut [f32]) {
    check(C::FORMAT, dim, rows.now, acc);
    check_weights(rows.now, weights);
    for (at, (row, &weight)) in rows.now.iter().zip(weights).enumerate() {
        rows.ask(at, C::FORMAT, dim);
        add_row_weighted::<C>(0, row, weight, acc);
    }
}

fn dequantize<C: Codec>(dim: usize, row: &[u8], out: &mut [f32]) {
    check(C::FORMAT, dim, &[row], out);
    read_row::<C>(0, row, out);
}

/// The functions of one codec.
fn of<C: Codec>() -> PoolFns {
    PoolFns {
        accumulate: accumulate::<C>,
        accumulate_weighted: accumulate_weighted::<C>,
        dequantize: dequantize::<C>,
    }
}

/// The reference for `format`.
pub(super) fn fns(format: RowFormat) -> PoolFns {
    match format {
        RowFormat::Int4 => of::<Int4>(),
        RowFormat::Int8 => of::<Int8>(),
        RowFormat::F16 => of::<F16>(),
        RowFormat::F32 => of::<F32>(),
    }
}
