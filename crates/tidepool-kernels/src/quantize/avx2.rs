//! The quantizer compiled for AVX2, FMA and F16C. Columns that do not fill registers are the reference's.
#![expect(unsafe_code, reason = "intrinsics that load and store take raw pointers")]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm_cvtph_ps, _mm_cvtps_ph,
    _mm_cvtsi128_si32, _mm_cvtss_f32, _mm_packus_epi16, _mm_packus_epi32, _mm_set_ss, _mm_storel_epi64,
    _mm_storeu_si128, _mm_unpackhi_epi64, _mm_unpacklo_epi64, _mm_unpacklo_ps, _mm256_castsi256_si128,
    _mm256_cmp_ps, _mm256_cvtps_epi32, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_madd_epi16, _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps, _mm256_mul_ps, _mm256_packs_epi32,
    _mm256_permute4x64_epi64, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    _mm256_sub_ps,
};

use tidepool_types::RowFormat;

use super::{Quantizer, Reference, Wide, int4};
use crate::QuantizeError;

const LANES: usize = 8;

/// Given out by [`function`](super::function) on CPUs that have AVX2, FMA and F16C, and nowhere else.
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
#[target_feature(enable = "avx2,fma,f16c")]
fn int4_min_max(values: &[f32], row: &mut [u8]) -> Result<(), QuantizeError> {
    super::quantize(Avx2(()), RowFormat::Int4, Quantizer::MinMax, values, row)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn compiled(
    format: RowFormat,
    quantizer: Quantizer,
    values: &[f32],
    row: &mut [u8],
) -> Result<(), QuantizeError> {
    super::quantize(Avx2(()), format, quantizer, values, row)
}

/// Made by functions with these features only, and so proof of the features.
#[derive(Clone, Copy)]
struct Avx2(());

impl Wide for Avx2 {
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
#[target_feature(enable = "avx2,fma,f16c")]
fn extremes(values: &[f32]) -> Option<[f32; 2]> {
    let mut lows = _mm256_set1_ps(f32::INFINITY);
    let mut highs = _mm256_set1_ps(f32::NEG_INFINITY);
    // A finite number times zero is a zero, any other is NaN, and a sum never loses a NaN.
    let mut zeros = _mm256_setzero_ps();
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        let values = load(chunk);
        lows = _mm256_min_ps(values, lows);
        highs = _mm256_max_ps(values, highs);
        zeros = _mm256_fmadd_ps(values, _mm256_setzero_ps(), zeros);
    }
    if _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(zeros, zeros)) != 0 {
        return None;
    }
    let [mut min, mut max] = Reference.extremes(rest)?;
    for low in stored(lows) {
        min = if low < min { low } else { min };
    }
    for high in stored(highs) {
        max = if high > max { high } else { max };
    }
    Some([min, max])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn round_to_half(x: f32) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(x))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half_bytes(x: f32, y: f32) -> [u8; 4] {
    let both = _mm_unpacklo_ps(_mm_set_ss(x), _mm_set_ss(y));
    _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(both)).to_le_bytes()
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn int4_codes(values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
    let (wide_values, rest_values) = values.as_chunks::<{ 2 * LANES }>();
    let (wide_codes, rest_codes) = codes.split_at_mut(wide_values.len() * LANES);
    let (zero, top) = (_mm256_setzero_ps(), _mm256_set1_ps(int4::LEVELS));
    for (values, bytes) in wide_values.iter().zip(wide_codes.as_chunks_mut().0) {
        let [a, b] = scaled(values, bias, inverse).map(|x| _mm256_min_ps(_mm256_max_ps(x, zero), top));
        let words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
        // Each pair of 16-bit codes becomes low + 16 * high; per half: two pairs of `a`, two of `b`.
        let pairs = _mm256_madd_epi16(words, _mm256_set1_epi32(0x0010_0001));
        let [low, high] = halves(pairs);
        let words = _mm_packus_epi32(_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high));
        store_8(_mm_packus_epi16(words, words), bytes);
    }
    Reference.int4_codes(rest_values, bias, inverse, rest_codes);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn int8_codes(values: &[f32], bias: f32, inverse: f32, codes: &mut [u8]) {
    let (wide_values, rest_values) = values.as_chunks::<{ 2 * LANES }>();
    let (wide_codes, rest_codes) = codes.split_at_mut(wide_values.len() * 2 * LANES);
    for (values, bytes) in wide_values.iter().zip(wide_codes.as_chunks_mut().0) {
        let [a, b] = scaled(values, bias, inverse);
        let words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
        // Packing goes by halves: put the quarters of `a` and `b` back together.
        let [low, high] = halves(_mm256_permute4x64_epi64::<0b11_01_10_00>(words));
        store_16(_mm_packus_epi16(low, high), bytes);
    }
    Reference.int8_codes(rest_values, bias, inverse, rest_codes);
}

/// `(value - bias) * inverse`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scaled(values: &[f32; 2 * LANES], bias: f32, inverse: f32) -> [__m256; 2] {
    let (bias, inverse) = (_mm256_set1_ps(bias), _mm256_set1_ps(inverse));
    let (halves, _) = values.as_chunks::<LANES>();
    [
        _mm256_mul_ps(_mm256_sub_ps(load(&halves[0]), bias), inverse),
        _mm256_mul_ps(_mm256_sub_ps(load(&halves[1]), bias), inverse),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn halves(words: __m256i) -> [__m128i; 2] {
    [_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(values: &[f32; LANES]) -> __m256 {
    // SAFETY: eight readable elements; this load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn stored(lanes: __m256) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    // SAFETY: eight writable elements; this store needs no alignment.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), lanes) };
    values
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_8(bytes: __m128i, to: &mut [u8; 8]) {
    // SAFETY: eight writable bytes; this store needs no alignment.
    unsafe { _mm_storel_epi64(to.as_mut_ptr().cast(), bytes) };
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_16(bytes: __m128i, to: &mut [u8; 16]) {
    // SAFETY: sixteen writable bytes; this store needs no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), bytes) };
}
