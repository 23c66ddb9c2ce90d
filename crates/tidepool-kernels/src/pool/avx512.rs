//! AVX-512 (F, BW, DQ, VL). Sixteen columns are one register, and a row of 16, 32, 64, 128 or 256 columns
//! keeps all its sums in registers while the rows go by; other dimensions go in blocks of columns, and
//! what does not fill a register is masked. Every load stays within its row, so a row may end where the
//! mapped memory ends.
//!
//! Int4 has no arithmetic per element. Each row makes a table of its sixteen values in one register,
//! `fma(code, scale, bias)`. Eight code bytes are sixteen elements; broadcast, they are two 32-bit words
//! A and B over and over, and one shift per lane brings a nibble of its word to the bottom of each lane:
//! lane `2 k` has nibble `k` of A (column `k`), lane `2 k + 1` nibble `k` of B (column `8 + k`). `vpermps`
//! looks each lane's value up by its lowest four bits and ignores what is above them. The sums stay in that
//! order of lanes while rows are added and are put in order of columns once per call.
#![expect(unsafe_code, reason = "intrinsics that load and store take raw pointers")]

use std::arch::x86_64::{
    __m512, __mmask16, _mm_loadl_epi64, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm256_loadu_si256,
    _mm256_maskz_loadu_epi16, _mm256_set1_epi32, _mm512_add_ps, _mm512_broadcastq_epi64, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_movehdup_ps, _mm512_moveldup_ps, _mm512_permutexvar_ps, _mm512_set1_ps,
    _mm512_setr_epi32, _mm512_setr_ps, _mm512_setzero_ps, _mm512_srlv_epi32, _mm512_storeu_ps,
};

use tidepool_types::RowFormat;

use super::{
    PoolFns, Rows, check, check_weights,
    scalar::{Codec, F16, F32, Int4, Int8},
};
use crate::isa::Isa;

/// Columns of one register.
const LANES: usize = 16;

/// The functions for `format` and `dim`; `None` when this CPU lacks the instructions. This is the only
/// way to them, which is what makes calling them safe.
pub(super) fn fns(format: RowFormat, dim: usize) -> Option<PoolFns> {
    Isa::Avx512.is_available().then(|| match format {
        RowFormat::Int4 => of_dim::<Int4>(dim),
        RowFormat::Int8 => of_dim::<Int8>(dim),
        RowFormat::F16 => of_dim::<F16>(dim),
        RowFormat::F32 => of_dim::<F32>(dim),
    })
}

fn of_dim<C: WideCodec>(dim: usize) -> PoolFns {
    match dim {
        16 => of::<C, 1>(),
        32 => of::<C, 2>(),
        64 => of::<C, 4>(),
        128 => of::<C, 8>(),
        256 => of::<C, 16>(),
        _ => of::<C, 0>(),
    }
}

/// `GROUPS` registers hold a whole sum; 0 stands for any dimension.
fn of<C: WideCodec, const GROUPS: usize>() -> PoolFns {
    PoolFns {
        accumulate: accumulate::<C, GROUPS>,
        accumulate_weighted: accumulate_weighted::<C, GROUPS>,
        dequantize: dequantize::<C, GROUPS>,
    }
}

/// A specialised function knows its dimension when it is compiled.
const fn known_dim<const GROUPS: usize>(dim: usize) -> usize {
    if GROUPS == 0 { dim } else { GROUPS * LANES }
}

fn accumulate<C: WideCodec, const GROUPS: usize>(dim: usize, rows: Rows<'_>, acc: &mut [f32]) {
    check(C::FORMAT, known_dim::<GROUPS>(dim), rows.now, acc);
    // SAFETY: `fns` gave this function out after it saw the features; the lengths were just checked.
    unsafe { pool::<C, false, GROUPS>(rows, &[], acc) }
}

fn accumulate_weighted<C: WideCodec, const GROUPS: usize>(
    dim: usize,
    rows: Rows<'_>,
    weights: &[f32],
    acc: &mut [f32],
) {
    check(C::FORMAT, known_dim::<GROUPS>(dim), rows.now, acc);
    check_weights(rows.now, weights);
    // SAFETY: `fns` gave this function out after it saw the features; the lengths were just checked.
    unsafe { pool::<C, true, GROUPS>(rows, weights, acc) }
}

fn dequantize<C: WideCodec, const GROUPS: usize>(dim: usize, row: &[u8], out: &mut [f32]) {
    check(C::FORMAT, known_dim::<GROUPS>(dim), &[row], out);
    // SAFETY: `fns` gave this function out after it saw the features; the lengths were just checked.
    unsafe { read_row::<C, GROUPS>(row, out) }
}

/// How sixteen elements of a row are read at once.
trait WideCodec: Codec {
    /// What decodes the elements of one row.
    type Decoder: Copy;

    /// The decoder of `row`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL; `row` is long enough for `dim` columns.
    unsafe fn decoder(row: &[u8], dim: usize) -> Self::Decoder;

    /// The values of the sixteen columns from `column` on, in this codec's order of lanes.
    ///
    /// # Safety
    /// As [`decoder`](Self::decoder); `row` is long enough for `column + 16` columns, and `column` is a
    /// multiple of 16.
    unsafe fn sixteen(row: &[u8], column: usize, decoder: Self::Decoder) -> __m512;

    /// As [`sixteen`](Self::sixteen) where only `count` columns are left, 1 to 15 of them. The lanes of
    /// the others hold anything.
    ///
    /// # Safety
    /// As [`sixteen`](Self::sixteen), but `row` need only be long enough for `column + count` columns.
    unsafe fn fewer(row: &[u8], column: usize, count: usize, decoder: Self::Decoder) -> __m512;

    /// From order of columns to this codec's order of lanes.
    ///
    /// # Safety
    /// As [`decoder`](Self::decoder).
    unsafe fn to_lanes(columns: __m512) -> __m512;

    /// And back.
    ///
    /// # Safety
    /// As [`decoder`](Self::decoder).
    unsafe fn to_columns(lanes: __m512) -> __m512;
}

impl WideCodec for Int4 {
    /// The values of the sixteen codes.
    type Decoder = __m512;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decoder(row: &[u8], dim: usize) -> __m512 {
        let at = dim.div_ceil(2);
        debug_assert!(at + 4 <= row.len());
        // SAFETY: scale and bias are the four bytes after the codes, and the row has them.
        let from = unsafe { row.as_ptr().add(at) };
        // SAFETY: four readable bytes; this read needs no alignment.
        let both = unsafe { from.cast::<i32>().read_unaligned() };
        let both = _mm512_cvtph_ps(_mm256_set1_epi32(both));
        let codes = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
        _mm512_fmadd_ps(codes, _mm512_moveldup_ps(both), _mm512_movehdup_ps(both))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sixteen(row: &[u8], column: usize, table: __m512) -> __m512 {
        debug_assert!(column / 2 + 8 <= row.len());
        // SAFETY: sixteen codes are eight bytes, and the row has them.
        let from = unsafe { row.as_ptr().add(column / 2) };
        // SAFETY: eight readable bytes; this load needs no alignment.
        let codes = unsafe { _mm_loadl_epi64(from.cast()) };
        look_up(codes, table)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn fewer(row: &[u8], column: usize, count: usize, table: __m512) -> __m512 {
        debug_assert!(column / 2 + count.div_ceil(2) <= row.len());
        // SAFETY: the row has these columns.
        let from = unsafe { row.as_ptr().add(column / 2) };
        // SAFETY: the mask leaves the bytes that hold `count` codes, and masked bytes are not read.
        let codes = unsafe { _mm_maskz_loadu_epi8(first(count.div_ceil(2)), from.cast()) };
        look_up(codes, table)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn to_lanes(columns: __m512) -> __m512 {
        let column_of_lane = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
        _mm512_permutexvar_ps(column_of_lane, columns)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn to_columns(lanes: __m512) -> __m512 {
        let lane_of_column = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        _mm512_permutexvar_ps(lane_of_column, lanes)
    }
}

/// The values of the sixteen nibbles in the low half of `codes`, in the order of lanes that this file
/// begins with.
#[inline]
#[target_feature(enable = "avx512f")]
fn look_up(codes: std::arch::x86_64::__m128i, table: __m512) -> __m512 {
    let shifts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_broadcastq_epi64(codes), shifts), table)
}

impl WideCodec for Int8 {
    /// Scale and bias in every lane.
    type Decoder = [__m512; 2];

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decoder(row: &[u8], dim: usize) -> [__m512; 2] {
        debug_assert!(dim + 8 <= row.len());
        // SAFETY: scale and bias are the eight bytes after the codes, and the row has them.
        let from = unsafe { row.as_ptr().add(dim) };
        // SAFETY: eight readable bytes, and any bits are two f32.
        let [scale, bias] = unsafe { from.cast::<[f32; 2]>().read_unaligned() };
        [_mm512_set1_ps(scale), _mm512_set1_ps(bias)]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sixteen(row: &[u8], column: usize, [scale, bias]: [__m512; 2]) -> __m512 {
        debug_assert!(column + LANES <= row.len());
        // SAFETY: sixteen codes are sixteen bytes, and the row has them.
        let from = unsafe { row.as_ptr().add(column) };
        // SAFETY: sixteen readable bytes; this load needs no alignment.
        let codes = unsafe { _mm_loadu_si128(from.cast()) };
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), scale, bias)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn fewer(row: &[u8], column: usize, count: usize, [scale, bias]: [__m512; 2]) -> __m512 {
        debug_assert!(column + count <= row.len());
        // SAFETY: the row has these columns.
        let from = unsafe { row.as_ptr().add(column) };
        // SAFETY: the mask leaves the bytes of `count` codes, and masked bytes are not read.
        let codes = unsafe { _mm_maskz_loadu_epi8(first(count), from.cast()) };
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), scale, bias)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn to_lanes(columns: __m512) -> __m512 {
        columns
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn to_columns(lanes: __m512) -> __m512 {
        lanes
    }
}

impl WideCodec for F16 {
    type Decoder = ();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decoder(_row: &[u8], _dim: usize) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sixteen(row: &[u8], column: usize, (): ()) -> __m512 {
        debug_assert!(2 * (column + LANES) <= row.len());
        // SAFETY: sixteen elements are 32 bytes, and the row has them.
        let from = unsafe { row.as_ptr().add(2 * column) };
        // SAFETY: 32 readable bytes; this load needs no alignment.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn fewer(row: &[u8], column: usize, count: usize, (): ()) -> __m512 {
        debug_assert!(2 * (column + count) <= row.len());
        // SAFETY: the row has these columns.
        let from = unsafe { row.as_ptr().add(2 * column) };
        // SAFETY: the mask leaves `count` elements, and masked elements are not read.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(first(count), from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn to_lanes(columns: __m512) -> __m512 {
        columns
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn to_columns(lanes: __m512) -> __m512 {
        lanes
    }
}

impl WideCodec for F32 {
    type Decoder = ();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decoder(_row: &[u8], _dim: usize) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sixteen(row: &[u8], column: usize, (): ()) -> __m512 {
        debug_assert!(4 * (column + LANES) <= row.len());
        // SAFETY: sixteen elements are 64 bytes, and the row has them.
        let from = unsafe { row.as_ptr().add(4 * column) };
        // SAFETY: 64 readable bytes; this load needs no alignment, and any bits are sixteen f32.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn fewer(row: &[u8], column: usize, count: usize, (): ()) -> __m512 {
        debug_assert!(4 * (column + count) <= row.len());
        // SAFETY: the row has these columns.
        let from = unsafe { row.as_ptr().add(4 * column) };
        // SAFETY: the mask leaves `count` elements, and masked elements are not read.
        unsafe { _mm512_maskz_loadu_ps(first(count), from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn to_lanes(columns: __m512) -> __m512 {
        columns
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn to_columns(lanes: __m512) -> __m512 {
        lanes
    }
}

/// Adds all rows to `acc`.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ and VL; each row is long enough for `acc.len()` columns; if `WEIGHTED`,
/// there is a weight for each; `acc` has `16 * GROUPS` columns, or any number when `GROUPS` is 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pool<C: WideCodec, const WEIGHTED: bool, const GROUPS: usize>(
    mut rows: Rows<'_>,
    weights: &[f32],
    acc: &mut [f32],
) {
    if GROUPS > 0 {
        // SAFETY: the caller's promises; this is the whole vector.
        unsafe { pool_block::<C, WEIGHTED, GROUPS>(0, GROUPS * LANES, rows, weights, acc) };
        return;
    }
    let dim = acc.len();
    let mut column = 0;
    while column + 16 * LANES <= dim {
        // SAFETY: the caller's promises, and 256 columns are left; blocks start at multiples of 16.
        unsafe { pool_block::<C, WEIGHTED, 16>(column, dim, rows, weights, acc) };
        rows.later = &[];
        column += 16 * LANES;
    }
    // Fewer than sixteen registers are left: eight, four, two and one make up any number of them.
    if column + 8 * LANES <= dim {
        // SAFETY: the caller's promises, and 128 columns are left.
        unsafe { pool_block::<C, WEIGHTED, 8>(column, dim, rows, weights, acc) };
        rows.later = &[];
        column += 8 * LANES;
    }
    if column + 4 * LANES <= dim {
        // SAFETY: the caller's promises, and 64 columns are left.
        unsafe { pool_block::<C, WEIGHTED, 4>(column, dim, rows, weights, acc) };
        rows.later = &[];
        column += 4 * LANES;
    }
    if column + 2 * LANES <= dim {
        // SAFETY: the caller's promises, and 32 columns are left.
        unsafe { pool_block::<C, WEIGHTED, 2>(column, dim, rows, weights, acc) };
        rows.later = &[];
        column += 2 * LANES;
    }
    if column + LANES <= dim {
        // SAFETY: the caller's promises, and 16 columns are left.
        unsafe { pool_block::<C, WEIGHTED, 1>(column, dim, rows, weights, acc) };
        rows.later = &[];
        column += LANES;
    }
    if column < dim {
        // SAFETY: the caller's promises, and 1 to 15 columns are left.
        unsafe { pool_rest::<C, WEIGHTED>(column, rows, weights, acc) };
    }
}

/// Adds `16 * GROUPS` columns of all rows, from `start` on.
///
/// # Safety
/// As [`pool`], for rows of `dim` columns; `start` is a multiple of 16 and `acc` has that many columns
/// from there on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pool_block<C: WideCodec, const WEIGHTED: bool, const GROUPS: usize>(
    start: usize,
    dim: usize,
    rows: Rows<'_>,
    weights: &[f32],
    acc: &mut [f32],
) {
    let mut sums = [_mm512_setzero_ps(); GROUPS];
    for (group, sum) in sums.iter_mut().enumerate() {
        // SAFETY: `acc` has the columns of this block.
        let columns = unsafe { load_columns(acc, start + LANES * group) };
        // SAFETY: the CPU has the features.
        *sum = unsafe { C::to_lanes(columns) };
    }
    for (at, row) in rows.now.iter().enumerate() {
        rows.ask(at, C::FORMAT, dim);
        // SAFETY: the caller's promises are this function's needs.
        let decoder = unsafe { C::decoder(row, dim) };
        let weight = if WEIGHTED { _mm512_set1_ps(weights[at]) } else { _mm512_setzero_ps() };
        for (group, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the row is long enough for `dim` columns, and these are among them.
            let values = unsafe { C::sixteen(row, start + LANES * group, decoder) };
            *sum = if WEIGHTED { _mm512_fmadd_ps(weight, values, *sum) } else { _mm512_add_ps(*sum, values) };
        }
    }
    for (group, sum) in sums.into_iter().enumerate() {
        // SAFETY: the CPU has the features.
        let columns = unsafe { C::to_columns(sum) };
        // SAFETY: `acc` has the columns of this block.
        unsafe { store_columns(columns, acc, start + LANES * group) };
    }
}

/// Adds the last columns of all rows, from `start` on: fewer than sixteen.
///
/// # Safety
/// As [`pool`]; `start` is a multiple of 16 and `acc` has 1 to 15 columns from there on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pool_rest<C: WideCodec, const WEIGHTED: bool>(
    start: usize,
    rows: Rows<'_>,
    weights: &[f32],
    acc: &mut [f32],
) {
    let (dim, count) = (acc.len(), acc.len() - start);
    // SAFETY: `acc` begins at least `start` elements before its end.
    let at_start = unsafe { acc.as_mut_ptr().add(start) };
    // SAFETY: the mask leaves the columns that `acc` still has, and masked ones are not read.
    let columns = unsafe { _mm512_maskz_loadu_ps(first(count), at_start) };
    // SAFETY: the CPU has the features.
    let mut sum = unsafe { C::to_lanes(columns) };
    for (at, row) in rows.now.iter().enumerate() {
        rows.ask(at, C::FORMAT, dim);
        // SAFETY: the caller's promises are this function's needs.
        let decoder = unsafe { C::decoder(row, dim) };
        // SAFETY: the row is long enough for `dim` columns, and these are the last of them.
        let values = unsafe { C::fewer(row, start, count, decoder) };
        sum = if WEIGHTED {
            _mm512_fmadd_ps(_mm512_set1_ps(weights[at]), values, sum)
        } else {
            _mm512_add_ps(sum, values)
        };
    }
    // SAFETY: the CPU has the features.
    let columns = unsafe { C::to_columns(sum) };
    // SAFETY: as the load above; masked columns are not written.
    unsafe { _mm512_mask_storeu_ps(at_start, first(count), columns) };
}

/// Writes the values of `row` over `out`.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ and VL; `row` is long enough for `out.len()` columns, which are
/// `16 * GROUPS`, or any number when `GROUPS` is 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn read_row<C: WideCodec, const GROUPS: usize>(row: &[u8], out: &mut [f32]) {
    let dim = known_dim::<GROUPS>(out.len());
    // SAFETY: the caller's promises are this function's needs.
    let decoder = unsafe { C::decoder(row, dim) };
    let mut column = 0;
    while column + LANES <= dim {
        // SAFETY: the row has these sixteen columns, and the column is a multiple of 16.
        let values = unsafe { C::sixteen(row, column, decoder) };
        // SAFETY: the CPU has the features.
        let values = unsafe { C::to_columns(values) };
        // SAFETY: `out` has these columns too.
        unsafe { store_columns(values, out, column) };
        column += LANES;
    }
    if column < dim {
        let count = dim - column;
        // SAFETY: these are the last columns of the row, 1 to 15 of them.
        let values = unsafe { C::fewer(row, column, count, decoder) };
        // SAFETY: the CPU has the features.
        let values = unsafe { C::to_columns(values) };
        // SAFETY: `out` is at least `column` long.
        let to = unsafe { out.as_mut_ptr().add(column) };
        // SAFETY: the mask leaves the columns that `out` still has, and masked ones are not written.
        unsafe { _mm512_mask_storeu_ps(to, first(count), values) };
    }
}

/// A mask of the lowest `count` lanes, of at most fifteen.
#[inline]
const fn first(count: usize) -> __mmask16 {
    (1 << count) - 1
}

/// # Safety
/// The CPU has AVX-512 F; `columns` has 16 elements from `at` on.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_columns(columns: &[f32], at: usize) -> __m512 {
    debug_assert!(at + LANES <= columns.len());
    // SAFETY: within the slice, as the caller promises.
    let from = unsafe { columns.as_ptr().add(at) };
    // SAFETY: sixteen elements; this load needs no alignment.
    unsafe { _mm512_loadu_ps(from) }
}

/// # Safety
/// The CPU has AVX-512 F; `columns` has 16 elements from `at` on.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_columns(values: __m512, columns: &mut [f32], at: usize) {
    debug_assert!(at + LANES <= columns.len());
    // SAFETY: within the slice, as the caller promises.
    let to = unsafe { columns.as_mut_ptr().add(at) };
    // SAFETY: sixteen elements, which this function borrows for writing.
    unsafe { _mm512_storeu_ps(to, values) };
}
