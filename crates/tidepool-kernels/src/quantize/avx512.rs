//! The quantizer compiled for AVX-512 F, BW, DQ and VL. Columns that do not fill a register are masked.
#![expect(unsafe_code, reason = "intrinsics that load and store take raw pointers")]

use std::arch::x86_64::{
    __m128i, __m512, __mmask16, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm_cvtph_ps, _mm_cvtps_ph,
    _mm_cvtsi128_si32, _mm_cvtss_f32, _mm_mask_storeu_epi8, _mm_set_ss, _mm_storel_epi64, _mm_unpacklo_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8, _mm512_cvtepi64_epi8, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_max_ps, _mm512_mask_min_ps, _mm512_maskz_cvtps_epi32, _mm512_maskz_loadu_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_reduce_max_ps, _mm512_reduce_min_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi64, _mm512_sub_ps,
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
    if let (RowFormat::Int4, Quantizer::MinMax) = (format, quantizer) {
        // SAFETY: `function` gave this function out after it saw the features.
        return unsafe { int4_min_max(values, row) };
    }
    // SAFETY: as above.
    unsafe { compiled(format, quantizer, values, row) }
}

/// [`compiled`] for what is asked for most: alone it is short, and rows overlap in the CPU.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn int4_min_max(values: &[f32], row: &mut [u8]) -> Result<(), QuantizeError> {
    super::quantize(Avx512(()), RowFormat::Int4, Quantizer::MinMax, values, row)
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

/// Made by functions with these features only, and so proof of the features.
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
    fn round_to_half(self, x: f32) -> f32 {
        // SAFETY: `self` is proof of the features.
        unsafe { round_to_half(x) }
    }

    #[inline(always)]
    fn half_bytes(self, x: f32, y: f32) -> [u8; 4] {
        // SAFETY: `self` is proof of the features.
        unsafe { half_bytes(x, y) }
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
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        let values = load_all(chunk);
        lows = _mm512_min_ps(values, lows);
        highs = _mm512_max_ps(values, highs);
        zeros = _mm512_fmadd_ps(values, _mm512_setzero_ps(), zeros);
    }
    if !rest.is_empty() {
        let (values, mask) = load(rest);
        lows = _mm512_mask_min_ps(lows, mask, values, lows);
        highs = _mm512_mask_max_ps(highs, mask, values, highs);
        zeros = _mm512_fmadd_ps(values, _mm512_setzero_ps(), zeros);
    }
    (_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(zeros, zeros) == 0)
        .then(|| [_mm512_reduce_min_ps(lows), _mm512_reduce_max_ps(highs)])
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn round_to_half(x: f32) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(x))))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn half_bytes(x: f32, y: f32) -> [u8; 4] {
    let both = _mm_unpacklo_ps(_mm_set_ss(x), _mm_set_ss(y));
    _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(both)).to_le_bytes()
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn int4_codes(values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
    let (wide_values, rest_values) = values.as_chunks::<LANES>();
    let (wide_codes, rest_codes) = codes.split_at_mut(wide_values.len() * LANES / 2);
    for (values, bytes) in wide_values.iter().zip(wide_codes.as_chunks_mut().0) {
        store_8(int4_packed(load_all(values), __mmask16::MAX, bias, inverse), bytes);
    }
    if !rest_values.is_empty() {
        let (values, mask) = load(rest_values);
        store(int4_packed(values, mask, bias, inverse), rest_codes);
    }
}

/// The codes of sixteen values, zeros where the mask has none, two in a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn int4_packed(values: __m512, mask: __mmask16, bias: f32, inverse: f32) -> __m128i {
    let scaled = scaled(values, bias, inverse);
    let clamped = _mm512_min_ps(_mm512_max_ps(scaled, _mm512_setzero_ps()), _mm512_set1_ps(int4::LEVELS));
    let codes = _mm512_maskz_cvtps_epi32(mask, clamped);
    // A pair of codes is 64 bits: the upper one comes down to the four bits above the lower.
    _mm512_cvtepi64_epi8(_mm512_or_si512(codes, _mm512_srli_epi64::<28>(codes)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn int8_codes(values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
    for (values, bytes) in values.chunks(LANES).zip(codes.chunks_mut(LANES)) {
        let (values, mask) = load(values);
        let codes = _mm512_maskz_cvtps_epi32(mask, scaled(values, bias, inverse));
        store(_mm512_cvtepi32_epi8(codes), bytes);
    }
}

/// `(value - bias) * inverse`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn scaled(values: __m512, bias: f32, inverse: f32) -> __m512 {
    _mm512_mul_ps(_mm512_sub_ps(values, _mm512_set1_ps(bias)), _mm512_set1_ps(inverse))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_all(values: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen readable elements; this load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// At most sixteen values, zeros after them, and which lanes have a value.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load(values: &[f32]) -> (__m512, __mmask16) {
    let mask = first(values.len());
    // SAFETY: the mask leaves the elements that the slice has, and masked ones are not read.
    (unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }, mask)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn store_8(bytes: __m128i, to: &mut [u8; LANES / 2]) {
    // SAFETY: eight writable bytes; this store needs no alignment.
    unsafe { _mm_storel_epi64(to.as_mut_ptr().cast(), bytes) };
}

/// Writes the first bytes, as many as `to` has: at most sixteen.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn store(bytes: __m128i, to: &mut [u8]) {
    // SAFETY: the mask leaves the bytes that the slice has, and masked ones are not written.
    unsafe { _mm_mask_storeu_epi8(to.as_mut_ptr().cast(), first(to.len()), bytes) };
}

/// A mask of the lowest `count` lanes, of at most sixteen.
#[inline]
fn first(count: usize) -> __mmask16 {
    debug_assert!(count <= LANES);
    ((1u32 << count) - 1) as __mmask16
}
