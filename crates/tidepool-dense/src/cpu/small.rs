//! Products of two matrices that both change from row to row: the dot interaction of DLRM, attention, the mixing of
//! experts by their gates.

use super::{LANES, line::together, on_cpu};

/// The sizes and strides of one product, `out[i, j] = sum over k of a[i, k] * b[k, j]`, all in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Small {
    /// Rows of `a`, and the stride between them.
    pub(crate) m: usize,
    pub(crate) a_row: usize,
    /// Columns of `b`, and the stride between them; the columns of the result lie side by side.
    pub(crate) n: usize,
    pub(crate) b_column: usize,
    /// What is summed over, and its strides.
    pub(crate) k: usize,
    pub(crate) a_k: usize,
    pub(crate) b_k: usize,
    /// The stride between rows of the result.
    pub(crate) out_row: usize,
}

on_cpu! {
    /// Computes one product.
    small(shape: &Small, a: &[f32], b: &[f32], out: &mut [f32]) = small_body
}

#[inline(always)]
fn small_body(shape: &Small, a: &[f32], b: &[f32], out: &mut [f32]) {
    for i in 0..shape.m {
        let a = &a[i * shape.a_row..];
        let out = &mut out[i * shape.out_row..][..shape.n];
        if shape.b_column == 1 && shape.n > 1 {
            columns(shape, a, b, out);
        } else if shape.a_k == 1 && shape.b_k == 1 {
            for (j, out) in out.iter_mut().enumerate() {
                *out = dot(&a[..shape.k], &b[j * shape.b_column..][..shape.k]);
            }
        } else {
            for (j, out) in out.iter_mut().enumerate() {
                let b = &b[j * shape.b_column..];
                let terms = (0..shape.k).map(|k| (a[k * shape.a_k], b[k * shape.b_k]));
                *out = terms.fold(0.0, |sum: f32, (a, b)| a.mul_add(b, sum));
            }
        }
    }
}

/// Columns side by side: one number of `a` meets a block of `b`.
#[inline(always)]
fn columns(shape: &Small, a: &[f32], b: &[f32], out: &mut [f32]) {
    let mut blocks = out.chunks_exact_mut(LANES);
    let mut first = 0;
    for out in &mut blocks {
        let mut sums = [0.0f32; LANES];
        for k in 0..shape.k {
            let (x, b) = (a[k * shape.a_k], &b[k * shape.b_k + first..][..LANES]);
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = x.mul_add(b, *sum);
            }
        }
        out.copy_from_slice(&sums);
        first += LANES;
    }
    let rest = blocks.into_remainder();
    let mut sums = [0.0f32; LANES];
    for k in 0..shape.k {
        let (x, b) = (a[k * shape.a_k], &b[k * shape.b_k + first..][..rest.len()]);
        for (sum, &b) in sums.iter_mut().zip(b) {
            *sum = x.mul_add(b, *sum);
        }
    }
    rest.copy_from_slice(&sums[..rest.len()]);
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (mut a_blocks, mut b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in (&mut a_blocks).zip(&mut b_blocks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane = a.mul_add(*b, *lane);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_blocks.remainder().iter().zip(b_blocks.remainder())) {
        *lane = a.mul_add(*b, *lane);
    }
    together(lanes, |a, b| a + b)
}
