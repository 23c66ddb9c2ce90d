//! The matrix product with AVX-512: 12 rows by 32 columns at a time stay in 24 of the 32 registers.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "one argument covers all addresses of a tile")]

use std::arch::x86_64::{
    __m512, __mmask16, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_max_ps, _mm512_set1_ps, _mm512_setzero_ps,
};

use super::matmul::{Begin, Rows, Sums};

/// Rows at a time.
const TILE: usize = 12;
/// Columns of a register.
const WIDE: usize = 16;

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
    columns: usize,
}

/// The sums of the product with one panel of 16 or 32 columns.
///
/// # Safety
/// The CPU has AVX-512 F. `rows` lies within `a` and, for `columns` columns, within `c`; a record that
/// sums start from has as many. The panel has `width` elements for each `k`, and `columns` is at most `width`.
#[target_feature(enable = "avx512f")]
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
    let mut row = 0;
    while row < rows.count {
        let count = (rows.count - row).min(TILE);
        let a = a[row * rows.a_row..].as_ptr();
        let c = c[row * rows.c_row..].as_mut_ptr();
        let (start, start_row, started) = match sums.begin {
            Begin::Zero => (c.cast_const(), 0, 0),
            Begin::There => (c.cast_const(), rows.c_row, columns),
            Begin::Record(record) => (record.as_ptr(), 0, columns),
        };
        let place = Place { a, b: panel.as_ptr(), c, start, start_row, started, floor, k, columns };
        // SAFETY: `count` rows from here on lie within both sides, by the contract of this function.
        unsafe { if width == WIDE { tiles::<1>(rows, count, place) } else { tiles::<2>(rows, count, place) } }
        row += count;
    }
}

/// Chooses the code for so many rows.
///
/// # Safety
/// As [`panel`], for `count` rows from `place` on and `V` registers of columns.
#[target_feature(enable = "avx512f")]
unsafe fn tiles<const V: usize>(rows: Rows, count: usize, place: Place) {
    // SAFETY: each arm works on `count` rows at most, by the contract of this function.
    unsafe {
        match count {
            1 => tile::<1, V>(rows, place),
            2 => tile::<2, V>(rows, place),
            3 => tile::<3, V>(rows, place),
            4 => tile::<4, V>(rows, place),
            5 => tile::<5, V>(rows, place),
            6 => tile::<6, V>(rows, place),
            7 => tile::<7, V>(rows, place),
            8 => tile::<8, V>(rows, place),
            9 => tile::<9, V>(rows, place),
            10 => tile::<10, V>(rows, place),
            11 => tile::<11, V>(rows, place),
            _ => tile::<12, V>(rows, place),
        }
    }
}

/// The lanes of register `v` that are below `columns`.
fn mask(columns: usize, v: usize) -> __mmask16 {
    let lanes = columns.saturating_sub(v * WIDE).min(WIDE);
    ((1u32 << lanes) - 1) as __mmask16
}

/// `M` rows by `V` registers.
///
/// # Safety
/// As [`panel`], for `M` rows from `place` on.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const M: usize, const V: usize>(rows: Rows, place: Place) {
    let mut sums: [[__m512; V]; M] = [[_mm512_setzero_ps(); V]; M];
    for (i, sums) in sums.iter_mut().enumerate() {
        for (v, sum) in sums.iter_mut().enumerate() {
            let start = place.start.wrapping_add(i * place.start_row + v * WIDE);
            // SAFETY: masked lanes are not read; the others lie in row `i` of the result, or in the record.
            *sum = unsafe { _mm512_maskz_loadu_ps(mask(place.started, v), start) };
        }
    }
    for k in 0..place.k {
        let mut b: [__m512; V] = [_mm512_setzero_ps(); V];
        for (v, b) in b.iter_mut().enumerate() {
            // SAFETY: the panel has `V` registers for each `k`.
            *b = unsafe { _mm512_loadu_ps(place.b.add((k * V + v) * WIDE)) };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row `i`, column `k` of the left side.
            let x = _mm512_set1_ps(unsafe { *place.a.add(i * rows.a_row + k * rows.a_k) });
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = _mm512_fmadd_ps(x, b, *sum);
            }
        }
    }
    let floor = _mm512_set1_ps(place.floor);
    for (i, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            let c = place.c.wrapping_add(i * rows.c_row + v * WIDE);
            // The second operand is what comes out where one is NaN.
            let made = _mm512_max_ps(floor, *sum);
            // SAFETY: masked lanes are not written; the others lie in row `i` of the result.
            unsafe { _mm512_mask_storeu_ps(c, mask(place.columns, v), made) };
        }
    }
}
