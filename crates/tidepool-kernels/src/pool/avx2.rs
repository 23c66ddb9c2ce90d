//! AVX2 with FMA and F16C. Columns are worked on in blocks of 64, 32 and 16 whose sums stay in registers
//! while all rows go by; fewer than 16 columns at the end are the reference's. Every load stays within
//! its row, so a row may end where the mapped memory ends.
#![expect(unsafe_code, reason = "intrinsics that load and store take raw pointers")]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_castsi128_ps, _mm_cvtph_ps, _mm_loadl_epi64, _mm_loadu_si32,
    _mm_loadu_si128, _mm_movehdup_ps, _mm_srli_si128, _mm256_add_ps, _mm256_and_si256,
    _mm256_broadcastd_epi32, _mm256_broadcastss_ps, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
    _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_ps, _mm256_srlv_epi32, _mm256_storeu_ps,
};

use tidepool_types::RowFormat;

use super::{
    PoolFns, Rows, check, check_weights,
    scalar::{self, Codec, F16, F32, Int4, Int8},
};
use crate::isa::Isa;

/// The functions for `format` and `dim`; `None` when this CPU lacks the instructions. This is the only way to
/// them, which is what makes calling them safe.
pub(super) fn fns(format: RowFormat, dim: usize) -> Option<PoolFns> {
    Isa::Avx2.is_available().then(|| match format {
        RowFormat::Int4 => of_dim::<Int4>(dim),
        RowFormat::Int8 => of_dim::<Int8>(dim),
        RowFormat::F16 => of_dim::<F16>(dim),
        RowFormat::F32 => of_dim::<F32>(dim),
    })
}

fn of_dim<C: WideCodec>(dim: usize) -> PoolFns {
    match dim {
        16 => of::<C, 16>(),
        32 => of::<C, 32>(),
        64 => of::<C, 64>(),
        128 => of::<C, 128>(),
        256 => of::<C, 256>(),
        _ => of::<C, 0>(),
    }
}

/// For rows of `DIM` columns; 0 stands for any dimension.
fn of<C: WideCodec, const DIM: usize>() -> PoolFns {
    PoolFns {
        accumulate: accumulate::<C, DIM>,
        accumulate_weighted: accumulate_weighted::<C, DIM>,
        dequantize: dequantize::<C, DIM>,
    }
}

/// A specialised function knows its dimension when it is compiled.
const fn known_dim<const DIM: usize>(dim: usize) -> usize {
    if DIM == 0 { dim } else { DIM }
}

fn accumulate<C: WideCodec, const DIM: usize>(dim: usize, rows: Rows<'_>, acc: &mut [f32]) {
    check(C::FORMAT, known_dim::<DIM>(dim), rows.now, acc);
    // SAFETY: `fns` gave this function out after it saw the features; the lengths were just checked.
    unsafe { pool::<C, false, DIM>(rows, &[], acc) }
}

fn accumulate_weighted<C: WideCodec, const DIM: usize>(
    dim: usize,
    rows: Rows<'_>,
    weights: &[f32],
    acc: &mut [f32],
) {
    check(C::FORMAT, known_dim::<DIM>(dim), rows.now, acc);
    check_weights(rows.now, weights);
    // SAFETY: `fns` gave this function out after it saw the features; the lengths were just checked.
    unsafe { pool::<C, true, DIM>(rows, weights, acc) }
}

fn dequantize<C: WideCodec, const DIM: usize>(dim: usize, row: &[u8], out: &mut [f32]) {
    check(C::FORMAT, known_dim::<DIM>(dim), &[row], out);
    // SAFETY: `fns` gave this function out after it saw the features; the lengths were just checked.
    unsafe { read_row::<C, DIM>(row, out) }
}

/// How sixteen elements of a row are read at once.
trait WideCodec: Codec {
    /// Scale and bias in every lane; formats without codes have none.
    ///
    /// # Safety
    /// The CPU has AVX2, FMA and F16C; `row` is long enough for `dim`.
    unsafe fn wide_scale_bias(row: &[u8], dim: usize) -> [__m256; 2];

    /// The values of the sixteen columns from `column` on.
    ///
    /// # Safety
    /// The CPU has AVX2, FMA and F16C; `row` is long enough for `column + 16` columns, and `column` is
    /// a multiple of 16.
    unsafe fn sixteen(row: &[u8], column: usize, scale_bias: [__m256; 2]) -> [__m256; 2];
}

impl WideCodec for Int4 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn wide_scale_bias(row: &[u8], dim: usize) -> [__m256; 2] {
        // SAFETY: scale and bias are the four bytes after the codes, and the row has them.
        let both = _mm_cvtph_ps(unsafe { load_4(row, dim.div_ceil(2)) });
        [_mm256_broadcastss_ps(both), _mm256_broadcastss_ps(_mm_movehdup_ps(both))]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(row: &[u8], column: usize, scale_bias: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: eight codes are four bytes, and the row has them.
        let low = unsafe { load_4(row, column / 2) };
        // SAFETY: sixteen codes are eight bytes, and these are the second four of them.
        let high = unsafe { load_4(row, column / 2 + 4) };
        [decode(nibbles(low), scale_bias), decode(nibbles(high), scale_bias)]
    }
}

impl WideCodec for Int8 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn wide_scale_bias(row: &[u8], dim: usize) -> [__m256; 2] {
        // SAFETY: scale and bias are the eight bytes after the codes, and the row has them.
        let both = _mm_castsi128_ps(unsafe { load_8(row, dim) });
        [_mm256_broadcastss_ps(both), _mm256_broadcastss_ps(_mm_movehdup_ps(both))]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(row: &[u8], column: usize, scale_bias: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: sixteen codes are sixteen bytes, and the row has them.
        let codes = unsafe { load_16(row, column) };
        let low = _mm256_cvtepu8_epi32(codes);
        let high = _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(codes));
        [decode(low, scale_bias), decode(high, scale_bias)]
    }
}

impl WideCodec for F16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn wide_scale_bias(_row: &[u8], _dim: usize) -> [__m256; 2] {
        [_mm256_setzero_ps(); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(row: &[u8], column: usize, _scale_bias: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: eight elements are sixteen bytes, and the row has sixteen elements from here on.
        let low = unsafe { load_16(row, 2 * column) };
        // SAFETY: these are the second eight of them.
        let high = unsafe { load_16(row, 2 * column + 16) };
        [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
    }
}

impl WideCodec for F32 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn wide_scale_bias(_row: &[u8], _dim: usize) -> [__m256; 2] {
        [_mm256_setzero_ps(); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sixteen(row: &[u8], column: usize, _scale_bias: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: eight elements are 32 bytes, and the row has sixteen elements from here on.
        let low = unsafe { load_32(row, 4 * column) };
        // SAFETY: these are the second eight of them.
        let high = unsafe { load_32(row, 4 * column + 32) };
        [low, high]
    }
}

/// The eight codes in the lowest four bytes of `packed`, in order: each lane shifts its own down.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(packed: __m128i) -> __m256i {
    let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    let shifted = _mm256_srlv_epi32(_mm256_broadcastd_epi32(packed), shifts);
    _mm256_and_si256(shifted, _mm256_set1_epi32(0xf))
}

/// `fma(code, scale, bias)` of eight codes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn decode(codes: __m256i, [scale, bias]: [__m256; 2]) -> __m256 {
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), scale, bias)
}

/// Adds all rows to `acc`, block of columns by block of columns.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; each row is long enough for `acc.len()` columns; if `WEIGHTED`,
/// there is a weight for each; `acc` has `DIM` columns, or any number when `DIM` is 0.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pool<C: WideCodec, const WEIGHTED: bool, const DIM: usize>(
    mut rows: Rows<'_>,
    weights: &[f32],
    acc: &mut [f32],
) {
    let dim = known_dim::<DIM>(acc.len());
    let mut column = 0;
    while column + 64 <= dim {
        // SAFETY: the caller's promises, and 64 columns are left; blocks start at multiples of 16.
        unsafe { pool_block::<C, WEIGHTED, 4>(column, dim, rows, weights, acc) };
        rows.later = &[];
        column += 64;
    }
    if column + 32 <= dim {
        // SAFETY: the caller's promises, and 32 columns are left.
        unsafe { pool_block::<C, WEIGHTED, 2>(column, dim, rows, weights, acc) };
        rows.later = &[];
        column += 32;
    }
    if column + 16 <= dim {
        // SAFETY: the caller's promises, and 16 columns are left.
        unsafe { pool_block::<C, WEIGHTED, 1>(column, dim, rows, weights, acc) };
        rows.later = &[];
        column += 16;
    }
    if column == dim {
        return;
    }
    if WEIGHTED {
        for (at, (row, &weight)) in rows.now.iter().zip(weights).enumerate() {
            rows.ask(at, C::FORMAT, dim);
            scalar::add_row_weighted::<C>(column, row, weight, acc);
        }
    } else {
        for (at, row) in rows.now.iter().enumerate() {
            rows.ask(at, C::FORMAT, dim);
            scalar::add_row::<C>(column, row, acc);
        }
    }
}

/// Adds `16 * GROUPS` columns of all rows, from `first` on.
///
/// # Safety
/// As [`pool`], for rows of `dim` columns; `first` is a multiple of 16 and `acc` has that many columns from
/// there on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pool_block<C: WideCodec, const WEIGHTED: bool, const GROUPS: usize>(
    first: usize,
    dim: usize,
    rows: Rows<'_>,
    weights: &[f32],
    acc: &mut [f32],
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; GROUPS];
    for (group, sum) in sums.iter_mut().enumerate() {
        // SAFETY: `acc` has the columns of this block.
        *sum = unsafe { load_columns(acc, first + 16 * group) };
    }
    for (at, row) in rows.now.iter().enumerate() {
        rows.ask(at, C::FORMAT, dim);
        // SAFETY: the caller's promises are this function's needs.
        let scale_bias = unsafe { C::wide_scale_bias(row, dim) };
        let weight = if WEIGHTED { _mm256_set1_ps(weights[at]) } else { _mm256_setzero_ps() };
        for (group, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the row is long enough for `dim` columns, and these are among them.
            let values = unsafe { C::sixteen(row, first + 16 * group, scale_bias) };
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum =
                    if WEIGHTED { _mm256_fmadd_ps(weight, value, *sum) } else { _mm256_add_ps(*sum, value) };
            }
        }
    }
    for (group, sum) in sums.into_iter().enumerate() {
        // SAFETY: `acc` has the columns of this block.
        unsafe { store_columns(sum, acc, first + 16 * group) };
    }
}

/// Writes the values of `row` over `out`.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; `row` is long enough for `out.len()` columns, which are
/// `DIM`, or any number when `DIM` is 0.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn read_row<C: WideCodec, const DIM: usize>(row: &[u8], out: &mut [f32]) {
    let dim = known_dim::<DIM>(out.len());
    // SAFETY: the caller's promises are this function's needs.
    let scale_bias = unsafe { C::wide_scale_bias(row, dim) };
    let mut column = 0;
    while column + 16 <= dim {
        // SAFETY: the row has these sixteen columns, and the column is a multiple of 16.
        let values = unsafe { C::sixteen(row, column, scale_bias) };
        // SAFETY: `out` has them too.
        unsafe { store_columns(values, out, column) };
        column += 16;
    }
    if column < dim {
        scalar::read_row::<C>(column, row, out);
    }
}

/// # Safety
/// `row` has 4 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_4(row: &[u8], at: usize) -> __m128i {
    debug_assert!(at + 4 <= row.len());
    // SAFETY: within the row, as the caller promises.
    let from = unsafe { row.as_ptr().add(at) };
    // SAFETY: 4 readable bytes; this load needs no alignment.
    unsafe { _mm_loadu_si32(from) }
}

/// # Safety
/// `row` has 8 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_8(row: &[u8], at: usize) -> __m128i {
    debug_assert!(at + 8 <= row.len());
    // SAFETY: within the row, as the caller promises.
    let from = unsafe { row.as_ptr().add(at) };
    // SAFETY: 8 readable bytes; this load needs no alignment.
    unsafe { _mm_loadl_epi64(from.cast()) }
}

/// # Safety
/// `row` has 16 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_16(row: &[u8], at: usize) -> __m128i {
    debug_assert!(at + 16 <= row.len());
    // SAFETY: within the row, as the caller promises.
    let from = unsafe { row.as_ptr().add(at) };
    // SAFETY: 16 readable bytes; this load needs no alignment.
    unsafe { _mm_loadu_si128(from.cast()) }
}

/// # Safety
/// `row` has 32 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_32(row: &[u8], at: usize) -> __m256 {
    debug_assert!(at + 32 <= row.len());
    // SAFETY: within the row, as the caller promises.
    let from = unsafe { row.as_ptr().add(at) };
    // SAFETY: 32 readable bytes; this load needs no alignment, and any bits are eight f32.
    unsafe { _mm256_loadu_ps(from.cast()) }
}

/// # Safety
/// `columns` has 16 elements from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_columns(columns: &[f32], at: usize) -> [__m256; 2] {
    debug_assert!(at + 16 <= columns.len());
    // SAFETY: within the slice, as the caller promises.
    let from = unsafe { columns.as_ptr().add(at) };
    // SAFETY: eight elements on, there are eight more.
    let next = unsafe { from.add(8) };
    // SAFETY: the first eight elements.
    let low = unsafe { _mm256_loadu_ps(from) };
    // SAFETY: the second eight.
    let high = unsafe { _mm256_loadu_ps(next) };
    [low, high]
}

/// # Safety
/// `columns` has 16 elements from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_columns([low, high]: [__m256; 2], columns: &mut [f32], at: usize) {
    debug_assert!(at + 16 <= columns.len());
    // SAFETY: within the slice, as the caller promises.
    let to = unsafe { columns.as_mut_ptr().add(at) };
    // SAFETY: eight elements on, there are eight more.
    let next = unsafe { to.add(8) };
    // SAFETY: the first eight elements, which this function borrows for writing.
    unsafe { _mm256_storeu_ps(to, low) };
    // SAFETY: the second eight.
    unsafe { _mm256_storeu_ps(next, high) };
}
