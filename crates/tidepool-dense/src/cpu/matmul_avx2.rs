//! The matrix product with AVX2: 6 rows by 16 columns at a time stay in 12 of the 16 registers.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "one argument covers all addresses of a tile")]

use std::arch::x86_64::{
    __m256, __m256i, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_maskload_ps, _mm256_maskstore_ps,
    _mm256_max_ps, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps,
};

use super::matmul::{Begin, Rows, Sums};

/// Rows at a time.
const TILE: usize = 6;
/// Columns of a register.
const WIDE: usize = 8;

/// Where a tile begins.
#[derive(Clone, Copy)]
struct Place {
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    /// What the sums start from, from row to row and in how many columns; the others start from 0.
    start: *const f32,
    start_row: usize,
    started: usize,
    /// What sums are at least.
    floor: f32,
    k: usize,
    /// Elements of the panel for each `k`.
    width: usize,
    columns: usize,
}

/// The sums of the product with one panel of 16 or 32 columns.
///
/// # Safety
/// The CPU has AVX2 and FMA. `rows` lies within `a` and, for `columns` columns, within `c`; a record that
/// sums start from has as many. The panel has `width` elements for each `k`, and `columns` is at most `width`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn panel(
    rows: Rows,
    a: &[f32],
    (panel, width): (&[f32], usize),
    c: &mut [f32],
    columns: usize,
    sums: Sums<'_>,
) {
    let k = panel.len() / width;
    let floor = if sums.relu { 0.0 } else { f32::NEG_INFINITY };
    // Columns two registers at a time: a panel has one or two such halves.
    for first in (0..columns).step_by(2 * WIDE) {
        let mut row = 0;
        while row < rows.count {
            let count = (rows.count - row).min(TILE);
            let a = a[row * rows.a_row..].as_ptr();
            let b = panel[first..].as_ptr();
            let c = c[row * rows.c_row + first..].as_mut_ptr();
            let columns = columns - first;
            let (start, start_row, started) = match sums.from(first).begin {
                Begin::Zero => (c.cast_const(), 0, 0),
                Begin::There => (c.cast_const(), rows.c_row, columns),
                Begin::Record(record) => (record.as_ptr(), 0, columns),
            };
            let place = Place { a, b, c, start, start_row, started, floor, k, width, columns };
            // SAFETY: `count` rows from here on lie within both sides, by the contract of this function.
            unsafe { tiles(rows, count, place) };
            row += count;
        }
    }
}

/// Chooses the code for so many rows.
///
/// # Safety
/// As [`panel`], for `count` rows from `place` on.
#[target_feature(enable = "avx2,fma")]
unsafe fn tiles(rows: Rows, count: usize, place: Place) {
    // SAFETY: each arm works on `count` rows at most, by the contract of this function.
    unsafe {
        match count {
            1 => tile::<1>(rows, place),
            2 => tile::<2>(rows, place),
            3 => tile::<3>(rows, place),
            4 => tile::<4>(rows, place),
            5 => tile::<5>(rows, place),
            _ => tile::<6>(rows, place),
        }
    }
}

/// All ones in the lanes below `columns`.
#[target_feature(enable = "avx2")]
fn mask(columns: usize) -> __m256i {
    let lane = |i: usize| if i < columns { -1 } else { 0 };
    _mm256_setr_epi32(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7))
}

/// `M` rows by two registers.
///
/// # Safety
/// As [`panel`], for `M` rows from `place` on.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize>(rows: Rows, place: Place) {
    let masks = |columns: usize| [mask(columns), mask(columns.saturating_sub(WIDE))];
    let (started, kept) = (masks(place.started), masks(place.columns));
    let mut sums: [[__m256; 2]; M] = [[_mm256_setzero_ps(); 2]; M];
    for (i, sums) in sums.iter_mut().enumerate() {
        for (v, sum) in sums.iter_mut().enumerate() {
            let start = place.start.wrapping_add(i * place.start_row + v * WIDE);
            // SAFETY: masked lanes are not read; the others lie in row `i` of the result, or in the record.
            *sum = unsafe { _mm256_maskload_ps(start, started[v]) };
        }
    }
    for k in 0..place.k {
        // SAFETY: a panel has at least two registers for each `k`, from either half on.
        let low = unsafe { _mm256_loadu_ps(place.b.add(k * place.width)) };
        // SAFETY: as above.
        let high = unsafe { _mm256_loadu_ps(place.b.add(k * place.width + WIDE)) };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row `i`, column `k` of the left side.
            let x = _mm256_set1_ps(unsafe { *place.a.add(i * rows.a_row + k * rows.a_k) });
            sums[0] = _mm256_fmadd_ps(x, low, sums[0]);
            sums[1] = _mm256_fmadd_ps(x, high, sums[1]);
        }
    }
    let floor = _mm256_set1_ps(place.floor);
    for (i, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            let c = place.c.wrapping_add(i * rows.c_row + v * WIDE);
            // The second operand is what comes out where one is NaN.
            let made = _mm256_max_ps(floor, *sum);
            // SAFETY: masked lanes are not written; the others lie in row `i` of the result.
            unsafe { _mm256_maskstore_ps(c, kept[v], made) };
        }
    }
}
