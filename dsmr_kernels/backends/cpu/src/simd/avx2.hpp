// AVX2, FMA and F16C: 8 floats, 16 registers. Meaning of each name: scalar.hpp.
#pragma once

#include <immintrin.h>

#include "../types.hpp"

namespace dsmr::DSMR_ISA {

using Vec = __m256;
constexpr int WIDTH = 8;
constexpr int ACCUMULATORS = 12;
constexpr int KERNEL_VECS = 2;
constexpr bool HAS_PAIRS = false;

DSMR_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
DSMR_INLINE Vec load(const bf16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
DSMR_INLINE Vec load(const fp16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
DSMR_INLINE Vec load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// As fp16 the same bits, shifted, mean 2^-8 of the value; fp16 subnormals convert exactly whatever the flush mode.
DSMR_INLINE Vec load(const fp8* p) {
    const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m128i magnitude = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
    const __m128i sign = _mm_and_si128(wide, _mm_set1_epi16(int16_t(0x8000)));
    // 0x7f becomes the fp16 NaN 0x7fff, which all bits but the sign's make.
    const __m128i nan = _mm_srli_epi16(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), 1);
    const __m128i half = _mm_or_si128(_mm_or_si128(sign, nan), _mm_slli_epi16(magnitude, 7));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}
DSMR_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
DSMR_INLINE void store(bf16* p, Vec a) {
    const __m256i bits = _mm256_castps_si256(a), one = _mm256_set1_epi32(1);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
DSMR_INLINE void store(fp16* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
DSMR_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
DSMR_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
DSMR_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
DSMR_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
DSMR_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
DSMR_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
DSMR_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
DSMR_INLINE Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
DSMR_INLINE bool any_greater(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
DSMR_INLINE void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const Vec abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)); // per half: one sum of each, in order
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}
DSMR_INLINE float sum(Vec a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
DSMR_INLINE float largest(Vec a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
DSMR_INLINE void zip(Vec a, Vec b, Vec& first, Vec& second) {
    const Vec low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b); // a part of each half
    first = _mm256_permute2f128_ps(low, high, 0x20), second = _mm256_permute2f128_ps(low, high, 0x31);
}
DSMR_INLINE Vec scale_by_power(Vec p, Vec floor) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(floor), _mm256_set1_epi32(127));
    const Vec power = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    return _mm256_mul_ps(p, _mm256_and_ps(power, _mm256_cmp_ps(floor, broadcast(SMALLEST_EXPONENT), _CMP_NLE_UQ)));
}
DSMR_INLINE Vec take_fraction(Vec& x) {
    const Vec bounded = _mm256_max_ps(broadcast(SMALLEST_EXPONENT), x); // of a NaN and a number, the second operand
    x = _mm256_floor_ps(bounded);
    return _mm256_sub_ps(bounded, x);
}

} // namespace dsmr::DSMR_ISA

#include "exp2.hpp"
