//! The quantizer compiled for AVX-512 F, BW, DQ and VL. Columns that do not fill a register are masked.
#![expect(unsafe_code, reason = "intrinsics that load and store take raw pointers")]

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _CMP_UNORD_Q, _mm_mask_storeu_epi8, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8,
    _mm512_cvtepi64_epi8, _mm512_fmadd_ps, _mm512_mask_max_ps, _mm512_mask_min_ps, _mm512_maskz_cvtps_epi32,
    _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_or_si512,
    _mm512_reduce_max_ps, _mm512_reduce_min_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi64,
    _mm512_sub_ps,
};

use tidepool_types::RowFormat;

use super::{Quantizer, Wide, int4};
use crate::QuantizeError;

const LANES: usize = 16;

/// Given out by [`function`](super::function) on CPUs that have these, and nowhere else.
pub(super) fn quantize(
    format: RowFormat,
    quantizer: Quantizer,
    values: &[f32],
    row: &mut [u8],
) -> Result<(), QuantizeError> {
    // SAFETY: `function` gave this function out after it saw the features.
    unsafe { compiled(format, quantizer, values, row) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn compiled(
    format: RowFormat,
    quantizer: Quantizer,
    values: &[f32],
    row: &mut [u8],
) -> Result<(), QuantizeError> {
    super::quantize(Avx512(()), format, quantizer, values, row)
}

/// Made by [`compiled`] only, and so proof of the features.
#[derive(Clone, Copy)]
struct Avx512(());

impl Wide for Avx512 {
    #[inline(always)]
    fn extremes(self, values: &[f32]) -> Option<[f32; 2]> {
        // SAFETY: `self` is proof of the features.
        unsafe { extremes(values) }
    }

    #[inline(always)]
    fn int4_codes(self, values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
        // SAFETY: `self` is proof of the features.
        unsafe { int4_codes(values, bias, inverse, codes) }
    }

    #[inline(always)]
    fn int8_codes(self, values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
        // SAFETY: `self` is proof of the features.
        unsafe { int8_codes(values, bias, inverse, codes) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn extremes(values: &[f32]) -> Option<[f32; 2]> {
    let mut lows = _mm512_set1_ps(f32::INFINITY);
    let mut highs = _mm512_set1_ps(f32::NEG_INFINITY);
    // A finite number times zero is a zero, any other is NaN, and a sum never loses a NaN.
    let mut zeros = _mm512_setzero_ps();
    for chunk in values.chunks(LANES) {
        let (values, mask) = load(chunk);
        lows = _mm512_mask_min_ps(lows, mask, values, lows);
        highs = _mm512_mask_max_ps(highs, mask, values, highs);
        zeros = _mm512_fmadd_ps(values, _mm512_setzero_ps(), zeros);
    }
    (_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(zeros, zeros) == 0)
        .then(|| [_mm512_reduce_min_ps(lows), _mm512_reduce_max_ps(highs)])
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn int4_codes(values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
    let (zero, top) = (_mm512_setzero_ps(), _mm512_set1_ps(int4::LEVELS));
    for (values, bytes) in values.chunks(LANES).zip(codes.chunks_mut(LANES / 2)) {
        let (scaled, mask) = scaled(values, bias, inverse);
        let codes = _mm512_maskz_cvtps_epi32(mask, _mm512_min_ps(_mm512_max_ps(scaled, zero), top));
        // A pair of codes is 64 bits: the upper one comes down to the four bits above the lower.
        let pairs = _mm512_or_si512(codes, _mm512_srli_epi64::<28>(codes));
        store(_mm512_cvtepi64_epi8(pairs), bytes);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn int8_codes(values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
    for (values, bytes) in values.chunks(LANES).zip(codes.chunks_mut(LANES)) {
        let (scaled, mask) = scaled(values, bias, inverse);
        let codes: __m512i = _mm512_maskz_cvtps_epi32(mask, scaled);
        store(_mm512_cvtepi32_epi8(codes), bytes);
    }
}

/// `(value - bias) * inverse`, and which lanes have a value.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn scaled(values: &[f32], bias: f32, inverse: f32) -> (__m512, __mmask16) {
    let (values, mask) = load(values);
    (_mm512_mul_ps(_mm512_sub_ps(values, _mm512_set1_ps(bias)), _mm512_set1_ps(inverse)), mask)
}

/// At most sixteen values, zeros after them, and which lanes have a value.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load(values: &[f32]) -> (__m512, __mmask16) {
    let mask = first(values.len());
    // SAFETY: the mask leaves the elements that the slice has, and masked ones are not read.
    (unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }, mask)
}

/// Writes the first bytes, as many as `to` has: at most sixteen.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn store(bytes: std::arch::x86_64::__m128i, to: &mut [u8]) {
    // SAFETY: the mask leaves the bytes that the slice has, and masked ones are not written.
    unsafe { _mm_mask_storeu_epi8(to.as_mut_ptr().cast(), first(to.len()), bytes) };
}

/// A mask of the lowest `count` lanes, of at most sixteen.
#[inline]
fn first(count: usize) -> __mmask16 {
    debug_assert!(count <= LANES);
    ((1u32 << count) - 1) as __mmask16
}
